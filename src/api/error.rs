//! Every error that a client can meet, its status and its body, in one place. What a client can't use stays in the log.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;
use uuid::Uuid;

use super::request_log;
use super::server::BODY_PATIENCE;
use crate::apply::{ApplyError, Progress, ReloadResults};
use crate::storage::StorageError;

/// An error's answer.
#[derive(Debug)]
pub enum ApiError {
    /// 400.
    Validation(Vec<FieldError>),
    /// 401.
    Unauthorized,
    /// 403, with what is not allowed.
    Forbidden(&'static str),
    /// 404.
    UserNotFound(Uuid),
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 409.
    EmailInUse,
    /// 409.
    PoolExhausted,
    /// 409.
    ApplyInProgress,
    /// 413.
    PayloadTooLarge,
    /// 415.
    UnsupportedMediaType,
    /// 500.
    Apply(Box<FailedApply>),
    /// 500.
    Internal,
    /// 503, with what may have been written all the same, and what to do.
    DatabaseUnavailable {
        /// Nothing, for none.
        maybe: Option<&'static str>,
        /// For the administrator.
        advice: &'static str,
    },
}

/// What is wrong with one field.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's name; `body` for the body as a whole, `id` for the path's.
    pub field: String,
    /// What it takes.
    pub message: String,
}

impl FieldError {
    /// For `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// One phrase for each kind of error: for programs.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the phrases say it")]
pub enum Phrase {
    #[serde(rename = "Validation failed")]
    ValidationFailed,
    #[serde(rename = "Unauthorized")]
    Unauthorized,
    #[serde(rename = "Forbidden")]
    Forbidden,
    #[serde(rename = "User not found")]
    UserNotFound,
    #[serde(rename = "Not found")]
    NotFound,
    #[serde(rename = "Method not allowed")]
    MethodNotAllowed,
    #[serde(rename = "Email already in use")]
    EmailAlreadyInUse,
    #[serde(rename = "Extension pool exhausted")]
    ExtensionPoolExhausted,
    #[serde(rename = "Apply in progress")]
    ApplyInProgress,
    #[serde(rename = "Payload too large")]
    PayloadTooLarge,
    #[serde(rename = "Unsupported media type")]
    UnsupportedMediaType,
    #[serde(rename = "Apply operation failed")]
    ApplyOperationFailed,
    #[serde(rename = "Internal server error")]
    InternalServerError,
    #[serde(rename = "Database unavailable")]
    DatabaseUnavailable,
}

/// Every error's body.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// For programs: one phrase for each kind of error.
    pub error: Phrase,
    /// For a person: what happened, and what to do.
    pub message: String,
    /// The service's log tells it with each line about this request; it is the header `x-request-id` too.
    pub request_id: String,
    /// With `Validation failed`: every bad field.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub details: Option<Vec<FieldError>>,
}

/// The body of an apply that failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct FailedApply {
    /// Always `Apply operation failed`.
    pub error: Phrase,
    /// What state Asterisk is in, and what to do.
    pub message: String,
    /// The service's log tells it with each line about this request; it is the header `x-request-id` too.
    pub request_id: String,
    /// Its row in the audit log.
    pub audit_log_id: Uuid,
    /// What happened, and to which file, extension or host.
    pub error_details: String,
    /// The files that were replaced.
    pub files_written: Vec<String>,
    /// How the reloads went; a step not reached is null.
    pub reload_results: ReloadResults,
}

/// What an error's answer carries.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Body {
    /// Of an apply that failed.
    Apply(Box<FailedApply>),
    /// Of every other error.
    Error(ErrorBody),
}

