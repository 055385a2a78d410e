//! A request's JSON object, parsed field by field, so that an answer names every bad field at once. It is always read as UTF-8, as
//! the JSON standard says, whatever charset the content type names. A byte-order mark before it is skipped.

use std::fmt;

use axum::body::{Bytes, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::MAX_BODY_BYTES;
use super::error::{ApiError, FieldError};
use super::server::SENT_WITHIN;

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
        if !is_json(request.headers()) {
            return Err(ApiError::UNSUPPORTED_MEDIA_TYPE);
        }
        let mut encodings = request.headers().get_all(header::CONTENT_ENCODING).iter();
        if !encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(ApiError::ENCODED);
        }
        match timeout(SENT_WITHIN, Bytes::from_request(request, state)).await {
            Ok(Ok(body)) => parse(&body).map_err(invalid),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::PAYLOAD_TOO_LARGE)
            }
            // It ends too early or comes too late.
            _ => Err(invalid(format!("must arrive completely, within {} seconds", SENT_WITHIN.as_secs()))),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json")
}

fn parse(body: &[u8]) -> Result<Fields, String> {
    let json = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    // Most of UTF-16 is UTF-8 with NULs, which JSON does not have.
    if json.contains(&0) || str::from_utf8(json).is_err() {
        return Err("must be a JSON object in UTF-8, not in UTF-16, Latin-1 or another encoding".to_owned());
    }
    serde_json::from_slice(json).map_err(|why| format!("must be a JSON object: {why}"))
}

/// The answer to a body that is not an object at all.
fn invalid(message: String) -> ApiError {
    ApiError::validation(vec![FieldError::new("body", message)])
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

    /// Returns `values`, which were taken, if all were valid and no other field is left; otherwise 400 with every bad field.
    pub fn finish<T>(mut self, values: Option<T>) -> Result<T, ApiError> {
        self.errors.extend(self.fields.keys().map(|name| FieldError::new(name, "is not a field of this request")));
        values.filter(|_| self.errors.is_empty()).ok_or_else(|| ApiError::validation(self.errors))
    }
}
