//! The proof: what Asterisk serves of the numbers 1000 to 1999 is the snapshot, no more and no less, value by value. Only
//! that makes an apply a success; "reloaded successfully" never does.

use std::collections::{BTreeMap, BTreeSet};

use tokio::try_join;

use crate::asterisk::control::{Control, ControlError};
use crate::asterisk::in_force::{self, FirstPriority, Objects};
use crate::domain::{ExtensionNumber, User, some_of};
use crate::host::place::ROUTING_FILE_NAME;
use crate::render::{self, CONTEXT};

/// So many numbers are asked about one by one in less time than it takes to list all.
const FEW: usize = 50;

/// What is missing, left over or stale.
#[derive(Default)]
pub(super) struct Findings(Vec<String>);

/// The endpoints that Asterisk serves, with all that belongs to them but the routing.
pub(super) struct Endpoints {
    objects: Objects,
    other_caller_ids: BTreeSet<ExtensionNumber>,
    secrets: BTreeMap<ExtensionNumber, String>,
}

impl Endpoints {
    /// Asks about the numbers of `users`, and about what there is beside them; about the secrets of `unread` only.
    pub(super) async fn ask(
        control: &Control,
        users: &[User],
        unread: impl Iterator<Item = ExtensionNumber>,
    ) -> Result<Self, ControlError> {
        let wanted = numbers(users);
        let listed = async {
            let objects = in_force::objects(control, &wanted).await?;
            // Of what isn't there, Asterisk would write a warning each into the log that the administrator is to read.
            let there = users.iter().filter(|user| objects.endpoints.contains_key(&user.extension.number));
            let other_caller_ids = in_force::other_caller_ids(control, &render::caller_ids(there)).await?;
            Ok((objects, other_caller_ids))
        };
        let ((objects, other_caller_ids), secrets) = try_join!(listed, in_force::secrets(control, unread))?;
        Ok(Self { objects, other_caller_ids, secrets })
    }

    /// Compares them with `users`. `secrets` are those that were not asked for here: of the numbers that change hands.
    pub(super) fn compare(self, users: &[User], mut secrets: BTreeMap<ExtensionNumber, String>) -> Findings {
        secrets.extend(self.secrets);
        let wanted = numbers(users);
        let endpoints: BTreeSet<_> = self.objects.endpoints.keys().copied().collect();
        let mut findings = Findings::default();

        findings.add("endpoints missing", wanted.difference(&endpoints).copied());
        findings.add("endpoints left over", endpoints.difference(&wanted).copied());
        let ours = || self.objects.endpoints.iter().filter(|(number, _)| wanted.contains(number));
        findings.add("auths missing", wanted.iter().filter(|number| !secrets.contains_key(number)));
        findings.add("auths left over", &self.objects.other_auths);
        let unlinked = ours().filter(|(number, links)| secrets.contains_key(number) && !links.auth);
        findings.add("endpoints without their own auth", unlinked.map(|(number, _)| *number));
        let unlinked = ours().filter(|(_, links)| !links.aor);
        findings.add("endpoints without their own AOR", unlinked.map(|(number, _)| *number));
        findings.add("AORs left over", &self.objects.other_aors);

        let old_secrets = in_force::other_secrets(users, &secrets);
        findings.add("old secrets in force", old_secrets.into_iter().filter(|number| secrets.contains_key(number)));
        findings.add("old caller IDs in force", self.other_caller_ids);
        findings
    }
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
    let kept = |first: Option<&FirstPriority>| first.is_some_and(|first| is_ours(first, render::QUARANTINED));
    let mut left = changing.clone();
    if changing.len() <= FEW {
        let shown = in_force::dialplan_of(control, changing).await?;
        left.retain(|number| !kept(shown.get(number)));
    }
    // What single questions do not show, the whole listing may.
    if !left.is_empty() {
        let shown = in_force::dialplan(control).await?.unwrap_or_default();
        left.retain(|number| !kept(shown.get(number)));
    }
    Ok(left)
}

/// Whether each of `changing` has an endpoint in force that uses the auth and the AOR of its own name only, and has no contact.
pub(super) async fn have_their_own_only(
    control: &Control,
    changing: &BTreeSet<ExtensionNumber>,
) -> Result<bool, ControlError> {
    let endpoints = if changing.len() <= FEW {
        in_force::endpoints_of(control, changing).await?
    } else {
        in_force::endpoints(control).await?
    };
    let own_only = |number| endpoints.get(number).is_some_and(|links| links.auth && links.aor && !links.contact);
    Ok(changing.iter().all(own_only))
}

fn numbers(users: &[User]) -> BTreeSet<ExtensionNumber> {
    users.iter().map(|user| user.extension.number).collect()
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
