//! Phones by SIPp: one, or a thousand on one socket, with digest authentication, over UDP, TCP and IPv6.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::lab::{Folder, Ports};
use super::process::{Process, run_within};
use super::{secs, wait_until};

/// What a registered phone does when it is called.
#[derive(Clone, Copy, Debug)]
pub enum Called {
    Answer,
    /// Rings until the caller gives up.
    Ring,
    Busy,
}

/// How phones reach Asterisk.
#[derive(Clone, Copy, Debug)]
pub enum Link {
    Udp,
    /// From this address, instead of the server's.
    UdpFrom(IpAddr),
    Tcp,
}

impl Link {
    /// SIPp's name for it, with all calls on one socket.
    fn transport(self) -> &'static str {
        match self {
            Self::Udp | Self::UdpFrom(_) => "u1",
            Self::Tcp => "t1",
        }
    }
}

/// Registered phones that answer Asterisk's OPTIONS. Drop unplugs them: they stay registered, but do not answer.
pub struct Phones {
    folder: Folder,
    _sipp: Process,
    _ports: [Ports; 2],
}

impl Phones {
    /// Registers the phones, (number, secret) each, and waits until Asterisk has accepted all.
    pub fn register(server: impl Into<SocketAddr>, accounts: &[(&str, &str)], called: Called) -> Self {
        Self::register_over(Link::Udp, server, accounts, called)
    }

    /// Like [`Phones::register`], over any link.
    pub fn register_over(link: Link, server: impl Into<SocketAddr>, accounts: &[(&str, &str)], called: Called) -> Self {
        let (folder, ports) = (Folder::new("phones"), [Ports::one(), Ports::one()]);
        let lines: Vec<_> = accounts.iter().map(|account| line(*account, "")).collect();
        let mut sipp = sipp((link, server.into()), &folder, &ports, "register", &lines, secs(24 * 3600));
        let called = match called {
            Called::Answer => "answer",
            Called::Ring => "ring",
            Called::Busy => "busy",
        };
        sipp.arg("-oocsf").arg(scenario(called));
        Self::start(folder, ports, sipp, accounts.len())
    }

    /// A phone that answers, and that sends REGISTER some fifty times a second, whatever Asterisk says; waits until it is
    /// registered.
    pub fn hammer(server: impl Into<SocketAddr>, account: (&str, &str)) -> Self {
        let (folder, ports) = (Folder::new("hammer"), [Ports::one(), Ports::one()]);
        let mut sipp =
            sipp((Link::Udp, server.into()), &folder, &ports, "hammer", &[line(account, "")], Duration::ZERO);
        without_end(&mut sipp, HAMMERING_AT_ONCE, 50).arg("-oocsf").arg(scenario("answer"));
        Self::start(folder, ports, sipp, 1)
    }

    fn start(folder: Folder, ports: [Ports; 2], mut sipp: Command, count: usize) -> Self {
        let mut process = Process::start(&mut sipp, &folder.path().join("output"));
        let bound = secs(20) + Duration::from_millis(40) * u32::try_from(count).expect("a number of phones");
        wait_until(bound, "all phones are registered", || {
            if let Some(status) = process.ended() {
                panic!("SIPp ended while it registered phones, {status}:\n{}", read(&folder, "output"));
            }
            read(&folder, "log").lines().filter(|line| line.starts_with("registered")).count() >= count
        });
        Self { folder, _sipp: process, _ports: ports }
    }

    /// How many requests of this method the phone of this number received, retransmissions included.
    pub fn requests(&self, method: &str, number: &str) -> usize {
        self.arrivals(method, number).len()
    }

    /// The `From` of each INVITE: what a phone shows.
    pub fn callers(&self) -> Vec<String> {
        let messages = read(&self.folder, "messages");
        let invites = messages.split("\nINVITE sip:").skip(1);
        invites
            .filter_map(|invite| invite.lines().find_map(|line| line.strip_prefix("From: ")))
            .map(str::to_owned)
            .collect()
    }

