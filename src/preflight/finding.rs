//! What was looked at, and what was found.

use serde::Serialize;

use crate::problem::{Problem, Result};

/// What a probe found that an apply works with.
#[derive(Debug)]
pub enum Found {
    Fine(String),
    Warning(Problem),
}

impl Found {
    pub fn fine(text: impl Into<String>) -> Self {
        Self::Fine(text.into())
    }
}

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Worth a look; an apply works.
    Warning,
    /// An apply, or the phones, will not work.
    Failure,
    /// It could not be looked at, because something that it depends on fails.
    Unknown,
}

/// A line of the report.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was looked at. The report keeps the names of its fields.
    #[serde(rename = "what")]
    pub name: &'static str,
    pub state: State,
    /// What is there, or what is wrong.
    pub found: String,
    #[serde(rename = "mend", skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub fn of(name: &'static str, found: Result<Found>) -> Self {
        let (state, Problem { what: found, remedy }) = match found {
            Ok(Found::Fine(found)) => return Self { name, state: State::Ok, found, remedy: None },
            Ok(Found::Warning(problem)) => (State::Warning, problem),
            Err(problem) => (State::Failure, problem),
        };
        Self { name, state, found, remedy: Some(remedy) }
    }

    /// The finding of a probe that depends on one that failed.
    pub fn unknown(name: &'static str) -> Self {
        let found = "not checked: it depends on a failure above".to_owned();
        Self { name, state: State::Unknown, found, remedy: None }
    }

    pub fn failed(&self) -> bool {
        self.state == State::Failure
    }
}
