//! An apply that is killed, or whose system calls fail, at each point: the points come from the trace of a real apply, so a
//! new step is covered without anybody remembering.
//!
//! The apply has everything to do: a number has another owner, and the old owner's phone is registered. After each point the
//! files are whole, the old phone does not ring, now or after Asterisk has restarted, the audit row is true, and the next
//! apply repairs everything by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::fixtures::{Database, account, id, left_overs, registrations, sqlite, try_apply};
use crate::scenes::{ALL_BUT_PROGRAMS, Selection, Succession, whole};
use support::portal::Settings;
use support::process::Signal;
use support::sipp::{Called, Phones, call, register};
use support::strace::{self, Call};
use support::{Answer, Asterisk, Portal, secs, wait_until};

/// What an apply does to files.
const FILES: &str = "trace=openat,flock,unlink,write,fchmod,fsync,rename";
/// What it does to ask Asterisk, and to start `asterisk -rx`.
const ASTERISK: [&str; 3] = ["connect", "clone3", "vfork"];

/// A number that changes hands with the next apply.
struct Scene {
    asterisk: Asterisk,
    portal: Portal,
    caller: (String, String),
    new_owner: (String, String),
    old_secret: String,
    old_phone: Option<Phones>,
    rung: usize,
    files: [Vec<u8>; 2],
    /// The states that Asterisk was restarted in.
    restarted_in: BTreeSet<[String; 4]>,
}

impl Scene {
    fn new() -> Self {
        let asterisk = Asterisk::start();
        let portal = Portal::start(&Settings::of(&asterisk));
        let caller = account(&portal.create_user("Caller", "caller@example.com"));
        let new_owner = account(&portal.create_user("Owner", "owner@example.com"));
        portal.apply("suite");
        Self {
            asterisk,
            portal,
            caller,
            new_owner,
            old_secret: String::new(),
            old_phone: None,
            rung: 0,
            files: [const { Vec::new() }; 2],
            restarted_in: BTreeSet::new(),
        }
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
        self.files = self.on_disk();
    }

    fn on_disk(&self) -> [Vec<u8>; 2] {
        [self.asterisk.endpoints_file(), self.asterisk.routing_file()].map(|file| fs::read(file).expect("a file"))
    }

    /// All that a restart of Asterisk could make something of: the files, the auth and the routing in force, registrations.
    fn state(&self) -> [String; 4] {
        let number = &self.new_owner.0;
        [
            String::from_utf8_lossy(&self.on_disk().concat()).into_owned(),
            self.asterisk.rx(&format!("pjsip show auth {number}")),
            self.asterisk.rx(&format!("dialplan show {number}@synergy-internal")),
            registrations(&self.asterisk, number).to_string(),
        ]
        .map(|text| text.replace(&self.old_secret, "OLD").replace(&self.new_owner.1, "NEW"))
    }

    /// How often the old owner's phone was called.
    fn rings(&self) -> usize {
        self.old_phone.as_ref().map_or(0, |phone| phone.requests("INVITE", &self.new_owner.0))
    }

    /// Whether the old owner's secret is in force.
    fn is_the_old_owners(&self) -> bool {
        self.asterisk.rx(&format!("pjsip show auth {}", self.new_owner.0)).contains(&self.old_secret)
    }

    /// Nobody rings whom the number does not belong to any more.
    fn the_old_phone_is_silent(&mut self, point: &str) {
        // Until it is taken away, the number is the old owner's still. A reload that was begun may take it away during the call.
        let untouched = self.is_the_old_owners();
        let status = call(&self.asterisk, (&self.caller.0, &self.caller.1), &self.new_owner.0);
        if untouched {
            self.rung = self.rings();
        }
        assert!(self.rings() == self.rung && (untouched || status == 480), "{point}: {status}, {} calls", self.rings());
    }

    fn after(&mut self, point: &str) {
        self.the_old_phone_is_silent(point);
        whole(&self.asterisk, point);
        // An administrator's own reload, then a restart.
        self.asterisk.rx("pjsip reload");
        self.asterisk.rx("dialplan reload");
        self.the_old_phone_is_silent(point);
        if self.restarted_in.insert(self.state()) {
            self.asterisk.restart();
            self.the_old_phone_is_silent(point);
        }
        let last = sqlite(&self.portal, "SELECT outcome || ' ' || coalesce(error_details, '') FROM apply_audit_logs");
        let applied = registrations(&self.asterisk, &self.new_owner.0) == 0
            && fs::read_to_string(self.asterisk.endpoints_file()).is_ok_and(|text| text.contains(&self.new_owner.1));
        let is_true =
            if last.is_empty() { self.on_disk() == self.files } else { last.starts_with("failure") || applied };
        assert!(is_true, "{point}: the audit row says {last:?}");

        if self.portal.ended().is_some() {
            self.portal.kill();
            self.portal.boot();
        }
        self.portal.apply("repair");
        self.the_old_phone_is_silent(point);
        assert_eq!(register(&self.asterisk, (&self.new_owner.0, &self.old_secret)), 401, "{point}: the old secret");
        assert_eq!(left_overs(&self.asterisk), [""; 0], "{point}");
    }

