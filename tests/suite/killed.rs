//! An apply that is killed, or whose system calls fail, at each point: the points come from the trace of a real apply, so a
//! new step is covered without anybody remembering.
//!
//! The apply has everything to do: a number has another owner, and the old owner's phone is registered. After each point the
//! files are whole, the old phone does not ring, now or after Asterisk has restarted, the audit row is true, and the next
//! apply repairs everything by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::{Database, account, id, left_overs, psql, registrations, sqlite, try_apply};
use crate::support::portal::Settings;
use crate::support::process::Signal;
use crate::support::sipp::{Called, Phones, call, register};
use crate::support::strace::{self, Call};
use crate::support::{Answer, Asterisk, Portal, Postgres, secs, wait_until};

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
        whole(&self.asterisk, point);
        // An administrator's own reload, then a restart.
        self.asterisk.rx("pjsip reload");
        self.asterisk.rx("dialplan reload");
        self.the_old_phone_is_silent(point);
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
        assert_eq!(left_overs(&self.asterisk), [""; 0], "{point}");
    }

    /// Applies with strace at the portal; gives what it saw.
    fn apply_under(&self, arguments: &[&str]) -> Vec<Call> {
        // Killed, it does not answer.
        let apply = || self.portal.try_request("POST", "/apply", Some(&json!({"triggered_by": "under strace"})));
        strace::under(self.portal.pid(), &[&["-f"], arguments].concat(), apply).1
    }
}

/// How often the apply's own thread made each system call.
fn steps(trace: &[Call]) -> BTreeMap<&str, usize> {
    let own = &trace.iter().find(|call| call.name == "rename").expect("a rename").thread;
    let mut counts = BTreeMap::new();
    for call in trace.iter().filter(|call| call.thread == *own) {
        *counts.entry(call.name.as_str()).or_default() += 1;
    }
    counts
}

/// Both files are.
fn whole(asterisk: &Asterisk, point: &str) {
    for (file, ends) in [
        (asterisk.endpoints_file(), ["qualify_frequency=60\n"].as_slice()),
        // With every number in quarantine there is but the context.
        (asterisk.routing_file(), &["?17:19)})\n", "[synergy-internal]\n"]),
    ] {
        let text = fs::read_to_string(&file).expect("a generated file");
        assert!(ends.iter().any(|end| text.ends_with(end)), "{point}: {} is half a file", file.display());
    }
}

