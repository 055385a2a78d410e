//! `POST /apply`: makes Asterisk serve what the database holds, and proves it.
//!
//! # The protocol
//!
//! 1. **Lock** this host's files ([`crate::host::lock`]). If another apply holds them, refuse; no audit row is written.
//! 2. **Audit first**: the row says "interrupted" until step 10, so a crash leaves a true row. If it cannot be written, nothing
//!    else is done.
//! 3. **Snapshot** of all users; both files are rendered in memory.
//! 4. **Look before touching**: check for all that is known to make an apply fail. Find the numbers that **change hands**: their
//!    registrations may belong to a former owner ([`ownership`]).
//! 5. **Prepare**: write and flush both temporary files. Up to here, Asterisk and its files are unchanged.
//! 6. **Quarantine**, if numbers change hands: calls to them get 404 until step 8, of a later apply if this one fails, even if
//!    Asterisk or this service restarts.
//! 7. **Endpoints**: rename and reload. Evict registrations of numbers without a user. Then **hand over** ([`hand_over`]): wait
//!    until the new secrets are in force, and evict the old registrations so that they cannot come back.
//! 8. **Routing**: rename and reload. This ends the quarantine. A number that could not be handed over stays in it, and the apply fails.
//! 9. **Prove** that Asterisk serves the snapshot, no more and no less, option by option ([`proof`]).
//! 10. **Finish** the audit row, then release the lock. If the database does not take the row, it is retried until the service stops.
//!
//! If numbers change hands, the steps run strictly one after another. If none does, both files are renamed and both reloads run side
//! by side.
//!
//! If a step fails, the apply ends: what is on disk stays, and the row says why. The next apply starts from what Asterisk and the
//! disk say. A client that hangs up does not end an apply.

mod hand_over;
mod outcome;
mod ownership;
pub mod preview;
mod proof;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result, anyhow, bail};
use serde_json::json;
use tokio::join;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, info, info_span, warn};
use uuid::Uuid;

use crate::asterisk::in_force::objects;
use crate::asterisk::registrations::{self, COMMITTED_WITHIN};
use crate::asterisk::reload;
use crate::domain::{Extension, Name, Numbers, User};
use crate::host::configuration::MainFiles;
use crate::host::files::{self, Prepared, Stage};
use crate::host::lock::HostLock;
use crate::preflight::probes::{Host, Trouble};
use crate::render;
use crate::settings::Settings;
use crate::storage::{self, AuditEntry, Storage};
pub use outcome::{Applied, ApplyError, FailedApply};
use outcome::{Progress, ReloadResults};
use ownership::OnDisk;

/// How many times the bound of one command steps 3 to 9 may take. It cannot interrupt a flush to the disk.
const PATIENCE: u32 = 5;

/// Between two attempts to complete an audit row.
const AUDIT_RETRY: Duration = Duration::from_secs(2);

/// Applies to one Asterisk.
#[derive(Clone)]
pub struct Applier {
    storage: Storage,
    host: Host,
    host_name: String,
    /// Locked while an apply runs in this process. The value is a time: from then on, what an earlier apply evicted is gone for good,
    /// or listed again. After a start it allows for evictions by an earlier process, after a failed apply for some that were not noted.
    evictions_settled: Arc<Mutex<Instant>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// One apply, from its snapshot on.
struct Run<'a> {
    host: &'a Host,
    lock: &'a HostLock,
    progress: &'a mut Progress,
    users: Vec<User>,
    numbers: Numbers,
    /// Whether an eviction in the quarantine, by this apply or an earlier one, may not be on the disk yet. Then the hand-over waits,
    /// even if no registration is listed.
    may_have_evicted: bool,
}

impl Applier {
    /// Work that outlives its request runs in `tasks`. Once `stopping` is cancelled, no audit row is retried.
    pub fn new(settings: &Settings, storage: Storage, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self {
            storage,
            host: Host::new(settings),
            host_name: settings.host.clone(),
            evictions_settled: Arc::new(Mutex::new(Instant::now() + COMMITTED_WITHIN)),
            tasks,
            stopping,
        }
    }

