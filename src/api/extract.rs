//! A request's JSON object, field by field, so that an answer names every bad one at once. It is UTF-8, as JSON is, whatever
//! the content type says of a charset.

use std::fmt;

use axum::Json;
use axum::body::HttpBody as _;
use axum::extract::{FromRequest, Request};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::MAX_BODY_BYTES;
use super::error::{ApiError, FieldError};
use super::server::BODY_PATIENCE;
use crate::domain::Invalid;

/// The fields of a JSON object that was sent; each is taken once, and what is left over is refused.
pub struct Fields {
    fields: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // A length that is too large is refused before the body is asked for.
        if request.body().size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(ApiError::PayloadTooLarge);
        }
        let late = |_| ApiError::body_not_whole();
        let Json(fields) = timeout(BODY_PATIENCE, Json::from_request(request, state)).await.map_err(late)??;
        Ok(fields)
    }
}

/// Of a name that stands twice, readers take the one or the other value: neither is taken here.
impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Fields, A::Error> {
                let (mut fields, mut errors) = (Map::new(), Vec::new());
                while let Some((name, value)) = object.next_entry::<String, Value>()? {
                    if fields.contains_key(&name) {
                        errors.push(FieldError::new(&name, "must be given only once"));
                    }
                    fields.insert(name, value);
                }
                Ok(Fields { fields, errors })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl Fields {
    /// Takes a text field; `None` is an error that [`Fields::finish`] tells.
    pub fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, Invalid>) -> Option<T> {
        let parsed = match self.fields.remove(name) {
            Some(Value::String(text)) => parse(&text).map_err(|rule| rule.0),
            Some(_) => Err("must be a string"),
            None => Err("is required"),
        };
        parsed.map_err(|message| self.errors.push(FieldError::new(name, message))).ok()
    }

    /// Gives `values`, which were taken, if all were good and no other field is left.
    ///
    /// # Errors
    /// 400 with every bad field.
    pub fn finish<T>(mut self, values: Option<T>) -> Result<T, ApiError> {
        self.errors.extend(self.fields.keys().map(|name| FieldError::new(name, "is not a field of this request")));
        values.filter(|_| self.errors.is_empty()).ok_or(ApiError::Validation(self.errors))
    }
}
