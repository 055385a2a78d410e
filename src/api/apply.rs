//! `POST /apply`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use super::error::{ApiError, FieldError, Phrase};
use super::extract::Fields;
use super::{Portal, openapi};
use crate::apply::{Applied, ApplyError, Progress, ReloadResults};
use crate::domain::Name;
use crate::storage::LOOK_AND_TRY_AGAIN;

/// Who applies.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read field by field; this is its schema")]
struct NewApply {
    #[schema(schema_with = triggered_by_schema)]
    triggered_by: String,
}

fn triggered_by_schema() -> RefOr<Schema> {
    super::users::name_with("Who applies, for the audit log, such as an administrator's address", "admin@example.com")
}

/// An apply that is proven.
#[derive(Serialize, ToSchema)]
#[schema(as = Applied)]
pub(super) struct AppliedBody {
    message: String,
    /// Its row in the audit log.
    audit_log_id: Uuid,
    /// The files that were replaced.
    files_written: Vec<String>,
    /// The results of the reloads.
    reload_results: ReloadResults,
    /// How many users Asterisk serves.
    #[schema(minimum = 0, maximum = 1000)]
    users_applied: usize,
    /// How many extensions Asterisk serves.
    #[schema(minimum = 0, maximum = 1000)]
    extensions_generated: usize,
    /// The phones that were registered as a number that is no longer theirs.
    registrations_evicted: Vec<EvictedRegistration>,
}

/// A registration that was evicted.
#[derive(Serialize, ToSchema)]
struct EvictedRegistration {
    /// The number that it was registered as.
    #[schema(minimum = 1000, maximum = 1999)]
    extension: u16,
    /// Where the phone is.
    contact: String,
}

impl From<Applied> for AppliedBody {
    fn from(applied: Applied) -> Self {
        let (users, progress) = (applied.users, applied.progress);
        let evicted =
            progress.evicted.into_iter().map(|r| EvictedRegistration { extension: r.number.get(), contact: r.contact });
        let warning = progress.warnings.iter().fold(String::new(), |all, warning| format!("{all} Warning: {warning}."));
        Self {
            message: format!(
                "Asterisk serves {users} {}: every value is proven.{warning}",
                if users == 1 { "user" } else { "users" }
            ),
            audit_log_id: applied.audit_log_id,
            files_written: texts(&progress.files_written),
            reload_results: progress.reload_results,
            users_applied: users,
            extensions_generated: users,
            registrations_evicted: evicted.collect(),
        }
    }
}

/// The example in the API's document.
fn applied() -> Value {
    let reload = |command, stdout| json!({"command": command, "exit_code": 0, "stdout": stdout, "stderr": ""});
    json!({
        "message": "Asterisk serves 1 user: every value is proven.",
        "audit_log_id": openapi::AUDIT_LOG_ID,
        "files_written": [
            "/etc/asterisk/pjsip.d/synergycall/generated_endpoints.conf",
            "/etc/asterisk/extensions.d/synergycall/generated_routing.conf",
        ],
        "reload_results": {
            "pjsip_reload": reload("asterisk -rx 'pjsip reload'", "Module 'res_pjsip.so' reloaded successfully.\n"),
            "dialplan_reload": reload("asterisk -rx 'dialplan reload'", "Dialplan reloaded.\n"),
        },
        "users_applied": 1,
        "extensions_generated": 1,
        "registrations_evicted": [{"extension": 1000, "contact": "sip:1000@192.0.2.7:5060"}],
    })
}

/// The body of an apply that failed.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used; `failed` makes the body")]
pub(super) struct FailedApply {
    /// Always `Apply operation failed`.
    error: Phrase,
    /// What state Asterisk is in, and what to do.
    message: String,
    /// The header `x-request-id` and each line of the service's log about this request have the same.
    request_id: String,
    /// Its row in the audit log.
    audit_log_id: Uuid,
    /// What happened, and to which file, extension or host.
    error_details: String,
    /// The files that were replaced.
    files_written: Vec<String>,
    /// The results of the reloads; null for a step that was not reached.
    reload_results: ReloadResults,
}

