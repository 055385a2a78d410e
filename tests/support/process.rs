//! Processes that the lab starts: each in a process group of its own, guarded by the watchdog, ended by its id.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};

use super::lab::{self, User};

/// A command run as a user of the lab, with its own group and others, in a clean environment.
pub fn command_as(User(user): User, groups: &[User], program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args([format!("--reuid={user}"), format!("--regid={user}")]);
    if groups.is_empty() {
        command.arg("--clear-groups");
    } else {
        let numbers: Vec<_> = groups.iter().map(|group| group.0.to_string()).collect();
        command.arg(format!("--groups={}", numbers.join(",")));
    }
    command.arg("--").arg(program);
    command
}

/// Runs a command to its end. If it takes longer than the bound, it and its children are killed.
pub fn run_within(bound: Duration, command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let (id, group) = (child.id(), pid_of(&child));
    lab::guard(id);
    let (finished, wait) = channel::<()>();
    let killer = spawn(move || {
        if wait.recv_timeout(bound) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    });
    let output = child.wait_with_output().expect("read a command's output");
    lab::release(id);
    drop(finished);
    killer.join().expect("the killer does not panic");
    output
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// A running process. Drop ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command, its output in a file.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        command.stdout(log.try_clone().expect("a second handle of the log")).stderr(log);
        Self::start_attached(command)
    }

    /// Starts a command whose output goes where the command says.
    pub fn start_attached(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        lab::guard(child.id());
        Self { child, ended: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("ask for a child's end");
            if self.ended.is_some() {
                lab::release(self.child.id());
            }
        }
        self.ended
    }

    /// Sends a signal; does nothing once it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            kill_process(pid_of(&self.child), signal).expect("signal a child");
        }
    }

    /// Waits for its end, at most as long as the bound.
    pub fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while self.ended().is_none() && started.elapsed() < bound {
            sleep(Duration::from_millis(5));
        }
        self.ended
    }

    /// Ends it by a signal, or by SIGKILL if it has not ended within the bound.
    pub fn end(&mut self, signal: Signal, bound: Duration) -> ExitStatus {
        self.signal(signal);
        if let Some(status) = self.wait(bound) {
            return status;
        }
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10)).expect("SIGKILL ends a process")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Signal::KILL, Duration::ZERO);
    }
}
