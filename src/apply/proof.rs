//! The proof: what Asterisk serves of the numbers 1000 to 1999 is the snapshot, no more and no less, value by value. Only
//! that makes an apply a success; "reloaded successfully" never does.

use std::collections::BTreeSet;

use tokio::try_join;

use crate::asterisk::control::{Control, ControlError};
use crate::asterisk::files::ROUTING_FILE_NAME;
use crate::asterisk::in_force::{self, FirstPriority};
use crate::asterisk::{CONTEXT, render};
use crate::domain::{ExtensionNumber, User, some_of};

/// What is missing, left over or stale.
#[derive(Default)]
pub(super) struct Findings(Vec<String>);

/// Compares the endpoints, auths and AORs in force, with their secrets and caller IDs, with `users`.
pub(super) async fn objects(control: &Control, users: &[User]) -> Result<Findings, ControlError> {
    let wanted = numbers(users);
    let caller_ids = users
        .iter()
        .map(|user| (user.extension.number, render::caller_id(&user.name, user.extension.number)))
        .collect();
    let (objects, secrets, other_caller_ids) = try_join!(
        in_force::objects(control),
        in_force::secrets(control, wanted.iter().copied()),
        in_force::other_caller_ids(control, &caller_ids)
    )?;
    let endpoints: BTreeSet<_> = objects.endpoints.keys().copied().collect();
    let mut findings = Findings::default();

    for (what, served) in [("endpoints", &endpoints), ("auths", &objects.auths), ("AORs", &objects.aors)] {
        findings.add(&format!("{what} missing"), wanted.difference(served).copied());
        findings.add(&format!("{what} left over"), served.difference(&wanted).copied());
    }
    let unlinked =
        objects.endpoints.iter().filter(|(number, links)| wanted.contains(number) && !(links.auth && links.aor));
    findings.add("endpoints without their own auth and AOR", unlinked.map(|(number, _)| *number));

    let old_secrets = in_force::other_secrets(users, &secrets);
    findings.add("old secrets in force", old_secrets.intersection(&objects.auths).copied());
    findings.add("old caller IDs in force", other_caller_ids.intersection(&endpoints).copied());
    Ok(findings)
}

/// Compares the dialplan in force with `users`.
pub(super) async fn dialplan(control: &Control, users: &[User]) -> Result<Findings, ControlError> {
    let wanted = numbers(users);
    let mut findings = Findings::default();
    let Some(first_priorities) = in_force::dialplan(control).await? else {
        findings.0.push(format!("the dialplan context {CONTEXT} missing"));
        return Ok(findings);
    };
    let routed: BTreeSet<_> = first_priorities.keys().copied().collect();
    findings.add("dialplan extensions missing", wanted.difference(&routed).copied());
    let placed = |(number, first): (&ExtensionNumber, &FirstPriority)| format!("{number} ({})", first.source);
    let left_over = first_priorities.iter().filter(|(number, _)| !wanted.contains(number));
    findings.add("dialplan extensions left over", left_over.map(placed));
    let (quarantined, not_ours): (Vec<_>, Vec<_>) = first_priorities
        .iter()
        .filter(|(number, first)| wanted.contains(number) && !is_ours(first, &render::dial(**number)))
        .partition(|(_, first)| is_ours(first, render::QUARANTINED));
    findings.add("dialplan extensions kept at 404", quarantined.into_iter().map(|(number, _)| *number));
    findings.add("dialplan extensions whose priority 1 is not ours", not_ours.into_iter().map(placed));
    Ok(findings)
}

fn is_ours(first: &FirstPriority, application: &str) -> bool {
    first.application == application && first.source.starts_with(&format!("{ROUTING_FILE_NAME}:"))
}

/// The numbers of `changing` that Asterisk does not keep at 404.
pub(super) async fn not_quarantined(
    control: &Control,
    changing: &BTreeSet<ExtensionNumber>,
) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    let first_priorities = in_force::dialplan(control).await?.unwrap_or_default();
    let kept = |number: &ExtensionNumber| {
        first_priorities.get(number).is_some_and(|first| is_ours(first, render::QUARANTINED))
    };
    Ok(changing.iter().copied().filter(|number| !kept(number)).collect())
}

fn numbers(users: &[User]) -> BTreeSet<ExtensionNumber> {
    users.iter().map(|user| user.extension.number).collect()
}

/// The numbers of `users` whose secret is not in force: an old phone could still register as them.
pub(super) async fn still_old(
    control: &Control,
    users: impl Iterator<Item = &User> + Clone,
) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    let secrets = in_force::secrets(control, users.clone().map(|user| user.extension.number)).await?;
    Ok(in_force::other_secrets(users, &secrets))
}

impl Findings {
    fn add(&mut self, what: &str, found: impl IntoIterator<Item = impl ToString>) {
        let mut found = found.into_iter().peekable();
        if found.peek().is_some() {
            self.0.push(format!("{what}: {}", some_of(found)));
        }
    }

    /// Nothing found is the proof; otherwise, everything in one line.
    pub(super) fn verdict(mut self, other: Self) -> Result<(), String> {
        self.0.extend(other.0);
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(format!("Asterisk does not serve what the database holds: {}", self.0.join("; ")))
        }
    }
}
