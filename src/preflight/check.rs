//! `pbx-portal check`: looks at everything that an apply needs, and changes nothing.

use std::fmt;

use anyhow::{Error, anyhow};
use serde::Serialize;

use crate::account::user_name;
use crate::preflight::probes::{Finding, Host, Probed, State, Trouble};
use crate::settings::{ApiToken, DatabaseUrl, Dotenv, Secrets, Settings};
use crate::storage::{Storage, StorageError};

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub ok: bool,
    /// The user that looked. It must be the service's user: another one has other rights.
    pub user: String,
    /// The database's URL without its password.
    pub database: String,
    pub findings: Vec<Finding>,
}

/// Looks at everything that an apply needs.
pub async fn check(
    settings: &Settings,
    secrets: &Secrets,
    dotenv: &Dotenv,
    storage: &Storage,
    host: &Host,
) -> Vec<Finding> {
    let mut findings = vec![Finding::of("the settings", token_rule(settings, secrets))];
    let of_dotenv = |warning| Finding::of("where settings come from", Err(Trouble::Warning(warning)));
    findings.extend(dotenv.warnings().into_iter().map(of_dotenv));
    findings.push(Finding::of("the database", database(&secrets.database, storage).await));
    findings.extend(host.probe().await);
    findings
}

impl Report {
    /// The report if a setting is invalid: nothing else was looked at.
    pub fn of_settings(problem: &str) -> Self {
        let failure = anyhow!("{problem}; 'pbx-portal serve --help' shows all settings");
        Self::new("unknown".to_owned(), vec![Finding::of("the settings", Err(failure.into()))])
    }

    /// The report on these findings, and on which database.
    pub fn new(database: String, findings: Vec<Finding>) -> Self {
        let ok = findings.iter().all(|finding| finding.state != State::Failure);
        Self { ok, user: user_name(), database, findings }
    }
}

/// A table: state, what was looked at, what was found; below a line that is not ok, what to do.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pbx-portal {}, as user {}, database {}\n", env!("CARGO_PKG_VERSION"), self.user, self.database)?;
        let width = self.findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
        for Finding { what, state, found, mend } in &self.findings {
            let state = match state {
                State::Ok => "ok",
                State::Warning => "WARN",
                State::Failure => "FAIL",
                State::Unknown => "?",
            };
            writeln!(f, "{state:<5} {what:<width$}  {found}")?;
            if let Some(mend) = mend {
                writeln!(f, "{:<5} {:<width$}  -> {mend}", "", "")?;
            }
        }
        let failures = self.findings.iter().filter(|finding| finding.state == State::Failure).count();
        match failures {
            0 => writeln!(f, "\nAn apply has what it needs."),
            1 => writeln!(f, "\n1 failure: mend it, then check again."),
            _ => writeln!(f, "\n{failures} failures: mend the first, then check again."),
        }
    }
}

/// Who can use the API. Invalid settings have already ended the program.
pub fn token_rule(settings: &Settings, secrets: &Secrets) -> Probed {
    let listen = settings.listen;
    match (&secrets.api_token, listen.ip().is_loopback()) {
        (Some(token), _) if token.is_short() => Err(Trouble::Warning(format!(
            "listening on {listen}, with a token of fewer than {} bytes, which can be guessed; make a longer one with openssl rand -hex 32",
            ApiToken::LONG_ENOUGH
        ))),
        (Some(_), _) => Ok(format!("listening on {listen}, for everybody who has the token")),
        (None, true) => Ok(format!("listening on {listen}, for every user of this machine (no token)")),
        (None, false) => Err(Trouble::Warning(format!(
            "listening on {listen} without a token: anybody who reaches it can read every SIP secret; set PORTAL_API_TOKEN"
        ))),
    }
}

async fn database(url: &DatabaseUrl, storage: &Storage) -> Probed {
    let to_make = "start the service, or run pbx-portal migrate";
    if let DatabaseUrl::Sqlite(file) = url
        && !file.exists()
    {
        return Err(Trouble::Warning(format!("there is no {} yet; {to_make}", file.display())));
    }
    let found = storage.inspect().await.map_err(|error| match error {
        StorageError::Unusable(why) => anyhow!(why),
        error => anyhow!("it can't be used: {error}"),
    })?;
    let Some(version) = found.schema else {
        return Err(Trouble::Warning(format!("{} has no tables yet; {to_make}", found.server)));
    };
    storage.users().await.map_err(Error::from)?;
    let database = format!("{}, schema {version}", found.server);
    match found.advice {
        Some(advice) => Err(Trouble::Warning(format!("{database}; {advice}"))),
        None => Ok(database),
    }
}
