//! The scene of most tests: an Asterisk with its portal, some users with phones, and a number that gets one owner after another.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use serde_json::{Value, json};

use crate::fixtures::{Database, account, id, left_overs, registrations, sql, sqlite_url, try_apply};
use crate::steps::{ALL_BUT_PROGRAMS, USERS_READ, inject};
use support::portal::Settings;
use support::process::Signal;
use support::strace::{self, Call};
use support::{Answer, Asterisk, Phone, Portal, Postgres, secs, wait_until};

/// What a scene is made of: `Scene::at(asterisk).on(database).among(2).begin()`.
pub struct Stage {
    asterisk: Asterisk,
    settings: Settings,
    url: Option<String>,
    others: usize,
}

impl Stage {
    /// The portal's database, instead of SQLite.
    pub fn on(self, database: Database) -> Self {
        match database {
            Database::Sqlite => self,
            Database::Postgres => self.on_url(Postgres::database()),
        }
    }

    pub fn on_url(mut self, url: String) -> Self {
        self.settings = self.settings.with("DATABASE_URL", &url);
        self.url = Some(url);
        self
    }

    /// A setting of the portal.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.settings = self.settings.with(name, value);
        self
    }

    /// So many users keep their numbers, instead of one.
    pub fn among(mut self, others: usize) -> Self {
        self.others = others;
        self
    }

    /// Creates and applies the users.
    pub fn begin(self) -> Scene {
        let Self { asterisk, settings, url, others } = self;
        let portal = Portal::start(&settings);
        let other = |index| {
            let user = portal.create_user(&format!("Other {index}"), &format!("other{index}@example.com"));
            phone_of(&asterisk, &user)
        };
        let others = (0..others).map(other).collect();
        let owner = portal.create_user("Owner", "owner@example.com");
        portal.apply("suite");
        let url = url.unwrap_or_else(|| sqlite_url(&portal));
        Scene { number: account(&owner).0, asterisk, portal, others, owner, url }
    }
}

pub struct Scene {
    pub asterisk: Asterisk,
    pub portal: Portal,
    /// Users who keep their numbers. Their phones are not registered; the first one calls.
    pub others: Vec<Phone>,
    /// The number that changes hands: the next after the others'.
    pub number: String,
    /// Who has it in the database.
    pub owner: Value,
    /// Of the database.
    pub url: String,
}

/// The phone of a user.
fn phone_of(asterisk: &Asterisk, user: &Value) -> Phone {
    let (number, secret) = account(user);
    Phone::new(asterisk, &number, &secret)
}

impl Scene {
    /// On an Asterisk of its own and SQLite, with somebody who calls.
    pub fn new() -> Self {
        Self::at(Asterisk::start()).begin()
    }

    pub fn at(asterisk: Asterisk) -> Stage {
        Stage { settings: Settings::of(&asterisk), asterisk, url: None, others: 1 }
    }

    pub fn secret(&self) -> String {
        account(&self.owner).1
    }

    /// The owner's phone, which is not registered.
    pub fn new_phone(&self) -> Phone {
        phone_of(&self.asterisk, &self.owner)
    }

    /// The owner's phone, which is registered and rings.
    #[track_caller]
    pub fn phone(&self) -> Phone {
        let phone = self.new_phone();
        assert_eq!(phone.register(), Some(200), "in force: {}", self.auth());
        self.rings(&phone);
        phone
    }

    /// Somebody calls the number; returns the status.
    pub fn call(&self) -> Option<u16> {
        self.others[0].call(&self.number)
    }

    /// The number's phone rings, and is busy.
    #[track_caller]
    pub fn rings(&self, phone: &Phone) {
        assert_eq!((self.call(), phone.take_rings()), (Some(486), 1), "its phone rings");
    }

    /// The owner leaves.
    pub fn delete(&self) {
        self.portal.delete_user(id(&self.owner));
    }

    /// Somebody else gets the number that is free.
    pub fn reuse(&mut self) {
        self.owner = self.portal.create_user("Next", &format!("{}@example.com", self.secret()));
        assert_eq!(account(&self.owner).0, self.number, "the lowest free number");
    }

