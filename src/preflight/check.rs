//! `pbx-portal check`: the preflight. Looks at everything that an apply needs, in the order in which it needs it, and at what
//! the next one would change. It changes nothing: no table is made, no file is written, nobody is evicted.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::apply::ownership::{self, OnDisk, Served};
use crate::asterisk::in_force;
use crate::domain::{ExtensionNumber, User, some_of};
use crate::preflight::probes::{Finding, Host, Probed, State, Trouble};
use crate::render;
use crate::settings::{ApiToken, DatabaseUrl, Secrets, Settings};
use crate::storage::{SCHEMA_MAJOR_VERSION, Storage, Wire};

/// The whole table.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether nothing failed.
    pub ok: bool,
    /// As whom it was looked: the service's user, or rights tell nothing.
    pub user: String,
    /// Which database; no password.
    pub database: String,
    /// Line by line.
    pub findings: Vec<Finding>,
}

/// Looks at everything.
pub async fn check(settings: &Settings, secrets: &Secrets, storage: &Storage) -> Report {
    let mut findings = vec![Finding::of("the settings", token_rule(settings, secrets))];
    let database = Finding::of("the database", database(&secrets.database, storage).await);
    let usable = matches!(database.state, State::Ok | State::Warning);
    let users = if usable { storage.users().await.ok() } else { None };
    findings.push(database);
    let host = Host::new(settings);
    let probed = host.probe().await;
    let asks = probed.first().is_some_and(|asterisk| asterisk.state == State::Ok);
    findings.extend(probed);
    let users_known = asks && users.is_some();
    let users = users.unwrap_or_default();
    findings.push(Finding::if_possible("the next apply", users_known, next_apply(&host, &users)).await);
    findings.push(Finding::if_possible("old registrations", users_known, old_registrations(&host, &users)).await);
    Report::new(secrets.database.to_string(), findings)
}

impl Report {
    /// A report of nothing but a setting that makes no sense.
    #[must_use]
    pub fn of_settings(problem: &str) -> Self {
        let failure = Trouble::Failure(format!("{problem}; see .env.example"));
        Self::new("unknown".to_owned(), vec![Finding::of("the settings", Err(failure))])
    }

    fn new(database: String, findings: Vec<Finding>) -> Self {
        let ok = findings.iter().all(|finding| finding.state != State::Failure);
        Self { ok, user: user_name(), database, findings }
    }
}

/// A table: state, what, what there is; below a line that is not as it should be, how to mend it.
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

/// Whatever makes no sense has stopped the program before.
fn token_rule(settings: &Settings, secrets: &Secrets) -> Probed {
    let listen = settings.listen;
    match (&secrets.api_token, listen.ip().is_loopback()) {
        (Some(token), _) if token.is_short() => Err(Trouble::Warning(format!(
            "listening on {listen}, for whoever has or guesses a token of fewer than {} characters; make one with openssl rand -hex 32",
            ApiToken::LONG_ENOUGH
        ))),
        (Some(_), _) => Ok(format!("listening on {listen}, for whoever has the token")),
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
    let found = storage
        .inspect()
        .await
        .map_err(|error| Trouble::Failure(format!("it can't be used: {error} Look at DATABASE_URL, too")))?;
    let later = found.schema.map(|version| version / 1000).filter(|major| *major > SCHEMA_MAJOR_VERSION);
    if let Some(major) = later {
        return Err(Trouble::Failure(format!(
            "its schema is of major version {major}, this program's is {SCHEMA_MAJOR_VERSION}; install the release that made it"
        )));
    }
    if let Some(obstacle) = found.obstacle {
        return Err(Trouble::Failure(obstacle));
    }
    let Some(version) = found.schema else {
        return Err(Trouble::Warning(format!("{} has no tables yet; {to_make}", found.server)));
    };
    storage.users().await.map_err(|error| Trouble::Failure(error.to_string()))?;
    match storage.wire().await {
        Some(Wire { found: wire, advice: Some(advice) }) => {
            Err(Trouble::Warning(format!("{}, schema {version}, {wire}; {advice}", found.server)))
        }
        Some(wire) => Ok(format!("{}, schema {version}, {}", found.server, wire.found)),
        None => Ok(format!("{}, schema {version}", found.server)),
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

/// The name of the user this runs as, or its number where it has none.
fn user_name() -> String {
    let id = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let name = users.find(|fields| fields.get(2) == Some(&id.as_str())).and_then(|fields| fields.first().copied());
    name.map_or_else(|| id.clone(), ToOwned::to_owned)
}
