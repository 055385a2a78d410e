//! `POST /users`, `GET /users`, `DELETE /users/{id}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::error::{ApiError, FieldError};
use super::extract::Fields;
use super::{Portal, openapi};
use crate::domain::{Email, Name, Secret, User};
use crate::storage::LOOK_AND_TRY_AGAIN;

/// What a user's id looks like.
pub(super) const ID_RULE: &str = "must be a UUID such as 0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90";

/// A new user.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read field by field; this is its schema")]
struct NewUser {
    /// Shown to the people whom the user calls. White space around it is taken off.
    #[schema(schema_with = name_schema)]
    name: String,
    /// Unique, whatever its case.
    #[schema(schema_with = email_schema)]
    email: String,
}

pub(super) fn name_schema() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .description(Some("1 to 255 characters of any script, without control or line-breaking characters; white space around it is taken off."))
        .pattern(Some(Name::PATTERN))
        .examples(["Alice Ångström"])
        .into()
}

fn email_schema() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .description(Some("An e-mail address by the HTML standard's grammar: ASCII only. Unique, whatever its case."))
        .pattern(Some(Email::PATTERN))
        .max_length(Some(Email::MAX_LENGTH))
        .examples(["alice@example.com"])
        .into()
}

/// A user with their extension.
#[derive(Serialize, ToSchema)]
#[schema(as = User)]
pub(super) struct UserBody<'u> {
    id: Uuid,
    tenant_id: Uuid,
    name: &'u str,
    email: &'u str,
    extension: ExtensionBody<'u>,
    /// UTC.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// What the user's phone registers with.
#[derive(Serialize, ToSchema)]
#[schema(as = Extension)]
struct ExtensionBody<'u> {
    /// The phone's user name.
    #[schema(minimum = 1000, maximum = 1999)]
    number: u16,
    /// The phone's password.
    #[schema(pattern = "^[A-Za-z0-9]+$")]
    secret: &'u str,
}

/// All users.
#[derive(Serialize, ToSchema)]
pub(super) struct UserList<'u> {
    /// By extension number.
    users: Vec<UserBody<'u>>,
}

impl<'u> UserList<'u> {
    pub(super) fn of(users: &'u [User]) -> Self {
        Self { users: users.iter().map(UserBody::from).collect() }
    }

    pub(super) fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("numbers and texts").into()
    }
}

/// What a delete did.
#[derive(Serialize, ToSchema)]
#[schema(as = DeletedUser)]
#[expect(clippy::struct_field_names, reason = "the API's own names")]
pub(super) struct Deleted {
    message: String,
    deleted_user_id: Uuid,
    #[schema(minimum = 1000, maximum = 1999)]
    freed_extension: u16,
}

impl<'u> From<&'u User> for UserBody<'u> {
    fn from(user: &'u User) -> Self {
        Self {
            id: user.id,
            tenant_id: user.tenant_id,
            name: user.name.as_str(),
            email: user.email.as_str(),
            extension: ExtensionBody { number: user.extension.number.get(), secret: user.extension.secret.reveal() },
            created_at: user.created_at,
        }
    }
}

impl Deleted {
    fn new(id: Uuid, number: u16) -> Self {
        let message =
            format!("User deleted; extension {number} is free. Asterisk keeps the endpoint until the next apply.");
        Self { message, deleted_user_id: id, freed_extension: number }
    }
}

/// What the document shows.
fn alice() -> Value {
    json!({
        "id": openapi::USER_ID,
        "tenant_id": "a0000000-0000-0000-0000-000000000000",
        "name": "Alice Ångström",
        "email": "alice@example.com",
        "extension": {"number": 1000, "secret": "hd34nxkwr7pam9yet6cjf3wdkp4nh7"},
        "created_at": "2026-11-21T08:00:00.123Z",
    })
}

/// What may have been done although the database broke off.
const MAYBE_CREATED: &str = "the user was created: look with GET /users before you try again";
const MAYBE_DELETED: &str = "the user was deleted: look with GET /users";

struct CreateFailures;

