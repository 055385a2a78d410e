//! The lab: a real Asterisk 22, real PostgreSQL, real SIP phones and the portal itself, each a process
//! with a folder and ports of its own, so that tests run side by side. Drop ends each; if a test process is killed, its
//! watchdog does ([`lab`]).

pub mod asterisk;
pub mod baresip;
pub mod chromium;
pub mod figures;
pub mod history;
pub mod inotify;
pub mod lab;
pub mod machine;
pub mod manager;
pub mod network;
pub mod phone;
pub mod plot;
pub mod pooler;
pub mod portal;
pub mod postgres;
pub mod process;
mod sip;
pub mod sipp;
pub mod strace;

pub use asterisk::Asterisk;
pub use baresip::Baresip;
pub use chromium::Chromium;
pub use machine::Machine;
pub use phone::Phone;
pub use portal::{Answer, Portal};
pub use postgres::Postgres;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Ends a background thread, even if the test fails meanwhile.
pub struct SetWhenDropped<'a>(pub &'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until the condition holds. If it does not within the bound, panics and says what was awaited. The bound is that of a quiet
/// machine: one that is shared may be three times as slow.
#[track_caller]
pub fn wait_until(bound: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let bound = bound * 3;
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < bound, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A duration in seconds.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
