//! How the service connects to PostgreSQL: as whom, how often, over which TLS; and what it says of each that does not work.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

use crate::fixtures::{ALL, WRITES, recovers, unavailable, without_asterisk};
use support::lab::{Folder, PORTAL, write_file};
use support::pooler::{PgBouncer, Release, database_of};
use support::portal::{Settings, run};
use support::postgres::Options;
use support::{Portal, Postgres};

fn settings(url: &str) -> Settings {
    without_asterisk().with("DATABASE_URL", url)
}

/// Sixteen clients create ten users each; how many of the answers are no 201.
fn refused(portal: &Portal, round: &str) -> usize {
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..16 {
            let refused = &refused;
            scope.spawn(move || {
                for index in 0..10 {
                    let body = json!({"name": "User", "email": format!("{round}.{client}.{index}@example.com")});
                    let created = portal.request("POST", "/users", Some(&body)).status == 201;
                    refused.fetch_add(usize::from(!created), Ordering::Relaxed);
                }
            });
        }
    });
    refused.into_inner()
}

#[test]
fn fewer_connections_than_the_portal_wants_are_shared() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    let name = database_of(&url);
    let reset = format!("ALTER ROLE portal CONNECTION LIMIT -1; ALTER DATABASE {name} CONNECTION LIMIT -1");
    let pgbouncer = PgBouncer::start(Release::Tracking, &cluster, name, "max_client_conn = 2\n");
    for (round, limit, url, advice, log) in [
        (
            "role",
            "ALTER ROLE portal CONNECTION LIMIT",
            &url,
            "raise the role's CONNECTION LIMIT",
            "run: ALTER ROLE portal CONN",
        ),
        (
            "database",
            &format!("ALTER DATABASE {name} CONNECTION LIMIT"),
            &url,
            "raise its CONNECTION LIMIT",
            "run: ALTER DATABASE ",
        ),
        ("pgbouncer", "", &pgbouncer.url(name), "", ""),
    ] {
        let portal = Portal::start(&settings(url));
        if limit.is_empty() {
            assert_eq!(refused(&portal, round), 0, "{round}: {}", portal.log());
            break;
        }
        cluster.admin(&format!("{limit} 2"));
        let refusals = || cluster.log().matches("too many connections for").count();
        let before = refusals();
        assert_eq!(refused(&portal, round), 0, "{round}: {}", portal.log());
        // Each of its eight places asks once a minute at most.
        assert!(refusals() - before <= 8, "{round}: {}", cluster.log());
        cluster.admin(&format!("{limit} 0"));
        cluster.admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'portal'");
        unavailable(&portal, &ALL, advice);
        assert!(portal.log().contains(log), "{}", portal.log());
        reset.split("; ").for_each(|sql| _ = cluster.admin(sql));
        recovers(&portal, &format!("{round}@example.com"));
    }
}

#[test]
fn a_read_only_mode_that_ends_is_over_for_each_connection() {
    let cluster = Postgres::start(&Options { hba: "host all all 127.0.0.1/32 trust\n".into(), ..Options::default() });
    let url = cluster.new_database();
    let name = database_of(&url);
    let portal = Portal::start(&settings(&url));
    assert_eq!(refused(&portal, "before"), 0);
    // A session that is closed counts until the server has noticed that.
    cluster.admin("ALTER ROLE portal CONNECTION LIMIT 1");
    for (on, advice) in
        [("default_transaction_read_only = on", "is read-only"), ("search_path = nowhere", "lacks the portal's tables")]
    {
        cluster.admin(&format!("ALTER DATABASE {name} SET {on}"));
        cluster.admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'portal'");
        unavailable(&portal, &WRITES, advice);
        // Reads open sessions in that mode.
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| portal.request("GET", "/users", None));
            }
        });
        cluster.admin(&format!("ALTER DATABASE {name} RESET ALL"));
        portal.create_user("First", &format!("{}@example.com", &on[..6]));
        assert_eq!(refused(&portal, &on[..6]), 0, "after {on}: {}", portal.log());
    }
}

#[test]
fn a_url_without_a_user_means_the_one_who_runs_the_service() {
    let cluster = Postgres::start(&Options { hba: "local all root peer\n".into(), ..Options::default() });
    cluster.admin("CREATE ROLE root LOGIN");
    cluster.admin("CREATE DATABASE portal OWNER root");
    let (folder, port) = (cluster.sockets().display().to_string(), cluster.port());
    for url in [
        format!("postgres:///portal?host={folder}&port={port}"),
        format!("POSTGRESQL://{}:{port}/portal", folder.replace('/', "%2F")),
    ] {
        let portal = Portal::prepare(&settings(&url));
        portal.boot_as_root();
        portal.create_user("Alice", &format!("alice{}@example.com", portal.users().len()));
    }
    // One that is named stays.
    let checked = run(&["check"], &settings(&format!("postgres://nobody@/portal?host={folder}&port={port}")));
    assert!(String::from_utf8_lossy(&checked.stdout).contains(&format!("postgres://nobody@{folder}:{port}/portal")));
}

