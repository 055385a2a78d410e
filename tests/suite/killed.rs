//! An apply that is killed, or whose system calls fail, at each point: the points come from the trace of a real apply, so a
//! new step is covered without anybody remembering.
//!
//! The apply has everything to do: a number has another owner, and the old owner's phone is registered. After each point the
//! files are whole, the old phone does not ring, now or after Asterisk has restarted, the audit row is true, and the next
//! apply repairs everything by itself.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::fixtures::{account, id, registrations, sqlite};
use crate::support::lab::Folder;
use crate::support::portal::Settings;
use crate::support::process::{Process, Signal};
use crate::support::sipp::{Called, Phones, call, register};
use crate::support::{Asterisk, Portal, secs, wait_until};

/// What an apply does to files, to Asterisk's socket, and to start `asterisk -rx`.
const STEPS: &str = "openat,flock,unlink,write,fchmod,fsync,rename,connect,clone3,vfork";

/// A number that changes hands with the next apply.
struct Scene {
    asterisk: Asterisk,
    portal: Portal,
    caller: (String, String),
    new_owner: (String, String),
    old_secret: String,
    old_phone: Option<Phones>,
    rung: usize,
}

impl Scene {
    fn new() -> Self {
        let asterisk = Asterisk::start();
        let portal = Portal::start(&Settings::of(&asterisk));
        let caller = account(&portal.create_user("Caller", "caller@example.com"));
        let new_owner = account(&portal.create_user("Owner", "owner@example.com"));
        portal.apply("suite");
        Self { asterisk, portal, caller, new_owner, old_secret: String::new(), old_phone: None, rung: 0 }
    }

    /// The owner's phone is registered, then the number gets another owner.
    fn change_hands(&mut self) {
        let (number, secret) = self.new_owner.clone();
        self.old_phone = None;
        self.old_phone = Some(Phones::register(&self.asterisk, &[(&number, &secret)], Called::Answer));
        self.old_secret = secret;
        assert_eq!(call(&self.asterisk, (&self.caller.0, &self.caller.1), &number), 200, "the owner's phone rings");
        self.rung = self.rings();
        let users = self.portal.users();
        let owner = users.iter().find(|user| account(user).0 == number).expect("the owner");
        let email = owner["email"].as_str().expect("an address").to_owned();
        sqlite(&self.portal, "DELETE FROM apply_audit_logs");
        self.portal.delete_user(id(owner));
        self.new_owner = account(&self.portal.create_user("Owner", &email));
        assert_eq!(self.new_owner.0, number);
    }

    /// How often the old owner's phone was called.
    fn rings(&self) -> usize {
        self.old_phone.as_ref().map_or(0, |phone| phone.requests("INVITE", &self.new_owner.0))
    }

    /// Nobody rings whom the number does not belong to any more.
    fn the_old_phone_is_silent(&mut self, point: &str) {
        let status = call(&self.asterisk, (&self.caller.0, &self.caller.1), &self.new_owner.0);
        let (number, old) = (&self.new_owner.0, &self.old_secret);
        let on_disk = fs::read_to_string(self.asterisk.endpoints_file()).is_ok_and(|text| text.contains(old.as_str()));
        let in_force = self.asterisk.rx(&format!("pjsip show auth {number}")).contains(old.as_str())
            && self.asterisk.rx(&format!("dialplan show {number}@synergy-internal")).contains("Dial");
        // Until the quarantine is in force, the number is the old owner's still.
        let untouched = on_disk && in_force;
        if untouched {
            self.rung = self.rings();
        }
        assert!(
            self.rings() == self.rung && (untouched || matches!(status, 404 | 480)),
            "{point}: {status}, {} calls",
            self.rings()
        );
    }

