//! `POST /apply`: makes Asterisk serve what the database holds, and proves it.
//!
//! # The protocol
//!
//! 1. **Lock** this host's files ([`crate::host::lock`]). If another apply holds them, refuse; no audit row is written.
//! 2. **Audit first**: the row says "interrupted" until step 9, so a crash leaves a true row. If it cannot be written, nothing
//!    else happens; if the database did not confirm it, it is updated later to say so.
//! 3. **Snapshot** of all users; both files are rendered in memory.
//! 4. **Look before touching**: check for all that is known to make an apply fail. Find the numbers that **change hands**: a phone of
//!    a former owner may be registered as them ([`ownership`]). A number that nobody had is one of them, too.
//! 5. **Prepare**: write and flush the temporary files: both as they will be and, if numbers change hands, the endpoints without
//!    these. Up to here, Asterisk and its files are unchanged.
//! 6. **Take away** the numbers that change hands ([`take_away`]). Afterwards each of them belongs to nobody: it has no endpoint, auth
//!    or AOR in force or in our file, and no registration that could come back.
//! 7. **Give**: rename both files, and run both reloads side by side. Evict the registrations of numbers without a user.
//! 8. **Prove** that Asterisk serves the snapshot, no more and no less, option by option ([`proof`]).
//! 9. **Finish** the audit row, then release the lock. If the database does not take the row, it is retried until the service stops.
//!
//! Taking away comes before giving, so a former owner's phone and the new owner never have the number at once. If no number changes
//! hands, there is no step 6. If Asterisk does not get it done in time, the apply gives everything else, and fails.
//!
//! If any other step fails, the apply ends: what is on disk stays, and the row says why. The next apply starts from what Asterisk and the
//! disk say. A client that hangs up does not end an apply.

mod outcome;
mod ownership;
pub mod preview;
mod proof;
mod take_away;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use serde_json::json;
use tokio::join;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, debug, info, info_span, warn};
use uuid::Uuid;

use crate::asterisk::in_force::{objects, phones};
use crate::asterisk::reload;
use crate::domain::{Name, Numbers, User, numbers_of};
use crate::host::configuration::MainFiles;
use crate::host::files::{self, Prepared, Stage};
use crate::host::lock::HostLock;
use crate::pbx::Pbx;
use crate::preflight::{on_disk, probes, running};
use crate::problem::{Problem, problem};
use crate::render::{self, ObjectType};
use crate::settings::Settings;
use crate::storage::{self, AuditEntry, Storage, StorageError};
pub use outcome::{Applied, ApplyError, FailedApply};
use outcome::{Progress, ReloadResults};
use ownership::Owners;

/// Steps 3 to 8 may take as long as this many commands: the wait for other reloads, the reload that takes away, the two that give, the
/// proof, and one to spare. A flush to the disk is not interrupted.
const COMMANDS_PER_APPLY: u32 = 5;

/// Between two attempts to complete an audit row.
const AUDIT_PAUSE: Duration = Duration::from_secs(2);

/// Applies to one Asterisk.
#[derive(Clone)]
pub struct Applier {
    storage: Storage,
    pbx: Pbx,
    host_name: String,
    /// Held while one audit row is retried, so that many do not take all connections.
    audit_turn: Arc<Mutex<()>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// One apply, from its snapshot on.
struct Run<'a> {
    pbx: &'a Pbx,
    lock: &'a HostLock,
    progress: &'a mut Progress,
    users: Vec<User>,
    numbers: Numbers,
    /// The numbers that had an auth in force.
    served: Numbers,
    deadline: Instant,
    step_began: Instant,
}

impl Applier {
    /// Work that outlives its request runs in `tasks`. Once `stopping` is cancelled, no audit row is retried.
    pub fn new(settings: &Settings, storage: Storage, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self {
            storage,
            pbx: Pbx::new(settings),
            host_name: settings.host.clone(),
            audit_turn: Arc::default(),
            tasks,
            stopping,
        }
    }

    /// Applies, to the end even if the caller goes away. After a panic the audit row still says "interrupted", which is true.
    pub async fn apply(&self, triggered_by: Name) -> Result<Applied, ApplyError> {
        let applier = self.clone();
        let span = Span::current();
        let event_loop = Handle::current();
        // It reads, writes and flushes files, which blocks, so it has a thread of its own.
        let apply = move || event_loop.block_on(applier.audited(triggered_by).instrument(span));
        self.tasks.spawn_blocking(apply).await.expect("the apply panicked")
    }

