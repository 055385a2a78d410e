//! The loop that must always work: create a user, apply, the phone registers and calls.

use crate::fixtures::{Database, account, id, registrations, serves};
use support::sipp::{Called, Phones, call, register};
use support::{Asterisk, Portal};

#[test]
fn the_main_job_works_on_sqlite() {
    main_job(Database::Sqlite);
}

#[test]
fn the_main_job_works_on_postgres() {
    main_job(Database::Postgres);
}

fn main_job(database: Database) {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&database.settings(&asterisk));
    let users = ["alice", "bob", "carol"].map(|name| portal.create_user(name, &format!("{name}@example.com")));
    let [alice, bob, carol] = users.each_ref().map(account);
    let [alice, bob, carol] = [&alice, &bob, &carol].map(|(number, secret)| (number.as_str(), secret.as_str()));
    assert_eq!([alice.0, bob.0, carol.0], ["1000", "1001", "1002"], "lowest free numbers, in order");

    let applied = portal.apply("suite");
    assert_eq!((applied["users_applied"].as_u64(), applied["extensions_generated"].as_u64()), (Some(3), Some(3)));
    assert_eq!(applied["files_written"].as_array().map(Vec::len), Some(2));
    assert_eq!(applied["registrations_evicted"].as_array().map(Vec::len), Some(0));

    let bobs_phone = Phones::register(&asterisk, &[bob], Called::Answer);
    let carols_phone = Phones::register(&asterisk, &[carol], Called::Answer);
    assert_eq!(call(&asterisk, alice, bob.0), 200);
    assert_eq!(bobs_phone.requests("INVITE", bob.0), 1);

    let deleted = portal.delete_user(id(&users[1]));
    assert_eq!(
        (deleted["deleted_user_id"].as_str(), deleted["freed_extension"].as_u64()),
        (Some(id(&users[1])), Some(1001))
    );
    assert_eq!(call(&asterisk, alice, bob.0), 200, "a delete alone touches nothing");

    let applied = portal.apply("suite");
    assert_eq!(applied["registrations_evicted"][0]["extension"].as_u64(), Some(1001));
    assert!(!serves(&asterisk, bob.0), "the endpoint is gone");
    assert_eq!(registrations(&asterisk, bob.0), 0, "and so is its registration");
    let rung = bobs_phone.requests("INVITE", bob.0);
    assert_eq!(call(&asterisk, alice, bob.0), 404);
    assert_eq!(bobs_phone.requests("INVITE", bob.0), rung, "the deleted user's phone does not ring");
    assert_eq!(register(&asterisk, bob), 401, "it can't register again");

    assert_eq!(registrations(&asterisk, carol.0), 1, "other phones are undisturbed");
    assert_eq!(call(&asterisk, alice, carol.0), 200);
    assert_eq!(carols_phone.requests("INVITE", carol.0), 1);
    assert_eq!(portal.users().len(), 2);
}
