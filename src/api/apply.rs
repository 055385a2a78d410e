//! `POST /apply`.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::AnyOfBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::Portal;
use super::body::Fields;
use super::error::{ApiError, ErrorBody, FailedApply};
use crate::apply::{Applied, ReloadResults};
use crate::domain::Name;

/// Who applies.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read field by field; this is its schema")]
struct NewApply {
    /// For the audit log.
    #[schema(schema_with = super::users::name_schema)]
    triggered_by: String,
}

/// An apply that is proven.
#[derive(Serialize, ToSchema)]
#[schema(as = Applied)]
pub(super) struct AppliedBody {
    #[schema(example = "Asterisk serves 1 user: every value is proven.")]
    message: String,
    /// Its row in the audit log.
    audit_log_id: Uuid,
    /// The files that were replaced.
    #[schema(example = json!(["/etc/asterisk/pjsip.d/synergycall/generated_endpoints.conf", "/etc/asterisk/extensions.d/synergycall/generated_routing.conf"]))]
    files_written: Vec<String>,
    /// How the reloads went.
    reload_results: ReloadResults,
    /// How many users Asterisk serves.
    #[schema(minimum = 0, maximum = 1000, example = 1)]
    users_applied: usize,
    /// How many extensions Asterisk serves.
    #[schema(minimum = 0, maximum = 1000, example = 1)]
    extensions_generated: usize,
    /// The phones that were registered as a number that is no longer theirs.
    registrations_evicted: Vec<EvictedRegistration>,
}

/// A registration that was evicted.
#[derive(Serialize, ToSchema)]
struct EvictedRegistration {
    /// The number that it was registered as.
    #[schema(minimum = 1000, maximum = 1999, example = 1000)]
    extension: u16,
    /// Where the phone is.
    #[schema(example = "sip:1000@192.0.2.7:5060")]
    contact: String,
}

impl From<Applied> for AppliedBody {
    fn from(applied: Applied) -> Self {
        let (users, progress) = (applied.users, applied.progress);
        let evicted =
            progress.evicted.into_iter().map(|r| EvictedRegistration { extension: r.number.get(), contact: r.contact });
        let warning = progress.warning.map_or_else(String::new, |warning| format!(" Warning: {warning}."));
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

/// The body of a 500: a failed apply, or what should never be. The second is what every error has, so a failed apply fits both.
struct ServerError;

impl PartialSchema for ServerError {
    fn schema() -> RefOr<Schema> {
        AnyOfBuilder::new().item(Ref::from_schema_name("FailedApply")).item(Ref::from_schema_name("ErrorBody")).into()
    }
}

impl ToSchema for ServerError {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("FailedApply".to_owned(), FailedApply::schema()));
        FailedApply::schemas(schemas);
    }
}

/// Make Asterisk serve what the database holds
///
/// Writes both include files atomically, reloads Asterisk, evicts the phones of former owners, and proves value by value
/// that it took effect. An answer of 200 means proven. The apply runs to its end even if the client hangs up.
#[utoipa::path(
    post, path = "/apply", tag = "Apply", request_body = NewApply,
    responses(
        (status = 200, description = "Asterisk is proven to serve the database's users", body = AppliedBody),
        (status = 400, description = "`Validation failed`", body = ErrorBody),
        (status = 409, description = "`Apply in progress` on this host; no audit row is written", body = ErrorBody),
        (status = 413, description = "`Payload too large`: over 16 KiB", body = ErrorBody),
        (status = 415, description = "`Unsupported media type`: not JSON", body = ErrorBody),
        (status = 500, description = "`Apply operation failed`: what happened and what to do is in `error_details`; the next apply repairs everything", body = ServerError),
        (status = 503, description = "`Database unavailable`: nothing was touched", body = ErrorBody),
    )
)]
pub(super) async fn apply(State(portal): State<Portal>, mut fields: Fields) -> Result<Json<AppliedBody>, ApiError> {
    let triggered_by = fields.take("triggered_by", Name::parse);
    let triggered_by = fields.finish(triggered_by)?;
    Ok(Json(portal.applier.apply(triggered_by).await?.into()))
}

/// Paths as JSON tells them.
pub(super) fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}
