//! `POST /apply`: the database becomes what Asterisk serves, and is proven to be.
//!
//! # The protocol
//!
//! 1. **Lock** this host's files ([`crate::host::lock`]). Held: refused, and no audit row is written.
//! 2. **Audit first**: the row says "interrupted" until the end, so that a crash leaves a true one.
//! 3. **Snapshot** of all users, and both files rendered in memory.
//! 4. **Look before touching**: Asterisk answers, is not too old, is booted and has its modules; nothing of the pool's numbers
//!    stands outside our files; both targets can be replaced; which numbers **change hands** ([`ownership`])?
//! 5. **Prepare**: both temporary files are written and flushed. A failure up to here changes nothing.
//! 6. **Quarantine**, if numbers change hands: the routing says 404 for them, is reloaded and seen to; then their old
//!    registrations are evicted. Until step 8 a call to them gets 404, whatever crashes or restarts.
//! 7. **Endpoints**: rename, `pjsip reload`. Once the new secrets are in force, and whoever was let in just before is listed, see
//!    whether all are, and evict again. They come long before the endpoints and AORs: unless each of those has its own auth and AOR,
//!    and no other and no contact, this waits until Asterisk says that all are read. Once the reload has ended, evict whoever is
//!    registered as a number without a user.
//! 8. **Routing**: rename, `dialplan reload`. A number whose new secret is not in force by now stays in quarantine: its old phone
//!    could still register. If no number changes hands, nobody's phone could be reached as another's: then the routing waits for
//!    nothing, and Asterisk reads both files at once.
//! 9. **Proof** ([`proof`]): what Asterisk serves is the snapshot, no more and no less, value by value. The endpoints are asked
//!    about as soon as Asterisk says that it has read them (modules that only look through them take a while longer), the routing
//!    once it is reloaded. The secrets of numbers that change hands are those seen in step 7.
//! 10. **Finish** the audit row, then drop the lock.
//!
//! A step that fails ends the apply, once what runs beside it has ended: what is on disk stays, the row says why, and the next
//! apply repairs everything, because each apply starts from what Asterisk and the disk say, not from what an earlier one meant to
//! do.
//!
//! An apply has a thread of its own, with an event loop of its own, for everything but the database: its file steps hold
//! nobody up, and it asks Asterisk thousands of questions without a switch of threads. A client that hangs up does not end it.

mod ownership;
pub mod preview;
mod proof;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};
use tokio::{join, select};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, error, info, info_span, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::asterisk::control::{Control, ControlError};
use crate::asterisk::in_force;
use crate::asterisk::registrations::{self, Registration};
use crate::asterisk::reload::{AsteriskCommand, CommandResult, Reload, ReloadError};
use crate::domain::{ExtensionNumber, Name, User, some_of};
use crate::host::files::{self, FileError, Prepared, Stage};
use crate::host::lock::{HostLock, LockError};
use crate::host::place::GeneratedFiles;
use crate::preflight::probes::{Host, Trouble};
use crate::render;
use crate::settings::Settings;
use crate::storage::{self, AuditEntry, Storage, StorageError};
use ownership::{OnDisk, Served};
use proof::Endpoints;

/// An apply ends within so many times the bound of one command, flushing to the disk and two calls of the database aside:
/// an Asterisk that answers on each of many connections slowly is as good as hung.
const PATIENCE: u32 = 5;

/// Before an apply's thread waits for more, it lets some come: Asterisk sends a listing line by line, and waking for each costs
/// both more than the line. Meanwhile fewer come than its socket has room for.
const NAP: Duration = Duration::from_micros(100);

/// How often an eviction is tried in quarantine, and once the new secrets are in force.
const FIRST_ATTEMPTS: usize = 3;
const ATTEMPTS: usize = 20;

/// Between two looks at whether the new secrets are in force.
const NEXT_LOOK: Duration = Duration::from_millis(10);

/// A phone that was let in just before its secret was replaced is listed within this: ten times the longest that was seen, with
/// twelve phones registering without pause on an overloaded machine.
const LISTED_WITHIN: Duration = Duration::from_millis(50);

/// Between two attempts to write an audit row that could not be written.
const AUDIT_RETRY: Duration = Duration::from_secs(2);