fn at_each_point(fault: &str, calls: &[&str]) {
    let mut scene = Scene::new();
    scene.change_hands();
    let trace = scene.apply_under(&["-e", &format!("trace={STEPS}")]);
    let counts = steps(&trace);
    assert_eq!(counts.get("rename"), Some(&3), "quarantine, endpoints, routing: {counts:?}");
    scene.after("nowhere");
    for (name, count) in counts.iter().filter(|(name, _)| calls.contains(name)) {
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

/// A number that gets another owner again and again, without a phone: for faults that are many and end alike.
pub struct Succession {
    pub asterisk: Asterisk,
    pub portal: Portal,
    url: Option<String>,
    owner: Value,
}

impl Succession {
    pub fn on(database: Database) -> Self {
        let (asterisk, url) = (Asterisk::start(), (database == Database::Postgres).then(Postgres::database));
        // With one worker thread, all that the service sends to PostgreSQL is of one thread.
        let settings = Settings::of(&asterisk).with("TOKIO_WORKER_THREADS", 1);
        let portal = Portal::start(&match &url {
            Some(url) => settings.with("DATABASE_URL", url),
            None => settings,
        });
        let owner = portal.create_user("Owner", "owner@example.com");
        let mut succession = Self { asterisk, portal, url, owner };
        succession.portal.apply("suite");
        succession.next();
        succession
    }

    /// The number gets another owner, and the audit log is empty.
    pub fn next(&mut self) {
        self.portal.delete_user(id(&self.owner));
        self.owner = self.portal.create_user("Owner", "owner@example.com");
        self.sql("DELETE FROM apply_audit_logs");
    }

    fn sql(&self, sql: &str) -> String {
        match &self.url {
            Some(url) => psql(url, sql),
            None => sqlite(&self.portal, sql),
        }
    }

    /// What the audit log says: nothing, or the outcome and the error.
    pub fn row(&self) -> String {
        self.sql("SELECT outcome || ' ' || coalesce(error_details, '') FROM apply_audit_logs").trim().to_owned()
    }

    /// Whether Asterisk serves the newest owner.
    pub fn served(&self) -> bool {
        let (number, secret) = account(&self.owner);
        self.asterisk.rx(&format!("pjsip show auth {number}")).contains(&secret)
            && self.asterisk.rx(&format!("dialplan show {number}@synergy-internal")).contains("Dial")
    }

    /// Applies with strace at the portal; gives the answer, if there is one, and what strace saw.
    fn apply_under(&self, arguments: &[&str]) -> (Option<Answer>, Vec<Call>) {
        self.apply_under_at(self.portal.pid(), &[&["-f"], arguments].concat())
    }

    /// The same at one thread, say.
    pub fn apply_under_at(&self, id: u32, arguments: &[impl AsRef<str>]) -> (Option<Answer>, Vec<Call>) {
        let apply = || self.portal.try_request("POST", "/apply", Some(&json!({"triggered_by": "under strace"})));
        let (answer, calls) = strace::under(id, arguments, apply);
        (answer.ok(), calls)
    }

    /// The fault at each call of this name in turn, until an apply has no such call any more; how many there were. After each,
    /// `check` what came of it; the next apply repairs everything.
    pub fn at_each(
        &mut self,
        name: &str,
        fault: &str,
        select: impl Fn(&Portal) -> Selection,
        check: impl Fn(&Self, Option<&Answer>, &str),
    ) -> usize {
        let mut when = 1;
        loop {
            self.next();
            let point = format!("inject={name}:{fault}:when={when}");
            let Selection(process, mut arguments) = select(&self.portal);
            arguments.extend(["-e", &format!("trace={name}"), "-e", &point].map(str::to_owned));
            let (answer, seen) = self.apply_under_at(process, &arguments);
            let mut counts = BTreeMap::new();
            for call in &seen {
                *counts.entry(&call.thread).or_insert(0) += 1;
            }
            if counts.into_values().max().unwrap_or(0) < when {
                assert_eq!(answer.map(|answer| answer.status), Some(200), "{point} is not reached");
                return when - 1;
            }
            check(self, answer.as_ref(), &point);
            self.repaired(&point);
            when += 1;
        }
    }

    /// Told to stop in the middle of an apply, the service ends by itself when that is done; then it starts again.
    pub fn stopped_after_success(&self, answer: Option<&Answer>, point: &str) {
        let answer = answer.unwrap_or_else(|| panic!("{point}: no answer\n{}", self.portal.log()));
        assert_eq!(answer.status, 200, "{point}: {}", answer.text);
        wait_until(secs(20), &format!("{point}: the service ends"), || {
            self.portal.ended().is_some_and(|status| status.success())
        });
        assert_eq!((self.row().as_str(), self.served()), ("success", true), "{point}");
        self.portal.boot();
    }

    /// After whatever fault: the files are whole, and the next apply repairs everything by itself.
    pub fn repaired(&self, point: &str) {
        whole(&self.asterisk, point);
        self.portal.apply("repair");
        assert!(self.served(), "{point}");
        assert_eq!(left_overs(&self.asterisk), [""; 0], "{point}");
    }
}

/// A process or a thread, and arguments that tell strace what of it to see.
pub struct Selection(pub u32, pub Vec<String>);

impl Selection {
    /// All threads of a portal, and their children.
    pub fn everything(portal: &Portal) -> Self {
        Self(portal.pid(), vec!["-f".to_owned()])
    }
}

/// What else a kernel says to a call on a file, to which calls, and what the apply then tells the administrator to do.
const REFUSALS: [(&str, &[&str], &str); 4] = [
    ("EIO", &["write"], "look at its disk"),
    ("ENOSPC", &["openat O_CREAT", "write", "fsync", "rename"], "free space on its disk"),
    ("EACCES", &["openat", "unlink", "rename"], "portal's user"),
    ("EROFS", &["openat O_WRONLY", "unlink", "fchmod", "rename"], "mount it writable"),
];

#[test]
fn by_whatever_else_a_kernel_refuses_at_a_file() {
    let mut scene = Succession::on(Database::Sqlite);
    let calls = ["-y", "-e", "trace=openat,write,unlink,fchmod,fsync,rename"];
    let (_, trace) = scene.apply_under(&calls);
    // Selected by path, a write is one to a file.
    let words = trace.iter().flat_map(|call| call.text.split(['"', '<', '>']));
    let paths: BTreeSet<_> = words.filter(|word| word.contains("/synergycall")).collect();
    let selected: Vec<_> = paths.iter().flat_map(|path| ["-P", *path]).collect();
    scene.next();
    let (_, trace) = scene.apply_under(&[&calls[..], &selected].concat());
    let count = |name| trace.iter().filter(|call| call.name == name).count();
    assert_eq!((count("write"), count("rename")), (3, 3), "quarantine, endpoints, routing: {trace:#?}");

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

#[test]
fn by_a_question_that_cant_be_sent() {
    let points = Succession::on(Database::Sqlite).at_each(
        "sendto",
        "error=EPIPE",
        Selection::everything,
        |scene, answer, point| {
            let answer = answer.expect("an answer");
            let details = answer.json["error_details"].as_str().unwrap_or_default();
            assert!(answer.status == 500 && details.contains("Asterisk broke off"), "{point}: {}", answer.text);
            assert_eq!(scene.row(), format!("failure {details}"), "{point}");
        },
    );
    assert!(points > 10, "an apply has many questions: {points}");
}

#[test]
fn by_sigterm_at_each_step_after_which_it_goes_on_to_its_end() {
    let mut scene = Succession::on(Database::Sqlite);
    let (_, trace) = scene.apply_under(&["-e", &format!("trace={STEPS},sendto")]);
    let counts = steps(&trace);
    // A question is sent; `asterisk -rx`, which strace follows, connects and writes too, and must not be told to stop.
    for name in
        ["flock", "fsync", "rename", "sendto", "clone3", "vfork"].into_iter().filter(|name| counts.contains_key(name))
    {
        scene.at_each(name, "signal=TERM", Selection::everything, Succession::stopped_after_success);
    }
}

/// Sends a request for an apply whose answer nobody will wait for.
fn request_by_a_client_that_goes(portal: &Portal) -> TcpStream {
    let mut client = TcpStream::connect(portal.address()).expect("connect");
    let body = r#"{"triggered_by":"gone"}"#;
    let head = "POST /apply HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    write!(client, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("send");
    client
}

#[test]
fn by_no_client_that_hangs_up_at_whatever_moment() {
    let scene = Succession::on(Database::Sqlite);
    for milliseconds in (0..100).step_by(7) {
        let client = request_by_a_client_that_goes(&scene.portal);
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
fn nor_by_a_stop_after_its_client_has_gone() {
    let mut scene = Succession::on(Database::Sqlite);
    scene.next();
    scene.asterisk.signal(Signal::STOP);
    let logged = scene.portal.log().len();
    let client = request_by_a_client_that_goes(&scene.portal);
    let log = |what: &str| scene.portal.log()[logged..].contains(what);
    wait_until(secs(10), "the users are read", || log("snapshot and render"));
    drop(client);
    scene.portal.signal(Signal::TERM);
    wait_until(secs(10), "the service stops", || log("stopping"));
    scene.asterisk.signal(Signal::CONT);
    wait_until(secs(20), "the service ends", || scene.portal.ended().is_some());
    assert!(scene.portal.ended().is_some_and(|status| status.success()));
    assert_eq!((scene.row().as_str(), scene.served()), ("success", true));
}
