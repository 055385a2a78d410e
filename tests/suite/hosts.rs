//! Several Asterisk hosts, each with its own portal. They share one PostgreSQL and nothing else.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::fixtures::{account, evicted, failed_apply, id, psql, registrations, serves};
use support::portal::Settings;
use support::sipp::{Called, Phones, call, register};
use support::{Asterisk, Portal, Postgres, postgres};

/// An Asterisk and the portal beside it.
fn host(url: &str, name: &str) -> (Asterisk, Portal) {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk).with("DATABASE_URL", url).with("PORTAL_HOST", name));
    (asterisk, portal)
}

#[test]
fn each_host_applies_for_itself_and_one_that_was_down_catches_up() {
    let url = Postgres::database();
    let ((north, north_portal), (south, south_portal)) = (host(&url, "north"), host(&url, "south"));
    let caller = account(&north_portal.create_user("Caller", "caller@example.com"));
    let old_owner = south_portal.create_user("Old", "old@example.com");
    let (number, old_secret) = account(&old_owner);
    assert_eq!((caller.0.as_str(), number.as_str()), ("1000", "1001"), "both take numbers from one pool");

    north_portal.apply("suite");
    assert_eq!((serves(&north, &number), serves(&south, &number)), (true, false), "each host applies for itself");
    south_portal.apply("suite");
    assert!(serves(&south, &number));
    let old_phones = [&north, &south].map(|host| Phones::register(host, &[(&number, &old_secret)], Called::Answer));
    let rung = |host: usize| old_phones[host].requests("INVITE", &number);

    // While one host is down, the number changes hands twice.
    south_portal.stop();
    south.stop();
    north_portal.delete_user(id(&old_owner));
    let between = north_portal.create_user("Between", "between@example.com");
    assert_eq!(evicted(&north_portal.apply("suite")), ["1001"]);
    north_portal.delete_user(id(&between));
    let (_, new_secret) = account(&north_portal.create_user("New", "new@example.com"));
    assert_eq!(evicted(&north_portal.apply("suite")), [""; 0], "nobody has registered since");
    let new_phone = Phones::register(&north, &[(&number, &new_secret)], Called::Answer);
    assert_eq!(call(&north, (&caller.0, &caller.1), &number), 200);
    assert_eq!((new_phone.requests("INVITE", &number), rung(0)), (1, 0));

    // The host comes back with its old state, and catches up.
    south.boot();
    south_portal.boot();
    assert_eq!(call(&south, (&caller.0, &caller.1), &number), 200, "nothing changes there before its own apply");
    assert_eq!(rung(1), 1);
    assert_eq!(evicted(&south_portal.apply("suite")), ["1001"]);
    assert_eq!(call(&south, (&caller.0, &caller.1), &number), 480);
    assert_eq!(register(&south, (&number, &old_secret)), 401);
    assert_eq!((rung(1), registrations(&north, &number)), (1, 1), "the phone on the other host stays registered");

    south.stop();
    failed_apply(&south_portal, &["Asterisk is not running"]);
    let rows = "SELECT host || ' ' || outcome, count(*) FROM apply_audit_logs GROUP BY 1 ORDER BY 1";
    assert_eq!(psql(&url, rows), "north success|3\nsouth failure|1\nsouth success|2", "each row names its host");
}

#[test]
fn hosts_are_upgraded_one_after_the_other() {
    let url = Postgres::database();
    let ((north, north_portal), (_south, south_portal)) = (host(&url, "north"), host(&url, "south"));
    north_portal.create_user("Alice", "alice@example.com");
    // A later release of the same major version starts on the first host: it adds tables and columns, and its migration.
    psql(
        &url,
        "ALTER TABLE users ADD COLUMN department text; CREATE TABLE departments (name text);
         INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (1002, 'departments', true, '\\x00', 1)",
    );
    let (number, _) = account(&south_portal.create_user("Bob", "bob@example.com"));
    south_portal.stop();
    south_portal.boot();
    south_portal.delete_user(id(&north_portal.users()[0]));
    north_portal.apply("suite");
    south_portal.apply("suite");
    assert!(serves(&north, &number));
    assert_eq!(
        psql(&url, "SELECT max(version) FROM _sqlx_migrations"),
        "1002",
        "an older release does not undo a migration"
    );
}

#[test]
fn ten_hosts_share_one_database_of_the_usual_size() {
    let cluster = Postgres::start(&postgres::Options::default());
    let url = cluster.new_database();
    let settings = Settings::default().with("DATABASE_URL", &url);
    let portals: Vec<_> = (0..10).map(|_| Portal::start(&settings)).collect();
    let numbers = Mutex::new(BTreeSet::new());
    std::thread::scope(|clients| {
        for client in 0..80 {
            let (portals, numbers) = (&portals, &numbers);
            clients.spawn(move || {
                for index in 0..5 {
                    let email = format!("user{client}-{index}@example.com");
                    let (number, _) = account(&portals[client % portals.len()].create_user("User", &email));
                    assert!(numbers.lock().expect("no client panicked").insert(number), "two users got one number");
                }
            });
        }
    });
    let expected: BTreeSet<_> = (1000..1400).map(|number: u16| number.to_string()).collect();
    assert_eq!(numbers.into_inner().expect("no client panicked"), expected, "the numbers have no gap");
    let connections: usize =
        cluster.admin("SELECT count(*) FROM pg_stat_activity WHERE usename = 'portal'").parse().expect("a count");
    assert!((10..=80).contains(&connections), "{connections} connections of PostgreSQL's usual 100");
    assert!(portals.iter().all(|portal| portal.users().len() == 400), "each portal lists all users");
}