/// Applies to one Asterisk.
#[derive(Debug, Clone)]
pub struct Applier {
    storage: Storage,
    host: Host,
    command: AsteriskCommand,
    name: String,
    /// Of this process: whoever finds it taken need not begin a thread to find the host's lock taken.
    running: Arc<Mutex<()>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// What an apply did, as far as it got.
#[derive(Debug, Clone)]
pub struct Progress {
    steps: Steps,
    /// The target files that were replaced: the endpoints, then the routing.
    pub files_written: Vec<PathBuf>,
    /// How the reloads went.
    pub reload_results: ReloadResults,
    /// The registrations that were evicted.
    pub evicted: Vec<Registration>,
    /// What an administrator should look at, although it is no failure.
    pub warnings: Vec<String>,
}

/// How long each step takes.
#[derive(Debug, Clone)]
struct Steps {
    /// The one that runs.
    began: Instant,
}

/// How the reloads went; a step not reached is null.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ReloadResults {
    /// Of the endpoints.
    #[schema(required)]
    pub pjsip_reload: Option<CommandResult>,
    /// Of the routing; the last one, if there were several.
    #[schema(required)]
    pub dialplan_reload: Option<CommandResult>,
}

/// An apply that is proven.
#[derive(Debug)]
pub struct Applied {
    /// Its row in the audit log.
    pub audit_log_id: Uuid,
    /// How many users, and so extensions, Asterisk serves.
    pub users: usize,
    /// What was done.
    pub progress: Progress,
}

/// An apply that is not proven.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another one runs on this host.
    #[error("another apply is in progress on this host")]
    InProgress,
    /// The first audit row could not be written; nothing was touched.
    #[error("the audit row can't be written: {0}")]
    Unavailable(StorageError),
    /// A step failed.
    #[error("{error_details}")]
    Failed {
        /// Its row in the audit log.
        audit_log_id: Uuid,
        /// What happened, and what to do.
        error_details: String,
        /// Whether the apply itself succeeded, and only its audit row could not be completed.
        in_force: bool,
        /// What was done until then.
        progress: Box<Progress>,
    },
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the users can't be read: {0}")]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// Of the routing, which waited for it; why, the endpoints' own error tells.
    #[error("Asterisk did not read the endpoints")]
    Unread,
    #[error("{0}")]
    Trouble(String),
    #[error("Asterisk is too slow: the apply was given up after {} s ({PATIENCE} times ASTERISK_TIMEOUT_SECS); look at the machine's load and at 'core show locks', then apply again", .0.as_secs())]
    TooSlow(Duration),
}

impl From<Trouble> for StepError {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Warning(text) | Trouble::Failure(text)) = trouble;
        Self::Trouble(text)
    }
}

impl Applier {
    /// Gets ready to apply what `storage` holds to the Asterisk of `settings`. What goes on after a request runs in
    /// `tasks`; once `stopping` is cancelled, nothing is retried any more.
    #[must_use]
    pub fn new(settings: &Settings, storage: Storage, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        let host = Host::new(settings);
        Self {
            storage,
            command: host.command.clone(),
            host,
            name: settings.host.clone(),
            running: Arc::default(),
            tasks,
            stopping,
        }
    }

    /// Applies, on a thread of its own: to its end, even if the caller goes away.
    ///
    /// # Errors
    /// [`ApplyError`].
    ///
    /// # Panics
    /// If the apply did; its audit row still says "interrupted", which is true.
    pub async fn apply(&self, triggered_by: Name) -> Result<Applied, ApplyError> {
        let running = self.running.clone().try_lock_owned().map_err(|_| ApplyError::InProgress)?;
        let applier = self.clone();
        let service = Handle::current();
        let request = Span::current();
        let run = move || {
            let _running = running;
            let mut own_thread = Builder::new_current_thread();
            let own_thread =
                own_thread.enable_all().on_thread_park(|| thread::sleep(NAP)).build().expect("an event loop");
            own_thread.block_on(applier.run(triggered_by, &service).instrument(request))
        };
        self.tasks.spawn_blocking(run).await.expect("an apply that ends")
    }