    /// The owner leaves, and somebody else gets the number.
    pub fn hand_over(&mut self) {
        self.delete();
        self.reuse();
    }

    /// Hands the number over, and empties the audit log.
    pub fn next_owner(&mut self) {
        self.hand_over();
        self.sql("DELETE FROM apply_audit_logs");
    }

    /// Nobody has the number in Asterisk: a call gets this status, and there is no trace of a registration.
    #[track_caller]
    pub fn nobody_is_there(&self, status: u16) {
        assert_eq!(registrations(&self.asterisk, &self.number), 0);
        let contacts = self.asterisk.rx("pjsip show contacts");
        assert!(!contacts.contains(&format!("{}/", self.number)), "{contacts}");
        let state = self.asterisk.rx(&format!("dialplan eval function DEVICE_STATE(PJSIP/{})", self.number));
        assert!(["UNAVAILABLE", "INVALID"].iter().any(|gone| state.contains(gone)), "{state}");
        assert_eq!(self.call(), Some(status));
    }

    /// A former owner's phone does not ring when somebody calls, who gets this status. Nor does it register again.
    #[track_caller]
    pub fn is_silent(&self, old: &Phone, status: u16, point: &str) {
        assert_eq!(
            (self.call(), old.take_rings()),
            (Some(status), 0),
            "{point}: a call, and how often the old phone rings"
        );
        assert_eq!(old.register(), Some(401), "{point}: the old phone registers");
    }

    /// A former owner's phone is out with all that Asterisk knew of it.
    #[track_caller]
    pub fn is_out(&self, old: &Phone, status: u16) {
        self.nobody_is_there(status);
        self.is_silent(old, status, "out");
    }

    /// The new owner's phone registers and rings, and the old one does neither.
    #[track_caller]
    pub fn belongs_to_its_owner(&self, old: &Phone, point: &str) {
        drop(self.phone());
        assert_eq!((old.take_rings(), old.register()), (0, Some(401)), "{point}: rings and REGISTER of the old phone");
    }

    /// What Asterisk prints of the number's secret in force.
    pub fn auth(&self) -> String {
        self.asterisk.rx(&format!("pjsip show auth {}", self.number))
    }

    /// What the two files say.
    pub fn files(&self) -> [String; 2] {
        [self.asterisk.endpoints_file(), self.asterisk.routing_file()]
            .map(|file| fs::read_to_string(file).expect("a generated file"))
    }

    pub fn sql(&self, statement: &str) -> String {
        sql(&self.url, statement)
    }

    /// The audit log's row: its outcome and its error; empty if there is no row.
    pub fn row(&self) -> String {
        self.sql("SELECT outcome || ' ' || coalesce(error_details, '') FROM apply_audit_logs").trim().to_owned()
    }

    /// Whether Asterisk serves the owner.
    pub fn served(&self) -> bool {
        self.auth().contains(&self.secret())
            && self.asterisk.rx(&format!("dialplan show {}@synergy-internal", self.number)).contains("Dial")
    }

    /// Applies while strace traces the portal. Returns the answer, if any, and the calls that strace saw.
    pub fn apply_under(&self, arguments: &[impl AsRef<str>]) -> (Option<Answer>, Vec<Call>) {
        let all = ALL_BUT_PROGRAMS.into_iter().chain(arguments.iter().map(AsRef::as_ref)).collect::<Vec<_>>();
        self.apply_under_at(self.portal.pid(), &all)
    }

    /// Like [`Self::apply_under`], for another process or one thread.
    fn apply_under_at(&self, id: u32, arguments: &[impl AsRef<str>]) -> (Option<Answer>, Vec<Call>) {
        let apply = || self.portal.try_request("POST", "/apply", Some(&json!({"triggered_by": "under strace"})));
        let (answer, calls) = strace::under(id, arguments, apply);
        (answer.ok(), calls)
    }