    /// Applies with strace at the portal; gives the answer, unless it is killed, and what strace saw.
    fn apply_under(&self, arguments: &[&str]) -> (Option<Answer>, Vec<Call>) {
        let apply = || self.portal.try_request("POST", "/apply", Some(&json!({"triggered_by": "under strace"})));
        let (answer, seen) = strace::under(self.portal.pid(), &[&ALL_BUT_PROGRAMS[..], arguments].concat(), apply);
        (answer.ok(), seen)
    }
}

/// Killed at each call of these names in turn, until an apply has no such call any more; how many there were.
fn killed_at_each(scene: &mut Scene, name: &str, selected: &[&str]) -> usize {
    for when in 1.. {
        scene.change_hands();
        let (trace, inject) = (format!("trace={name}"), format!("inject={name}:signal=KILL:when={when}"));
        let (answer, seen) = scene.apply_under(&[&["-e", &trace, "-e", &inject], selected].concat());
        if let Some(answer) = answer {
            let mut counts = BTreeMap::new();
            for call in &seen {
                *counts.entry(&call.thread).or_insert(0) += 1;
            }
            assert!(
                answer.status == 200 && counts.into_values().max().unwrap_or(0) < when,
                "{inject} does not kill it"
            );
            return when - 1;
        }
        wait_until(secs(10), &format!("{inject}: it is killed"), || scene.portal.ended().is_some());
        scene.after(&inject);
    }
    unreachable!("an apply ends")
}

#[test]
fn by_sigkill_at_each_step_of_the_files() {
    let mut scene = Scene::new();
    scene.change_hands();
    let (_, trace) = scene.apply_under(&["-y", "-e", FILES]);
    scene.after("nowhere");
    let selected = generated(&trace);
    let selected: Vec<_> = selected.iter().map(String::as_str).collect();
    let counts = FILES.trim_start_matches("trace=").split(',').map(|name| killed_at_each(&mut scene, name, &selected));
    let counts: Vec<_> = counts.collect();
    assert!(counts.iter().all(|count| *count > 0) && counts[6] == 3, "take away, endpoints, routing: {counts:?}");
    assert!(
        scene.restarted_in.len() >= 4,
        "the old owner's, nobody's with and without a registration, the new owner's"
    );
}

#[test]
fn by_sigkill_at_each_command_to_asterisk_and_each_reload() {
    let mut scene = Scene::new();
    let counts = ASTERISK.map(|name| killed_at_each(&mut scene, name, &[]));
    assert!(counts[0] > 10 && counts[1] + counts[2] >= 3, "questions and three reloads: {counts:?}");
    assert!(
        scene.restarted_in.len() >= 4,
        "the old owner's, nobody's with and without a registration, the new owner's"
    );
}

/// Lets strace see only calls on the generated files and their lock: then a write is one to a file, and wakes no event loop.
fn generated(trace: &[Call]) -> Vec<String> {
    let words = trace.iter().flat_map(|call| call.text.split(['"', '<', '>']));
    let paths: BTreeSet<_> = words.filter(|word| word.contains("/synergycall")).collect();
    paths.into_iter().flat_map(|path| ["-P".to_owned(), path.to_owned()]).collect()
}

/// What else a kernel says to a call on a file, to which calls, and what the apply then tells the administrator to do.
const REFUSALS: [(&str, &[&str], &str); 4] = [
    ("EIO", &["openat O_WRONLY", "flock", "unlink", "write", "fchmod", "fsync", "rename"], "look at its disk"),
    ("ENOSPC", &["openat O_CREAT", "write", "fsync", "rename"], "free space on its disk"),
    ("EACCES", &["openat", "unlink", "rename"], "portal's user"),
    ("EROFS", &["openat O_WRONLY", "unlink", "fchmod", "rename"], "mount it writable"),
];