    fn after(&mut self, point: &str) {
        self.the_old_phone_is_silent(point);
        for (file, end) in
            [(self.asterisk.endpoints_file(), "qualify_frequency=60\n"), (self.asterisk.routing_file(), "?17:19)})\n")]
        {
            let text = fs::read_to_string(&file).expect("a generated file");
            assert!(text.ends_with(end), "{point}: {} is half a file", file.display());
        }
        self.asterisk.restart();
        self.the_old_phone_is_silent(point);
        let last = sqlite(&self.portal, "SELECT outcome || ' ' || coalesce(error_details, '') FROM apply_audit_logs");
        let applied = registrations(&self.asterisk, &self.new_owner.0) == 0
            && fs::read_to_string(self.asterisk.endpoints_file()).is_ok_and(|text| text.contains(&self.new_owner.1));
        assert!(last.is_empty() || last.starts_with("failure") || applied, "{point}: the audit row says {last}");

        if self.portal.ended().is_some() {
            self.portal.kill();
            self.portal.boot();
        }
        self.portal.apply("repair");
        self.the_old_phone_is_silent(point);
        assert_eq!(register(&self.asterisk, (&self.new_owner.0, &self.old_secret)), 401, "{point}: the old secret");
        for file in [self.asterisk.endpoints_file(), self.asterisk.routing_file()] {
            for entry in fs::read_dir(file.with_file_name("")).expect("list") {
                let name = entry.expect("list").file_name().to_string_lossy().into_owned();
                assert!(!name.contains(".tmp"), "{point}: {name} is left");
            }
        }
    }

    /// Applies with strace at the portal; gives what strace wrote.
    fn apply_under(&self, arguments: &[&str]) -> String {
        let folder = Folder::new("strace");
        let (trace, log) = (folder.path().join("trace"), folder.path().join("log"));
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &self.portal.pid().to_string()]).args(arguments).arg("-o").arg(&trace);
        let mut strace = Process::start(&mut command, &log);
        wait_until(secs(10), "strace is at the portal", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("attached"))
        });
        let body = serde_json::json!({"triggered_by": "under strace"});
        // Killed, it does not answer.
        let _ = self.portal.try_request("POST", "/apply", Some(&body));
        strace.end(Signal::INT, secs(5));
        fs::read_to_string(&trace).expect("the trace")
    }
}

/// How often the apply's own thread made each system call.
fn steps(trace: &str) -> BTreeMap<String, usize> {
    let call = |line: &str| {
        let (thread, rest) = line.split_once(' ')?;
        let name = rest.trim_start().split_once('(')?.0;
        name.chars().all(|c| c.is_ascii_alphanumeric()).then(|| (thread.to_owned(), name.to_owned()))
    };
    let calls: Vec<_> = trace.lines().filter_map(call).collect();
    let own = calls.iter().find(|(_, name)| name == "rename").expect("a rename").0.clone();
    let mut counts = BTreeMap::new();
    for (_, name) in calls.into_iter().filter(|(thread, _)| *thread == own) {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn at_each_point(fault: &str, calls: &[&str]) {
    let mut scene = Scene::new();
    scene.change_hands();
    let trace = scene.apply_under(&["-e", &format!("trace={STEPS}")]);
    let counts = steps(&trace);
    assert_eq!(counts.get("rename"), Some(&3), "quarantine, endpoints, routing: {counts:?}");
    scene.after("nowhere");
    for (name, count) in counts.iter().filter(|(name, _)| calls.contains(&name.as_str())) {
        for when in 1..=*count {
            scene.change_hands();
            let inject = format!("inject={name}:{fault}:when={when}");
            scene.apply_under(&["-e", &format!("trace={name}"), "-e", &inject]);
            scene.after(&inject);
        }
    }
}

#[test]
fn by_sigkill_at_each_step_of_the_files() {
    at_each_point("signal=KILL", &["openat", "flock", "unlink", "write", "fchmod", "fsync", "rename"]);
}

#[test]
fn by_sigkill_at_each_question_to_asterisk_and_each_reload() {
    at_each_point("signal=KILL", &["connect", "clone3", "vfork"]);
}

// `write` is not among them: the same call wakes an event loop, where no kernel fails it.
#[test]
fn by_errors_of_the_disk_and_of_the_socket() {
    at_each_point("error=EIO", &["openat", "flock", "unlink", "fchmod", "fsync", "rename", "connect", "clone3"]);
}
