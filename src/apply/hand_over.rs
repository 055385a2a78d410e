//! The numbers that change hands: from the quarantine until their former owners' phones are gone for good.
//!
//! The promise is that a former owner's phone never rings for the new owner. It rests on four facts, in this order:
//!
//! 1. From the quarantine until the routing, a call to such a number gets 404 ([`Run::quarantine`]).
//! 2. Once the new secret is in force, no former owner's phone can register ([`Run::new_secrets`]).
//! 3. What was registered until then is evicted ([`Run::evict_for_good`]).
//! 4. Asterisk cannot take the eviction back, because it is on the disk (also there).
//!
//! # When an eviction lasts
//!
//! Asterisk may take back whatever it changed in its database within the last second ([`registrations`]). A listing without old
//! registrations is therefore no proof: one may have been evicted, or replaced by the new owner's, only until the next failed
//! commit. A [`Look`] tells more. As long as it holds, no registration can come back that it did not list: the state to which
//! Asterisk could go back is the look's own or a later one. Two rules follow.
//!
//! - A registration that an earlier look did not list, while that look still holds, is new. So it is the new owner's and stays.
//!   All others are evicted.
//! - If a look lists no old registration and still holds after [`COMMITTED_WITHIN`], it is on the disk, and the eviction lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep, timeout};

use super::{PATIENCE, Run, proof};
use crate::asterisk::in_force::objects;
use crate::asterisk::registrations::{self, COMMITTED_WITHIN, Look, Registration};
use crate::asterisk::reload::Reload;
use crate::domain::{ExtensionNumber, some_of};
use crate::host::files::{self, Stage};
use crate::render;

/// How long to try until the evictions last; less if the whole apply has less time.
const EVICTIONS_LAST_WITHIN: Duration = Duration::from_secs(20);

/// After a reload, its new secrets are in force within this; if they are not, Asterisk refused them.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(1);

/// Between two questions for the secrets.
const NEXT_TRY: Duration = Duration::from_millis(50);

/// The longest that Asterisk takes to store a registration after it accepted it: ten times the longest that was seen, with twelve
/// phones registering without pause on an overloaded machine.
const STORED_WITHIN: Duration = Duration::from_millis(50);

/// The numbers that stay in quarantine: they are not handed over.
pub(super) struct Kept {
    /// Their former owners' secrets are in force still. The proof says why.
    old_secrets: BTreeSet<ExtensionNumber>,
    /// Evictions did not last. Marks cover the whole database, so these are all numbers whose new secret is in force.
    taken_back: BTreeSet<ExtensionNumber>,
}

impl Kept {
    /// All of them.
    pub(super) fn numbers(&self) -> BTreeSet<ExtensionNumber> {
        &self.old_secrets | &self.taken_back
    }

    /// Fails if evictions do not last.
    pub(super) fn verdict(&self) -> Result<()> {
        ensure!(
            self.taken_back.is_empty(),
            "Asterisk cannot write its database, so old registrations that were evicted come back: {}; a process that reads astdb.sqlite3 while Asterisk writes it (a backup, a monitor) is the usual cause: find it (fuser -v on that file), stop it, then apply again; until then, calls to these numbers get 404",
            some_of(&self.taken_back)
        );
        Ok(())
    }
}