    async fn run(&self, triggered_by: Name, service: &Handle) -> Result<Applied, ApplyError> {
        let lock = match HostLock::try_acquire(&self.host.files) {
            Err(LockError::Held) => return Err(ApplyError::InProgress),
            lock => lock,
        };
        let mut row = AuditEntry {
            id: Uuid::new_v4(),
            triggered_at: storage::now(),
            triggered_by,
            host: self.name.clone(),
            error_details: Some("interrupted: the files may be of two versions; apply again".to_owned()),
            files_written: json!([]),
            reload_results: json!(ReloadResults::default()),
        };
        self.storage.begin_audit(row.clone()).await.map_err(ApplyError::Unavailable)?;
        info!(audit_log_id = %row.id, "apply begins");

        let mut progress = Progress::new();
        let (_lock, outcome) = match lock {
            Ok(lock) => {
                let bound = self.command.bound * PATIENCE;
                let steps = self.steps(&lock, &mut progress).instrument(info_span!("apply", audit_log_id = %row.id));
                let outcome = timeout(bound, steps).await;
                (Some(lock), outcome.unwrap_or(Err(StepError::TooSlow(bound))))
            }
            Err(error) => (None, Err(error.into())),
        };

        row.error_details = outcome.as_ref().err().map(ToString::to_string);
        row.files_written = json!(progress.files_written);
        row.reload_results = json!(progress.reload_results);
        let finished = self.storage.finish_audit(row.clone()).await;
        let audit_log_id = row.id;
        if finished.is_err() {
            self.tasks.spawn_on(retry_audit(self.storage.clone(), row, self.stopping.clone()), service);
        }

        let failed = |error_details, in_force, progress| ApplyError::Failed {
            audit_log_id,
            error_details,
            in_force,
            progress: Box::new(progress),
        };
        match (outcome, finished) {
            (Ok(users), Ok(())) => {
                info!(%audit_log_id, users, evicted = progress.evicted.len(), "apply proven");
                Ok(Applied { audit_log_id, users, progress })
            }
            (Ok(_), Err(error)) => {
                error!(%audit_log_id, %error, "apply proven, but its audit row can't be completed; it is retried");
                let details = format!(
                    "Asterisk serves the new state, but the audit row can't be completed ({error}); it is retried until the database takes it or the service stops"
                );
                Err(failed(details, true, progress))
            }
            (Err(error), finished) => {
                let mut details = error.to_string();
                if let Err(unfinished) = finished {
                    write!(
                        details,
                        "; the audit row says \"interrupted\" until the database takes the rest ({unfinished})"
                    )
                    .expect("writing to a string");
                }
                error!(%audit_log_id, error = details, "apply failed");
                Err(failed(details, false, progress))
            }
        }
    }

    /// Steps 3 to 9; gives the number of users.
    async fn steps(&self, lock: &HostLock, progress: &mut Progress) -> Result<usize, StepError> {
        let users = self.storage.users().await?;
        let numbers: BTreeSet<_> = users.iter().map(|user| user.extension.number).collect();
        let endpoints = render::endpoints(&users);
        let routing = render::routing(&numbers, &BTreeSet::new());

        progress.steps.done("snapshot and render");

        let changing = self.look(&users, progress).await?;

        files::remove_left_overs(&self.host.files, lock)?;
        let endpoints = files::prepare(lock, &self.host.files.endpoints, Stage::Final, &endpoints)?;
        let routing = files::prepare(lock, &self.host.files.routing, Stage::Final, &routing)?;
        progress.steps.done("prepare");
        if !changing.is_empty() {
            self.quarantine(lock, &numbers, &changing, progress).await?;
            progress.steps.done("quarantine");
        }

        self.publish(lock, endpoints, &self.host.files.endpoints, &mut progress.files_written)?;
        let (read, endpoints_read) = watch::channel(false);
        let Progress { steps, files_written, reload_results, evicted, .. } = &mut *progress;
        let ReloadResults { pjsip_reload, dialplan_reload } = reload_results;
        let control = &self.host.control;
        let reload_endpoints = async {
            let read = read;
            self.command.reload(Reload::Pjsip, pjsip_reload).await?;
            read.send_replace(true);
            steps.done("endpoints");
            let nobodys = |number| !numbers.contains(&number);
            Ok::<_, StepError>(registrations::evict(control, ATTEMPTS, nobodys).await?)
        };
        let see_endpoints = async {
            endpoints_read.clone().wait_for(|read| *read).await.map_err(|_| StepError::Unread)?;
            let unread = numbers.difference(&changing).copied();
            Ok::<_, StepError>(join!(Endpoints::ask(control, &users, unread), self.host.transport()))
        };
        let serve_routing = async {
            let mut secrets = BTreeMap::new();
            let mut routing = routing;
            if !changing.is_empty() {
                let still_old;
                (secrets, still_old) = self.hand_over(&users, &changing, endpoints_read.clone(), evicted).await?;
                if !still_old.is_empty() {
                    drop(routing);
                    let without = render::routing(&numbers, &still_old);
                    routing = files::prepare(lock, &self.host.files.routing, Stage::Final, &without)?;
                }
            }
            self.publish(lock, routing, &self.host.files.routing, files_written)?;
            self.command.reload(Reload::Dialplan, dialplan_reload).await?;
            Ok::<_, StepError>((secrets, proof::dialplan(control, &users).await?))
        };
        let (eviction, endpoints, routing) = join!(reload_endpoints, see_endpoints, serve_routing);
        // If the endpoints were not read, their reload tells why.
        let eviction = eviction?;
        note(&mut progress.evicted, eviction.evicted);
        registrations::none_kept(eviction.kept)?;
        let ((endpoints, transport), (secrets, routing)) = (endpoints?, routing?);
        if let Err(found) = endpoints?.compare(&users, secrets).verdict(routing) {
            return Err(self.not_proven(found).await);
        }
        // Without a user there is nothing that Asterisk could show: then the include lines are the proof.
        if users.is_empty() {
            self.host.includes(&self.host.main_files())?;
        }
        match transport {
            Err(Trouble::Warning(warning)) => progress.warn(warning),
            transport => drop(transport?),
        }
        progress.steps.done("routing, and proof of everything");
        Ok(users.len())
    }