    /// The addresses in each INVITE that a phone answers to, of its `Contact` and of its audio.
    pub fn invited_from(&self) -> Vec<String> {
        let address = |invite: &str, before: &str, end: &[char]| {
            let (_, rest) = invite.split_once(before).expect("a Contact and an SDP");
            rest.split(end).next().unwrap_or_default().to_owned()
        };
        let messages = read(&self.folder, "messages");
        let both = |invite: &str| {
            let contact = address(invite, "\nContact: <sip:asterisk@", &[':', '>']);
            format!("{contact} {}", address(invite, "\nc=IN IP4 ", &['\r', '\n']))
        };
        messages.split("\nINVITE sip:").skip(1).map(both).collect()
    }

    /// The times of these INVITEs, in the form of [`Caller::calls`].
    pub fn arrivals(&self, method: &str, number: &str) -> Vec<String> {
        let start = format!("{method} sip:{number}@");
        let came = messages(&self.folder).into_iter().filter(|message| message.start.starts_with(&start));
        came.map(|message| message.at).collect()
    }

    /// The time and final status of each REGISTER with credentials, in the form of [`Caller::calls`].
    pub fn registrations(&self) -> Vec<(String, u16)> {
        decided(&self.folder, "2 REGISTER")
    }
}

/// How many REGISTERs [`Phones::hammer`] sends at once.
pub const HAMMERING_AT_ONCE: usize = 5;

/// A caller who calls a number without pause, one short call after the other. Drop ends it.
pub struct Caller {
    folder: Folder,
    _sipp: Process,
    _ports: [Ports; 2],
}

impl Caller {
    /// Begins, and waits until the first call has ended.
    pub fn start(server: impl Into<SocketAddr>, from: (&str, &str), to: &str) -> Self {
        let (folder, ports) = (Folder::new("caller"), [Ports::one(), Ports::one()]);
        let hold = Duration::from_millis(10);
        let mut sipp = sipp((Link::Udp, server.into()), &folder, &ports, "invite", &[line(from, to)], hold);
        let sipp = Process::start(without_end(&mut sipp, 1, 200), &folder.path().join("output"));
        let caller = Self { folder, _sipp: sipp, _ports: ports };
        caller.wait_for_calls(1);
        caller
    }

    /// The time and final status of each call, oldest first. The time is text that sorts by time.
    pub fn calls(&self) -> Vec<(String, u16)> {
        decided(&self.folder, "2 INVITE")
    }

    /// Waits until this many more calls have a final status.
    pub fn wait_for_calls(&self, more: usize) {
        let enough = self.calls().len() + more;
        wait_until(secs(60), "more calls are decided", || self.calls().len() >= enough);
    }
}

/// Sends a REGISTER from a phone and gives the final status.
pub fn register(server: impl Into<SocketAddr>, account: (&str, &str)) -> u16 {
    request(server, "register", line(account, ""), Duration::ZERO)
}

/// Calls as this endpoint and gives the final status; a call that is answered is held for a quarter of a second.
pub fn call(server: impl Into<SocketAddr>, from: (&str, &str), to: &str) -> u16 {
    request(server, "invite", line(from, to), Duration::from_millis(250))
}

/// A call that was answered and goes on. Drop unplugs the caller; Asterisk keeps its side.
pub struct Call {
    _folder: Folder,
    _sipp: Process,
    _ports: [Ports; 2],
}

impl Call {
    /// Calls as this endpoint and waits until the other side has answered.
    pub fn begin(server: impl Into<SocketAddr>, from: (&str, &str), to: &str) -> Self {
        let (folder, ports) = (Folder::new("call"), [Ports::one(), Ports::one()]);
        let mut sipp = sipp((Link::Udp, server.into()), &folder, &ports, "invite", &[line(from, to)], secs(24 * 3600));
        let process = Process::start(&mut sipp, &folder.path().join("output"));
        wait_until(secs(20), "the call is answered", || read(&folder, "messages").contains("\nSIP/2.0 200 OK"));
        Self { _folder: folder, _sipp: process, _ports: ports }
    }
}

/// Sends a text message (SIP MESSAGE) as this endpoint and gives the final status.
pub fn message(server: impl Into<SocketAddr>, from: (&str, &str), to: &str) -> u16 {
    request(server, "message", line(from, to), Duration::ZERO)
}