impl Run<'_> {
    /// Step 6. Afterwards calls to the `changing` numbers get 404, over any crash or restart, until step 8. Their registrations are
    /// evicted once, for dialplans that dial the endpoint directly.
    pub(super) async fn quarantine(&mut self, changing: &BTreeSet<ExtensionNumber>) -> Result<()> {
        let target = &self.host.files.routing;
        let quarantine =
            files::prepare(self.lock, target, Stage::Quarantine, &render::routing(&self.numbers, changing))?;
        self.publish(quarantine, target)?;
        let result = &mut self.progress.reload_results.dialplan_reload;
        self.host.command.reload(Reload::Dialplan, result, || {}).await?;
        let still_routed = proof::not_quarantined(&self.host.control, changing).await?;
        if !still_routed.is_empty() {
            let found = format!(
                "these extensions change hands, but Asterisk does not keep them at 404, so their old phones could ring: {}",
                some_of(still_routed)
            );
            return Err(self.not_proven(found).await);
        }
        let mut registered = registrations::list(&self.host.control).await?;
        registered.retain(|registration| changing.contains(&registration.number));
        self.may_have_evicted |= !registered.is_empty();
        self.evict(registered).await?;
        self.progress.done("quarantine");
        Ok(())
    }

    /// Evicts the registrations of numbers without a user. Afterwards none is listed. Asterisk may take that back; but without an
    /// AOR it reaches nobody, and an apply that gives the number away waits until it would be listed, and evicts it.
    pub(super) async fn evict_without_user(&mut self) -> Result<()> {
        let mut registered = registrations::list(&self.host.control).await?;
        registered.retain(|registration| !self.numbers.contains(&registration.number));
        self.evict(registered).await
    }

    /// The second part of step 7. Afterwards each of the `changing` numbers belongs to its new owner alone, but for those that it
    /// gives.
    pub(super) async fn hand_over(&mut self, changing: BTreeSet<ExtensionNumber>) -> Result<Kept> {
        let old_secrets = self.new_secrets(&changing).await?;
        let handed_over = &changing - &old_secrets;
        let taken_back = if self.evict_for_good(&handed_over).await? { BTreeSet::new() } else { handed_over };
        self.progress.done("hand over");
        Ok(Kept { old_secrets, taken_back })
    }

    /// Afterwards no phone with an old secret can register as one of the `changing` numbers, but for those that it gives: their
    /// old secrets are in force still. The registrations that Asterisk accepted before are listed.
    async fn new_secrets(&self, changing: &BTreeSet<ExtensionNumber>) -> Result<BTreeSet<ExtensionNumber>> {
        let users = self.users.iter().filter(|user| changing.contains(&user.extension.number));
        let new: BTreeMap<_, _> = users.map(|user| (user.extension.number, user.extension.secret.reveal())).collect();
        let numbers: Vec<_> = new.keys().copied().collect();
        let given_up = Instant::now() + IN_FORCE_WITHIN;
        loop {
            let in_force = objects::secrets(&self.host.control, &numbers).await?;
            let is_old =
                |number: &ExtensionNumber| in_force.get(number).map(String::as_str) != new.get(number).copied();
            let old: BTreeSet<_> = numbers.iter().copied().filter(is_old).collect();
            if old.is_empty() || Instant::now() > given_up {
                sleep(STORED_WITHIN).await;
                return Ok(old);
            }
            sleep(NEXT_TRY).await;
        }
    }

    /// Afterwards, if it gives true, no registration that a former owner made of the `changing` numbers is left or can come back.
    async fn evict_for_good(&mut self, changing: &BTreeSet<ExtensionNumber>) -> Result<bool> {
        let registered = registrations::list(&self.host.control).await?;
        if !self.may_have_evicted && !registered.iter().any(|registration| changing.contains(&registration.number)) {
            return Ok(true);
        }
        // Two bounds are left for the routing and the proof.
        let bound = EVICTIONS_LAST_WITHIN.min(self.host.command.bound * (PATIENCE - 2));
        let lasts = timeout(bound, self.evict_until_it_lasts(changing)).await;
        registrations::forget_looks(&self.host.control).await?;
        lasts.map_or(Ok(false), |lasts| lasts.map(|()| true))
    }

    /// Like [`Run::evict_for_good`], however long it takes.
    async fn evict_until_it_lasts(&mut self, changing: &BTreeSet<ExtensionNumber>) -> Result<()> {
        let control = &self.host.control;
        let mut new_owners: Vec<Registration> = Vec::new();
        let mut earlier: Option<Look> = None;
        loop {
            let look = Look::now(control).await?;
            if let Some(earlier) = earlier.filter(|earlier| look.continues(earlier)) {
                new_owners.extend(look.registered_since(&earlier));
            }
            let mut old = look.registrations.clone();
            old.retain(|registration| changing.contains(&registration.number) && !new_owners.contains(registration));
            if old.is_empty() {
                sleep(COMMITTED_WITHIN).await;
                if look.holds(control).await? {
                    return Ok(());
                }
            } else {
                self.evict(old).await?;
            }
            earlier = Some(look);
        }
    }

    /// Evicts registrations, and notes them for the answer.
    async fn evict(&mut self, registrations: Vec<Registration>) -> Result<()> {
        registrations::evict(&self.host.control, &registrations).await?;
        self.progress.note_evicted(registrations);
        Ok(())
    }
}
