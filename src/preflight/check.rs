//! `pbx-portal check`: looks at everything that an apply needs, and changes nothing.

use std::fmt;

use serde::Serialize;

use crate::account::user_name;
use crate::pbx::Pbx;
use crate::preflight::finding::{Finding, Found, State};
use crate::preflight::probes;
use crate::problem::{Problem, Result, problem};
use crate::settings::{ApiToken, DatabaseUrl, Dotenv, Secrets, Settings};
use crate::storage::{Storage, StorageError};

#[derive(Debug, Serialize)]
pub struct Report {
    pub ok: bool,
    /// The user that looked. It must be the service's user: another one has other rights.
    pub user: String,
    /// The database's URL without its password.
    pub database: String,
    pub findings: Vec<Finding>,
}

pub async fn check(
    settings: &Settings,
    secrets: &Secrets,
    dotenv: &Dotenv,
    storage: &Storage,
    pbx: &Pbx,
) -> Vec<Finding> {
    let mut findings = vec![Finding::of("the settings", Ok(token_rule(settings, secrets)))];
    let of_dotenv = |warning| Finding::of("where settings come from", Ok(Found::Warning(warning)));
    findings.extend(dotenv.warnings().into_iter().map(of_dotenv));
    findings.push(Finding::of("the database", database(&secrets.database, storage).await));
    findings.extend(probes::all(pbx).await);
    findings
}

impl Report {
    /// The report if a setting is invalid: nothing else was looked at.
    pub fn of_settings(invalid: &anyhow::Error) -> Self {
        let help = "'pbx-portal serve --help' shows all settings";
        let problem = match invalid.downcast_ref::<Problem>() {
            Some(Problem { what, remedy }) => problem!("{what}", "{remedy}; {help}"),
            None => problem!("{invalid}", "{help}"),
        };
        Self::new("unknown".to_owned(), vec![Finding::of("the settings", Err(problem))])
    }

    /// The report on these findings, and on which database.
    pub fn new(database: String, findings: Vec<Finding>) -> Self {
        let ok = !findings.iter().any(Finding::failed);
        Self { ok, user: user_name(), database, findings }
    }
}

/// A table: state, what was looked at, what was found; below a line that is not ok, what to do.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pbx-portal {}, as user {}, database {}\n", env!("CARGO_PKG_VERSION"), self.user, self.database)?;
        let width = self.findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
        for Finding { name, state, found, remedy } in &self.findings {
            let state = match state {
                State::Ok => "ok",
                State::Warning => "WARN",
                State::Failure => "FAIL",
                State::Unknown => "?",
            };
            writeln!(f, "{state:<5} {name:<width$}  {found}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "{:<5} {:<width$}  -> {remedy}", "", "")?;
            }
        }
        match self.findings.iter().filter(|finding| finding.failed()).count() {
            0 => writeln!(f, "\nAn apply has what it needs."),
            1 => writeln!(f, "\n1 failure: fix it, then check again."),
            failures => writeln!(f, "\n{failures} failures: fix the first, then check again."),
        }
    }
}

/// Who can use the API. Invalid settings have already ended the program.
pub fn token_rule(settings: &Settings, secrets: &Secrets) -> Found {
    let listen = settings.listen;
    let long_enough = ApiToken::LONG_ENOUGH;
    match (&secrets.api_token, listen.ip().is_loopback()) {
        (Some(token), _) if token.is_short() => Found::Warning(problem!(
            "listening on {listen}, with a token of fewer than {long_enough} bytes, which can be guessed",
            "make a longer one with openssl rand -hex 32"
        )),
        (Some(_), _) => Found::fine(format!("listening on {listen}, for everybody who has the token")),
        (None, true) => Found::fine(format!("listening on {listen}, for every user of this machine (no token)")),
        (None, false) => Found::Warning(problem!(
            "listening on {listen} without a token: anybody who reaches it can read every SIP secret",
            "set PORTAL_API_TOKEN"
        )),
    }
}

async fn database(url: &DatabaseUrl, storage: &Storage) -> Result<Found> {
    let to_make = "start the service, or run pbx-portal migrate";
    if let DatabaseUrl::Sqlite(file) = url
        && !file.exists()
    {
        let file = file.display();
        return Ok(Found::Warning(problem!("there is no {file} yet", "{to_make}")));
    }
    let found = storage.inspect().await.map_err(why_unusable)?;
    let server = found.server;
    let Some(version) = found.schema else {
        return Ok(Found::Warning(problem!("{server} has no tables yet", "{to_make}")));
    };
    storage.users().await.map_err(why_unusable)?;
    let what = format!("{server}, schema {version}");
    Ok(match found.advice {
        Some(remedy) => Found::Warning(Problem { what, remedy }),
        None => Found::fine(what),
    })
}

/// What an error of the database's own looks like in a report.
fn why_unusable(error: StorageError) -> Problem {
    match error {
        StorageError::Unusable(problem) | StorageError::DamagedRow(problem) => problem,
        StorageError::Unavailable { problem: Problem { what, remedy }, .. } => {
            problem!("it can't be used: {what}", "{remedy}")
        }
        // Neither an inspection nor a list fails with these.
        error => problem!("{error}", "try again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::LOOK_AND_TRY_AGAIN;

    #[test]
    fn semicolons_in_a_message_or_a_remedy_tear_neither_apart() {
        let [what, remedy] = ["pbx.example:5432: handshake failed; alert 48; unknown CA", "set sslrootcert; try again"];
        let problem = problem!("{what}", "{remedy}");
        let error = StorageError::Unavailable { problem, advice: LOOK_AND_TRY_AGAIN, maybe_written: false };
        let finding = Finding::of("the database", Err(why_unusable(error)));
        assert_eq!(finding.found, format!("it can't be used: {what}"));
        assert_eq!(finding.remedy.as_deref(), Some(remedy));
    }
}
