//! A request's JSON object, field by field, so that an answer names every bad one at once.

use axum::Json;
use axum::extract::{FromRequest, Request};
use serde_json::{Map, Value};

use super::error::{ApiError, FieldError};
use crate::domain::Invalid;

/// The fields of a JSON object that was sent; each is taken once, and what is left over is refused.
pub struct Fields {
    fields: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(fields) = Json::from_request(request, state).await?;
        Ok(Self { fields, errors: Vec::new() })
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
