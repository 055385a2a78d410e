//! The binding principles, each with a check that fails when it is broken.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::{SetWhenDropped, TWO_OF_ONE_NAME, account, host, id, psql, serves, without_asterisk};
use support::inotify::Observer;
use support::portal::Settings;
use support::sipp::{Called, Phones};
use support::{Asterisk, Portal, Postgres};

#[test]
fn file_based_asterisk_needs_neither_the_portal_nor_its_database() {
    let (asterisk, portal) = host();
    let (number, secret) = account(&portal.create_user("Alice", "alice@example.com"));
    portal.apply("suite");
    fs::remove_dir_all(portal.data_dir()).expect("remove the database");
    drop(portal);
    asterisk.restart();
    assert!(serves(&asterisk, &number));
    Phones::register(&asterisk, &[(&number, &secret)], Called::Answer);
}

#[test]
fn isolated_and_explicit_only_an_apply_writes_and_only_two_files() {
    let (asterisk, portal) = host();
    let observer = Observer::of(&asterisk.etc());
    let user = portal.create_user("Alice", "alice@example.com");
    portal.create_user("Bob", "bob@example.com");
    portal.users();
    portal.delete_user(id(&user));
    portal.request("POST", "/users", Some(&json!({"name": ""})));
    assert_eq!(observer.written(), BTreeSet::new(), "creates, lists and deletes write nothing");

    portal.apply("suite");
    portal.delete_user(id(&portal.users()[0]));
    portal.create_user("Carol", "carol@example.com");
    portal.create_user("Dave", "dave@example.com");
    portal.apply("suite");
    let beside = |target: PathBuf, names: &[&str]| {
        let beside: Vec<_> = names.iter().map(|name| target.with_file_name(name)).collect();
        std::iter::once(target).chain(beside).collect::<Vec<_>>()
    };
    let endpoints = beside(
        asterisk.endpoints_file(),
        &[".generated_endpoints.conf.final.tmp", ".generated_endpoints.conf.take-away.tmp", ".pbx-portal.lock"],
    );
    let routing = beside(asterisk.routing_file(), &[".generated_routing.conf.final.tmp"]);
    assert_eq!(observer.written(), endpoints.into_iter().chain(routing).collect());
    for folder in [asterisk.endpoints_file(), asterisk.routing_file()].map(|file| file.with_file_name("")) {
        let left: Vec<_> = fs::read_dir(folder).expect("list").map(|entry| entry.expect("list").file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    }
}

#[test]
fn atomic_a_reader_never_sees_half_a_file() {
    let (asterisk, portal) = host();
    for index in 0..100 {
        portal.create_user(&format!("User {index}"), &format!("user{index}@example.com"));
    }
    portal.apply("suite");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut readings, mut versions) = (0, BTreeSet::new());
            while !done.load(Ordering::Relaxed) {
                let endpoints = fs::read_to_string(asterisk.endpoints_file()).expect("there is always a file");
                let routing = fs::read_to_string(asterisk.routing_file()).expect("there is always a file");
                let count = |text: &str, line: &str| text.lines().filter(|l| l.starts_with(line)).count();
                let users = count(&endpoints, "type=endpoint");
                assert!(users >= 90 && endpoints.ends_with("qualify_frequency=60\n"), "half a file of endpoints");
                assert_eq!((count(&endpoints, "password="), count(&endpoints, "max_contacts=")), (users, users));
                let routed = count(&routing, "exten => ");
                assert!(
                    routed >= 80 && routing.ends_with("?17:19)})\n") && count(&routing, " same => ") == routed,
                    "half a file of routing"
                );
                readings += 1;
                versions.insert(endpoints);
            }
            (readings, versions.len())
        });
        let read = SetWhenDropped(&done);
        for user in portal.users().iter().take(10) {
            portal.delete_user(id(user));
            portal.apply("suite");
        }
        drop(read);
        let (readings, versions) = reading.join().expect("no half file");
        assert!(readings > 100 && versions > 5, "{readings} readings of {versions} versions");
    });
}

