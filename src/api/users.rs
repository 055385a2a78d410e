//! `POST /users`, `GET /users`, `DELETE /users/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::ObjectBuilder;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::error::{ApiError, FieldError, Phrase};
use super::extract::Fields;
use super::{Portal, openapi};
use crate::domain::{Email, ExtensionNumber, Name, Secret, User};
use crate::storage::{LOOK_AND_TRY_AGAIN, StorageError};

/// A new user.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)] // For the schema. `Fields::finish` refuses them.
struct NewUser {
    #[schema(schema_with = name_schema)]
    name: Name,
    #[schema(schema_with = openapi::email)]
    email: Email,
}

fn name_schema() -> ObjectBuilder {
    openapi::name("The user's name, which a called phone shows", "Alice Ångström")
}

/// All users.
#[derive(Serialize, ToSchema)]
pub(super) struct UserList {
    /// By extension number.
    users: Vec<User>,
}

/// What a delete did.
#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the API's own names")]
pub(super) struct DeletedUser {
    message: String,
    deleted_user_id: Uuid,
    /// Null if the user had no extension, because somebody deleted its row by hand.
    #[schema(value_type = Option<u16>, minimum = 1000, maximum = 1999, required)]
    freed_extension: Option<ExtensionNumber>,
}

impl DeletedUser {
    fn new(id: Uuid, freed: Option<ExtensionNumber>) -> Self {
        let message = match freed {
            Some(number) => {
                format!("User deleted; extension {number} is free. Asterisk keeps the endpoint until the next apply.")
            }
            None => "User deleted; the user had no extension.".to_owned(),
        };
        Self { message, deleted_user_id: id, freed_extension: freed }
    }
}

/// The example in the API's document.
fn alice() -> Value {
    json!({
        "id": openapi::USER_ID,
        "tenant_id": "a0000000-0000-0000-0000-000000000000",
        "name": "Alice Ångström",
        "email": "alice@example.com",
        "extension": {"number": 1000, "secret": "hdxnkwrpamyetcjfwdkpnhfaxrmcetyk"},
        "created_at": "2026-11-21T08:00:00.123Z",
    })
}

const EMAIL_IN_USE: ApiError = ApiError::new(
    Phrase::EmailAlreadyInUse,
    "Another user has this e-mail address, in whatever case; take another, or delete that user.",
);

const POOL_EXHAUSTED: ApiError = ApiError::new(
    Phrase::ExtensionPoolExhausted,
    "All extensions from 1000 to 1999 are taken; delete a user to free one.",
);

fn not_found(id: Uuid) -> ApiError {
    ApiError::with_message(Phrase::UserNotFound, format!("There is no user {id}; GET /users lists those there are."))
}

fn invalid_id() -> ApiError {
    ApiError::validation(vec![FieldError::new("id", "must be a UUID such as 0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90")])
}

/// An example of a row that was edited by hand.
const DAMAGED_NAME: &str = "name of user 0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90 in table users was edited by hand: it must be 1 to 255 characters, white space around it aside, without control characters or line breaks; correct it with UPDATE users SET name = '…' WHERE id = '0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90', or delete the user with DELETE /users/0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90";

/// What may have been written although the database failed.
const MAYBE_CREATED: &str = "the user was created: look with GET /users before you try again";
const MAYBE_DELETED: &str = "the user was deleted: look with GET /users";

pub(super) fn create_failures() -> Vec<ApiError> {
    vec![
        ApiError::validation(vec![FieldError::new("name", Name::INVALID), FieldError::new("email", Email::INVALID)]),
        EMAIL_IN_USE,
        POOL_EXHAUSTED,
        ApiError::database_unavailable(Some(MAYBE_CREATED), LOOK_AND_TRY_AGAIN),
    ]
}

pub(super) fn list_failures() -> Vec<ApiError> {
    vec![ApiError::damaged_row(DAMAGED_NAME)]
}

pub(super) fn delete_failures() -> Vec<ApiError> {
    let database = ApiError::database_unavailable(Some(MAYBE_DELETED), LOOK_AND_TRY_AGAIN);
    vec![invalid_id(), not_found(openapi::USER_ID), database]
}

/// Create a user
///
/// The user gets the lowest free extension from 1000 to 1999 and a secret for their phone. Asterisk serves the user after the
/// next apply.
#[utoipa::path(
    post, path = "/users", operation_id = "createUser", tag = "Users",
    request_body(content = NewUser, example = json!({"name": "Alice Ångström", "email": "alice@example.com"})),
    responses(
        (status = 201, description = "The user, with the secret that the phone needs", body = User, example = json!(alice())),
    )
)]
pub(super) async fn create(
    State(portal): State<Portal>,
    mut fields: Fields,
) -> Result<(StatusCode, Json<User>), ApiError> {
    let name = fields.take("name", Name::parse);
    let email = fields.take("email", Email::parse);
    let new = fields.finish(name.zip(email).map(|(name, email)| NewUser { name, email }))?;
    let created = portal.storage.create_user(new.name, new.email, Secret::generate()).await;
    let user = created.map_err(|failure| match failure {
        StorageError::EmailInUse => EMAIL_IN_USE,
        StorageError::NoFreeExtension => POOL_EXHAUSTED,
        failure => ApiError::database(&failure, Some(MAYBE_CREATED)),
    })?;
    Ok((StatusCode::CREATED, Json(user)))
}

/// List all users
///
/// By extension number, with their secrets.
#[utoipa::path(
    get, path = "/users", operation_id = "listUsers", tag = "Users",
    responses(
        (status = 200, description = "All users; an empty list for none", body = UserList, example = json!({"users": [alice()]})),
    )
)]
pub(super) async fn list(State(portal): State<Portal>) -> Result<Json<UserList>, ApiError> {
    let users = portal.storage.users().await.map_err(|failure| ApiError::database(&failure, None))?;
    Ok(Json(UserList { users }))
}

/// Delete a user
///
/// The extension goes back to the pool. Asterisk keeps the endpoint until the next apply.
#[utoipa::path(
    delete, path = "/users/{id}", operation_id = "deleteUser", tag = "Users",
    params(("id" = Uuid, Path, description = "The user's id", example = json!(openapi::USER_ID))),
    responses(
        (status = 200, description = "The user is gone", body = DeletedUser, example = json!(DeletedUser::new(openapi::USER_ID, ExtensionNumber::new(1000)))),
    )
)]
pub(super) async fn delete(
    State(portal): State<Portal>,
    path: Result<Path<Hyphenated>, PathRejection>,
) -> Result<Json<DeletedUser>, ApiError> {
    let id = path.map_err(|_| invalid_id())?.0.into_uuid();
    let freed = portal.storage.delete_user(id).await.map_err(|failure| match failure {
        StorageError::UserNotFound => not_found(id),
        failure => ApiError::database(&failure, Some(MAYBE_DELETED)),
    })?;
    Ok(Json(DeletedUser::new(id, freed)))
}
