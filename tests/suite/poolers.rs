//! Behind a PgBouncer as it comes: session and transaction mode, with and without its tracking of prepared statements.

use std::sync::Mutex;
use std::thread;

use serde_json::json;

use crate::fixtures::{account, id, try_apply, without_asterisk};
use support::pooler::{PgBouncer, Release, database_of};
use support::portal::{Settings, run};
use support::{Asterisk, Portal, Postgres, postgres};

/// Two portals with eight clients each, an apply at once and a migration in between; fewer server connections than clients.
fn works(release: Release, mode: &str) {
    let asterisk = Asterisk::start();
    let cluster = Postgres::start(&postgres::Options::default());
    let url = cluster.new_database();
    let pgbouncer = PgBouncer::start(release, &cluster, database_of(&url), mode);
    let settings = Settings::of(&asterisk).with("DATABASE_URL", pgbouncer.url(database_of(&url)));
    let portals = [(); 2].map(|()| Portal::start(&settings));
    let created = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for client in 0..8 {
            let (portals, created) = (&portals, &created);
            scope.spawn(move || {
                for index in 0..30 {
                    let portal = &portals[index % 2];
                    let body = json!({"name": "User", "email": format!("{client}.{index}@example.com")});
                    let answer = portal.request("POST", "/users", Some(&body));
                    assert_eq!(answer.status, 201, "{}\n{}", answer.text, portal.log());
                    let listed = portal.request("GET", "/users", None);
                    assert_eq!(listed.status, 200, "{}\n{}", listed.text, portal.log());
                    assert!(listed.text.contains(id(&answer.json)), "what was created is listed");
                    if index % 3 == 0 {
                        portal.delete_user(id(&answer.json));
                    } else {
                        created.lock().expect("no client panicked").push(answer.json);
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..3 {
                let answer = try_apply(&portals[0]);
                assert_eq!(answer.status, 200, "{}", answer.text);
                let migrated = run(&["migrate"], &settings);
                assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
            }
        });
    });
    let mut created = created.into_inner().expect("no client panicked");
    created.sort_by_key(|user| account(user).0);
    assert_eq!(portals[1].users(), created);
    assert_eq!(portals[0].apply("suite")["users_applied"].as_u64(), Some(created.len() as u64));
    for portal in &portals {
        assert!(!portal.log().contains("the database failed"), "{}", portal.log());
    }
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(cluster.admin(locks), "0", "no lock outlasts its transaction");
}

#[test]
fn a_pooler_that_tracks_prepared_statements_works_in_session_mode() {
    works(Release::Tracking, "");
}

#[test]
fn a_pooler_that_tracks_prepared_statements_works_in_transaction_mode() {
    works(Release::Tracking, "pool_mode = transaction\ndefault_pool_size = 4\n");
}

#[test]
fn a_pooler_that_tracks_none_works_in_both_modes() {
    works(Release::Untracked, "");
    works(Release::Untracked, "pool_mode = transaction\ndefault_pool_size = 4\n");
}

#[test]
fn a_host_may_be_an_ipv6_address_and_the_session_may_have_a_name() {
    let cluster = Postgres::start(&postgres::Options::default());
    let url = cluster.new_database().replace("127.0.0.1", "[::1]");
    let portal = Portal::start(&without_asterisk().with("DATABASE_URL", format!("{url}?application_name=pbx-berlin")));
    portal.create_user("Alice", "alice@example.com");
    let sessions = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'pbx-berlin'";
    assert_eq!(cluster.admin(sessions), "t");
}