#[test]
fn strict_scope_four_operations_and_no_frontend() {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).expect("JSON");
    let mut operations = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        operations.extend(
            methods.as_object().expect("methods").keys().map(|method| format!("{} {path}", method.to_uppercase())),
        );
    }
    let four = ["POST /users", "GET /users", "DELETE /users/{id}", "POST /apply"];
    assert_eq!(operations, four.map(str::to_owned).into());

    // What answers at all is these, whatever the document says.
    let portal = Portal::start(&without_asterisk());
    let user = portal.create_user("Alice", "alice@example.com");
    let own = format!("/users/{}", id(&user));
    let mut answering = BTreeSet::new();
    let guesses = [
        "/",
        "/index.html",
        "/users",
        "/users/",
        own.as_str(),
        "/apply",
        "/apply/",
        "/health",
        "/metrics",
        "/login",
        "/audit",
        "/extensions",
        "/tenants",
        "/admin",
        "/api",
        "/static/app.js",
    ];
    for path in guesses {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
            let answer = portal.request(method, path, (method == "POST").then_some(&json!({})));
            if !matches!(answer.status, 404 | 405) {
                answering.insert(format!("{method} {}", path.replace(&own, "/users/{id}")));
            }
            assert!(answer.headers["content-type"].starts_with("application/json"), "{method} {path} is no page");
        }
    }
    assert_eq!(answering, four.map(str::to_owned).into());
}

#[test]
fn no_secret_is_in_a_log_an_error_an_audit_row_or_a_process_list() {
    let asterisk = Asterisk::start();
    let url = Postgres::database();
    let settings = Settings::of(&asterisk)
        .with("DATABASE_URL", &url)
        .with("PORTAL_API_TOKEN", "t0ken-t0ken")
        .with("LOG_LEVEL", "trace");
    let portal = Portal::start(&settings);
    let done = AtomicBool::new(false);
    let mut secrets = vec!["t0ken-t0ken".to_owned(), "portal:portal@".to_owned()];
    let mut told = String::new();
    let command_lines = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut command_lines = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").expect("list").flatten() {
                    let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                    command_lines.insert(String::from_utf8_lossy(&line).replace('\0', " "));
                }
                // Each of an apply's programs lives longer.
                std::thread::sleep(Duration::from_millis(1));
            }
            command_lines
        });
        let watched = SetWhenDropped(&done);
        for round in 0..5 {
            let user = portal.create_user("Alice", &format!("alice{round}@example.com"));
            secrets.push(account(&user).1);
            told += &portal.apply("suite").to_string();
        }
        asterisk.edit_config("pjsip.conf", |text| format!("{text}{TWO_OF_ONE_NAME}"));
        let deleted = portal.delete_user(id(&portal.users()[0]));
        secrets.push(account(&portal.create_user("Bob", "bob@example.com")).1);
        let failed = portal.request("POST", "/apply", Some(&json!({"triggered_by": "suite"})));
        assert_eq!(failed.status, 500, "{}", failed.text);
        told += &failed.text;
        told += &deleted.to_string();
        told += &portal.request("POST", "/users", Some(&json!({"name": "Bob", "email": "bob@example.com"}))).text;
        drop(watched);
        watching.join().expect("the process list")
    });
    assert!(command_lines.iter().any(|line| line.contains("-rx pjsip reload")), "the watcher saw a reload");
    let audit = psql(&url, "SELECT row_to_json(a)::text FROM apply_audit_logs a");
    assert!(audit.contains("pjsip_reload"), "{audit}");
    let command_lines = command_lines.into_iter().collect::<Vec<_>>().join("\n");
    for secret in &secrets {
        for (place, text) in [("the log", &portal.log()), ("an answer", &told), ("the audit log", &audit)] {
            assert!(!text.contains(secret.as_str()), "{secret} is in {place}");
        }
        // The phones and psql of the lab are started with theirs.
        let ours = command_lines.lines().filter(|line| line.contains("pbx-portal") || line.contains("-rx"));
        assert!(!ours.collect::<String>().contains(secret.as_str()), "{secret} is in the process list");
    }
}