    /// Steps 1, 2 and 9, around the others.
    async fn audited(&self, triggered_by: Name) -> Result<Applied, ApplyError> {
        // Held until this function returns. If it can't be taken at all, the audit row says why.
        let lock = HostLock::try_acquire(&self.pbx.files).transpose().ok_or(ApplyError::InProgress)?;
        let mut row = AuditEntry {
            id: Uuid::new_v4(),
            triggered_at: storage::now(),
            triggered_by,
            host: self.host_name.clone(),
            error_details: Some("interrupted: the files may be of two versions; apply again".to_owned()),
            files_written: json!([]),
            reload_results: json!(ReloadResults::default()),
        };
        if let Err(failure) = self.storage.write_audit(row.clone()).await {
            if let StorageError::Unavailable { maybe_written: true, .. } = failure {
                row.error_details = Some(
                    "the database did not confirm this row in time, and nothing was touched; apply again".to_owned(),
                );
                self.complete_later(row);
            }
            return Err(ApplyError::NotAudited(failure));
        }
        info!(audit_log_id = %row.id, "apply begins");

        let mut progress = Progress::default();
        let steps = async {
            let lock = lock.as_ref().map_err(Problem::clone)?;
            let ends_within = self.pbx.program.ends_within * COMMANDS_PER_APPLY;
            let deadline = Instant::now() + ends_within;
            timeout_at(deadline, self.steps(lock, &mut progress, deadline)).await.unwrap_or_else(|_| {
                let seconds = ends_within.as_secs();
                Err(problem!(
                    "Asterisk is too slow: the apply was given up after {seconds} s",
                    "look at the machine's load and at 'core show locks'"
                )
                .into())
            })
        };
        let outcome = steps.instrument(info_span!("apply", audit_log_id = %row.id)).await;

        // PostgreSQL stores no NUL; a configuration file that is quoted may have one.
        let details = |error: &Error| format!("{error}{}", progress.warnings()).replace('\0', "");
        row.error_details = outcome.as_ref().err().map(details);
        row.files_written = json!(progress.files_written);
        row.reload_results = json!(progress.reload_results);
        let audited = self.storage.write_audit(row.clone()).await;
        let audit_log_id = row.id;
        if audited.is_err() {
            self.complete_later(row);
        }
        progress.conclude(audit_log_id, outcome, audited)
    }

    /// Writes the audit row as soon as the database takes it.
    fn complete_later(&self, row: AuditEntry) {
        let Self { storage, audit_turn, stopping, .. } = self.clone();
        self.tasks.spawn(async move {
            while stopping.run_until_cancelled(sleep(AUDIT_PAUSE)).await.is_some() {
                let _turn = audit_turn.lock().await;
                match storage.write_audit(row.clone()).await {
                    Ok(()) => return info!(audit_log_id = %row.id, "the audit row is completed"),
                    Err(error) => warn!(audit_log_id = %row.id, %error, "the audit row can't be completed yet"),
                }
            }
        });
    }

    /// Steps 3 to 8; returns the number of users.
    async fn steps(&self, lock: &HostLock, progress: &mut Progress, deadline: Instant) -> Result<usize> {
        let step_began = Instant::now();
        let users = self.storage.users().await.map_err(|error| anyhow!("the users can't be read: {error}"))?;
        let numbers = numbers_of(&users);
        let served = Numbers::new();
        let mut run = Run { pbx: &self.pbx, lock, progress, users, numbers, served, deadline, step_began };
        run.done("snapshot");

        let owners = run.look().await?;
        let changing = owners.changing_hands(&run.users);
        if !changing.is_empty() {
            // A reload that runs may put an older file in force later, and `take_away` may look once and reload nothing.
            self.pbx.program.wait_until_none_runs(&self.pbx.control).await?;
        }

        // Step 5.
        files::remove_left_overs(lock, &self.pbx.files)?;
        let endpoints = run.prepare_endpoints(Stage::Final, &Numbers::new())?;
        let routing = render::routing(&run.numbers);
        let routing = files::prepare(lock, &self.pbx.files.routing, Stage::Final, &routing)?;
        let mut without = None;
        if !changing.is_empty() {
            without = Some(run.prepare_endpoints(Stage::TakeAway, &changing)?);
        }
        run.done("prepare");

        if let Some(without) = without
            && let Some(why) = run.take_away(&changing, &owners, without).await?
        {
            // These numbers are held back: the apply gives all others, and fails.
            drop(endpoints); // The next file has the same temporary name.
            let others = run.prepare_endpoints(Stage::Final, &changing)?;
            return Err(match run.give(others, routing).await {
                Ok(()) => why,
                Err(error) => anyhow!("{why}; moreover, the rest can't be applied: {error}"),
            });
        }
        run.give(endpoints, routing).await?;
        run.prove(&owners).await?;
        Ok(run.users.len())
    }
}

