//! Taking numbers away: afterwards each of them belongs to nobody, so that it can be given to its new owner.
//!
//! The promise is that a former owner's phone never rings for the new owner. It rests on four facts, in this order, and none of
//! them depends on a delay:
//!
//! 1. A phone registers, or is called, as a number only while Asterisk has an endpoint, an auth and an AOR of that number.
//!    [`Run::remove_objects`] ensures that there is none: whatever a dialplan dials, nobody rings, and no further registration is accepted.
//! 2. Asterisk may have accepted a registration just before. [`queues::work_off`] waits until each such registration has its row.
//! 3. [`Run::delete_and_commit`] deletes these rows. Once Asterisk has committed that, it cannot go back to anything that has them: not
//!    after a failed commit, not after a kill.
//! 4. Only then is a file published that names the new owner.
//!
//! If this service or Asterisk dies in between, the new secret is neither in force nor in the file, so the next apply starts here
//! again.
//!
//! Two things can keep a number from being taken away although Asterisk works: a thread of Asterisk that hangs (the queues do not move),
//! and a process that reads Asterisk's database (the commit fails). Both are retried, together within [`TAKEN_AWAY_WITHIN`]. After
//! that the number is held back: the apply gives everything but its endpoint, auth and AOR, and fails.

use std::time::Duration;

use anyhow::{Error, Result, anyhow, ensure};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Run;
use super::ownership::Owners;
use crate::asterisk::in_force::objects;
use crate::asterisk::{queues, registrations, reload};
use crate::domain::{ExtensionNumber, Numbers, some_of};
use crate::host::files::Prepared;

/// The queues are worked off and the deletion is committed, both together; less if the complete apply has less time.
const TAKEN_AWAY_WITHIN: Duration = Duration::from_secs(20);

/// The registrations of numbers without a user are deleted and committed.
const EVICTED_WITHIN: Duration = Duration::from_secs(2);

/// Between two attempts to commit.
const COMMIT_PAUSE: Duration = Duration::from_millis(100);

