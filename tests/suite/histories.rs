//! Random histories: whatever happens in whatever order, a deleted user's phone never rings for the next user.
//!
//! `PBX_SEED` replays a seed, on both databases, and shows each step; `PBX_STEPS` gives more steps.

use std::env;

use support::Postgres;
use support::history::History;

fn history(seed: u64, url: Option<String>) {
    let given = |name| env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")));
    let steps = given("PBX_STEPS").map_or(60, |steps: u64| usize::try_from(steps).expect("a number of steps"));
    let replayed = given("PBX_SEED");
    let mut history = History::new(replayed.unwrap_or(seed), url);
    history.aloud = replayed.is_some();
    history.go(steps);
    let told = history.told();
    eprintln!("{told:?}");
    assert!(told.rings > told.steps && told.calls > told.rings, "phones ring when they should: {told:?}");
}

#[test]
fn a_random_history_on_sqlite_breaks_no_promise() {
    history(1, None);
}

#[test]
fn a_random_history_on_postgres_breaks_no_promise() {
    history(2, Some(Postgres::database()));
}
