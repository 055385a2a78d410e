//! A PostgreSQL that fails in every way: 503 within five seconds with what to do, and back again by itself.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fixtures::{ALL, WRITES, all_are_there, created_during, psql, recovers, unavailable, without_asterisk};
use crate::steps::{CONNECTS_AGAIN, MAYBE_WRITTEN};
use support::lab::SmallDisk;
use support::portal::{Settings, run};
use support::postgres::{Options, postgres_user, program};
use support::process::{Process, Signal};
use support::{Portal, Postgres, secs, wait_until};

fn settings(url: &str) -> Settings {
    without_asterisk().with("DATABASE_URL", url)
}

/// A session of somebody else, which sleeps after its SQL.
struct Session(Process);

impl Session {
    fn start(url: &str, sql: &str) -> Self {
        let mut psql = Command::new(program("psql"));
        psql.arg("--no-psqlrc").args(["--quiet", "--command", sql, "--command", "SELECT pg_sleep(600)"]).arg(url);
        Self(Process::start(&mut psql, Path::new("/dev/null")))
    }
}

#[test]
fn a_host_that_hangs_in_the_middle_of_a_write_holds_up_the_others_for_seconds() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    let [hung, other] = [(); 2].map(|()| Portal::start(&settings(&url)));
    let sessions = |that: &str| cluster.admin(&format!("SELECT count(*) FROM pg_stat_activity WHERE {that}"));
    let lock = "BEGIN; SELECT 1 FROM tenants FOR NO KEY UPDATE";
    let _holder = Session::start(&url, lock);
    wait_until(secs(20), "somebody holds the lock", || sessions("query LIKE '%pg_sleep(600)'") == "1");
    let user = json!({"name": "Alice", "email": "alice@example.com"});
    thread::scope(|scope| {
        let creating = scope.spawn(|| hung.request("POST", "/users", Some(&user)));
        wait_until(secs(4), "a create waits for the lock", || sessions("wait_event_type = 'Lock'") == "1");
        hung.signal(Signal::STOP);
        cluster.admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)'");
        wait_until(secs(4), "the hung host has the lock", || sessions("state = 'idle in transaction'") == "1");
        let bob = json!({"name": "Bob", "email": "bob@example.com"});
        wait_until(secs(30), "another host creates", || other.request("POST", "/users", Some(&bob)).status == 201);
        hung.signal(Signal::CONT);
        assert_eq!(creating.join().expect("an answer").status, 503);
    });
    recovers(&hung, "again@example.com");
}

