//! `pbx-portal check`: looks at everything that an apply needs, and at what the next one would change. It changes nothing:
//! it makes no table, writes no file and evicts nobody.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::account::user_name;
use crate::apply::ownership::{self, OnDisk, Served};
use crate::asterisk::in_force;
use crate::domain::{ExtensionNumber, User, some_of};
use crate::preflight::probes::{self, Finding, Host, Probed, State, Trouble};
use crate::render;
use crate::settings::{ApiToken, DatabaseUrl, Secrets, Settings};
use crate::storage::{SCHEMA_MAJOR_VERSION, Storage};

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing failed.
    pub ok: bool,
    /// The user that looked. It must be the service's user: another one has other rights.
    pub user: String,
    /// The database's URL without its password.
    pub database: String,
    /// One for each line.
    pub findings: Vec<Finding>,
}

/// Looks at everything.
pub async fn check(settings: &Settings, secrets: &Secrets, storage: &Storage) -> Report {
    let mut findings = vec![Finding::of("the settings", token_rule(settings, secrets))];
    let database = Finding::of("the database", database(&secrets.database, storage).await);
    let users = if database.state == State::Ok { storage.users().await.ok() } else { None };
    findings.push(database);
    let host = Host::new(settings);
    let probed = host.probe().await;
    let users_known = users.is_some() && probes::would_begin(&probed);
    findings.extend(probed);
    let users = users.unwrap_or_default();
    findings.push(Finding::if_possible("the next apply", users_known, next_apply(&host, &users)).await);
    findings.push(Finding::if_possible("old registrations", users_known, old_registrations(&host, &users)).await);
    Report::new(secrets.database.to_string(), findings)
}

impl Report {
    /// The report if a setting is invalid: nothing else was looked at.
    #[must_use]
    pub fn of_settings(problem: &str) -> Self {
        let failure = Trouble::Failure(format!("{problem}; see .env.example"));
        Self::new("unknown".to_owned(), vec![Finding::of("the settings", Err(failure))])
    }

    /// The report on these findings, and on which database.
    #[must_use]
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

/// Invalid settings have ended the program before.
fn token_rule(settings: &Settings, secrets: &Secrets) -> Probed {
    let listen = settings.listen;
    match (&secrets.api_token, listen.ip().is_loopback()) {
        (Some(token), _) if token.is_short() => Err(Trouble::Warning(format!(
            "listening on {listen}, for everybody who has or guesses a token of fewer than {} characters; make one with openssl rand -hex 32",
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
    let (server, schema) = storage.versions().await.map_err(|error| {
        Trouble::Failure(format!("it can't be used: {error}; look at DATABASE_URL, and whether it runs"))
    })?;
    match schema {
        None => Err(Trouble::Warning(format!("{server} has no tables yet; {to_make}"))),
        Some(version) if version / 1000 > SCHEMA_MAJOR_VERSION => Err(Trouble::Failure(format!(
            "its schema is of major version {}, this program's is {SCHEMA_MAJOR_VERSION}; install the release that made it",
            version / 1000
        ))),
        Some(version) => Ok(format!("{server}, schema {version}")),
    }
}

/// What Asterisk serves beside what the database holds.
async fn next_apply(host: &Host, users: &[User]) -> Probed {
    let control = &host.control;
    let wanted: BTreeSet<_> = users.iter().map(|user| user.extension.number).collect();
    let objects = in_force::objects(control, &wanted).await?;
    let routed = in_force::dialplan(control).await?.unwrap_or_default();
    let whole = |number: &ExtensionNumber| {
        objects.endpoints.get(number).is_some_and(|links| links.auth && links.aor)
            && routed.get(number).is_some_and(|first| first.application == render::dial(*number))
    };
    let served = objects.endpoints.keys().chain(&objects.other_auths).chain(&objects.other_aors).chain(routed.keys());
    let removed: BTreeSet<_> = served.copied().filter(|number| !wanted.contains(number)).collect();
    let (there, added): (BTreeSet<_>, BTreeSet<_>) = wanted.iter().copied().partition(whole);

    let there: Vec<_> = users.iter().filter(|user| there.contains(&user.extension.number)).collect();
    let secrets = in_force::secrets(control, there.iter().map(|user| user.extension.number)).await?;
    let caller_ids = render::caller_ids(there.iter().copied());
    let mut changed = in_force::other_caller_ids(control, &caller_ids).await?;
    changed.extend(in_force::other_secrets(there, &secrets));

    let parts: Vec<_> = [("add", added), ("remove", removed), ("change", changed)]
        .into_iter()
        .filter(|(_, numbers)| !numbers.is_empty())
        .map(|(verb, numbers)| format!("{verb} {}", some_of(numbers)))
        .collect();
    if parts.is_empty() {
        return Ok(format!("changes nothing: Asterisk serves all {} users", users.len()));
    }
    Err(Trouble::Warning(format!("would {}; POST /apply", parts.join(", "))))
}

/// Phones that the next apply evicts: of numbers that nobody has, and of numbers that change hands.
async fn old_registrations(host: &Host, users: &[User]) -> Probed {
    let on_disk = OnDisk::of(host, &host.main_files())?;
    let served = Served::ask(&host.control, users).await?;
    let changing = ownership::changing_hands(users, &on_disk, &served);
    let wanted: BTreeSet<_> = users.iter().map(|user| user.extension.number).collect();
    let old: Vec<_> =
        served.registered.into_iter().filter(|number| changing.contains(number) || !wanted.contains(number)).collect();
    if old.is_empty() {
        return Ok("none of somebody who had a number before".to_owned());
    }
    Err(Trouble::Warning(format!(
        "phones are registered as {} that are not, or no more, their users'; POST /apply evicts them",
        some_of(old)
    )))
}
