//! `POST /apply`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::ObjectBuilder;

use super::error::{ApiError, FieldError, Phrase};
use super::extract::Fields;
use super::{Portal, openapi};
use crate::apply::{Applied, ApplyError, FailedApply};
use crate::domain::Name;
use crate::storage::LOOK_AND_TRY_AGAIN;

/// Who applies.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)] // For the schema. `Fields::finish` refuses them.
struct NewApply {
    #[schema(schema_with = triggered_by_schema)]
    triggered_by: Name,
}

fn triggered_by_schema() -> ObjectBuilder {
    openapi::name("Who applies, for the audit log, such as an administrator's address", "admin@example.com")
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

/// What may have been written although the database failed.
const AUDIT_ROW: &str = "an audit row was written (nothing else was done)";

/// The answer to an apply that is not proven.
fn answer(error: ApplyError) -> ApiError {
    match error {
        ApplyError::InProgress => ApiError::new(
            Phrase::ApplyInProgress,
            "Another apply runs on this host; wait until it has ended, then apply again.",
        ),
        ApplyError::NotAudited(failure) => ApiError::database(&failure, Some(AUDIT_ROW)),
        ApplyError::Failed { is_proven, failed } => {
            let message = if is_proven {
                "Asterisk serves the new state, but the audit row could not be completed; see error_details."
            } else if failed.files_written.is_empty() {
                "No file was replaced; see error_details, fix it, then apply again."
            } else {
                "Files were replaced, but Asterisk is not proven to serve them; see error_details, fix it, then apply again."
            };
            ApiError { more: Some(json!(failed)), ..ApiError::new(Phrase::ApplyOperationFailed, message) }
        }
    }
}

/// An example of `error_details`.
const NOT_RUNNING: &str = "Asterisk is not running: nothing answers on /var/run/asterisk/asterisk.ctl (No such file or directory (os error 2)); start it (systemctl start asterisk), or set ASTERISK_RUN_DIR";

pub(super) fn failures() -> Vec<ApiError> {
    let failed = FailedApply {
        audit_log_id: openapi::AUDIT_LOG_ID,
        error_details: NOT_RUNNING.to_owned(),
        ..FailedApply::default()
    };
    vec![
        ApiError::validation(vec![FieldError::new("triggered_by", Name::INVALID)]),
        answer(ApplyError::InProgress),
        answer(ApplyError::Failed { is_proven: false, failed: Box::new(failed) }),
        ApiError::database_unavailable(Some(AUDIT_ROW), LOOK_AND_TRY_AGAIN),
    ]
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
        (status = 200, description = "Asterisk is proven to serve the database's users", body = Applied, example = json!(applied())),
    )
)]
pub(super) async fn apply(State(portal): State<Portal>, mut fields: Fields) -> Result<Json<Applied>, ApiError> {
    let triggered_by = fields.take("triggered_by", Name::parse);
    let new = fields.finish(triggered_by.map(|triggered_by| NewApply { triggered_by }))?;
    portal.applier.apply(new.triggered_by).await.map(Json).map_err(answer)
}