impl Run<'_> {
    /// Logs how long a step took.
    fn done(&mut self, step: &'static str) {
        debug!(step, milliseconds = self.step_began.elapsed().as_secs_f64() * 1000.0, "apply");
        self.step_began = Instant::now();
    }

    /// Step 4. Returns who has the numbers now.
    async fn look(&mut self) -> Result<Owners> {
        let control = &self.pbx.control;
        running::asterisk(control).await?;
        // Not `try_join!`: what a probe finds explains the other failures.
        let (main, in_force, served) = join!(
            probes::before_apply(self.pbx),
            objects::secrets(control, &self.numbers),
            objects::numbers(control, ObjectType::Auth)
        );
        let owners = Owners::new(self.pbx, &main?, in_force?)?;
        self.served = served?;
        if let Some(former) = owners.all_are_gone(&self.users) {
            self.progress.warn(format!(
                "none of the {former} users whom Asterisk served before is in the database any more; if you did not delete them, check DATABASE_URL, or restore a backup, then apply again"
            ));
        }
        self.done("look before touching");
        Ok(owners)
    }

    /// Writes the temporary file of all endpoints but those of some numbers.
    fn prepare_endpoints(&self, stage: Stage, left_out: &Numbers) -> Result<Prepared> {
        let users = self.users.iter().filter(|user| !left_out.contains(&user.extension.number));
        Ok(files::prepare(self.lock, &self.pbx.files.endpoints, stage, &render::endpoints(users))?)
    }

    /// Step 7. Afterwards Asterisk has read both files; it may have refused them.
    async fn give(&mut self, endpoints: Prepared, routing: Prepared) -> Result<()> {
        self.publish(endpoints)?;
        self.publish(routing)?;
        let ReloadResults { pjsip_reload, dialplan_reload } = &mut self.progress.reload_results;
        let program = &self.pbx.program;
        // Not `try_join!`: if one fails, that would kill the other.
        let (pjsip, dialplan) =
            join!(program.reload(reload::PJSIP, pjsip_reload), program.reload(reload::DIALPLAN, dialplan_reload));
        pjsip?;
        dialplan?;
        self.evict_without_user().await?;
        self.done("give");
        Ok(())
    }

    /// Step 8. Afterwards it is known that Asterisk serves the snapshot, no more and no less.
    async fn prove(&mut self, owners: &Owners) -> Result<()> {
        let had_an_owner: Numbers = self.served.iter().chain(owners.in_file.keys()).copied().collect();
        let differences = proof::differences(&self.pbx.control, &self.users, &had_an_owner).await?;
        if !differences.is_empty() {
            let found = format!("Asterisk does not serve what the database holds: {}", differences.join("; "));
            return Err(self.with_likely_cause(found).await);
        }
        // Without a user, an endpoints file that nobody includes looks like one that is in force: the include lines tell.
        if self.users.is_empty() {
            on_disk::own_includes(&MainFiles::read(&self.pbx.config_dir)?, self.pbx)?;
        }
        // If this question fails, that is one more warning: the apply is proven.
        let warnings = phones::kept_out(&self.pbx.control).await;
        for warning in warnings.unwrap_or_else(|problem| vec![problem]) {
            self.progress.warn(warning.to_string());
        }
        self.done("proof");
        Ok(())
    }

    /// Renames a temporary file over its target, and flushes the folder.
    fn publish(&mut self, prepared: Prepared) -> Result<()> {
        let target = prepared.publish(self.lock)?;
        // The endpoints are published twice if Asterisk or the file still has a number that changes hands.
        let written = &mut self.progress.files_written;
        let path = target.display().to_string();
        if !written.contains(&path) {
            written.push(path);
        }
        Ok(files::flush_folder(&target)?)
    }

    /// An error with what was found, and the likely cause.
    async fn with_likely_cause(&self, found: String) -> Error {
        anyhow!("{found}; likely cause: {}", probes::likely_cause(self.pbx).await)
    }
}