/// What may have been written although the database failed.
const AUDIT_ROW: &str = "an audit row was written (nothing else was done)";
/// For an apply that failed before it wrote a file.
const NOTHING_CHANGED: &str = "Nothing was changed; see error_details, mend it, then apply again.";

const IN_PROGRESS: ApiError = ApiError::new(
    Phrase::ApplyInProgress,
    "Another apply runs on this host; wait until it has ended, then apply again.",
);

fn failed(message: &'static str, id: Uuid, details: &str, files: &[PathBuf], reloads: &ReloadResults) -> ApiError {
    ApiError::new(Phrase::ApplyOperationFailed, message).with(json!({
        "audit_log_id": id,
        "error_details": details,
        "files_written": texts(files),
        "reload_results": reloads,
    }))
}

/// The answer to an apply that is not proven.
fn answer(error: ApplyError) -> ApiError {
    match error {
        ApplyError::InProgress => IN_PROGRESS,
        ApplyError::Unavailable(failure) => ApiError::database(&failure, Some(AUDIT_ROW)),
        ApplyError::Failed { audit_log_id, error_details, in_force, progress } => {
            let Progress { files_written, reload_results, .. } = *progress;
            let message = if in_force {
                "Asterisk serves the new state, but the audit row could not be completed; see error_details."
            } else if files_written.is_empty() {
                NOTHING_CHANGED
            } else {
                "Files were replaced, but Asterisk is not proven to serve them; see error_details, mend it, then apply again."
            };
            failed(message, audit_log_id, &error_details, &files_written, &reload_results)
        }
    }
}

/// An example of `error_details`.
const NOT_RUNNING: &str = "Asterisk is not running: nothing answers on /var/run/asterisk/asterisk.ctl (No such file or directory (os error 2)); start it (systemctl start asterisk), or set ASTERISK_RUN_DIR";

struct ApplyFailures;

impl IntoResponses for ApplyFailures {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        openapi::failures([
            ApiError::validation(vec![FieldError::new("triggered_by", Name::INVALID.0)]),
            IN_PROGRESS,
            ApiError::PAYLOAD_TOO_LARGE,
            ApiError::UNSUPPORTED_MEDIA_TYPE,
            failed(NOTHING_CHANGED, openapi::AUDIT_LOG_ID, NOT_RUNNING, &[], &ReloadResults::default()),
            ApiError::database_unavailable(None, LOOK_AND_TRY_AGAIN),
            ApiError::database_unavailable(Some(AUDIT_ROW), LOOK_AND_TRY_AGAIN),
        ])
    }
}

/// Make Asterisk serve what the database holds
///
/// Writes both include files atomically, reloads Asterisk, evicts the phones of former owners, and proves value by value
/// that it took effect. An answer of 200 means proven. After a 500, `error_details` says what happened, and the next apply
/// repairs everything; its row is in the audit log. 409 and 503 leave no row, or say that it is unknown whether one was
/// written. The apply runs to its end even if the client hangs up.
#[utoipa::path(
    post, path = "/apply", tag = "Apply",
    request_body(content = NewApply, example = json!({"triggered_by": "admin@example.com"})),
    responses(
        (status = 200, description = "Asterisk is proven to serve the database's users", body = AppliedBody, example = json!(applied())),
        ApplyFailures,
    )
)]
pub(super) async fn apply(
    State(portal): State<Arc<Portal>>,
    mut fields: Fields,
) -> Result<Json<AppliedBody>, ApiError> {
    let triggered_by = fields.take("triggered_by", Name::parse);
    let triggered_by = fields.finish(triggered_by)?;
    let applied = portal.applier.apply(triggered_by).await.map_err(answer)?;
    Ok(Json(applied.into()))
}

/// Paths as JSON shows them.
fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}
