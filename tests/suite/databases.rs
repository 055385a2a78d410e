//! PostgreSQL and SQLite: migrations over rows, TLS, and a database that is not there.

use std::time::Instant;

use serde_json::json;

use crate::fixtures::{account, psql, sqlite_file};
use crate::support::portal::{Settings, run};
use crate::support::postgres::Options;
use crate::support::{Asterisk, Portal, Postgres, secs};

#[test]
fn migrations_run_twice_and_from_two_processes_at_once_and_keep_rows() {
    let folder = crate::support::lab::Folder::new("migrations");
    let crate::support::lab::User(owner) = crate::support::lab::PORTAL;
    let data = folder.path().join("data");
    crate::support::lab::make_dir(&data, owner, owner, 0o700);
    let file = data.join("portal.db");
    let postgres = Postgres::database();
    let asterisk = Asterisk::start();
    for url in [postgres.clone(), format!("sqlite://{}", file.display())] {
        let settings = Settings::of(&asterisk).with("DATABASE_URL", &url);
        std::thread::scope(|scope| {
            let migrating: Vec<_> = (0..4).map(|_| scope.spawn(|| run(&["migrate"], &settings))).collect();
            for output in migrating.into_iter().map(|thread| thread.join().expect("an end")) {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        });
        let created = Portal::start(&settings).create_user("Alice", "alice@example.com");
        assert!(run(&["migrate"], &settings).status.success());
        assert_eq!(Portal::start(&settings).users(), [created]);
    }
    let tables = "apply_audit_logs extensions tenants users";
    let list = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '\\_%'";
    assert_eq!(psql(&postgres, list), tables);
    let list = "SELECT group_concat(name, ' ') FROM (SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\' ORDER BY name)";
    assert_eq!(sqlite_file(&file, list), tables);
    let tenant = "SELECT id || ' ' || name FROM tenants";
    for found in [psql(&postgres, tenant), sqlite_file(&file, tenant)] {
        assert_eq!(found, "a0000000-0000-0000-0000-000000000000 Default");
    }
}

#[test]
fn a_schema_of_a_newer_release_is_used_and_of_a_newer_major_version_refused() {
    let folder = crate::support::lab::Folder::new("schema");
    let crate::support::lab::User(owner) = crate::support::lab::PORTAL;
    crate::support::lab::make_dir(&folder.path().join("data"), owner, owner, 0o700);
    let file = folder.path().join("data/portal.db");
    let settings = Settings::default().with("DATABASE_URL", format!("sqlite://{}", file.display()));
    assert!(run(&["migrate"], &settings).status.success());
    let newer = |version: u16| {
        format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ({version}, 'newer', 1, x'00', 0)"
        )
    };
    sqlite_file(&file, &newer(1999));
    assert!(run(&["migrate"], &settings).status.success());
    sqlite_file(&file, &newer(2001));
    let refused = run(&["migrate"], &settings);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains("major version 2"), "{stderr}");
}

#[test]
fn postgres_over_tls_is_verified() {
    let cluster = Postgres::start(&Options {
        tls: true,
        hba: "hostssl all portal all scram-sha-256\nhostnossl all portal all reject\n".into(),
        ..Options::default()
    });
    let url = cluster.new_database();
    let asterisk = Asterisk::start();
    let ca = cluster.ca_file();
    let with = |parameters: &str| Settings::of(&asterisk).with("DATABASE_URL", format!("{url}?{parameters}"));
    let portal = Portal::start(&with(&format!("sslmode=verify-full&sslrootcert={}", ca.display())));
    portal.create_user("Alice", "alice@example.com");
    assert_eq!(
        cluster
            .admin("SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'portal'")
            .trim(),
        "t"
    );
    drop(portal);
    let stranger = Postgres::start(&Options { tls: true, ..Options::default() });
    let by_stranger = format!("sslmode=verify-full&sslrootcert={}", stranger.ca_file().display());
    for parameters in [by_stranger.as_str(), "sslmode=disable", "sslmode=verify-full&sslrootcert=/nowhere.pem"] {
        let refused = run(&["migrate"], &with(parameters));
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!((refused.status.code(), stderr.lines().count()), (Some(1), 1), "{parameters}: {stderr}");
        assert!(stderr.contains("the database can't be used") && !stderr.contains("portal:portal"), "{stderr}");
    }
}

#[test]
fn a_start_waits_for_one_that_is_not_up_yet() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    cluster.stop();
    let asterisk = Asterisk::start();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| Portal::start(&Settings::of(&asterisk).with("DATABASE_URL", &url)));
        std::thread::sleep(secs(2));
        cluster.boot();
        let portal = starting.join().expect("a portal");
        assert!(portal.log().contains("trying again"), "{}", portal.log());
        portal.create_user("Alice", "alice@example.com");
    });
}

#[test]
fn one_that_does_not_answer_is_a_503_within_five_seconds_and_recovers() {
    use crate::support::process::Signal;
    let cluster = Postgres::start(&Options::default());
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk).with("DATABASE_URL", cluster.new_database()));
    let user = portal.create_user("Alice", "alice@example.com");
    let unavailable = |what: &str| {
        let path = format!("/users/{}", user["id"].as_str().expect("an id"));
        let body = json!({"name": "Bob", "email": "bob@example.com"});
        let by = json!({"triggered_by": "suite"});
        for (method, path, body) in [
            ("POST", "/users", Some(&body)),
            ("GET", "/users", None),
            ("DELETE", path.as_str(), None),
            ("POST", "/apply", Some(&by)),
        ] {
            let started = Instant::now();
            let answer = portal.request(method, path, body);
            assert_eq!(
                (answer.status, answer.json["error"].as_str()),
                (503, Some("Database unavailable")),
                "{what}: {}",
                answer.text
            );
            assert!(started.elapsed() < secs(5), "{what}: {method} {path} took {:?}", started.elapsed());
        }
    };
    cluster.signal(Signal::STOP);
    unavailable("hung");
    cluster.signal(Signal::CONT);
    assert_eq!(portal.users().len(), 1, "it goes on where the database does");
    cluster.stop();
    unavailable("stopped");
    cluster.boot();
    assert_eq!(account(&portal.create_user("Bob", "bob2@example.com")).0, "1001");
    assert!(!portal.log().contains("portal:portal"), "no URL in the log");
}
