//! Phones by SIPp: one, or a thousand on one socket, with digest authentication.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::lab::{Folder, Ports};
use super::process::{Process, run_within};
use super::{Asterisk, secs, wait_until};

/// What a registered phone does when it is called.
#[derive(Clone, Copy, Debug)]
pub enum Called {
    Answer,
    /// Rings until the caller gives up.
    Ring,
    Busy,
}

/// Registered phones that answer Asterisk's OPTIONS. Dropping them unplugs them: they stay registered, and silent.
pub struct Phones {
    folder: Folder,
    _sipp: Process,
    _ports: [Ports; 2],
}

impl Phones {
    /// Registers the phones, (number, secret) each, and waits until Asterisk has accepted all.
    pub fn register(asterisk: &Asterisk, accounts: &[(&str, &str)], called: Called) -> Self {
        let (folder, ports) = (Folder::new("phones"), [Ports::one(), Ports::one()]);
        let lines: Vec<_> = accounts.iter().map(|account| line(*account, "")).collect();
        let mut sipp = sipp(asterisk, &folder, &ports, "register", &lines, secs(24 * 3600));
        let called = match called {
            Called::Answer => "answer",
            Called::Ring => "ring",
            Called::Busy => "busy",
        };
        sipp.arg("-oocsf").arg(scenario(called));
        let mut process = Process::start(&mut sipp, &folder.path().join("output"));
        let registered = || read(&folder, "log");
        let output = || read(&folder, "output");
        let bound = secs(20) + Duration::from_millis(20) * u32::try_from(accounts.len()).expect("a number of phones");
        wait_until(bound, "all phones are registered", || {
            if let Some(status) = process.ended() {
                panic!("SIPp ended while it registered phones, {status}:\n{}", output());
            }
            registered().lines().count() >= accounts.len()
        });
        Self { folder, _sipp: process, _ports: ports }
    }

    /// How many requests of this method the phone of this number got, repeated ones too.
    pub fn requests(&self, method: &str, number: &str) -> usize {
        let start = format!("{method} sip:{number}@");
        read(&self.folder, "messages").lines().filter(|line| line.starts_with(&start)).count()
    }
}

/// Sends a REGISTER from a phone and gives the final status.
pub fn register(asterisk: &Asterisk, account: (&str, &str)) -> u16 {
    request(asterisk, "register", line(account, ""), Duration::ZERO)
}

/// Calls as this endpoint and gives the final status; a call that is answered is held for a quarter of a second.
pub fn call(asterisk: &Asterisk, from: (&str, &str), to: &str) -> u16 {
    request(asterisk, "invite", line(from, to), Duration::from_millis(250))
}

/// Sends a text message (SIP MESSAGE) as this endpoint and gives the final status.
pub fn message(asterisk: &Asterisk, from: (&str, &str), to: &str) -> u16 {
    request(asterisk, "message", line(from, to), Duration::ZERO)
}

/// Runs one scenario to its end. What Asterisk answered last is what was decided; SIPp's own exit status only tells
/// whether the scenario had expected it.
fn request(asterisk: &Asterisk, name: &str, line: String, hold: Duration) -> u16 {
    let (folder, ports) = (Folder::new(name), [Ports::one(), Ports::one()]);
    let mut command = sipp(asterisk, &folder, &ports, name, &[line], hold);
    let output = run_within(secs(60), &mut command);
    let messages = read(&folder, "messages");
    let mut statuses = messages.lines().filter_map(|line| line.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok());
    let last = statuses.rfind(|status| *status >= 200);
    last.unwrap_or_else(|| {
        panic!(
            "no final answer to {name}, SIPp {}:\n{messages}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// A line of SIPp's injection file: the number, its credentials, and whom it calls.
fn line((number, secret): (&str, &str), to: &str) -> String {
    format!("{number};[authentication username={number} password={secret}];{to}")
}

fn sipp(
    asterisk: &Asterisk,
    folder: &Folder,
    [sip, control]: &[Ports; 2],
    name: &str,
    lines: &[String],
    hold: Duration,
) -> Command {
    let file = |name: &str| folder.path().join(name);
    fs::write(file("phones.csv"), format!("SEQUENTIAL\n{}\n", lines.join("\n"))).expect("write phones.csv");
    let count = lines.len().to_string();
    let mut command = Command::new("sipp");
    command
        .arg(asterisk.sip().to_string())
        .args(["-i", "127.0.0.1", "-p", &sip.number().to_string(), "-t", "u1"])
        .args(["-ci", "127.0.0.1", "-cp", &control.number().to_string()])
        .arg("-sf")
        .arg(scenario(name))
        .arg("-inf")
        .arg(file("phones.csv"))
        .args(["-m", &count, "-l", &count, "-r", "400"])
        .args(["-d", &hold.as_millis().to_string()])
        .arg("-trace_msg")
        .arg("-message_file")
        .arg(file("messages"))
        .arg("-trace_logs")
        .arg("-log_file")
        .arg(file("log"))
        .args(["-nostdin", "-skip_rlimit"])
        .env("TERM", "dumb")
        .current_dir(folder.path());
    command
}

/// One of the files that SIPp writes.
fn read(folder: &Folder, name: &str) -> String {
    let bytes = fs::read(folder.path().join(name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/sipp").join(format!("{name}.xml"))
}
