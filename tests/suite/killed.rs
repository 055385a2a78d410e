//! An apply that is killed, or whose system calls fail, at each point: the points come from the trace of a real apply, so a
//! new step is covered without anybody remembering.
//!
//! The apply has everything to do: a number has another owner, and the old owner's phone is registered. After each point the
//! files are whole, the old phone does not ring, now or after Asterisk has restarted, the audit row is true, and the next
//! apply repairs everything by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use crate::fixtures::{left_overs, registrations, try_apply};
use crate::scenes::{Scene, Selection, most_of_a_thread, whole};
use crate::steps::{FILES, PINGS_AGAIN, PROGRAMS, STOPPING, USERS_READ, inject};
use support::process::Signal;
use support::strace::Call;
use support::{Asterisk, Phone, secs, wait_until};

/// What an apply does to files.
const CALLS_ON_FILES: &str = "trace=openat,flock,unlink,write,fchmod,fsync,rename";
/// What it does to ask Asterisk, and to start `asterisk -rx`.
const CALLS_TO_ASTERISK: [&str; 3] = ["connect", "clone3", "vfork"];

/// A number that changes hands again and again, and what was before the next apply.
struct Change {
    scene: Scene,
    old: Phone,
    files: [String; 2],
    /// The states that Asterisk was restarted in.
    restarted_in: BTreeSet<[String; 4]>,
}

impl Change {
    fn new() -> Self {
        let scene = Scene::new();
        Self { old: scene.new_phone(), files: scene.files(), scene, restarted_in: BTreeSet::new() }
    }

    /// The owner's phone is registered, then the number gets another owner.
    fn again(&mut self) {
        self.old = self.scene.phone();
        self.scene.next_owner();
        self.files = self.scene.files();
    }

    /// All that a restart of Asterisk could make something of: the files, the auth and the routing in force, registrations.
    fn state(&self) -> [String; 4] {
        let Scene { asterisk, number, .. } = &self.scene;
        [
            self.scene.files().concat(),
            self.scene.auth(),
            asterisk.rx(&format!("dialplan show {number}@synergy-internal")),
            registrations(asterisk, number).to_string(),
        ]
        .map(|text| text.replace(&self.old.secret, "OLD").replace(&self.scene.secret(), "NEW"))
    }

    /// Nobody rings whom the number does not belong to any more.
    fn the_old_phone_is_silent(&self, point: &str) {
        // Until it is taken away, the number is the old owner's still. A reload that was begun may take it away during the call.
        let untouched = self.scene.auth().contains(&self.old.secret);
        let heard = (self.scene.call(), self.old.take_rings());
        assert!(untouched || heard == (Some(480), 0), "{point}: a call, and how often the old phone rings: {heard:?}");
    }

    fn after(&mut self, point: &str) {
        self.the_old_phone_is_silent(point);
        let Scene { asterisk, portal, number, .. } = &self.scene;
        whole(asterisk, point);
        // An administrator's own reload, then a restart.
        asterisk.rx("pjsip reload");
        asterisk.rx("dialplan reload");
        self.the_old_phone_is_silent(point);
        if self.restarted_in.insert(self.state()) {
            asterisk.restart();
            self.the_old_phone_is_silent(point);
        }
        let last = self.scene.row();
        let applied = registrations(asterisk, number) == 0
            && fs::read_to_string(asterisk.endpoints_file()).is_ok_and(|text| text.contains(&self.scene.secret()));
        let is_true =
            if last.is_empty() { self.scene.files() == self.files } else { last.starts_with("failure") || applied };
        assert!(is_true, "{point}: the audit row says {last:?}");

        if portal.ended().is_some() {
            portal.kill();
            portal.boot();
        }
        portal.apply("repair");
        self.scene.is_silent(&self.old, 480, point);
        assert_eq!(left_overs(asterisk), [""; 0], "{point}");
    }

    /// Killed at each call of this name in turn, until an apply has no such call any more; how many there were.
    fn killed_at_each(&mut self, name: &str, selected: &[String]) -> usize {
        for when in 1.. {
            self.again();
            let injected = inject(name, when, "signal=KILL");
            let (answer, seen) = self.scene.apply_under(&[&injected, selected].concat());
            let point = &injected[3];
            if let Some(answer) = answer {
                assert!(answer.status == 200 && most_of_a_thread(&seen) < when, "{point} does not kill it");
                return when - 1;
            }
            wait_until(secs(10), &format!("{point}: it is killed"), || self.scene.portal.ended().is_some());
            self.after(point);
        }
        unreachable!("an apply ends")
    }

    /// It was killed while the number was still the old owner's, nobody's with and without a registration, and the new owner's.
    fn visited_all_states(&self) {
        assert!(self.restarted_in.len() >= 4, "{:#?}", self.restarted_in);
    }
}

#[test]
fn sigkill_at_any_step_of_the_files_lets_no_old_phone_ring() {
    let mut change = Change::new();
    change.again();
    let (_, trace) = change.scene.apply_under(&["-y", "-e", CALLS_ON_FILES]);
    change.after("nowhere");
    let selected = generated(&trace);
    let names = CALLS_ON_FILES.trim_start_matches("trace=").split(',');
    let counts: BTreeMap<_, _> = names.map(|name| (name, change.killed_at_each(name, &selected))).collect();
    assert!(counts.values().all(|count| *count > 0) && counts["rename"] == FILES, "{counts:?}");
    change.visited_all_states();
}