    /// Step 4: gives the numbers that change hands.
    async fn look(&self, users: &[User], progress: &mut Progress) -> Result<BTreeSet<ExtensionNumber>, StepError> {
        self.host.asterisk().await?;
        let (main, served) = join!(self.host.look(), Served::ask(&self.host.control, users));
        let on_disk = OnDisk::of(&self.host, &main?)?;
        let changing = ownership::changing_hands(users, &on_disk, &served?);
        let stays = |number: &ExtensionNumber| {
            !changing.contains(number) && users.iter().any(|user| user.extension.number == *number)
        };
        let before = on_disk.endpoints.len();
        if before > 1 && !on_disk.endpoints.iter().any(stays) {
            progress.warn(format!(
                "none of the {before} users whom Asterisk served before is in the database any more; if that is not meant, look at DATABASE_URL, or restore a backup, then apply again"
            ));
        }
        progress.steps.done("look before touching");
        Ok(changing)
    }

    /// Step 6.
    async fn quarantine(
        &self,
        lock: &HostLock,
        numbers: &BTreeSet<ExtensionNumber>,
        changing: &BTreeSet<ExtensionNumber>,
        progress: &mut Progress,
    ) -> Result<(), StepError> {
        let without = render::routing(numbers, changing);
        let without = files::prepare(lock, &self.host.files.routing, Stage::Quarantine, &without)?;
        self.publish(lock, without, &self.host.files.routing, &mut progress.files_written)?;
        let last = &mut progress.reload_results.dialplan_reload;
        self.command.reload(Reload::Dialplan, last).await?;
        let still_routed = proof::not_quarantined(&self.host.control, changing).await?;
        if !still_routed.is_empty() {
            let found = format!(
                "these extensions change hands, but Asterisk does not keep them at 404, so their old phones could ring: {}",
                some_of(still_routed)
            );
            return Err(self.not_proven(found).await);
        }
        // A phone that registers without pause is back at once, and rings for nobody: the next step evicts it for good.
        let unwanted = |number| changing.contains(&number);
        let eviction = registrations::evict(&self.host.control, FIRST_ATTEMPTS, unwanted).await?;
        note(&mut progress.evicted, eviction.evicted);
        Ok(())
    }

    /// Waits, from the start of the endpoints' reload, until no old phone of the `changing` numbers can register or be called, if
    /// Asterisk takes the new secrets at all, and whoever just was let in is listed. Gives what [`look_at_secrets`] saw then.
    async fn exchanged(
        &self,
        users: &[User],
        changing: &BTreeSet<ExtensionNumber>,
        mut endpoints_read: watch::Receiver<bool>,
    ) -> Result<Secrets, StepError> {
        let control = &self.host.control;
        let new_secrets = async {
            // One tells for all. If it is old by now and new later, a reload that ended after the file was renamed brought it, and
            // whatever follows reads that file: what is new then, as seen below, stays so.
            let one = changing.iter().take(1).copied().collect();
            let is_old = async || Ok::<_, ControlError>(!look_at_secrets(control, users, &one).await?.1.is_empty());
            if !is_old().await? {
                // It came with an earlier reload, and another that still runs may undo it: only this one's end tells.
                pending::<()>().await;
            }
            loop {
                sleep(NEXT_LOOK).await;
                if !is_old().await? {
                    return Ok::<_, ControlError>(());
                }
            }
        };
        select! {
            seen = new_secrets => seen?,
            read = endpoints_read.wait_for(|read| *read) => drop(read.map_err(|_| StepError::Unread)?),
        }
        let exchanged = async {
            let (secrets, still_old) = look_at_secrets(control, users, changing).await?;
            if still_old.is_empty() && proof::have_their_own_only(control, changing).await? {
                return Ok((secrets, still_old));
            }
            endpoints_read.wait_for(|read| *read).await.map_err(|_| StepError::Unread)?;
            sleep(LISTED_WITHIN).await;
            Ok::<_, StepError>(look_at_secrets(control, users, changing).await?)
        };
        let (exchanged, ()) = join!(exchanged, sleep(LISTED_WITHIN));
        exchanged
    }

