//! What the next apply would do, for `pbx-portal check`. It writes no file and evicts nobody.

use std::collections::BTreeSet;

use tokio::try_join;

use super::ownership::Owners;
use super::proof;
use crate::asterisk::in_force::objects;
use crate::asterisk::registrations;
use crate::domain::{Numbers, User, numbers_of, some_of};
use crate::host::configuration::MainFiles;
use crate::pbx::Pbx;
use crate::preflight::finding::{Finding, Found};
use crate::problem::{Result, problem};
use crate::storage::Storage;

const NEXT_APPLY: &str = "the next apply";
const OLD_REGISTRATIONS: &str = "old registrations";

/// Adds what the next apply would do to the `findings` of a check, if none of them is a failure.
pub async fn preview(pbx: &Pbx, storage: &Storage, findings: &mut Vec<Finding>) {
    let users = if findings.iter().any(Finding::failed) { None } else { storage.users().await.ok() };
    let Some(users) = users else {
        findings.extend([NEXT_APPLY, OLD_REGISTRATIONS].map(Finding::unknown));
        return;
    };
    findings.push(Finding::of(NEXT_APPLY, Box::pin(next_apply(pbx, &users)).await));
    findings.push(Finding::of(OLD_REGISTRATIONS, old_registrations(pbx, &users).await));
}

/// How what Asterisk serves differs from what the database holds.
async fn next_apply(pbx: &Pbx, users: &[User]) -> Result<Found> {
    let differences = proof::differences(&pbx.control, users, &Numbers::new()).await?;
    if differences.is_empty() {
        return Ok(Found::fine(format!("changes nothing: Asterisk serves all {} users", users.len())));
    }
    let differences = differences.join(", and ");
    Ok(Found::Warning(problem!("would change what Asterisk serves: {differences}", "POST /apply")))
}

/// The numbers whose registrations the next apply evicts: those without a user, and those that change hands.
async fn old_registrations(pbx: &Pbx, users: &[User]) -> Result<Found> {
    let wanted = numbers_of(users);
    let (in_force, registrations) =
        try_join!(objects::secrets(&pbx.control, &wanted), registrations::list(&pbx.control))?;
    let main = MainFiles::read(&pbx.config_dir)?;
    let changing = Owners::new(pbx, &main, in_force)?.changing_hands(users);
    let registered = registrations.into_iter().map(|registration| registration.number);
    let old: BTreeSet<_> = registered.filter(|number| changing.contains(number) || !wanted.contains(number)).collect();
    if old.is_empty() {
        return Ok(Found::fine("no phone of a former user is registered"));
    }
    let old = some_of(old);
    Ok(Found::Warning(problem!(
        "phones of nobody, or of former users, are registered as {old}",
        "POST /apply evicts them"
    )))
}