#[test]
fn sigkill_at_any_command_or_reload_lets_no_old_phone_ring() {
    let mut change = Change::new();
    let counts = CALLS_TO_ASTERISK.map(|name| change.killed_at_each(name, &[]));
    assert!(counts[0] > 10 && counts[1] + counts[2] >= PROGRAMS - 1, "questions and reloads: {counts:?}");
    change.visited_all_states();
}

/// Lets strace see only calls on the generated files and their lock: then a write is one to a file, and wakes no event loop.
fn generated(trace: &[Call]) -> Vec<String> {
    let words = trace.iter().flat_map(|call| call.text.split(['"', '<', '>']));
    let paths: BTreeSet<_> = words.filter(|word| word.contains("/synergycall")).collect();
    paths.into_iter().flat_map(|path| ["-P".to_owned(), path.to_owned()]).collect()
}

/// The number is the only one, so the endpoints are empty once it is taken away.
fn one_number() -> Scene {
    let mut scene = Scene::at(Asterisk::start()).among(0).begin();
    scene.next_owner();
    scene
}

/// What else a kernel says to a call on a file, to which calls, and what the apply then tells the administrator to do.
const REFUSALS: [(&str, &[&str], &str); 4] = [
    ("EIO", &["openat O_WRONLY", "flock", "unlink", "write", "fchmod", "fsync", "rename"], "look at its disk"),
    ("ENOSPC", &["openat O_CREAT", "write", "fsync", "rename"], "free space on its disk"),
    ("EACCES", &["openat", "unlink", "rename"], "portal's user"),
    ("EROFS", &["openat O_WRONLY", "unlink", "fchmod", "rename"], "mount it writable"),
];

#[test]
fn whatever_a_kernel_refuses_at_a_file_is_named_and_repaired() {
    let mut scene = one_number();
    let calls = ["-y", "-e", CALLS_ON_FILES];
    let (_, trace) = scene.apply_under(&calls);
    let selected = generated(&trace);
    scene.next_owner();
    let (_, trace) = scene.apply_under(&[&calls.map(str::to_owned)[..], &selected].concat());
    let count = |name| trace.iter().filter(|call| call.name == name).count();
    assert_eq!((count("write"), count("rename")), (FILES, FILES), "{trace:#?}");

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
            scene.next_owner();
            let injected = inject(&call.name, *when, &format!("error={error}"));
            let (answer, seen) = scene.apply_under(&[&injected, &selected[..]].concat());
            let answer = answer.expect("an answer");
            let point = format!("{}, {}: {}", injected[3], call.text, answer.text);
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
    let mut scene = one_number();
    scene.at_each(name, &format!("error={error}"), Selection::everything, |scene, answer, point| {
        let answer = answer.expect("an answer");
        let [id, message, details] =
            ["audit_log_id", "message", "error_details"].map(|field| answer.json[field].as_str().unwrap_or_default());
        if answer.status == 200 {
            let log = scene.portal.log();
            let pinged_again = log.lines().any(|line| line.contains(id) && line.contains(PINGS_AGAIN));
            assert!(pinged_again || message.contains(told), "{point}: {}", answer.text);
            assert_eq!(scene.row().trim_end(), "success", "{point}");
        } else {
            assert!(answer.status == 500 && details.contains(told), "{point}: {}", answer.text);
            assert_eq!(scene.row(), format!("failure {details}"), "{point}");
        }
    })
}

#[test]
fn a_command_that_cannot_be_sent_is_named_and_repaired() {
    for (name, error, told) in
        [("sendto", "EPIPE", "Asterisk closed the connection"), ("connect", "EIO", "can't be reached")]
    {
        let points = refused_at_each(name, error, told);
        assert!(points > 10, "an apply has many questions: {points}");
    }
}

#[test]
fn a_reload_that_cannot_be_started_is_named_and_repaired() {
    let points = refused_at_each("clone3", "EAGAIN", "cannot start");
    assert_eq!(points, PROGRAMS);
}

#[test]
fn sigterm_at_any_step_lets_the_apply_finish() {
    let mut scene = one_number();
    let counts = ["flock", "fsync", "rename", "sendto", "clone3", "vfork"]
        .map(|name| scene.at_each(name, "signal=TERM", Selection::everything, Scene::stopped_after_success));
    assert!(counts[..4].iter().all(|count| *count > 0), "{counts:?}");
}

const BY_A_CLIENT_THAT_GOES: &str = r#"{"triggered_by":"gone"}"#;

#[test]
fn a_client_that_hangs_up_at_whatever_moment_ends_no_apply() {
    let scene = one_number();
    for milliseconds in (0..100).step_by(7) {
        let client = scene.portal.begin_post("/apply", BY_A_CLIENT_THAT_GOES);
        std::thread::sleep(Duration::from_millis(milliseconds)); // any moment
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
    let scene = one_number();
    scene.asterisk.signal(Signal::STOP);
    let logged = scene.portal.log().len();
    let client = scene.portal.begin_post("/apply", BY_A_CLIENT_THAT_GOES);
    let log = |what: &str| scene.portal.log()[logged..].contains(what);
    wait_until(secs(10), "the users are read", || log(USERS_READ));
    drop(client);
    scene.portal.signal(Signal::TERM);
    wait_until(secs(10), "the service stops", || log(STOPPING));
    scene.asterisk.signal(Signal::CONT);
    wait_until(secs(20), "the service ends", || scene.portal.ended().is_some());
    assert!(scene.portal.ended().is_some_and(|status| status.success()));
    assert_eq!((scene.row().as_str(), scene.served()), ("success", true));
}