    /// Step 7 for the numbers that change hands, from the start of the endpoints' reload. Gives their secrets in force, and the
    /// numbers whose secret in force is not the new one.
    async fn hand_over(
        &self,
        users: &[User],
        changing: &BTreeSet<ExtensionNumber>,
        endpoints_read: watch::Receiver<bool>,
        evicted: &mut Vec<Registration>,
    ) -> Result<Secrets, StepError> {
        // Before the eviction: once the new secret is seen in force, no old phone can register any more.
        let (secrets, still_old) = self.exchanged(users, changing, endpoints_read).await?;
        let eviction = registrations::evict(&self.host.control, ATTEMPTS, |number| changing.contains(&number)).await?;
        note(evicted, eviction.evicted);
        // A phone whose old secret is in force still may come back; it is kept at 404, and the proof tells why.
        registrations::none_kept(&eviction.kept - &still_old)?;
        Ok((secrets, still_old))
    }

    fn publish(
        &self,
        lock: &HostLock,
        prepared: Prepared,
        target: &Path,
        files_written: &mut Vec<PathBuf>,
    ) -> Result<(), FileError> {
        prepared.publish(lock)?;
        let GeneratedFiles { endpoints, routing } = &self.host.files;
        let written = |file: &PathBuf| file == target || files_written.contains(file);
        *files_written = [endpoints, routing].into_iter().filter(|file| written(file)).cloned().collect();
        files::flush_folder(target)
    }

    async fn not_proven(&self, found: String) -> StepError {
        let cause = self.host.likely_cause().await;
        StepError::Trouble(format!("{found}; likely cause: {cause}"))
    }
}

impl Progress {
    fn new() -> Self {
        Self {
            steps: Steps { began: Instant::now() },
            files_written: Vec::new(),
            reload_results: ReloadResults::default(),
            evicted: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn warn(&mut self, warning: String) {
        warn!("{warning}");
        self.warnings.push(warning);
    }
}

impl Steps {
    /// One log line for each step that is done.
    fn done(&mut self, step: &'static str) {
        info!(step, milliseconds = self.began.elapsed().as_secs_f64() * 1000.0, "apply");
        self.began = Instant::now();
    }
}

/// Secrets in force, and the numbers whose secret in force is not the new one.
type Secrets = (BTreeMap<ExtensionNumber, String>, BTreeSet<ExtensionNumber>);

/// Looks at the secrets in force of `numbers`, beside those of `users`.
async fn look_at_secrets(
    control: &Control,
    users: &[User],
    numbers: &BTreeSet<ExtensionNumber>,
) -> Result<Secrets, ControlError> {
    let secrets = in_force::secrets(control, numbers.iter().copied()).await?;
    let theirs = users.iter().filter(|user| numbers.contains(&user.extension.number));
    let others = in_force::other_secrets(theirs, &secrets);
    Ok((secrets, others))
}

/// Notes what was evicted, each once.
fn note(evicted: &mut Vec<Registration>, registrations: Vec<Registration>) {
    for registration in registrations {
        if !evicted.contains(&registration) {
            info!(extension = %registration.number, contact = registration.contact, "registration evicted");
            evicted.push(registration);
        }
    }
}

async fn retry_audit(storage: Storage, row: AuditEntry, stopping: CancellationToken) {
    while stopping.run_until_cancelled(sleep(AUDIT_RETRY)).await.is_some() {
        match storage.finish_audit(row.clone()).await {
            Ok(()) => return info!(audit_log_id = %row.id, "the audit row is completed"),
            Err(error) => warn!(audit_log_id = %row.id, %error, "the audit row can't be completed yet"),
        }
    }
}