    /// Injects the fault at the first call of this name, then at the second, and so on, until an apply has no more such calls.
    /// After each, `check` looks at the result, and the next apply must repair everything. Returns the number of calls.
    pub fn at_each(
        &mut self,
        name: &str,
        fault: &str,
        select: impl Fn(&Portal) -> Selection,
        check: impl Fn(&Self, Option<&Answer>, &str),
    ) -> usize {
        for when in 1.. {
            self.next_owner();
            let Selection(process, mut arguments) = select(&self.portal);
            let injected = inject(name, when, fault);
            let point = injected[3].clone();
            arguments.extend(injected);
            let (answer, seen) = self.apply_under_at(process, &arguments);
            if most_of_a_thread(&seen) < when {
                assert_eq!(answer.map(|answer| answer.status), Some(200), "{point}: there is no such call");
                return when - 1;
            }
            assert!(
                fault.starts_with("signal") || seen.iter().any(Call::failed_by_strace),
                "{point}: strace injected nothing"
            );
            // One byte that the event loop sends to itself when a child ends is no step of an apply.
            if !seen.iter().any(|call| call.failed_by_strace() && call.text.contains(r#""\1", 1,"#)) {
                check(self, answer.as_ref(), &point);
            }
            self.repaired(&point);
        }
        unreachable!("an apply ends")
    }

    /// After SIGTERM during an apply: the apply succeeds and the service ends by itself. Starts it again.
    pub fn stopped_after_success(&self, answer: Option<&Answer>, point: &str) {
        let answer = answer.unwrap_or_else(|| panic!("{point}: no answer\n{}", self.portal.log()));
        assert_eq!(answer.status, 200, "{point}: {}", answer.text);
        wait_until(secs(20), &format!("{point}: the service ends"), || {
            self.portal.ended().is_some_and(|status| status.success())
        });
        assert_eq!((self.row().as_str(), self.served()), ("success", true), "{point}");
        self.portal.boot();
    }

    /// After SIGKILL: the service gave no answer and has ended. Starts it again.
    #[track_caller]
    pub fn killed(&self, answer: Option<&Answer>, point: &str) {
        assert!(answer.is_none(), "{point}: {answer:?}");
        wait_until(secs(10), &format!("{point}: it is killed"), || self.portal.ended().is_some());
        self.portal.boot();
    }

    /// After any fault: the files are whole, and the next apply repairs everything.
    pub fn repaired(&self, point: &str) {
        whole(&self.asterisk, point);
        self.portal.apply("repair");
        assert!(self.served(), "{point}");
        assert_eq!(left_overs(&self.asterisk), [""; 0], "{point}");
    }
}

/// A process or a thread, and options that tell strace what to trace of it.
pub struct Selection(pub u32, pub Vec<String>);

impl Selection {
    /// All threads of a portal.
    pub fn everything(portal: &Portal) -> Self {
        Self(portal.pid(), ALL_BUT_PROGRAMS.map(str::to_owned).to_vec())
    }
}

/// How many of these calls the thread made that made most: strace counts them by thread.
pub fn most_of_a_thread(calls: &[Call]) -> usize {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry(&call.thread).or_insert(0) += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

/// Applies, and does something when the apply has read the users and waits for Asterisk, which hangs. Returns the answer, and what
/// was done.
#[track_caller]
pub fn apply_meanwhile<T>(asterisk: &Asterisk, portal: &Portal, meanwhile: impl FnOnce() -> T) -> (Answer, T) {
    asterisk.signal(Signal::STOP);
    let logged = portal.log().len();
    thread::scope(|threads| {
        let applying = threads.spawn(|| try_apply(portal));
        wait_until(secs(10), "the users are read", || portal.log()[logged..].contains(USERS_READ));
        let done = meanwhile();
        asterisk.signal(Signal::CONT);
        (applying.join().expect("an answer"), done)
    })
}

/// Neither file is half written.
pub fn whole(asterisk: &Asterisk, point: &str) {
    for (file, ends) in [
        // The second form if the only number is taken away.
        (asterisk.endpoints_file(), ["qualify_frequency=60\n", "brings them here.\n\n"].as_slice()),
        (asterisk.routing_file(), &["?17:19)})\n"]),
    ] {
        let text = fs::read_to_string(&file).expect("a generated file");
        assert!(ends.iter().any(|end| text.ends_with(end)), "{point}: {} is half a file", file.display());
    }
}
