//! 64 clients on two processes for half a minute, on each database, with applies all the while.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixtures::{Database, Pair, SetWhenDropped, account, id, try_apply, without_asterisk};
use support::figures::Usage;
use support::portal::Settings;
use support::{Asterisk, Portal, lab, secs, wait_until};

const CLIENTS: usize = 64;

/// Each client's users at most: all of them together stay well below the pool of 1000.
const USERS: usize = 8;

/// Handles of the connections: eight of PostgreSQL, or two of SQLite, each with its files.
const CONNECTIONS: usize = 12;

/// When everything that a process makes once has been made.
const WARM: Duration = secs(10);

const END: Duration = secs(30);

const BETWEEN_APPLIES: Duration = secs(1);

/// Of one client. Without it the load is what the machine's cores give, and on busy ones no measure of anything.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(500);

#[test]
fn half_a_minute_of_load_on_sqlite_leaves_no_gap_and_no_growth() {
    let _one_at_a_time = lab::measuring();
    load(Database::Sqlite);
}

#[test]
fn half_a_minute_of_load_on_postgres_leaves_no_gap_and_no_growth() {
    let _one_at_a_time = lab::measuring();
    load(Database::Postgres);
}

/// On two processes, so that the lock is contended from outside too.
#[test]
fn sixteen_writers_beside_eight_readers_of_sqlite_are_each_answered() {
    const EACH: usize = 20;
    let Pair { portals, .. } = &Pair::on(Database::Sqlite, &without_asterisk());
    let (done, listed) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..8 {
            let (portal, done, listed) = (&portals[reader % 2], &done, &listed);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    portal.users();
                    listed.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let _ended = SetWhenDropped(&done);
        let creates = |writer: usize| {
            let portal = &portals[writer % 2];
            move || {
                for index in 0..EACH {
                    portal.create_user("User", &format!("{writer}.{index}@example.com"));
                }
            }
        };
        let writers: Vec<_> = (0..16).map(|writer| scope.spawn(creates(writer))).collect();
        for writer in writers {
            writer.join().expect("each create is answered 201");
        }
    });
    assert_eq!(portals[0].users().len(), 16 * EACH);
    assert!(listed.into_inner() > 100, "the readers were held up");
}

fn usage(portal: &Portal) -> Usage {
    Usage::of(portal.pid())
}

fn load(database: Database) {
    let asterisk = Asterisk::start();
    let pair = Pair::on(database, &Settings::of(&asterisk));
    let portals = pair.portals.each_ref();
    let idle = portals.map(usage);
    let started = Instant::now();
    // Number and id of every user that is there for sure.
    let there = Mutex::new(BTreeMap::new());
    let (writes, applies) = (AtomicU64::new(0), AtomicU64::new(0));
    let warm = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (there, writes) = (&there, &writes);
            scope.spawn(move || one_client(client, portals, started, there, writes));
        }
        for portal in portals {
            let applies = &applies;
            scope.spawn(move || {
                while started.elapsed() < END {
                    let answer = try_apply(portal);
                    match (answer.status, answer.json["error"].as_str()) {
                        (200, _) => _ = applies.fetch_add(1, Ordering::Relaxed),
                        // Both processes apply to one Asterisk.
                        (409, Some("Apply in progress")) => {}
                        _ => panic!("an apply: {}", answer.text),
                    }
                    thread::sleep(BETWEEN_APPLIES);
                }
            });
        }
        thread::sleep(WARM);
        portals.map(usage)
    });
    let (writes, applies) = (writes.into_inner(), applies.into_inner());
    assert!(writes > 300 && applies > 2, "{writes} writes and {applies} applies are no load");
    for ((idle, warm), portal) in idle.iter().zip(&warm).zip(portals) {
        wait_until(secs(10), "only the connections to the database are held", || {
            usage(portal).handles <= idle.handles + CONNECTIONS
        });
        let later = usage(portal).memory;
        assert!(later <= warm.memory * 1.25 + 4.0, "memory grows: {warm:?}, then {later}");
        assert!(!portal.log().contains(" ERROR "), "{}", portal.log());
    }

    let mut there = there.into_inner().expect("no client panicked");
    // What is free fills up from below.
    for index in 0..40 {
        let lowest_free = (1000..2000).map(|number: u16| number.to_string()).find(|number| !there.contains_key(number));
        let user = portals[index % 2].create_user("Late", &format!("late{index}@example.com"));
        let (number, _) = account(&user);
        assert_eq!(Some(&number), lowest_free.as_ref(), "no gap");
        there.insert(number, id(&user).to_owned());
    }
    for portal in portals {
        let listed: Vec<_> = portal.users().iter().map(|user| (account(user).0, id(user).to_owned())).collect();
        assert!(listed.iter().map(|(number, id)| (number, id)).eq(&there), "listed is what is there, by number");
    }
    assert_eq!(portals[0].apply("suite")["users_applied"].as_u64(), Some(there.len() as u64));
    let numbers: Vec<_> = there.into_keys().collect();
    assert_eq!(asterisk.endpoints(), numbers, "Asterisk serves exactly the database");
    assert_eq!(asterisk.routed(), numbers, "and routes it");
}

/// Creates until it has all of its users, deletes until it has none, and looks at the list in between: each on the one
/// process and then on the other.
fn one_client(
    client: usize,
    portals: [&Portal; 2],
    started: Instant,
    there: &Mutex<BTreeMap<String, String>>,
    writes: &AtomicU64,
) {
    let mut own: Vec<Value> = Vec::new();
    let (mut step, mut filling) = (client, true);
    while started.elapsed() < END {
        step += 1;
        let portal = portals[step % 2];
        filling = if filling { own.len() < USERS } else { own.is_empty() };
        if step % 10 == 0 {
            let users = portal.users();
            for user in &own {
                assert!(users.contains(user), "{user} is missing");
            }
        } else if filling {
            let body = json!({"name": format!("Client {client}"), "email": format!("{client}.{step}@example.com")});
            let answer = portal.request("POST", "/users", Some(&body));
            assert_eq!(answer.status, 201, "{}\n{}", answer.text, portal.log());
            let (number, _) = account(&answer.json);
            let highest = 999 + CLIENTS * USERS;
            assert!(number.parse::<usize>().is_ok_and(|number| number <= highest), "{number} is not the lowest free");
            let twice = there.lock().expect("no client panicked").insert(number, id(&answer.json).to_owned());
            assert!(twice.is_none(), "{} was given twice", answer.text);
            own.push(answer.json);
        } else {
            let user = own.swap_remove(step % own.len());
            let (number, _) = account(&user);
            // Another may have the number before this client hears of it.
            there.lock().expect("no client panicked").remove(&number);
            let deleted = portal.delete_user(id(&user));
            assert_eq!(deleted["freed_extension"].to_string(), number);
        }
        writes.fetch_add(u64::from(step % 10 != 0), Ordering::Relaxed);
        thread::sleep(BETWEEN_REQUESTS);
    }
}
