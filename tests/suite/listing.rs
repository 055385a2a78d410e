//! The list of all users shows whatever was committed before the request, by any process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixtures::{Database, Pair, SetWhenDropped, crowd, id, unavailable, without_asterisk};
use support::postgres::Options;
use support::process::Signal;
use support::{Portal, Postgres, secs};

fn pair(database: Database) -> Pair {
    Pair::on(database, &without_asterisk())
}

#[track_caller]
fn both_show(pair: &Pair, users: &[Value]) {
    for portal in &pair.portals {
        assert_eq!(portal.users(), users);
    }
}

#[test]
fn the_list_shows_each_change_of_each_process_and_of_an_administrator_at_once() {
    for database in [Database::Sqlite, Database::Postgres] {
        let pair = pair(database);
        both_show(&pair, &[]);
        for round in 0..20 {
            let creator = &pair.portals[round % 2];
            let mut user = creator.create_user("Alice", "alice@example.com");
            both_show(&pair, std::slice::from_ref(&user));
            pair.sql("UPDATE users SET name = 'Bob'");
            user["name"] = "Bob".into();
            both_show(&pair, std::slice::from_ref(&user));
            pair.portals[round / 2 % 2].delete_user(id(&user));
            both_show(&pair, &[]);
        }
    }
}

#[test]
fn the_list_answers_while_a_busy_service_opens_its_connections() {
    let (_folder, url) = Database::Postgres.shared();
    // As on a machine with one core.
    let start = || Portal::start(&without_asterisk().with("DATABASE_URL", &url).with("TOKIO_WORKER_THREADS", 1));
    let creating = start();
    crowd(&creating, 200);
    let portal = start();
    let end = Instant::now() + secs(8);
    thread::scope(|scope| {
        // One after another, so that each needs one more connection while the others keep the event loop busy.
        for client in 0..8 {
            let portal = &portal;
            scope.spawn(move || {
                sleep(client * Duration::from_millis(300));
                while Instant::now() < end {
                    assert_eq!(portal.users().len(), 200);
                }
            });
        }
    });
}

#[test]
fn the_list_shows_what_was_there_when_it_was_asked_for_however_many_ask_at_once() {
    for database in [Database::Sqlite, Database::Postgres] {
        let pair = pair(database);
        let (done, there) = (AtomicBool::new(false), Mutex::new(Vec::<Value>::new()));
        thread::scope(|scope| {
            let _ended = SetWhenDropped(&done);
            for client in 0..12 {
                let (pair, done, there) = (&pair, &done, &there);
                scope.spawn(move || {
                    let mut lists = 0;
                    while lists < 5 || !done.load(Ordering::Relaxed) {
                        let before = there.lock().expect("nobody panicked").clone();
                        let listed = pair.portals[client % 2].users();
                        assert!(listed.starts_with(&before), "{before:?} had been created before {listed:?}");
                        lists += 1;
                    }
                });
            }
            for index in 0..60 {
                let user = pair.portals[index % 2].create_user("User", &format!("user{index}@example.com"));
                there.lock().expect("nobody panicked").push(user);
            }
        });
        both_show(&pair, &there.into_inner().expect("nobody panicked"));
    }
}

#[test]
fn the_list_of_a_database_that_hangs_is_a_503_in_time_for_each_that_asks() {
    let cluster = Postgres::start(&Options::default());
    let portal = Portal::start(&without_asterisk().with("DATABASE_URL", cluster.new_database()));
    let alice = portal.create_user("Alice", "alice@example.com");
    assert_eq!(portal.users(), std::slice::from_ref(&alice));
    cluster.signal(Signal::STOP);
    unavailable(&portal, &["GET /users"; 12], "that its server is running");
    cluster.signal(Signal::CONT);
    assert_eq!(portal.users(), [alice]);
}