/// Runs one scenario to its end, and gives Asterisk's last answer. SIPp's own exit status tells only whether the scenario expected
/// it.
fn request(server: impl Into<SocketAddr>, name: &str, line: String, hold: Duration) -> u16 {
    let (folder, ports) = (Folder::new(name), [Ports::one(), Ports::one()]);
    let mut command = sipp((Link::Udp, server.into()), &folder, &ports, name, &[line], hold);
    let output = run_within(secs(60), &mut command);
    let last = messages(&folder).iter().rev().find_map(|message| final_status(&message.start));
    last.unwrap_or_else(|| {
        panic!(
            "no final answer to {name}, SIPp {}:\n{}{}",
            output.status,
            read(&folder, "messages"),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// The time and status of the final answer to each request with this `CSeq`, oldest first.
fn decided(folder: &Folder, cseq: &str) -> Vec<(String, u16)> {
    let mut decided = BTreeSet::new();
    let finals =
        messages(folder).into_iter().filter(|message| message.cseq == cseq && final_status(&message.start).is_some());
    // On a busy machine, Asterisk sends an answer again.
    let answers = finals.filter(|message| decided.insert(message.call_id.clone()));
    answers.filter_map(|message| Some((message.at, final_status(&message.start)?))).collect()
}

/// The status of an answer, unless it is provisional.
fn final_status(start: &str) -> Option<u16> {
    start.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok().filter(|status| *status >= 200)
}

/// A line of SIPp's injection file: the number, its credentials, and whom it calls.
fn line((number, secret): (&str, &str), to: &str) -> String {
    format!("{number};[authentication username={number} password={secret}];{to}")
}

fn sipp(
    (link, server): (Link, SocketAddr),
    folder: &Folder,
    [sip, control]: &[Ports; 2],
    name: &str,
    lines: &[String],
    hold: Duration,
) -> Command {
    let file = |name: &str| folder.path().join(name);
    fs::write(file("phones.csv"), format!("SEQUENTIAL\n{}\n", lines.join("\n"))).expect("write phones.csv");
    let count = lines.len().to_string();
    let own = if let Link::UdpFrom(address) = link { address } else { server.ip() };
    let mut command = Command::new("sipp");
    command
        .arg(server.to_string())
        .args(["-i", &own.to_string(), "-p", &sip.number().to_string(), "-t", link.transport()])
        .args(["-ci", "127.0.0.1", "-cp", &control.number().to_string()])
        .arg("-sf")
        .arg(scenario(name))
        .arg("-inf")
        .arg(file("phones.csv"))
        .args(["-m", &count, "-l", &count, "-r", "100"])
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

/// Options that repeat a scenario: how many at once, how many a second.
fn without_end(sipp: &mut Command, at_once: usize, a_second: usize) -> &mut Command {
    // SIPp uses the last of two equal options.
    sipp.args(["-m", "1000000", "-l", &at_once.to_string(), "-r", &a_second.to_string()])
}

/// A message that SIPp sent or received.
struct Message {
    /// Date and time to the microsecond: text that sorts by time, the same clock for all on this machine.
    at: String,
    /// Its first line.
    start: String,
    /// Its `CSeq`, such as `2 INVITE`.
    cseq: String,
    call_id: String,
}

/// SIPp's trace, oldest first. Before each message are a line of dashes with the time, a line with its length, and an empty
/// one.
fn messages(folder: &Folder) -> Vec<Message> {
    let parse = |block: &str| {
        let mut lines = block.lines();
        let at = lines.next()?.to_owned();
        let start = lines.nth(2)?.to_owned();
        let header = |name: &str| lines.clone().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some(Message { at, start, cseq: header("CSeq: ")?, call_id: header("Call-ID: ")? })
    };
    let dashes = format!("{} ", "-".repeat(47));
    read(folder, "messages").split(&dashes).skip(1).filter_map(parse).collect()
}

/// One of the files that SIPp writes.
fn read(folder: &Folder, name: &str) -> String {
    let bytes = fs::read(folder.path().join(name)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sipp").join(format!("{name}.xml"))
}
