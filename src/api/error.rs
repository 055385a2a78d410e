//! An error's status and body. The phrase decides the status, in one place. The texts of errors that any request can get are
//! here; those of one operation are with that operation.

use std::borrow::Cow;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use tracing::error;
use utoipa::ToSchema;

use super::request_log;
use crate::storage::StorageError;

/// Every error's body.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ErrorBody)]
pub struct ApiError {
    /// For programs: one phrase for each kind of error.
    pub error: Phrase,
    /// For a person: what happened, and what to do.
    pub message: Cow<'static, str>,
    /// The header `x-request-id` and each line of the service's log about this request have the same.
    pub request_id: String,
    /// With `Validation failed`: every bad field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<FieldError>,
    /// More fields, from the operation.
    #[serde(flatten)]
    #[schema(ignore)]
    pub more: Option<Value>,
}

/// What is wrong with one field.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's name; `body` for the body as a whole, `id` for the path's.
    pub field: String,
    /// The rule that it breaks.
    pub message: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// One phrase for each kind of error: for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub enum Phrase {
    #[serde(rename = "Validation failed")]
    ValidationFailed,
    Unauthorized,
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

impl Phrase {
    pub fn status(self) -> StatusCode {
        match self {
            Self::ValidationFailed => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::UserNotFound | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::EmailAlreadyInUse | Self::ExtensionPoolExhausted | Self::ApplyInProgress => StatusCode::CONFLICT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::ApplyOperationFailed | Self::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::DatabaseUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl ApiError {
    pub const UNAUTHORIZED: Self = Self::new(
        Phrase::Unauthorized,
        "Send the header 'Authorization: Bearer …' with the value of PORTAL_API_TOKEN.",
    );
    pub const NOT_FOUND: Self =
        Self::new(Phrase::NotFound, "There is nothing here; /docs tells which operations there are.");
    pub const METHOD_NOT_ALLOWED: Self = Self::new(
        Phrase::MethodNotAllowed,
        "This path does not take this method; the Allow header and /docs tell which.",
    );
    pub const PAYLOAD_TOO_LARGE: Self = Self::new(Phrase::PayloadTooLarge, "A body has at most 16 KiB.");
    pub const UNSUPPORTED_MEDIA_TYPE: Self =
        Self::new(Phrase::UnsupportedMediaType, "Send JSON, with the header 'Content-Type: application/json'.");
    pub const ENCODED: Self =
        Self::new(Phrase::UnsupportedMediaType, "Send the body as it is, without a Content-Encoding.");
    /// After a panic.
    pub const INTERNAL: Self = Self::new(
        Phrase::InternalServerError,
        "Something went wrong that should never; the service's log has a line about it.",
    );

    pub const fn new(error: Phrase, message: &'static str) -> Self {
        Self { error, message: Cow::Borrowed(message), request_id: String::new(), details: Vec::new(), more: None }
    }

    pub fn with_message(error: Phrase, message: String) -> Self {
        Self { message: message.into(), ..Self::new(error, "") }
    }

    /// 400, with every bad field.
    pub fn validation(details: Vec<FieldError>) -> Self {
        let error = Self::new(Phrase::ValidationFailed, "The request has fields that can't be taken; see details.");
        Self { details, ..error }
    }

    /// Logs a failure of the database, and makes the answer: 503, or 500 for a row that was edited by hand. `what` says what may have
    /// been written although the call failed; `None` for an operation that only reads.
    pub fn database(failure: &StorageError, what: Option<&'static str>) -> Self {
        if let StorageError::Unavailable { problem, advice, maybe_written } = failure {
            error!(reason = problem.what, remedy = problem.remedy, maybe_written, "the database failed");
            return Self::database_unavailable(what.filter(|_| *maybe_written), advice);
        }
        error!(reason = failure.to_string(), "the database failed");
        match failure {
            StorageError::DamagedRow(which) => Self::damaged_row(&which.to_string()),
            _ => Self::INTERNAL,
        }
    }

    /// 503. `unknown` says what may have been written; without it, nothing was changed.
    pub fn database_unavailable(unknown: Option<&'static str>, advice: &str) -> Self {
        let message = match unknown {
            None => format!("The database failed; nothing was changed. {advice}"),
            Some(what) => format!("The database failed; it is unknown whether {what}. {advice}"),
        };
        Self::with_message(Phrase::DatabaseUnavailable, message)
    }

    /// 500 for a row that the service cannot have written.
    pub fn damaged_row(which: &str) -> Self {
        Self::with_message(Phrase::InternalServerError, format!("The database holds a damaged row: {which}."))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.error.status();
        let challenge = (status == StatusCode::UNAUTHORIZED).then_some([(header::WWW_AUTHENTICATE, "Bearer")]);
        (status, challenge, Json(Self { request_id: request_log::current_id(), ..self })).into_response()
    }
}
