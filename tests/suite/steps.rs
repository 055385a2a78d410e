//! The steps of the portal as a test sees them from outside: by its system calls, and by its log. An apply that hands a number over
//! takes these (`src/apply/mod.rs` says what each is for):
//!
//! 1. It locks this host's files ([`LOCK`]).
//! 2. It writes the audit row, and logs [`BEGINS`].
//! 3. It reads the users, and logs [`USERS_READ`].
//! 4. It asks Asterisk, and runs `asterisk -rx` once, to see which Asterisk that reaches ([`PROGRAMS`]).
//! 5. It writes [`FILES`] temporary files: the endpoints, the routing, the endpoints without the number. It logs [`PREPARED`].
//! 6. It takes the number away: it renames the endpoints without the number, flushes their folder, and reloads the endpoints.
//! 7. It gives: it renames the endpoints ([`GIVE_ENDPOINTS`]), flushes their folder ([`FLUSH_GIVEN_ENDPOINTS`]), renames the routing
//!    ([`GIVE_ROUTING`]), and reloads both.
//! 8. It asks Asterisk for the proof.
//! 9. It completes the audit row, and logs [`PROVEN`] or [`FAILED`].
//!
//! A write to SQLite first looks at what others have changed in the file ([`LOOK_AT_THE_FILE`]). It writes a journal and flushes it,
//! writes the pages ([`WRITE_THE_SECOND_PAGE`]), flushes the file ([`FLUSH_THE_FILE`]), and removes the journal.

use std::fs;

use serde_json::json;

use support::{Asterisk, Portal, strace};

/// A system call of a portal: its name, and the how manyth of a thread it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step(&'static str, usize);

pub const LOCK: Step = Step("flock", 1);
pub const GIVE_ENDPOINTS: Step = Step("rename", 2);
/// Of the calls on the folder of the endpoints; the database and the temporary files are flushed, too.
pub const FLUSH_GIVEN_ENDPOINTS: Step = Step("fsync", 2);
pub const GIVE_ROUTING: Step = Step("rename", 3);

/// These three of the calls on the database's file.
pub const LOOK_AT_THE_FILE: Step = Step("pread64", 1);
pub const WRITE_THE_SECOND_PAGE: Step = Step("pwrite64", 2);
pub const FLUSH_THE_FILE: Step = Step("fsync,fdatasync", 1);

/// How many files an apply writes and renames.
pub const FILES: usize = 3;
/// How many programs it runs: one that asks which Asterisk it is, and three reloads.
pub const PROGRAMS: usize = 4;

pub const BEGINS: &str = "apply begins";
pub const USERS_READ: &str = "step=\"snapshot\"";
pub const PREPARED: &str = "step=\"prepare\"";
pub const PROVEN: &str = "apply proven";
pub const FAILED: &str = "apply failed";
/// The names of the steps in the log, if the number was nobody's before.
pub const LOGGED: [&str; 6] = ["snapshot", "look before touching", "prepare", "take away", "give", "proof"];

/// What it logs before it tries again: a reload, a listing, the pings of Asterisk's queues, the database at its start.
pub const RELOADS_AGAIN: &str = "Asterisk dropped the reload; it is retried";
pub const LISTS_AGAIN: &str = "the listing is truncated; it is retried";
pub const PINGS_AGAIN: &str = "they are sent again";
pub const CONNECTS_AGAIN: &str = "the database can't be used yet; trying again";

/// A stop has begun.
pub const STOPPING: &str = "stopping";
/// No file handle is left for a client.
pub const NO_HANDLE: &str = "accept error";
/// The database did not say whether it has written.
pub const MAYBE_WRITTEN: &str = "maybe_written=true";

/// In the log of Asterisk: somebody reads its database, so it can't commit.
pub const DATABASE_LOCKED: &str = "database is locked";
/// What Asterisk prints if it drops a reload.
pub const RELOAD_DROPPED: &str = "already in progress";

/// Options of strace for all threads of a process, but not for the programs that it starts: strace counts calls by thread, so a
/// fault at a thread's second call would hit `asterisk -rx` as well.
pub const ALL_BUT_PROGRAMS: [&str; 3] = ["-f", "-b", "execve"];

/// Options of strace that show the calls of this name, with a fault at the one: `error=EIO`, `signal=KILL`, `delay_enter=3s`.
pub fn inject(call: &str, when: usize, fault: &str) -> [String; 4] {
    ["-e".into(), format!("trace={call}"), "-e".into(), format!("inject={call}:{fault}:when={when}")]
}

impl Step {
    /// Like [`inject`].
    pub fn inject(self, fault: &str) -> [String; 4] {
        inject(self.0, self.1, fault)
    }
}

/// The portal's threads of this name, the oldest first.
pub fn threads_called(name: &str, portal: &Portal) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{}/task", portal.pid())).expect("its threads").flatten();
    let threads =
        threads.filter(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim() == name));
    let mut threads: Vec<_> = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()).collect();
    threads.sort_unstable();
    threads
}

/// Applies, and kills the portal when it comes to this step, which is not done.
#[track_caller]
pub fn kill_at(step: Step, asterisk: &Asterisk, portal: &Portal) {
    let endpoints = asterisk.endpoints_file();
    let folder = endpoints.parent().expect("a folder").display().to_string();
    let mut options = [&ALL_BUT_PROGRAMS.map(str::to_owned)[..], &step.inject("signal=KILL")].concat();
    if step == FLUSH_GIVEN_ENDPOINTS {
        options.extend(["-P".to_owned(), folder]);
    }
    let body = json!({"triggered_by": "killed"});
    let killed = || portal.try_request("POST", "/apply", Some(&body)).is_err();
    assert!(strace::under(portal.pid(), &options, killed).0, "{step:?}: there is an answer");
}