impl ApiError {
    /// The answer's status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Validation(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::UserNotFound(_) | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::EmailInUse | Self::PoolExhausted | Self::ApplyInProgress => StatusCode::CONFLICT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Apply(_) | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::DatabaseUnavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn phrase(&self) -> Phrase {
        match self {
            Self::Validation(_) => Phrase::ValidationFailed,
            Self::Unauthorized => Phrase::Unauthorized,
            Self::Forbidden(_) => Phrase::Forbidden,
            Self::UserNotFound(_) => Phrase::UserNotFound,
            Self::NotFound => Phrase::NotFound,
            Self::MethodNotAllowed => Phrase::MethodNotAllowed,
            Self::EmailInUse => Phrase::EmailAlreadyInUse,
            Self::PoolExhausted => Phrase::ExtensionPoolExhausted,
            Self::ApplyInProgress => Phrase::ApplyInProgress,
            Self::PayloadTooLarge => Phrase::PayloadTooLarge,
            Self::UnsupportedMediaType => Phrase::UnsupportedMediaType,
            Self::Apply(_) => Phrase::ApplyOperationFailed,
            Self::Internal => Phrase::InternalServerError,
            Self::DatabaseUnavailable { .. } => Phrase::DatabaseUnavailable,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Validation(_) => "The request has fields that can't be taken; see details.".to_owned(),
            Self::Unauthorized => {
                "Send the header 'Authorization: Bearer …' with the value of PORTAL_API_TOKEN.".to_owned()
            }
            Self::Forbidden(why) => (*why).to_owned(),
            Self::UserNotFound(id) => format!("There is no user {id}; GET /users lists those there are."),
            Self::NotFound => "There is nothing here; /docs tells which operations there are.".to_owned(),
            Self::MethodNotAllowed => {
                "This path does not take this method; the Allow header and /docs tell which.".to_owned()
            }
            Self::EmailInUse => {
                "Another user has this e-mail address, in whatever case; take another, or delete that user.".to_owned()
            }
            Self::PoolExhausted => "All extensions from 1000 to 1999 are taken; delete a user to free one.".to_owned(),
            Self::ApplyInProgress => {
                "Another apply runs on this host; wait until it has ended, then apply again.".to_owned()
            }
            Self::PayloadTooLarge => "A body has at most 16 KiB.".to_owned(),
            Self::UnsupportedMediaType => "Send JSON, with the header 'Content-Type: application/json'.".to_owned(),
            Self::Apply(failed) => failed.message.clone(),
            Self::Internal => {
                "Something went wrong that should never; the service's log has a line about it.".to_owned()
            }
            Self::DatabaseUnavailable { maybe: None, advice } => {
                format!("The database failed; nothing was changed. {advice}")
            }
            Self::DatabaseUnavailable { maybe: Some(what), advice } => {
                format!("The database failed; it is unknown whether {what}. {advice}")
            }
        }
    }

    /// The body of the answer to the request of this id.
    #[must_use]
    pub fn into_body(self, request_id: String) -> Body {
        let (error, message) = (self.phrase(), self.message());
        match self {
            Self::Apply(failed) => Body::Apply(Box::new(FailedApply { request_id, ..*failed })),
            Self::Validation(details) => Body::Error(ErrorBody { error, message, request_id, details: Some(details) }),
            _ => Body::Error(ErrorBody { error, message, request_id, details: None }),
        }
    }

    /// A body that ends too early, or comes too late.
    pub(super) fn body_not_whole() -> Self {
        let seconds = BODY_PATIENCE.as_secs();
        Self::Validation(vec![FieldError::new("body", format!("must arrive whole, within {seconds} seconds"))])
    }

    /// A failure of the database while `what` was being written (`None` for a read), logged here.
    pub fn storage(failure: &StorageError, what: Option<&'static str>) -> Self {
        match failure {
            StorageError::EmailInUse => Self::EmailInUse,
            StorageError::PoolExhausted => Self::PoolExhausted,
            StorageError::Unavailable { reason, advice, maybe_written } => {
                error!(reason, maybe_written, "the database failed");
                Self::DatabaseUnavailable { maybe: what.filter(|_| *maybe_written), advice }
            }
        }
    }
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::InProgress => Self::ApplyInProgress,
            ApplyError::Unavailable(failure) => Self::storage(&failure, Some(super::apply::AUDIT_ROW)),
            ApplyError::Failed { audit_log_id, error_details, in_force, progress } => {
                let Progress { files_written, reload_results, .. } = *progress;
                let message = if in_force {
                    "Asterisk serves the new state, but the audit row could not be completed; see error_details."
                } else if files_written.is_empty() {
                    super::apply::NOTHING_CHANGED
                } else {
                    "Files were replaced, but Asterisk is not proven to serve them; see error_details, mend it, then apply again."
                };
                Self::Apply(Box::new(FailedApply {
                    error: Phrase::ApplyOperationFailed,
                    message: message.to_owned(),
                    request_id: String::new(),
                    audit_log_id,
                    error_details,
                    files_written: super::apply::texts(&files_written),
                    reload_results,
                }))
            }
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        match (rejection.status(), &rejection) {
            (StatusCode::PAYLOAD_TOO_LARGE, _) => Self::PayloadTooLarge,
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, _) => Self::UnsupportedMediaType,
            (_, JsonRejection::BytesRejection(_)) => Self::body_not_whole(),
            _ => {
                let why =
                    std::error::Error::source(&rejection).map_or_else(|| rejection.body_text(), ToString::to_string);
                Self::Validation(vec![FieldError::new("body", format!("must be a JSON object: {why}"))])
            }
        }
    }
}

impl From<PathRejection> for ApiError {
    fn from(_: PathRejection) -> Self {
        Self::Validation(vec![FieldError::new("id", super::users::ID_RULE)])
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self.into_body(request_log::current_id()))).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
