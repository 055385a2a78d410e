//! What the next apply would do, for `pbx-portal check`. It writes no file and evicts nobody.

use std::collections::BTreeSet;

use super::ownership::{self, OnDisk, Served};
use crate::asterisk::in_force;
use crate::domain::{ExtensionNumber, User, some_of};
use crate::preflight::check::DATABASE;
use crate::preflight::probes::{Finding, Host, Probed, State, Trouble, would_begin};
use crate::render;
use crate::storage::Storage;

/// Adds what the next apply would do to the `findings` of a check, if it would begin.
pub async fn preview(host: &Host, storage: &Storage, findings: &mut Vec<Finding>) {
    let usable = |finding: &Finding| finding.what == DATABASE && matches!(finding.state, State::Ok | State::Warning);
    let readable = findings.iter().any(usable);
    let users = if readable && would_begin(findings) { storage.users().await.ok() } else { None };
    let possible = users.is_some();
    let users = users.unwrap_or_default();
    findings.push(Finding::if_possible("the next apply", possible, next_apply(host, &users)).await);
    findings.push(Finding::if_possible("old registrations", possible, old_registrations(host, &users)).await);
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