    /// Applies, to the end even if the caller goes away. After a panic the audit row still says "interrupted", which is true.
    pub async fn apply(&self, triggered_by: Name) -> Result<Applied, ApplyError> {
        let locked = self.evictions_settled.clone().try_lock_owned();
        let mut evictions_settled = locked.map_err(|_| ApplyError::InProgress)?;
        let (applier, service, request) = (self.clone(), Handle::current(), Span::current());
        // The service has one thread. Flushing a file would block it, so an apply has a thread of its own; with the service's event
        // loop, each answer of Asterisk would wake that one thread first, so an apply has an event loop of its own, too.
        let run = move || {
            let event_loop = Builder::new_current_thread().enable_all().build().expect("an event loop");
            event_loop.block_on(applier.run(triggered_by, &service, &mut evictions_settled).instrument(request))
        };
        self.tasks.spawn_blocking(run).await.expect("the apply panicked")
    }

    /// Steps 1, 2 and 10, around the others.
    async fn run(
        &self,
        triggered_by: Name,
        service: &Handle,
        evictions_settled: &mut Instant,
    ) -> Result<Applied, ApplyError> {
        let lock = HostLock::try_acquire(&self.host.files).transpose().ok_or(ApplyError::InProgress)?;
        let mut row = AuditEntry {
            id: Uuid::new_v4(),
            triggered_at: storage::now(),
            triggered_by,
            host: self.host_name.clone(),
            error_details: Some("interrupted: the files may be of two versions; apply again".to_owned()),
            files_written: json!([]),
            reload_results: json!(ReloadResults::default()),
        };
        self.storage.write_audit(row.clone()).await.map_err(ApplyError::Unavailable)?;
        info!(audit_log_id = %row.id, "apply begins");

        let mut progress = Progress::new();
        let steps = async {
            // Held until the audit row is finished.
            let lock = lock.as_ref().map_err(|error| anyhow!("{error}"))?;
            let bound = self.host.command.bound * PATIENCE;
            timeout(bound, self.steps(lock, &mut progress, *evictions_settled)).await.unwrap_or_else(|_| {
                bail!(
                    "Asterisk is too slow: the apply was given up after {} s; look at the machine's load and at 'core show locks', then apply again",
                    bound.as_secs()
                )
            })
        };
        let outcome = steps.instrument(info_span!("apply", audit_log_id = %row.id)).await;
        if outcome.is_err() || !progress.evicted.is_empty() {
            *evictions_settled = Instant::now() + COMMITTED_WITHIN;
        }

        row.error_details = outcome.as_ref().err().map(|error| format!("{error}{}", progress.warnings()));
        row.files_written = json!(progress.files_written);
        row.reload_results = json!(progress.reload_results);
        let finished = self.storage.write_audit(row.clone()).await;
        let audit_log_id = row.id;
        if finished.is_err() {
            // This apply's event loop ends with it.
            self.tasks.spawn_on(retry_audit(self.storage.clone(), row, self.stopping.clone()), service);
        }
        progress.conclude(audit_log_id, outcome, finished)
    }

    /// Steps 3 to 9; gives the number of users.
    async fn steps(&self, lock: &HostLock, progress: &mut Progress, evictions_settled: Instant) -> Result<usize> {
        let users = self.storage.users().await.map_err(|error| anyhow!("the users can't be read: {error}"))?;
        let numbers = proof::numbers(&users);
        let (endpoints, routing) = (render::endpoints(&users), render::routing(&numbers, &Numbers::new()));
        progress.done("snapshot and render");

        let mut run = Run { host: &self.host, lock, progress, users, numbers, may_have_evicted: false };
        let changing = run.look(evictions_settled).await?;
        files::remove_left_overs(lock, &self.host.files)?;
        let endpoints = files::prepare(lock, &self.host.files.endpoints, Stage::Final, &endpoints)?;
        let routing = files::prepare(lock, &self.host.files.routing, Stage::Final, &routing)?;
        run.progress.done("prepare");

        if changing.is_empty() {
            run.serve_both(endpoints, routing).await?;
        } else {
            run.quarantine(&changing).await?;
            run.serve_endpoints(endpoints).await?;
            run.evict_without_user().await?;
            let (quarantined, evictions) = run.hand_over(changing).await?;
            run.serve_routing(routing, &quarantined).await?;
            evictions?;
        }
        run.prove().await?;
        Ok(run.users.len())
    }
}

