//! A request's JSON object, parsed field by field, so that an answer names every bad field at once. It is always read as UTF-8, as
//! the JSON standard says, whatever charset the content type names.

use std::fmt;

use axum::Json;
use axum::body::HttpBody as _;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::MAX_BODY_BYTES;
use super::error::{ApiError, FieldError};
use super::server::SEND_PATIENCE;

/// The fields of a JSON object. An operation takes each of its fields once; a field that is left over is an error.
#[derive(Default)]
pub struct Fields {
    fields: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // If the length is too large, do not ask for the body.
        if request.body().size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(ApiError::PAYLOAD_TOO_LARGE);
        }
        match timeout(SEND_PATIENCE, Json::from_request(request, state)).await {
            Ok(Ok(Json(fields))) => Ok(fields),
            Ok(Err(rejection)) => Err(refused(&rejection)),
            Err(_) => Err(not_whole()),
        }
    }
}

fn refused(rejection: &JsonRejection) -> ApiError {
    match (rejection.status(), rejection) {
        (StatusCode::PAYLOAD_TOO_LARGE, _) => ApiError::PAYLOAD_TOO_LARGE,
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, _) => ApiError::UNSUPPORTED_MEDIA_TYPE,
        (_, JsonRejection::BytesRejection(_)) => not_whole(),
        _ => {
            let why = std::error::Error::source(rejection).map_or_else(|| rejection.body_text(), ToString::to_string);
            ApiError::validation(vec![FieldError::new("body", format!("must be a JSON object: {why}"))])
        }
    }
}

/// The error of a body that ends too early or comes too late.
fn not_whole() -> ApiError {
    let seconds = SEND_PATIENCE.as_secs();
    ApiError::validation(vec![FieldError::new("body", format!("must arrive whole, within {seconds} seconds"))])
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

/// JSON parsers disagree on duplicate keys, so a duplicate key is rejected.
impl<'de> Visitor<'de> for Fields {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<Self, A::Error> {
        while let Some((name, value)) = object.next_entry::<String, Value>()? {
            if self.fields.insert(name.clone(), value).is_some() {
                self.errors.push(FieldError::new(name, "must be given only once"));
            }
        }
        Ok(self)
    }
}

impl Fields {
    /// Takes a text field. `None` is an error that [`Fields::finish`] reports.
    pub fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
        let parsed = match self.fields.remove(name) {
            Some(Value::String(text)) => parse(&text),
            Some(_) => Err("must be a string"),
            None => Err("is required"),
        };
        parsed.map_err(|message| self.errors.push(FieldError::new(name, message))).ok()
    }

    /// Gives `values`, which were taken, if all were valid and no other field is left; otherwise 400 with every bad field.
    pub fn finish<T>(mut self, values: Option<T>) -> Result<T, ApiError> {
        self.errors.extend(self.fields.keys().map(|name| FieldError::new(name, "is not a field of this request")));
        values.filter(|_| self.errors.is_empty()).ok_or_else(|| ApiError::validation(self.errors))
    }
}
