//! The whole pool: a thousand users, by 32 clients over two processes, on one Asterisk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use serde_json::json;

use crate::fixtures::{Database, Pair, account, id, registrations};
use support::portal::Settings;
use support::sipp::{Called, Phones, call};
use support::{Asterisk, secs, wait_until};

#[test]
fn a_thousand_users_on_sqlite_have_the_whole_pool() {
    thousand(Database::Sqlite);
}

#[test]
fn a_thousand_users_on_postgres_have_the_whole_pool() {
    thousand(Database::Postgres);
}

fn thousand(database: Database) {
    let asterisk = &Asterisk::start();
    let Pair { portals, .. } = &Pair::on(database, &Settings::of(asterisk));
    let created = Mutex::new(BTreeMap::new());
    std::thread::scope(|clients| {
        for client in 0..8 {
            let created = &created;
            clients.spawn(move || {
                for index in (client..1000).step_by(8) {
                    let user =
                        portals[client % 2].create_user(&format!("User {index}"), &format!("user{index}@example.com"));
                    let (number, secret) = account(&user);
                    let taken = created.lock().expect("no client panicked").insert(number, secret);
                    assert!(taken.is_none(), "a number was given twice");
                }
            });
        }
    });
    let created = created.into_inner().expect("no client panicked");
    assert!(
        created.keys().eq((1000..2000).map(|number: u16| number.to_string()).collect::<Vec<_>>().iter()),
        "exactly 1000 to 1999"
    );
    assert_eq!(created.values().collect::<BTreeSet<_>>().len(), 1000, "every secret is another");

    let one_too_many =
        portals[0].request("POST", "/users", Some(&json!({"name": "Late", "email": "late@example.com"})));
    assert_eq!((one_too_many.status, one_too_many.json["error"].as_str()), (409, Some("Extension pool exhausted")));

    assert_eq!(portals[1].apply("suite")["extensions_generated"].as_u64(), Some(1000));
    let accounts: Vec<_> = created.iter().map(|(number, secret)| (number.as_str(), secret.as_str())).collect();
    let _phones = Phones::register(asterisk, &accounts, Called::Answer);
    wait_until(secs(20), "Asterisk keeps 1000 registrations", || asterisk.contacts().len() == 1000);
    for (from, to) in [(0, 999), (999, 0), (500, 501)] {
        assert_eq!(call(asterisk, accounts[from], accounts[to].0), 200);
    }

    let users = portals[1].users();
    assert!(users.iter().map(|user| account(user).0).eq(created.keys().cloned()), "listed by number");
    for index in [700, 3, 42] {
        assert_eq!(
            portals[index % 2].delete_user(id(&users[index]))["freed_extension"].as_u64(),
            Some(1000 + index as u64)
        );
    }
    let applied = portals[0].apply("suite");
    assert_eq!(applied["users_applied"].as_u64(), Some(997));
    assert_eq!(applied["registrations_evicted"].as_array().map(Vec::len), Some(3));
    assert_eq!((registrations(asterisk, "1042"), registrations(asterisk, "1043")), (0, 1));
    for freed in ["1003", "1042", "1700"] {
        assert_eq!(
            account(&portals[0].create_user("Next", &format!("next{freed}@example.com"))).0,
            freed,
            "freed numbers return lowest first"
        );
    }
}
