//! What an apply did, and how it can fail.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use tracing::{debug, info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::asterisk::registrations::Registration;
use crate::asterisk::reload::CommandResult;
use crate::storage::StorageError;

/// What an apply has done so far.
#[derive(Debug, Clone)]
pub struct Progress {
    step_began: Instant,
    /// The target files that were replaced: the endpoints, then the routing.
    pub files_written: Vec<PathBuf>,
    /// The results of the reloads.
    pub reload_results: ReloadResults,
    /// The registrations that were evicted.
    pub evicted: Vec<Registration>,
    /// What an administrator should look at, although the apply goes on.
    pub warnings: Vec<String>,
}

/// The results of the reloads; a step that was not reached is null.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ReloadResults {
    /// Of `pjsip reload`.
    #[schema(required)]
    pub pjsip_reload: Option<CommandResult>,
    /// Of `dialplan reload`; the last one, if there were several.
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
#[derive(Debug)]
pub enum ApplyError {
    /// Another one runs on this host.
    InProgress,
    /// The first audit row could not be written; nothing was touched.
    Unavailable(StorageError),
    /// A step failed.
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

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            step_began: Instant::now(),
            files_written: Vec::new(),
            reload_results: ReloadResults::default(),
            evicted: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Logs how long a step took.
    pub(super) fn done(&mut self, step: &'static str) {
        debug!(step, milliseconds = self.step_began.elapsed().as_secs_f64() * 1000.0, "apply");
        self.step_began = Instant::now();
    }

    pub(super) fn warn(&mut self, warning: String) {
        warn!("{warning}");
        self.warnings.push(warning);
    }

    /// Records evicted registrations: each phone once, however often it came back.
    pub(super) fn note_evicted(&mut self, registrations: Vec<Registration>) {
        for new in registrations.into_iter().filter(|registration| !registration.is_evicted()) {
            if !self.evicted.iter().any(|old| (old.number, &old.contact) == (new.number, &new.contact)) {
                info!(extension = %new.number, contact = new.contact, "registration evicted");
                self.evicted.push(new);
            }
        }
    }
}