#[test]
fn what_libpq_would_use_and_the_service_ignores_is_logged() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    let folder = Folder::new("home");
    let file = folder.path().join("passwords");
    let settings = settings(&url.replace("portal:portal@", "portal@")).with("PGPASSFILE", file.display());
    let write = |mode| write_file(&file, PORTAL, mode, "*:*:*:portal:portal\n");
    write(0o644);
    let ignored = format!("{} is ignored, because others may read it; run: chmod 600", file.display());
    let refused = run(&["serve"], &settings);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains(&ignored), "{stderr}");
    write(0o600);
    let portal = Portal::start(&settings.with("PGSERVICE", "portal"));
    let log = portal.log();
    assert!(!log.contains(&ignored), "{log}");
    assert!(
        log.lines().any(|line| line.contains(" WARN ") && line.contains("PGSERVICE is ignored; set DATABASE_URL")),
        "{log}"
    );
    let report = String::from_utf8(portal.run(&["check"]).stdout).expect("a report");
    assert!(
        report.contains("WARN  the database ") && report.contains("-> PGSERVICE is ignored; set DATABASE_URL"),
        "{report}"
    );
}

/// What a start, `check` and a client hear of a certificate or of its files.
#[test]
fn each_thing_that_is_wrong_with_tls_is_named_with_what_to_do() {
    let cluster = Postgres::start(&Options { tls: true, ..Options::default() });
    let url = cluster.new_database();
    let (ca, server) = (cluster.ca_file(), cluster.file("server.crt"));
    let folder = Folder::new("files");
    let root = folder.path().join("root.pem");
    fs::copy(&ca, &root).expect("copy the authority's certificate");
    let settings = settings(&format!("{url}?sslmode=verify-full&sslrootcert={}", root.display()));
    let portal = Portal::start(&settings);
    portal.create_user("Alice", "alice@example.com");
    let hears = |what: &str, advice: &str| {
        cluster.restart();
        let logged = portal.log().len();
        unavailable(&portal, &ALL, advice);
        assert!(portal.log()[logged..].contains(what), "{what:?} in {}", &portal.log()[logged..]);
        let started = run(&["serve"], &settings);
        let stderr = String::from_utf8_lossy(&started.stderr).into_owned();
        assert_eq!((started.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
        let checked = String::from_utf8(run(&["check"], &settings).stdout).expect("a report");
        for text in [stderr, checked] {
            assert!(text.contains(what) && text.contains(advice), "{what:?} and {advice:?} in {text}");
        }
    };
    let self_signed = |more: &str| {
        cluster.certify(&format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -keyout server.key -out server.crt -subj /CN=HOST -addext subjectAltName=IP:127.0.0.1 {more}"
        ));
        fs::copy(&server, &root).expect("its own root");
    };
    cluster.certify(&Postgres::certificate("IP:127.0.0.1", -1));
    hears("xpired", "has expired: renew it");
    cluster.certify(&Postgres::certificate("DNS:elsewhere", 30));
    hears("not valid for name", "is of another host name");
    self_signed("");
    hears("CaUsedAsEndEntity", "-addext basicConstraints=critical,CA:FALSE; then give that as sslrootcert");
    // As the advice says.
    self_signed("-addext basicConstraints=critical,CA:FALSE");
    cluster.restart();
    recovers(&portal, "advised@example.com");
    fs::copy(&ca, &root).expect("another root");
    hears("UnknownIssuer", "set sslrootcert=FILE");

    let file = "TLS with the database's server does not work: look at the sslmode";
    let named = |wrong: &str| format!("sslrootcert={}{wrong}", root.display());
    fs::write(&root, "").expect("empty it");
    hears(&named(" is empty"), file);
    fs::write(&root, b"\x30\x82\x03\xff").expect("as DER");
    hears(&named(" is not in PEM form"), file);
    let malformed = fs::read_to_string(&ca).expect("a certificate").replace("MII", "MIJ");
    fs::write(&root, malformed).expect("damage it");
    hears(&named(" can't be used: "), file);
    fs::remove_file(&root).expect("remove it");
    hears(&named(" can't be read: No such file"), file);
    fs::copy(&server, &root).expect("its own root");
    recovers(&portal, "after@example.com");

    let plain = Postgres::start(&Options::default());
    let url = format!("{}?sslmode=require", plain.new_database());
    let refused = run(&["serve"], &without_asterisk().with("DATABASE_URL", url));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("set ssl = on in its postgresql.conf"), "{refused:?}");
    for parameters in [
        "sslmode=require&sslcert=/nowhere.crt&sslkey=/nowhere.key",
        "sslmode=require&sslcert=/dev/null&sslkey=/dev/null",
    ] {
        let url = format!("{}?{parameters}", cluster.new_database());
        let refused = run(&["serve"], &without_asterisk().with("DATABASE_URL", url));
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(stderr.contains("sslcert=/") && stderr.contains(file), "{stderr}");
    }
}

#[test]
fn an_address_that_nobody_answers_is_named() {
    let cluster = Postgres::start(&Options::default());
    let portal = Portal::start(&settings(&cluster.new_database()));
    cluster.stop();
    let address = format!("127.0.0.1:{}: Connection refused", cluster.port());
    unavailable(&portal, &ALL, "that its server is running");
    assert!(portal.log().contains(&address), "{}", portal.log());
    let report = String::from_utf8(portal.run(&["check"]).stdout).expect("a report");
    assert!(report.contains(&address), "{report}");
}