impl Run<'_> {
    /// Step 4. Gives the numbers that change hands.
    async fn look(&mut self, evictions_settled: Instant) -> Result<Numbers> {
        self.host.asterisk().await?;
        let control = &self.host.control;
        let (secrets, main) = join!(objects::secrets(control, &self.numbers), self.host.probe_before_apply());
        let on_disk = OnDisk::of(self.host, &main?)?;
        if !self.numbers.iter().all(|number| on_disk.secrets.contains_key(number)) {
            // A number was free, so no secret tells of its former owner: only the registrations do. One that comes back is listed by then.
            sleep_until(evictions_settled).await;
        }
        let registered = registrations::list(control).await?;
        let changing = ownership::changing_hands(&self.users, &on_disk, &secrets?, &registered);
        let before = on_disk.secrets.len();
        let is_kept = |own: &Extension| on_disk.secrets.get(&own.number).is_some_and(|old| old == own.secret.reveal());
        if before > 1 && !self.users.iter().any(|user| is_kept(&user.extension)) {
            self.progress.warn(format!(
                "none of the {before} users whom Asterisk served before is in the database any more; if you did not delete them, check DATABASE_URL, or restore a backup, then apply again"
            ));
        }
        self.may_have_evicted = !on_disk.quarantined.is_disjoint(&self.numbers);
        self.progress.done("look before touching");
        Ok(changing)
    }

    /// The first part of step 7. Afterwards Asterisk has read the endpoints; it may have refused them.
    async fn serve_endpoints(&mut self, endpoints: Prepared) -> Result<()> {
        self.publish(endpoints)?;
        let result = &mut self.progress.reload_results.pjsip_reload;
        self.host.command.reload(reload::PJSIP, result).await?;
        self.progress.done("endpoints");
        Ok(())
    }

    /// Step 8. Afterwards Asterisk has read the routing, in which calls reach every number but those in `quarantined`.
    async fn serve_routing(&mut self, mut routing: Prepared, quarantined: &Numbers) -> Result<()> {
        if !quarantined.is_empty() {
            drop(routing); // Removes its temporary file.
            let text = render::routing(&self.numbers, quarantined);
            routing = files::prepare(self.lock, &self.host.files.routing, Stage::Final, &text)?;
        }
        self.publish(routing)?;
        let result = &mut self.progress.reload_results.dialplan_reload;
        self.host.command.reload(reload::DIALPLAN, result).await?;
        self.progress.done("routing");
        Ok(())
    }

    /// Steps 7 and 8 if no number changes hands: then their order does not matter.
    async fn serve_both(&mut self, endpoints: Prepared, routing: Prepared) -> Result<()> {
        self.publish(endpoints)?;
        self.publish(routing)?;
        let ReloadResults { pjsip_reload, dialplan_reload } = &mut self.progress.reload_results;
        let command = &self.host.command;
        let (endpoints, routing) =
            join!(command.reload(reload::PJSIP, pjsip_reload), command.reload(reload::DIALPLAN, dialplan_reload));
        endpoints?;
        routing?;
        self.progress.done("endpoints and routing");
        self.evict_without_user().await
    }

    /// Step 9. Afterwards it is known that Asterisk serves the snapshot, no more and no less.
    async fn prove(&mut self) -> Result<()> {
        let differences = proof::differences(&self.host.control, &self.users).await?;
        if !differences.is_empty() {
            let found = format!("Asterisk does not serve what the database holds: {}", differences.join("; "));
            return Err(self.not_proven(found).await);
        }
        // Without a user there is nothing that Asterisk could show: then the include lines are the proof.
        if self.users.is_empty() {
            self.host.includes(&MainFiles::read(&self.host.config_dir)?)?;
        }
        match self.host.transport().await {
            Ok(_) => {}
            Err(Trouble::Warning(warning)) => self.progress.warn(warning),
            Err(failure) => return Err(failure.into()),
        }
        self.progress.done("proof");
        Ok(())
    }

    /// Renames a temporary file over its target, and flushes the folder.
    fn publish(&mut self, prepared: Prepared) -> Result<()> {
        let target = prepared.publish(self.lock)?;
        let (written, path) = (&mut self.progress.files_written, target.display().to_string());
        if !written.contains(&path) {
            // The answer names the endpoints first; a quarantine wrote the routing before them.
            let at = if target == self.host.files.endpoints { 0 } else { written.len() };
            written.insert(at, path);
        }
        files::flush_folder(&target)
    }

    async fn not_proven(&self, found: String) -> Error {
        anyhow!("{found}; likely cause: {}", self.host.likely_cause().await)
    }
}

async fn retry_audit(storage: Storage, row: AuditEntry, stopping: CancellationToken) {
    while stopping.run_until_cancelled(sleep(AUDIT_RETRY)).await.is_some() {
        match storage.write_audit(row.clone()).await {
            Ok(()) => return info!(audit_log_id = %row.id, "the audit row is completed"),
            Err(error) => warn!(audit_log_id = %row.id, %error, "the audit row can't be completed yet"),
        }
    }
}
