//! What `pbx-portal check` finds, for tests.

use std::process::Output;

use serde_json::Value;

use support::portal::{Settings, run};

/// The result of `pbx-portal check --json`.
#[derive(Debug)]
pub struct Table {
    status: Option<i32>,
    pub json: Value,
}

impl From<Output> for Table {
    fn from(output: Output) -> Self {
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        Self { status: output.status.code(), json: serde_json::from_str(&text).expect("JSON") }
    }
}

impl Table {
    pub fn of(settings: &Settings) -> Self {
        run(&["check", "--json"], settings).into()
    }

    /// What the failing lines say.
    pub fn failures(&self) -> Vec<&str> {
        let findings = self.json["findings"].as_array().expect("findings").iter();
        let failures = findings.filter(|line| line["state"] == "failure");
        failures.map(|line| line["found"].as_str().expect("text")).collect()
    }

    pub fn line(&self, what: &str) -> (&str, &str, &str) {
        let findings = self.json["findings"].as_array().expect("findings");
        let line = findings.iter().find(|line| line["what"] == what);
        let line = line.unwrap_or_else(|| panic!("no line about {what}: {}", self.json));
        let text = |field: &str| line[field].as_str().unwrap_or_default();
        (text("state"), text("found"), text("mend"))
    }

    /// A line has this state and says these words. Gives its advice.
    #[track_caller]
    pub fn says(&self, what: &str, state: &str, words: &[&str]) -> String {
        let (is, found, mend) = self.line(what);
        assert_eq!(is, state, "{what}: {found}; {mend}");
        for word in words {
            assert!(found.contains(word) || mend.contains(word), "{word:?} in {found:?}, {mend:?}");
        }
        assert_eq!(
            state == "ok" || state == "unknown",
            mend.is_empty(),
            "only a line that is not ok has advice: {what}: {mend:?}"
        );
        if state == "failure" {
            assert_eq!((self.status, self.json["ok"].as_bool()), (Some(1), Some(false)));
        }
        mend.to_owned()
    }

    #[track_caller]
    pub fn nothing_fails(&self) {
        assert_eq!((self.status, self.json["ok"].as_bool()), (Some(0), Some(true)), "{}", self.json);
    }
}

/// The part of a text between two others.
pub fn between<'t>(text: &'t str, before: &str, after: &str) -> &'t str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{before:?} in {text:?}"));
    rest.split_once(after).unwrap_or_else(|| panic!("{after:?} in {rest:?}")).0
}
