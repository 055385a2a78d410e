//! strace at a running process: records its system calls, and makes some of them fail.

use std::fs;
use std::process::Command;

use super::lab::Folder;
use super::process::{Process, Signal};
use super::{secs, wait_until};

/// A system call that was made.
#[derive(Debug)]
pub struct Call {
    /// The thread that made it; empty if strace watches only one.
    pub thread: String,
    pub name: String,
    /// Its arguments and its result, as strace writes them.
    pub text: String,
}

impl Call {
    /// Whether strace made it fail.
    pub fn failed_by_strace(&self) -> bool {
        self.text.ends_with("(INJECTED)")
    }
}

/// Runs `work` while strace watches a process, or one thread of it; with `-f` all threads and children. Gives the result, and the
/// calls that strace recorded.
pub fn under<T>(pid: u32, arguments: &[impl AsRef<str>], work: impl FnOnce() -> T) -> (T, Vec<Call>) {
    let folder = Folder::new("strace");
    let (trace, log) = (folder.path().join("trace"), folder.path().join("log"));
    let mut command = Command::new("strace");
    command.args(["-p", &pid.to_string()]).args(arguments.iter().map(AsRef::as_ref)).arg("-o").arg(&trace);
    let mut strace = Process::start(&mut command, &log);
    wait_until(secs(10), "strace is at the process", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("attached"))
    });
    let done = work();
    strace.end(Signal::INT, secs(5));
    let trace = fs::read_to_string(&trace)
        .unwrap_or_else(|error| panic!("no trace, {error}: {}", fs::read_to_string(&log).unwrap_or_default()));
    (done, trace.lines().filter_map(call).collect())
}

/// Parses a line of a trace; `None` for a signal, an end, or the rest of a call.
fn call(line: &str) -> Option<Call> {
    let numbered = line.split_once(' ').filter(|(thread, _)| thread.bytes().all(|b| b.is_ascii_digit()));
    let (thread, rest) = numbered.unwrap_or(("", line));
    let (name, text) = rest.trim_start().split_once('(')?;
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then(|| Call { thread: thread.into(), name: name.into(), text: text.into() })
}