#[test]
fn a_postgres_that_is_stopped_hung_full_read_only_or_another_is_a_503_that_says_what_to_do() {
    let cluster = Postgres::start(&Options {
        conf: "max_connections = 12\nsuperuser_reserved_connections = 2\n".into(),
        ..Options::default()
    });
    let url = cluster.new_database();
    let name = url.rsplit('/').next().expect("a name");
    let portal = Portal::start(&settings(&url));
    let alice = portal.create_user("Alice", "alice@example.com");
    let end_sessions = || {
        cluster.admin("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'portal'");
    };

    cluster.signal(Signal::STOP);
    unavailable(&portal, &ALL, "that its server is running");
    cluster.signal(Signal::CONT);
    recovers(&portal, "hung@example.com");

    cluster.stop();
    unavailable(&portal, &ALL, "that its server is running");
    cluster.boot();
    recovers(&portal, "stopped@example.com");

    // Every connection but the superuser's is another's.
    end_sessions();
    let mut others = Vec::new();
    let used = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'portal' AND query LIKE '%pg_sleep%'";
    wait_until(secs(20), "the server is full", || {
        let is_full = cluster.admin(used) == "10";
        // One that came while the portal's were ending was refused.
        others.retain_mut(|session: &mut Session| session.0.ended().is_none());
        if !is_full && others.len() < 12 {
            others.push(Session::start(&url, ""));
        }
        is_full
    });
    unavailable(&portal, &ALL, "raise max_connections");
    drop(others);
    end_sessions();
    recovers(&portal, "full@example.com");

    cluster.admin(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    end_sessions();
    unavailable(&portal, &WRITES, "The database is read-only");
    assert!(portal.users().contains(&alice), "reads go on");
    cluster.admin(&format!("ALTER DATABASE {name} RESET default_transaction_read_only"));
    recovers(&portal, "readonly@example.com");

    let rename = |from: &str, to: &str| {
        cluster.admin(&format!("ALTER DATABASE {from} WITH ALLOW_CONNECTIONS false"));
        end_sessions();
        wait_until(secs(10), "all sessions have ended", || {
            cluster.admin(&format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{from}'")) == "0"
        });
        cluster.admin(&format!("ALTER DATABASE {from} RENAME TO {to}"));
        cluster.admin(&format!("ALTER DATABASE {to} WITH ALLOW_CONNECTIONS true"));
    };
    rename(name, "aside");
    unavailable(&portal, &ALL, "no such database");
    cluster.admin(&format!("CREATE DATABASE {name} OWNER portal"));
    unavailable(&portal, &ALL, "lacks the portal's tables");
    assert_eq!(psql(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0", "and it makes none");
    rename(name, "empty");
    rename("aside", name);
    recovers(&portal, "another@example.com");

    let all = portal.users();
    assert!(all.contains(&alice) && all.len() == 6, "{all:?}");
    let log = portal.log();
    // What a full server says depends on whether it keeps its last places for a superuser.
    let log = log.replace("too many clients", "connection slots");
    for reason in
        ["Connection refused", "no answer in time", "connection slots", "read-only transaction", "does not exist"]
    {
        assert!(log.contains(reason), "the log does not tell of {reason:?}:\n{log}");
    }
    assert!(!log.contains("portal:portal"), "no URL in the log");
}

#[test]
fn a_postgres_that_crashes_in_the_middle_of_writes_loses_no_confirmed_user() {
    let cluster = Postgres::start(&Options::default());
    let portal = Portal::start(&settings(&cluster.new_database()));
    let created = created_during(&portal, |created| {
        for end in [Postgres::kill, Postgres::stop, Postgres::kill] {
            let before = created();
            wait_until(secs(20), "users are created", || created() > before + 10);
            end(&cluster);
            cluster.boot();
        }
        let before = created();
        wait_until(secs(20), "users are created", || created() > before + 10);
    });
    all_are_there(&portal, &created);
    let numbers: Vec<_> = portal.users().iter().map(|user| user["extension"]["number"].as_u64()).collect();
    let lowest: Vec<_> = (1000..).map(Some).take(numbers.len()).collect();
    assert_eq!(numbers, lowest, "no gap and no duplicate");
}

#[test]
fn eleven_restarts_of_postgres_under_writes_lose_no_confirmed_user() {
    let cluster = Postgres::start(&Options::default());
    let portal = Portal::start(&settings(&cluster.new_database()));
    let created = created_during(&portal, |created| {
        for _ in 0..11 {
            let before = created();
            wait_until(secs(20), "users are created", || created() > before + 5);
            cluster.restart();
        }
    });
    all_are_there(&portal, &created);
    // What was reported as unknown may be there too.
    let log = portal.log();
    let unknown = log.matches(MAYBE_WRITTEN).count();
    let there = portal.users().len();
    assert!(
        (created.len()..=created.len() + unknown).contains(&there),
        "{} and {unknown} unknown: {there}",
        created.len()
    );
}

#[test]
fn a_database_that_is_dropped_and_made_anew_is_filled_after_a_restart_alone() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    let name = url.rsplit('/').next().expect("a name");
    let portal = Portal::start(&settings(&url));
    portal.create_user("Alice", "alice@example.com");
    cluster.admin(&format!("DROP DATABASE {name} WITH (FORCE)"));
    unavailable(&portal, &ALL, "The server has no such database");
    cluster.admin(&format!("CREATE DATABASE {name} OWNER portal"));
    unavailable(&portal, &ALL, "lacks the portal's tables");
    assert_eq!(psql(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0", "and it makes none");
    portal.stop();
    portal.boot();
    assert_eq!(portal.users(), [json!(null); 0]);
    let bob = portal.create_user("Bob", "bob@example.com");
    assert_eq!((&bob["extension"]["number"], portal.users().len()), (&json!(1000), 1));
}

#[test]
fn postgres_on_a_full_disk_is_a_503_until_there_is_space_again() {
    let disk = SmallDisk::new(postgres_user(), 16);
    let cluster = Postgres::start(&Options::default());
    let portal = Portal::start(&settings(&cluster.new_database_on(&disk)));
    let mut created = vec![portal.create_user("Alice", "alice@example.com")];
    disk.fill();
    // What is left of the pages that the tables have takes some more.
    let refused = (0..900).find_map(|index| {
        let body = json!({"name": "x".repeat(255), "email": format!("full{index}@example.com")});
        let answer = portal.request("POST", "/users", Some(&body));
        if answer.status == 201 {
            created.push(answer.json);
            return None;
        }
        Some(answer)
    });
    let refused = refused.expect("a full disk");
    let message = refused.json["message"].as_str().unwrap_or_default();
    assert!(refused.status == 503 && message.contains("disk of the database's server is full"), "{}", refused.text);
    all_are_there(&portal, &created);
    disk.free();
    recovers(&portal, "after@example.com");
    all_are_there(&portal, &created);
}

#[test]
fn a_network_that_loses_every_packet_is_a_503_and_recovers_with_it() {
    let cluster = Postgres::start(&Options { remote: true, ..Options::default() });
    let url = cluster.new_database();
    let portal = Portal::start(&settings(&url));
    let created = created_during(&portal, |created| {
        wait_until(secs(20), "users are created", || created() > 10);
        cluster.wire().cut();
        unavailable(&portal, &ALL, "can be reached from this host");
        let before = created();
        unavailable(&portal, &ALL, "can be reached from this host");
        assert_eq!(created(), before, "nothing is created without the database");
        cluster.wire().mend();
        wait_until(secs(30), "users are created again", || created() > before + 10);
    });
    all_are_there(&portal, &created);
}

#[test]
fn no_connection_goes_back_to_the_pool_inside_a_transaction() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    let portal = Portal::start(&settings(&url));
    let body = json!({"name": "Alice", "email": "alice@example.com"});
    let create = || portal.request("POST", "/users", Some(&body)).status;
    let begin_post = |body: &str| portal.begin_post("/users", body);
    assert_eq!(create(), 201);
    // Refused inside their transactions, and cut off at any point of them.
    thread::scope(|scope| {
        for client in 0..8 {
            scope.spawn(|| (0..40).for_each(|_| assert_eq!(create(), 409)));
            scope.spawn(move || {
                for index in 0..40 {
                    let body = format!(r#"{{"name": "Cut", "email": "cut.{client}.{index}@example.com"}}"#);
                    let _cut_off = begin_post(&body);
                    thread::sleep(Duration::from_micros(100 * index));
                }
            });
        }
    });
    none_in_a_transaction(&cluster);
    assert!(!cluster.log().contains("alice@example.com"), "PostgreSQL logs no address: {}", cluster.log());

    // Timed out by the server while they wait for a lock.
    cluster.admin("ALTER ROLE portal SET lock_timeout = '300ms'");
    cluster.restart();
    let holder = Session::start(&url, "BEGIN; SELECT 1 FROM tenants FOR UPDATE");
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND usename = 'portal'";
    wait_until(secs(10), "the lock is held", || cluster.admin(sleeping) == "1");
    for _ in 0..10 {
        unavailable(&portal, &[ALL[0]], "holds the database's locks");
    }
    drop(holder);
    // The server does not notice a client's end while it sleeps.
    cluster.admin("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'psql' AND usename = 'portal'");
    none_in_a_transaction(&cluster);
    recovers(&portal, "after@example.com");
}

#[track_caller]
fn none_in_a_transaction(cluster: &Postgres) {
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pbx-portal' AND state <> 'idle'";
    wait_until(secs(20), "no transaction is left open", || cluster.admin(busy) == "0");
    assert!(!cluster.log().contains("idle-in-transaction timeout"), "{}", cluster.log());
}

#[test]
fn a_start_waits_for_postgres_and_logs_that() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    cluster.stop();
    let portal = Portal::prepare(&settings(&url));
    let told = || portal.log().matches(CONNECTS_AGAIN).count();
    thread::scope(|scope| {
        scope.spawn(|| portal.boot());
        wait_until(secs(20), "it tells so each second", || told() >= 3);
        cluster.boot();
    });
    portal.create_user("Alice", "alice@example.com");
    cluster.stop();
    let started = Instant::now();
    let gave_up = run(&["serve"], &settings(&url));
    let stderr = String::from_utf8_lossy(&gave_up.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(gave_up.status.code(), Some(1), "{stderr}");
    assert!(last.starts_with("pbx-portal: the database can't be reached: "), "{stderr}");
    assert!(started.elapsed() > secs(29), "gave up after {:?}", started.elapsed());
}
