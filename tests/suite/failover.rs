//! A primary and a synchronous standby behind HAProxy, with the configuration of docs/operations.md.

use std::time::{Duration, Instant};

use crate::fixtures::{all_are_there, created_during, without_asterisk};
use support::pooler::{HaProxy, database_of};
use support::postgres::Options;
use support::{Portal, Postgres, secs, wait_until};

#[test]
fn a_killed_primary_loses_no_confirmed_user_once_the_standby_is_promoted() {
    let primary = Postgres::start(&Options::default());
    let url = primary.new_database();
    primary.admin("CREATE ROLE haproxy LOGIN");
    let standby = primary.synchronous_standby();
    let haproxy = HaProxy::start(&primary, &standby);
    let portal = Portal::start(&without_asterisk().with("DATABASE_URL", haproxy.url(database_of(&url))));
    let mut back_after = Duration::ZERO;
    let created = created_during(&portal, |created| {
        wait_until(secs(20), "users are created", || created() > 20);
        primary.kill();
        assert_eq!(standby.admin("SELECT pg_promote()"), "t");
        let (promoted, before) = (Instant::now(), created());
        wait_until(secs(20), "users are created again", || created() > before + 10);
        back_after = promoted.elapsed();
    });
    assert!(created.len() > 30, "{}", created.len());
    all_are_there(&portal, &created);
    let numbers: Vec<_> = portal.users().iter().map(|user| user["extension"]["number"].as_u64()).collect();
    let lowest: Vec<_> = (1000..).map(Some).take(numbers.len()).collect();
    assert_eq!(numbers, lowest, "no gap and no duplicate");
    assert!(back_after < secs(10), "users are created again {back_after:?} after the promotion");
}
