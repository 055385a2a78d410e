//! Why a call of the database fails.

use std::io;
use std::time::Duration;

use crate::problem::Problem;

/// The time limit of one call. The API promises an answer within 5 seconds; the rest is for everything else.
pub(super) const CALL_WITHIN: Duration = Duration::from_millis(4250);

/// The error of a database that does not answer in time.
pub(super) fn no_answer() -> sqlx::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()
}

/// The advice for an error without one of its own.
pub const LOOK_AND_TRY_AGAIN: &str = "Look at the service's log, then try again.";

#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// It can't be reached, did not answer in time, or failed. Another try may succeed.
    #[error("{problem}")]
    Unavailable {
        /// The database's message, and the remedy with all details; never a URL, a password or a value. For the log and `check`.
        problem: Problem,
        /// The remedy without details, for a client of the API.
        advice: &'static str,
        /// Whether a write may have happened all the same.
        maybe_written: bool,
    },
    /// At start: it can be reached but not used, or a migration failed and was rolled back.
    #[error("the database can't be used: {0}")]
    Unusable(Problem),
    /// Somebody edited a row by hand: which one, and how to correct it.
    #[error("{0}")]
    DamagedRow(Problem),
    #[error("the e-mail address belongs to another user")]
    EmailInUse,
    #[error("all extensions from 1000 to 1999 are taken")]
    NoFreeExtension,
    #[error("there is no such user")]
    UserNotFound,
}

impl StorageError {
    /// A failure before anything was written. Only an administrator sees the `details` of the remedy.
    pub(super) fn unavailable(what: String, details: Option<String>, advice: &'static str) -> Self {
        let remedy = details.map_or(advice.to_owned(), |details| format!("{details}; {advice}"));
        Self::Unavailable { problem: Problem { what, remedy }, advice, maybe_written: false }
    }
}

/// An error inside a call.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) enum Failure {
    /// sqlx's error, which a database explains.
    Database(#[from] sqlx::Error),
    /// The error for the caller.
    Explained(#[from] StorageError),
}

impl Failure {
    /// The error for the caller.
    pub(super) fn explained(self, explain: impl FnOnce(&sqlx::Error) -> StorageError) -> StorageError {
        match self {
            Self::Database(error) => explain(&error),
            Self::Explained(error) => error,
        }
    }
}

/// The database's own message, without what sqlx adds.
pub(super) fn text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(refusal) => refusal.message().to_owned(),
        sqlx::Error::Io(cause) => cause.to_string(),
        sqlx::Error::Tls(cause) => cause.to_string(),
        other => other.to_string(),
    }
}
