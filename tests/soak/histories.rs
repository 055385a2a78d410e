//! Random histories, one after the other on servers of their own, as long as the soak lasts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::history::{ASTERISK_CRASHED, History, Told};
use support::{Postgres, secs};

/// How long each lasts.
const LENGTH: Duration = secs(120);

/// What came of all of them.
#[derive(Default)]
pub struct Histories {
    pub failed: usize,
    /// Those that Asterisk ended by a crash of its own.
    crashed: usize,
    pub told: Vec<Told>,
}

impl Histories {
    /// Begins one after the other, each with a seed of its own, on SQLite and PostgreSQL in turn. One that fails prints its seed
    /// and its last steps.
    pub fn until(done: &AtomicBool) -> Self {
        let mut histories = Self::default();
        for count in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let url = count % 2 == 1;
            let url = url.then(Postgres::database);
            let one = || {
                let (began, mut history) = (Instant::now(), History::of_any_seed(url));
                while began.elapsed() < LENGTH && !done.load(Ordering::Relaxed) {
                    history.go(1);
                }
                history.told()
            };
            match thread::scope(|scope| scope.spawn(one).join()) {
                Ok(told) => histories.told.push(told),
                Err(_) => histories.failed += 1,
            }
        }
        histories.crashed = ASTERISK_CRASHED.load(Ordering::Relaxed);
        histories.failed -= histories.crashed;
        histories
    }

    /// A sentence of the page.
    pub fn sentence(&self) -> String {
        let sum = |of: fn(&Told) -> usize| self.told.iter().map(of).sum::<usize>();
        format!(
            "Beside all this {} random histories ran on servers of their own, on SQLite and PostgreSQL in turn: {} steps with {} \
             applies, {} calls, of which {} rang a phone. {} of the histories broke a promise; {} ended because Asterisk crashed by itself.",
            self.told.len() + self.failed + self.crashed,
            sum(|told| told.steps),
            sum(|told| told.applies),
            sum(|told| told.calls),
            sum(|told| told.rings),
            self.failed,
            self.crashed,
        )
    }
}