#[test]
fn by_whatever_else_a_kernel_refuses_at_a_file() {
    let mut scene = Succession::on(Database::Sqlite);
    let calls = ["-y", "-e", FILES];
    let (_, trace) = scene.apply_under(&calls);
    let selected = generated(&trace);
    let selected: Vec<_> = selected.iter().map(String::as_str).collect();
    scene.next();
    let (_, trace) = scene.apply_under(&[&calls[..], &selected].concat());
    let count = |name| trace.iter().filter(|call| call.name == name).count();
    assert_eq!((count("write"), count("rename")), (3, 3), "take away, endpoints, routing: {trace:#?}");

    for (error, refused, advice) in REFUSALS {
        let mut counts = BTreeMap::new();
        for call in &trace {
            let when = counts.entry(&call.name).or_insert(0);
            *when += 1;
            let fits = |wanted: &&str| {
                let (name, flag) = wanted.split_once(' ').unwrap_or((*wanted, ""));
                name == call.name && call.text.contains(flag)
            };
            if !refused.iter().any(fits) {
                continue;
            }
            scene.next();
            let inject = format!("inject={}:error={error}:when={when}", call.name);
            let (answer, seen) = scene.apply_under(&[&["-e", &inject], &selected[..]].concat());
            let answer = answer.expect("an answer");
            let point = format!("{inject}, {}: {}", call.text, answer.text);
            assert!(seen.iter().any(Call::failed_by_strace), "{point}");
            assert_eq!(answer.status, 500, "{point}");
            let details = answer.json["error_details"].as_str().expect("details");
            assert!(details.contains("/synergycall/") && details.contains(advice), "{point}");
            assert_eq!(scene.row(), format!("failure {details}"), "{point}");
            assert_eq!(left_overs(&scene.asterisk), [""; 0], "{point}");
            scene.repaired(&point);
        }
    }
}

/// The error at each of these calls ends the apply, whose answer and row say this. Only pings are sent again, and what is asked behind
/// the proof is a warning.
fn refused_at_each(name: &str, error: &str, told: &str) -> usize {
    let mut scene = Succession::on(Database::Sqlite);
    scene.at_each(name, &format!("error={error}"), Selection::everything, |scene, answer, point| {
        let answer = answer.expect("an answer");
        let [id, message, details] =
            ["audit_log_id", "message", "error_details"].map(|field| answer.json[field].as_str().unwrap_or_default());
        if answer.status == 200 {
            let log = scene.portal.log();
            let pinged_again = log.lines().any(|line| line.contains(id) && line.contains("they are sent again"));
            assert!(pinged_again || message.contains(told), "{point}: {}", answer.text);
            assert_eq!(scene.row().trim_end(), "success", "{point}");
        } else {
            assert!(answer.status == 500 && details.contains(told), "{point}: {}", answer.text);
            assert_eq!(scene.row(), format!("failure {details}"), "{point}");
        }
    })
}

#[test]
fn by_a_command_that_cant_be_sent() {
    for (name, error, told) in
        [("sendto", "EPIPE", "Asterisk closed the connection"), ("connect", "EIO", "can't be reached")]
    {
        let points = refused_at_each(name, error, told);
        assert!(points > 10, "an apply has many questions: {points}");
    }
}

#[test]
fn by_a_reload_that_cant_be_started() {
    let points = refused_at_each("clone3", "EAGAIN", "cannot start");
    assert_eq!(points, 4, "which Asterisk it is, take away, endpoints, routing");
}

#[test]
fn by_sigterm_at_each_step_after_which_it_finishes() {
    let mut scene = Succession::on(Database::Sqlite);
    let counts = ["flock", "fsync", "rename", "sendto", "clone3", "vfork"]
        .map(|name| scene.at_each(name, "signal=TERM", Selection::everything, Succession::stopped_after_success));
    assert!(counts[..4].iter().all(|count| *count > 0), "{counts:?}");
}

const BY_A_CLIENT_THAT_GOES: &str = r#"{"triggered_by":"gone"}"#;

#[test]
fn a_client_that_hangs_up_at_whatever_moment_ends_no_apply() {
    let scene = Succession::on(Database::Sqlite);
    for milliseconds in (0..100).step_by(7) {
        let client = scene.portal.begin_post("/apply", BY_A_CLIENT_THAT_GOES);
        std::thread::sleep(Duration::from_millis(milliseconds));
        drop(client);
        wait_until(secs(20), "the apply is done", || try_apply(&scene.portal).status == 200);
    }
    assert_eq!(scene.sql("SELECT count(*) FROM apply_audit_logs WHERE outcome <> 'success'"), "0");
    let gone = scene.sql("SELECT count(*) FROM apply_audit_logs WHERE triggered_by = 'gone'");
    assert!(gone.parse::<u32>().is_ok_and(|count| count > 10), "{gone}");
    scene.repaired("hung up");
}

#[test]
fn an_apply_whose_client_has_gone_ends_before_a_stop() {
    let mut scene = Succession::on(Database::Sqlite);
    scene.next();
    scene.asterisk.signal(Signal::STOP);
    let logged = scene.portal.log().len();
    let client = scene.portal.begin_post("/apply", BY_A_CLIENT_THAT_GOES);
    let log = |what: &str| scene.portal.log()[logged..].contains(what);
    wait_until(secs(10), "the users are read", || log("step=\"snapshot\""));
    drop(client);
    scene.portal.signal(Signal::TERM);
    wait_until(secs(10), "the service stops", || log("stopping"));
    scene.asterisk.signal(Signal::CONT);
    wait_until(secs(20), "the service ends", || scene.portal.ended().is_some());
    assert!(scene.portal.ended().is_some_and(|status| status.success()));
    assert_eq!((scene.row().as_str(), scene.served()), ("success", true));
}