impl Run<'_> {
    /// Step 6. Afterwards each number of `changing` belongs to nobody; `without` is the prepared file of the endpoints without them.
    /// Returns why the numbers must be held back, if Asterisk does not get there in time. Returns an error if Asterisk refuses: then
    /// nothing is given.
    pub(super) async fn take_away(
        &mut self,
        changing: &Numbers,
        owners: &Owners,
        without: Prepared,
    ) -> Result<Option<Error>> {
        self.remove_objects(changing, owners, without).await?;
        // At least as long as one command may take, within the bound, even if two are then not left for giving and the proof.
        let now = Instant::now();
        let ends_within = self.pbx.program.ends_within;
        let least = ends_within.min(TAKEN_AWAY_WITHIN);
        let until = (now + TAKEN_AWAY_WITHIN).min(self.deadline - ends_within * 2).max(now + least);
        let held_back = |cause: &str| {
            let numbers = some_of(changing);
            anyhow!("{cause}; until then nobody has these numbers, and calls to them get 480: {numbers}")
        };
        let Ok(ended) = timeout_at(until, queues::work_off(&self.pbx.control)).await else {
            return Ok(Some(held_back(
                "Asterisk does not finish the SIP requests that it has accepted, so a former owner's phone may yet be registered: one of its threads hangs, or the machine is overloaded; look at 'core show taskprocessors like pjsip/distributor' and 'core show locks', restart Asterisk, then apply again",
            )));
        };
        ended?;
        self.record_evictions(|number| changing.contains(number)).await?;
        let Ok(ended) = timeout_at(until, self.delete_and_commit(changing)).await else {
            return Ok(Some(held_back(
                "Asterisk cannot commit to its database, so the registrations of former owners that were deleted may come back: a process that reads astdb.sqlite3 (a backup, a monitor) is the usual cause; find it (fuser -v on that file), stop it, then apply again",
            )));
        };
        ended?;
        self.see_no_contact_left(changing).await?;
        self.warn_of_subscriptions(changing).await?;
        self.done("take away");
        Ok(None)
    }

    /// Afterwards Asterisk has no endpoint, auth or AOR of these numbers, and no file on the disk could bring one back.
    async fn remove_objects(&mut self, changing: &Numbers, owners: &Owners, without: Prepared) -> Result<()> {
        let control = &self.pbx.control;
        let is_in_file = changing.iter().any(|number| owners.in_file.contains_key(number));
        if !is_in_file && objects::by_name(control, changing).await?.is_empty() {
            return Ok(()); // Drops the prepared file.
        }
        self.publish(without)?;
        self.pbx.program.reload(reload::OBJECTS, &mut self.progress.reload_results.pjsip_reload).await?;
        let left = objects::by_name(control, changing).await?;
        if !left.is_empty() {
            let found = format!(
                "these extensions change hands, but Asterisk keeps the endpoint, auth or AOR of their former owners: {}",
                some_of(left)
            );
            return Err(self.with_likely_cause(found).await);
        }
        self.done("remove objects");
        Ok(())
    }

    /// Tries until Asterisk has committed the deletion of all registrations of these numbers. The caller ends it in time.
    async fn delete_and_commit(&self, changing: &Numbers) -> Result<()> {
        while !registrations::delete(&self.pbx.control, changing).await? {
            sleep(COMMIT_PAUSE).await;
        }
        Ok(())
    }

    /// Fails if Asterisk still knows a contact of these numbers: then it keeps registrations elsewhere than in its database.
    async fn see_no_contact_left(&self, changing: &Numbers) -> Result<()> {
        let contacts = registrations::numbers_with_contacts(&self.pbx.control).await?;
        let left = &contacts & changing;
        ensure!(
            left.is_empty(),
            "Asterisk keeps registrations elsewhere than in its own database, so phones of former owners can't be evicted: {}; look in sorcery.conf for a line of 'contact', remove it, restart Asterisk",
            some_of(left)
        );
        Ok(())
    }

    /// Evicts the registrations of numbers without a user. Asterisk may roll this back, which harms nobody: without an AOR no call uses
    /// the row, and an apply that gives the number away deletes it first.
    pub(super) async fn evict_without_user(&mut self) -> Result<()> {
        let with_user = self.numbers.clone();
        let mut freed = self.record_evictions(|number| !with_user.contains(number)).await?;
        // A phone may have registered since the listing, or may only have subscribed.
        freed.extend(&self.served - &with_user);
        if !freed.is_empty() {
            if let Ok(ended) = timeout(EVICTED_WITHIN, self.delete_and_commit(&freed)).await {
                ended?;
            } else {
                self.progress.warn(
                    "Asterisk cannot commit to its database, so the registrations of numbers without a user are not evicted for good: a process that reads astdb.sqlite3 (a backup, a monitor) is the usual cause; find it (fuser -v on that file) and stop it".to_owned(),
                );
            }
            self.warn_of_subscriptions(&freed).await?;
        }
        Ok(())
    }

    /// Records, for the answer, the registrations that are about to be evicted. Returns their numbers.
    async fn record_evictions(&mut self, evicted: impl Fn(&ExtensionNumber) -> bool) -> Result<Numbers> {
        let mut numbers = Numbers::new();
        for registration in registrations::list(&self.pbx.control).await? {
            if evicted(&registration.number) {
                numbers.insert(registration.number);
                self.progress.record_evicted(registration);
            }
        }
        Ok(numbers)
    }

    /// Warns of live subscriptions. Nobody can end one from outside, and a phone refreshes it without its password.
    async fn warn_of_subscriptions(&mut self, taken: &Numbers) -> Result<()> {
        let subscriptions = registrations::numbers_with_subscriptions(&self.pbx.control).await?;
        let watching = &subscriptions & taken;
        if !watching.is_empty() {
            self.progress.warn(format!(
                "phones that former owners subscribed with still see what they watch (hints, mailboxes), as: {}; restart Asterisk when no call is up, to end that",
                some_of(watching)
            ));
        }
        Ok(())
    }
}
