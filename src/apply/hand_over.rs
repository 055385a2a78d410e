//! The numbers that change hands: from the quarantine until their former owners' phones are gone for good.
//!
//! The promise is that a former owner's phone never rings for the new owner. It rests on four facts, in this order:
//!
//! 1. From the quarantine until the routing, a call to such a number gets 404 ([`Run::quarantine`]).
//! 2. Once the new secret is in force, no former owner's phone can register ([`Run::new_secrets`]).
//! 3. What was registered until then is evicted ([`Run::evict_for_good`]).
//! 4. Asterisk cannot take the eviction back, because it is on the disk ([`Run::evict_for_good`] again).
//!
//! # When an eviction lasts
//!
//! Asterisk may take back what it changed in its database within the last second, so a listing without old registrations is no
//! proof ([`registrations`]). But as long as a [`Look`] holds, no registration can come back that it did not list. Two rules follow.
//!
//! - A registration that an earlier look did not list, while that look still holds, is new. By fact 2 only the new owner can have
//!   made it, so it stays. All others are evicted.
//! - If a look lists no old registration and still holds after [`COMMITTED_WITHIN`], what it listed is on the disk, and the eviction lasts.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout};

use super::{PATIENCE, Run, proof};
use crate::asterisk::in_force::objects;
use crate::asterisk::registrations::{self, COMMITTED_WITHIN, Look, Registration};
use crate::asterisk::reload;
use crate::domain::{Extension, Numbers, some_of};
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

impl Run<'_> {
    /// Step 6. Afterwards calls to the `changing` numbers get 404, over any crash or restart, until step 8. Their registrations are
    /// evicted once, for dialplans that dial the endpoint directly.
    pub(super) async fn quarantine(&mut self, changing: &Numbers) -> Result<()> {
        let routing = render::routing(&self.numbers, changing);
        self.publish(files::prepare(self.lock, &self.host.files.routing, Stage::Quarantine, &routing)?)?;
        let result = &mut self.progress.reload_results.dialplan_reload;
        self.host.command.reload(reload::DIALPLAN, result).await?;
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

    /// Evicts the registrations of numbers without a user. Asterisk may take that back; but without an
    /// AOR it reaches nobody, and an apply that gives the number away waits until it would be listed, and evicts it.
    pub(super) async fn evict_without_user(&mut self) -> Result<()> {
        let mut registered = registrations::list(&self.host.control).await?;
        registered.retain(|registration| !self.numbers.contains(&registration.number));
        self.evict(registered).await
    }

    /// The second part of step 7. Afterwards each of the `changing` numbers belongs to its new owner alone, except the returned ones:
    /// they stay in quarantine. Also gives an error if that is because evictions do not last; otherwise the proof says why.
    pub(super) async fn hand_over(&mut self, changing: Numbers) -> Result<(Numbers, Result<()>)> {
        let old_secrets = self.new_secrets(&changing).await?;
        let handed_over = &changing - &old_secrets;
        let lasts = handed_over.is_empty() || self.evict_for_good(&handed_over).await?;
        self.progress.done("hand over");
        if lasts {
            return Ok((old_secrets, Ok(())));
        }
        // Marks cover the whole database, so nobody knows which of the numbers it is.
        let error = anyhow!(
            "Asterisk cannot write its database, so old registrations that were evicted come back: {}; a process that reads astdb.sqlite3 while Asterisk writes it (a backup, a monitor) is the usual cause: find it (fuser -v on that file), stop it, then apply again; until then, calls to these numbers get 404",
            some_of(handed_over)
        );
        Ok((changing, Err(error)))
    }

    /// Afterwards no phone with an old secret can register as one of the `changing` numbers, except the returned ones: their new
    /// secrets are not in force. The registrations that Asterisk accepted before are listed.
    async fn new_secrets(&self, changing: &Numbers) -> Result<Numbers> {
        let deadline = Instant::now() + IN_FORCE_WITHIN;
        loop {
            let in_force = objects::secrets(&self.host.control, changing).await?;
            let is_new = |own: &&Extension| in_force.get(&own.number).is_some_and(|found| found == own.secret.reveal());
            let extensions = self.users.iter().map(|user| &user.extension);
            let new: Numbers = extensions.filter(is_new).map(|own| own.number).collect();
            let old = changing - &new;
            if old.is_empty() || Instant::now() > deadline {
                sleep(STORED_WITHIN).await;
                return Ok(old);
            }
            sleep(NEXT_TRY).await;
        }
    }

    /// Afterwards, if it gives true, no registration that a former owner made of the `changing` numbers is left or can come back.
    async fn evict_for_good(&mut self, changing: &Numbers) -> Result<bool> {
        let registered = registrations::list(&self.host.control).await?;
        if !self.may_have_evicted && !registered.iter().any(|registration| changing.contains(&registration.number)) {
            return Ok(true);
        }
        // Two bounds are left for the routing and the proof.
        let bound = EVICTIONS_LAST_WITHIN.min(self.host.command.bound * (PATIENCE - 2));
        let lasts = timeout(bound, self.evict_until_it_lasts(changing)).await.unwrap_or(Ok(false));
        registrations::forget_looks(&self.host.control).await?;
        lasts
    }

    /// Like [`Run::evict_for_good`], however long it takes, so it never gives false.
    async fn evict_until_it_lasts(&mut self, changing: &Numbers) -> Result<bool> {
        let control = &self.host.control;
        let mut new_registrations: Vec<Registration> = Vec::new();
        let mut earlier: Option<Look> = None;
        loop {
            let look = Look::now(control).await?;
            if let Some(earlier) = earlier.filter(|earlier| earlier.holds_in(&look.marks)) {
                new_registrations.extend(look.registered_since(&earlier));
            }
            let mut old = look.registrations.clone();
            old.retain(|row| changing.contains(&row.number) && !new_registrations.contains(row));
            if old.is_empty() {
                sleep(COMMITTED_WITHIN).await;
                if look.holds(control).await? {
                    return Ok(true);
                }
            } else {
                self.evict(old).await?;
            }
            earlier = Some(look);
        }
    }

    async fn evict(&mut self, registrations: Vec<Registration>) -> Result<()> {
        registrations::evict(&self.host.control, &registrations).await?;
        self.progress.note_evicted(registrations);
        Ok(())
    }
}
