//! `POST /users`, `GET /users`, `DELETE /users/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::Portal;
use super::body::Fields;
use super::error::{ApiError, ErrorBody, FieldError};
use crate::domain::{Email, Name, Secret, User};

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
    #[schema(example = "Alice Ångström")]
    name: &'u str,
    #[schema(example = "alice@example.com")]
    email: &'u str,
    extension: ExtensionBody<'u>,
    /// UTC.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(example = "2026-11-21T08:00:00.123Z")]
    created_at: OffsetDateTime,
}

/// What the user's phone registers with.
#[derive(Serialize, ToSchema)]
#[schema(as = Extension)]
struct ExtensionBody<'u> {
    /// The phone's user name.
    #[schema(minimum = 1000, maximum = 1999, example = 1000)]
    number: u16,
    /// The phone's password.
    #[schema(pattern = "^[A-Za-z0-9]+$", example = "hd34nxkwr7pam9yet6cjf3wdkp4nh7")]
    secret: &'u str,
}

/// All users.
#[derive(Serialize, ToSchema)]
pub(super) struct UserList<'u> {
    /// By extension number.
    users: Vec<UserBody<'u>>,
}

/// What a delete did.
#[derive(Serialize, ToSchema)]
#[schema(as = DeletedUser)]
#[expect(clippy::struct_field_names, reason = "the API's own names")]
pub(super) struct Deleted {
    #[schema(example = "User deleted; extension 1000 is free. Asterisk keeps the endpoint until the next apply.")]
    message: String,
    deleted_user_id: Uuid,
    #[schema(minimum = 1000, maximum = 1999, example = 1000)]
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

/// Create a user
///
/// The user gets the lowest free extension of 1000 to 1999 and a secret for their phone. Asterisk learns of them with the
/// next apply.
#[utoipa::path(
    post, path = "/users", operation_id = "createUser", tag = "Users", request_body = NewUser,
    responses(
        (status = 201, description = "The user, with the secret that the phone needs", body = UserBody),
        (status = 400, description = "`Validation failed`: every bad field is named", body = ErrorBody),
        (status = 409, description = "`Email already in use` or `Extension pool exhausted`", body = ErrorBody),
        (status = 413, description = "`Payload too large`: over 16 KiB", body = ErrorBody),
        (status = 415, description = "`Unsupported media type`: not JSON", body = ErrorBody),
        (status = 503, description = "`Database unavailable`: the message says whether the user may have been created all the same", body = ErrorBody),
    )
)]
pub(super) async fn create(State(portal): State<Portal>, mut fields: Fields) -> Result<Response, ApiError> {
    let (name, email) = (fields.take("name", Name::parse), fields.take("email", Email::parse));
    let (name, email) = fields.finish(name.zip(email))?;
    let created = portal.storage.create_user(name, email, Secret::generate()).await;
    let what = "the user was created: look with GET /users before you try again";
    let user = created.map_err(|failure| ApiError::storage(&failure, Some(what)))?;
    Ok((StatusCode::CREATED, Json(UserBody::from(&user))).into_response())
}

/// List all users
///
/// By extension number, with their secrets.
#[utoipa::path(
    get, path = "/users", operation_id = "listUsers", tag = "Users",
    responses(
        (status = 200, description = "All users; an empty list for none", body = UserList),
        (status = 503, description = "`Database unavailable`", body = ErrorBody),
    )
)]
pub(super) async fn list(State(portal): State<Portal>) -> Result<Response, ApiError> {
    let users = portal.storage.users().await.map_err(|failure| ApiError::storage(&failure, None))?;
    Ok(Json(UserList { users: users.iter().map(UserBody::from).collect() }).into_response())
}

/// Delete a user
///
/// The extension goes back to the pool. Asterisk keeps the endpoint until the next apply.
#[utoipa::path(
    delete, path = "/users/{id}", operation_id = "deleteUser", tag = "Users",
    params(("id" = Uuid, Path, description = "The user's id", example = "0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90")),
    responses(
        (status = 200, description = "The user is gone", body = Deleted),
        (status = 400, description = "`Validation failed`: not a UUID", body = ErrorBody),
        (status = 404, description = "`User not found`", body = ErrorBody),
        (status = 503, description = "`Database unavailable`: the message says whether the user may have been deleted all the same", body = ErrorBody),
    )
)]
pub(super) async fn delete(
    State(portal): State<Portal>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, ApiError> {
    let Path(typed) = path?;
    let hyphenated = (typed.len() == Hyphenated::LENGTH).then(|| Uuid::parse_str(&typed).ok()).flatten();
    let id = hyphenated.ok_or_else(|| ApiError::Validation(vec![FieldError::new("id", ID_RULE)]))?;
    let what = "the user was deleted: look with GET /users";
    let deleted = portal.storage.delete_user(id).await.map_err(|failure| ApiError::storage(&failure, Some(what)))?;
    let number = deleted.ok_or(ApiError::UserNotFound(id))?;
    let message =
        format!("User deleted; extension {number} is free. Asterisk keeps the endpoint until the next apply.");
    Ok(Json(Deleted { message, deleted_user_id: id, freed_extension: number.get() }))
}
