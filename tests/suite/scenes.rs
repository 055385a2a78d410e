//! Scenes for fault tests: a number changes hands in each apply, and strace injects a fault at one system call after the other.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::fixtures::{Database, account, id, left_overs, psql, sqlite};
use support::portal::Settings;
use support::strace::{self, Call};
use support::{Answer, Asterisk, Portal, Postgres, secs, wait_until};

/// Options of strace for all threads of a process, but not for the programs that it starts: strace counts calls by thread, so a
/// fault at a thread's second call would hit `asterisk -rx` as well.
pub const ALL_BUT_PROGRAMS: [&str; 3] = ["-f", "-b", "execve"];

/// A step of an apply that hands a number over. It renames three files: the endpoints without that number, which takes it away, then
/// the endpoints and the routing, which give it. It flushes the folder of the endpoints after each rename in it.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    GiveEndpoints,
    FlushGivenEndpoints,
    GiveRouting,
}

/// Applies, and kills the portal when it comes to this step, which is not done.
#[track_caller]
pub fn kill_at(step: Step, asterisk: &Asterisk, portal: &Portal) {
    let endpoints = asterisk.endpoints_file();
    let folder = endpoints.parent().expect("a folder").to_string_lossy();
    let (call, when, of) = match step {
        Step::GiveEndpoints => ("rename", 2, &[][..]),
        // The database and the temporary files are flushed, too.
        Step::FlushGivenEndpoints => ("fsync", 2, &["-P", &folder][..]),
        Step::GiveRouting => ("rename", 3, &[][..]),
    };
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={when}"));
    let arguments = [&ALL_BUT_PROGRAMS[..], &["-e", &trace, "-e", &inject], of].concat();
    let body = json!({"triggered_by": "killed"});
    let killed = || portal.try_request("POST", "/apply", Some(&body)).is_err();
    assert!(strace::under(portal.pid(), &arguments, killed).0, "{step:?}: there is an answer");
}

/// A number that gets a new owner before each apply. It has no phone.
pub struct Succession {
    pub asterisk: Asterisk,
    pub portal: Portal,
    url: Option<String>,
    owner: Value,
}

impl Succession {
    pub fn on(database: Database) -> Self {
        let (asterisk, url) = (Asterisk::start(), (database == Database::Postgres).then(Postgres::database));
        let settings = Settings::of(&asterisk);
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

    /// Gives the number to a new owner, and empties the audit log.
    pub fn next(&mut self) {
        self.portal.delete_user(id(&self.owner));
        self.owner = self.portal.create_user("Owner", "owner@example.com");
        self.sql("DELETE FROM apply_audit_logs");
    }

    pub fn sql(&self, sql: &str) -> String {
        match &self.url {
            Some(url) => psql(url, sql),
            None => sqlite(&self.portal, sql),
        }
    }

    /// The audit log's row: its outcome and its error; empty if there is no row.
    pub fn row(&self) -> String {
        self.sql("SELECT outcome || ' ' || coalesce(error_details, '') FROM apply_audit_logs").trim().to_owned()
    }

    /// Whether Asterisk serves the last owner.
    pub fn served(&self) -> bool {
        let (number, secret) = account(&self.owner);
        self.asterisk.rx(&format!("pjsip show auth {number}")).contains(&secret)
            && self.asterisk.rx(&format!("dialplan show {number}@synergy-internal")).contains("Dial")
    }

    /// Applies while strace traces the portal. Gives the answer, if any, and the calls that strace saw.
    pub fn apply_under(&self, arguments: &[&str]) -> (Option<Answer>, Vec<Call>) {
        self.apply_under_at(self.portal.pid(), &[&ALL_BUT_PROGRAMS[..], arguments].concat())
    }

    /// Like [`Self::apply_under`], for another process or one thread.
    pub fn apply_under_at(&self, id: u32, arguments: &[impl AsRef<str>]) -> (Option<Answer>, Vec<Call>) {
        let apply = || self.portal.try_request("POST", "/apply", Some(&json!({"triggered_by": "under strace"})));
        let (answer, calls) = strace::under(id, arguments, apply);
        (answer.ok(), calls)
    }

    /// Injects the fault at the first call of this name, then at the second, and so on, until an apply has no more such calls.
    /// After each, `check` looks at the result, and the next apply must repair everything. Gives the number of calls.
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
            when += 1;
        }
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
