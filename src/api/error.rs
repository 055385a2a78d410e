//! An error's status and body. The phrase decides the status, in one place. The texts of errors that any request can get are
//! here; those of one operation are with that operation.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use tracing::error;
use utoipa::ToSchema;

use super::request_log;
use crate::storage::StorageError;

/// An error's answer.
#[derive(Debug)]
pub struct ApiError {
    pub(super) phrase: Phrase,
    message: Cow<'static, str>,
    details: Option<Vec<FieldError>>,
    more: Option<Value>,
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
    /// For `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// One phrase for each kind of error: for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
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

impl Phrase {
    pub(super) fn status(self) -> StatusCode {
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

/// Every error's body.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// For programs: one phrase for each kind of error.
    pub error: Phrase,
    /// For a person: what happened, and what to do.
    pub message: String,
    /// The header `x-request-id` and each line of the service's log about this request have the same.
    pub request_id: String,
    /// With `Validation failed`: every bad field.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub details: Option<Vec<FieldError>>,
    /// More fields, from the operation.
    #[serde(flatten)]
    #[schema(ignore)]
    pub more: Option<Value>,
}

impl ApiError {
    /// 401.
    pub const UNAUTHORIZED: Self = Self::new(
        Phrase::Unauthorized,
        "Send the header 'Authorization: Bearer …' with the value of PORTAL_API_TOKEN.",
    );
    /// 404 for a path.
    pub const NOT_FOUND: Self =
        Self::new(Phrase::NotFound, "There is nothing here; /docs tells which operations there are.");
    /// 405.
    pub const METHOD_NOT_ALLOWED: Self = Self::new(
        Phrase::MethodNotAllowed,
        "This path does not take this method; the Allow header and /docs tell which.",
    );
    /// 413.
    pub const PAYLOAD_TOO_LARGE: Self = Self::new(Phrase::PayloadTooLarge, "A body has at most 16 KiB.");
    /// 415.
    pub const UNSUPPORTED_MEDIA_TYPE: Self =
        Self::new(Phrase::UnsupportedMediaType, "Send JSON, with the header 'Content-Type: application/json'.");
    /// 500 after a panic.
    pub const INTERNAL: Self = Self::new(
        Phrase::InternalServerError,
        "Something went wrong that should never; the service's log has a line about it.",
    );

    /// An error with a constant message.
    pub const fn new(phrase: Phrase, message: &'static str) -> Self {
        Self { phrase, message: Cow::Borrowed(message), details: None, more: None }
    }

    /// An error with a message of its own.
    pub fn with_message(phrase: Phrase, message: impl Into<Cow<'static, str>>) -> Self {
        Self { phrase, message: message.into(), details: None, more: None }
    }

    /// 400, with every bad field.
    pub fn validation(details: Vec<FieldError>) -> Self {
        let error = Self::new(Phrase::ValidationFailed, "The request has fields that can't be taken; see details.");
        Self { details: Some(details), ..error }
    }

    /// Adds the fields of `more`, which is an object, to the body.
    pub fn with(self, more: Value) -> Self {
        Self { more: Some(more), ..self }
    }

    /// Logs a failure of the database, and makes the answer: 503, or 500 for a row that was edited by hand. `what` says what may have
    /// been written although the call failed; `None` for an operation that only reads.
    pub fn database(failure: &StorageError, what: Option<&'static str>) -> Self {
        match failure {
            StorageError::Unavailable { reason, advice, maybe_written } => {
                error!(reason, maybe_written, "the database failed");
                Self::database_unavailable(what.filter(|_| *maybe_written), advice)
            }
            StorageError::DamagedRow(which) => {
                error!(reason = which, "the database failed");
                Self::damaged_row(which)
            }
            refusal => {
                error!(reason = %refusal, "the database failed");
                Self::INTERNAL
            }
        }
    }

    /// 503. `unknown` says what may have been written; without it, nothing was changed.
    pub(super) fn database_unavailable(unknown: Option<&'static str>, advice: &str) -> Self {
        let message = match unknown {
            None => format!("The database failed; nothing was changed. {advice}"),
            Some(what) => format!("The database failed; it is unknown whether {what}. {advice}"),
        };
        Self::with_message(Phrase::DatabaseUnavailable, message)
    }

    /// 500 for a row that the service cannot have written.
    pub(super) fn damaged_row(which: &str) -> Self {
        Self::with_message(Phrase::InternalServerError, format!("The database holds a damaged row: {which}."))
    }

    /// The body of the answer to the request of this id.
    pub fn into_body(self, request_id: String) -> ErrorBody {
        let Self { phrase, message, details, more } = self;
        ErrorBody { error: phrase, message: message.into_owned(), request_id, details, more }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.phrase.status();
        let mut response = (status, Json(self.into_body(request_log::current_id()))).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
