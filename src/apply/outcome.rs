//! What an apply did, and how it ended: as the API answers it.

use anyhow::Result;
use serde::Serialize;
use tracing::{error, info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::asterisk::registrations::Registration;
use crate::asterisk::reload::CommandResult;
use crate::storage::StorageError;

/// What an apply has done so far.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) files_written: Vec<String>,
    pub(super) reload_results: ReloadResults,
    evicted: Vec<Registration>,
    /// What an administrator should look at, although the apply goes on.
    warnings: Vec<String>,
}

/// The results of the reloads; a step that was not reached is null.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ReloadResults {
    /// Of `pjsip reload`; if that was not reached, of the `module reload res_pjsip.so` that took numbers away.
    #[schema(required)]
    pub pjsip_reload: Option<CommandResult>,
    /// Of `dialplan reload`.
    #[schema(required)]
    pub dialplan_reload: Option<CommandResult>,
}

/// An apply that is proven.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the API's own names")]
pub struct Applied {
    /// The success in words, and what an administrator should look at.
    pub message: String,
    /// Its row in the audit log.
    pub audit_log_id: Uuid,
    /// The files that were replaced.
    pub files_written: Vec<String>,
    /// The results of the reloads.
    pub reload_results: ReloadResults,
    /// How many users Asterisk serves.
    #[schema(minimum = 0, maximum = 1000)]
    pub users_applied: usize,
    /// How many extensions Asterisk serves.
    #[schema(minimum = 0, maximum = 1000)]
    pub extensions_generated: usize,
    /// The phones that were registered as a number that is no longer theirs.
    pub registrations_evicted: Vec<Registration>,
}

/// The fields that an apply's failure has beside those of every error.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct FailedApply {
    /// Its row in the audit log.
    pub audit_log_id: Uuid,
    /// What happened, and to which file, extension or host.
    pub error_details: String,
    /// The files that were replaced.
    pub files_written: Vec<String>,
    /// The results of the reloads; null for a step that was not reached.
    pub reload_results: ReloadResults,
}

/// An apply that is not proven.
#[derive(Debug)]
pub enum ApplyError {
    InProgress,
    /// The first audit row could not be written; nothing was touched.
    NotAudited(StorageError),
    Failed {
        /// Whether the apply itself succeeded, and only its audit row could not be completed.
        is_proven: bool,
        failed: Box<FailedApply>,
    },
}

impl Progress {
    pub(super) fn warn(&mut self, warning: String) {
        warn!("{warning}");
        self.warnings.push(warning);
    }

    /// All warnings, to be added to a text.
    pub(super) fn warnings(&self) -> String {
        self.warnings.iter().flat_map(|warning| [". Warning: ", warning]).collect()
    }

    /// Records an evicted registration, each phone once.
    pub(super) fn record_evicted(&mut self, registration: Registration) {
        if !self.evicted.contains(&registration) {
            info!(extension = %registration.number, contact = registration.contact, "registration evicted");
            self.evicted.push(registration);
        }
    }

    /// The answer, from how the steps ended and whether the audit row could be completed.
    pub(super) fn conclude(
        self,
        audit_log_id: Uuid,
        outcome: Result<usize>,
        audited: Result<(), StorageError>,
    ) -> Result<Applied, ApplyError> {
        let warnings = self.warnings();
        let Self { files_written, reload_results, evicted, .. } = self;
        let is_proven = outcome.is_ok();
        let error_details = match (outcome, audited) {
            (Ok(users), Ok(())) => {
                info!(%audit_log_id, users, evicted = evicted.len(), "apply proven");
                let noun = if users == 1 { "user" } else { "users" };
                return Ok(Applied {
                    message: format!("Asterisk serves {users} {noun}: every value is proven{warnings}."),
                    audit_log_id,
                    files_written,
                    reload_results,
                    users_applied: users,
                    extensions_generated: users,
                    registrations_evicted: evicted,
                });
            }
            (Ok(_), Err(error)) => format!(
                "Asterisk serves the new state, but the audit row can't be completed ({error}); it is retried until the database takes it or the service stops{warnings}"
            ),
            (Err(failure), Ok(())) => format!("{failure}{warnings}"),
            (Err(failure), Err(error)) => format!(
                "{failure}; the audit row says \"interrupted\" until the database takes the rest ({error}){warnings}"
            ),
        };
        if is_proven {
            error!(%audit_log_id, error = error_details, "apply proven, but its audit row can't be completed; it is retried");
        } else {
            error!(%audit_log_id, error = error_details, "apply failed");
        }
        let failed = FailedApply { audit_log_id, error_details, files_written, reload_results };
        Err(ApplyError::Failed { is_proven, failed: Box::new(failed) })
    }
}
