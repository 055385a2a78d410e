//! The values that the service works with, as types that are always valid: parsed once, never checked again. The error is the
//! rule, in words, for the person who typed something else.

mod email;
mod extension;
mod name;
mod secret;

pub use email::Email;
pub use extension::ExtensionNumber;
pub use name::Name;
pub use secret::Secret;

use std::collections::BTreeSet;

use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// Some numbers of the pool.
pub type Numbers = BTreeSet<ExtensionNumber>;

/// A user with their extension.
#[derive(Clone, Serialize, ToSchema)]
pub struct User {
    /// Made by the service, never reused.
    pub id: Uuid,
    /// The one tenant there is.
    pub tenant_id: Uuid,
    /// Shown to the people whom the user calls.
    #[schema(value_type = String)]
    pub name: Name,
    /// Unique, whatever its case.
    #[schema(value_type = String)]
    pub email: Email,
    /// What the user's phone registers as.
    pub extension: Extension,
    /// UTC, to the millisecond.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A number and the secret that a phone needs to register as it.
#[derive(Clone, Serialize, ToSchema)]
pub struct Extension {
    /// The phone's user name. Goes back to the pool with its user.
    #[schema(value_type = u16, minimum = 1000, maximum = 1999)]
    pub number: ExtensionNumber,
    /// The phone's password. Belongs to one user for ever; a number's next user gets another.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9]+$")]
    pub secret: Secret,
}

pub fn numbers_of(users: &[User]) -> Numbers {
    users.iter().map(|user| user.extension.number).collect()
}

/// Lists the first few and counts the rest: `1000, 1001, 1002, 1003, 1004 and 95 more`.
pub fn some_of(all: impl IntoIterator<Item = impl ToString>) -> String {
    const NAMED: usize = 5;
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    match all.len().saturating_sub(NAMED) {
        0 => all.join(", "),
        more => format!("{} and {more} more", all[..NAMED].join(", ")),
    }
}