impl IntoResponses for CreateFailures {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        openapi::failures([
            ApiError::Validation(vec![
                FieldError::new("name", Name::INVALID.0),
                FieldError::new("email", Email::INVALID.0),
            ]),
            ApiError::EmailInUse,
            ApiError::PoolExhausted,
            ApiError::PayloadTooLarge,
            ApiError::UnsupportedMediaType,
            ApiError::DatabaseUnavailable { maybe: None, advice: LOOK_AND_TRY_AGAIN },
            ApiError::DatabaseUnavailable { maybe: Some(MAYBE_CREATED), advice: LOOK_AND_TRY_AGAIN },
        ])
    }
}

struct ListFailures;

impl IntoResponses for ListFailures {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        openapi::failures([ApiError::DatabaseUnavailable { maybe: None, advice: LOOK_AND_TRY_AGAIN }])
    }
}

struct DeleteFailures;

impl IntoResponses for DeleteFailures {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        openapi::failures([
            ApiError::Validation(vec![FieldError::new("id", ID_RULE)]),
            ApiError::UserNotFound(openapi::USER_ID),
            ApiError::DatabaseUnavailable { maybe: None, advice: LOOK_AND_TRY_AGAIN },
            ApiError::DatabaseUnavailable { maybe: Some(MAYBE_DELETED), advice: LOOK_AND_TRY_AGAIN },
        ])
    }
}

/// Create a user
///
/// The user gets the lowest free extension of 1000 to 1999 and a secret for their phone. Asterisk learns of them with the
/// next apply.
#[utoipa::path(
    post, path = "/users", operation_id = "createUser", tag = "Users",
    request_body(content = NewUser, example = json!({"name": "Alice Ångström", "email": "alice@example.com"})),
    responses(
        (status = 201, description = "The user, with the secret that the phone needs", body = UserBody, example = json!(alice())),
        CreateFailures,
    )
)]
pub(super) async fn create(State(portal): State<Arc<Portal>>, mut fields: Fields) -> Result<Response, ApiError> {
    let (name, email) = (fields.take("name", Name::parse), fields.take("email", Email::parse));
    let (name, email) = fields.finish(name.zip(email))?;
    let created = portal.storage.create_user(name, email, Secret::generate()).await;
    let user = created.map_err(|failure| ApiError::storage(&failure, Some(MAYBE_CREATED)))?;
    Ok((StatusCode::CREATED, Json(UserBody::from(&user))).into_response())
}

/// List all users
///
/// By extension number, with their secrets.
#[utoipa::path(
    get, path = "/users", operation_id = "listUsers", tag = "Users",
    responses(
        (status = 200, description = "All users; an empty list for none", body = UserList, example = json!({"users": [alice()]})),
        ListFailures,
    )
)]
pub(super) async fn list(State(portal): State<Arc<Portal>>) -> Result<Response, ApiError> {
    Ok(([(CONTENT_TYPE, "application/json")], portal.listing.body().await?).into_response())
}

/// Delete a user
///
/// The extension goes back to the pool. Asterisk keeps the endpoint until the next apply.
#[utoipa::path(
    delete, path = "/users/{id}", operation_id = "deleteUser", tag = "Users",
    params(("id" = Uuid, Path, description = "The user's id", example = json!(openapi::USER_ID))),
    responses(
        (status = 200, description = "The user is gone", body = Deleted, example = json!(Deleted::new(openapi::USER_ID, 1000))),
        DeleteFailures,
    )
)]
pub(super) async fn delete(
    State(portal): State<Arc<Portal>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, ApiError> {
    let Path(typed) = path?;
    let hyphenated = (typed.len() == Hyphenated::LENGTH).then(|| Uuid::parse_str(&typed).ok()).flatten();
    let id = hyphenated.ok_or_else(|| ApiError::Validation(vec![FieldError::new("id", ID_RULE)]))?;
    let deleted = portal.storage.delete_user(id).await;
    let deleted = deleted.map_err(|failure| ApiError::storage(&failure, Some(MAYBE_DELETED)))?;
    Ok(Json(Deleted::new(id, deleted.ok_or(ApiError::UserNotFound(id))?.get())))
}
