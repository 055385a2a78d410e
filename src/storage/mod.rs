//! Users, extensions and the audit log, in PostgreSQL or SQLite. Nearly all SQL stands once, in `queries.rs`; the two backends
//! are how to ask it: PostgreSQL in tasks, over connections from a pool; SQLite on two threads, because a call of it blocks.
//!
//! - **Allocation.** A create begins by taking the one lock that creates queue on: the tenant's row on PostgreSQL, the
//!   write lock on SQLite. What it then sees is final, so the lowest free number is free, and nobody collides.
//!   On SQLite, all creates of a process that wait by then share one transaction; who is refused in it leaves nothing.
//! - **Bounds.** Every call but a migration is answered within [`DEADLINE`], whatever the database does. A connection on which a
//!   call did not end cleanly is thrown away, so none is used again inside a transaction. A client that hangs up does not cut off
//!   a call.
//! - **Schema.** Migrations run at start, serialised among processes. Their numbers' thousands are the schema's major
//!   version; within one they only add, and a binary runs on any newer schema of its own major version.

mod postgres;
mod queries;
mod sqlite;

use std::io;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use uuid::{Uuid, uuid};

use crate::domain::{Email, Extension, ExtensionNumber, Name, Secret, User};
use crate::settings::DatabaseUrl;

/// The one tenant, made by the first migration.
pub const DEFAULT_TENANT: Uuid = uuid!("a0000000-0000-0000-0000-000000000000");

/// The bound of one call, below the API's promise of 5 seconds.
pub const DEADLINE: Duration = Duration::from_millis(4250);

/// The schema's major version: migrations 1001 to 1999.
pub const SCHEMA_MAJOR_VERSION: i64 = 1;

/// The database behind the service.
#[derive(Debug, Clone)]
pub enum Storage {
    /// Production, many hosts.
    Postgres(postgres::Backend),
    /// Embedded, one host.
    Sqlite(sqlite::Backend),
}

/// What had been committed to the database at a moment. Two that are equal show the same users; of one database, two that
/// differ need not differ in users. The default is that of no database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State(String);

/// Why the database did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// It can't be reached, did not answer in time, or failed.
    #[error("{reason}; {advice}")]
    Unavailable {
        /// What it said; never a URL, a password or a value.
        reason: String,
        /// What to do about it.
        advice: &'static str,
        /// Whether a write may have happened all the same.
        maybe_written: bool,
    },
    /// The address belongs to another user.
    #[error("the e-mail address belongs to another user")]
    EmailInUse,
    /// All numbers are taken.
    #[error("all extensions from 1000 to 1999 are taken")]
    PoolExhausted,
}

/// Why the service can't start on a database.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// It can't be reached.
    #[error("the database can't be reached: {0}")]
    Unavailable(String),
    /// It can be reached but not used, or a migration failed, of which none is kept.
    #[error("the database can't be used: {0}")]
    Failed(String),
    /// It belongs to a later major version.
    #[error(
        "the database's schema is of major version {0}, this program's is {SCHEMA_MAJOR_VERSION}: install the release that made it"
    )]
    TooNew(i64),
}

/// A row of the audit log while its apply runs: what is true if the service dies now.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    /// Told to the client.
    pub id: Uuid,
    /// When the apply began.
    pub triggered_at: OffsetDateTime,
    /// Who asked for it.
    pub triggered_by: Name,
    /// On which Asterisk host.
    pub host: String,
    /// `None` for a success.
    pub error_details: Option<String>,
    /// A list of paths.
    pub files_written: Value,
    /// How both reloads went.
    pub reload_results: Value,
}

impl AuditEntry {
    fn outcome(&self) -> &'static str {
        if self.error_details.is_none() { "success" } else { "failure" }
    }
}

/// What a call does with the database.
#[derive(Clone, Copy)]
enum Access {
    Read,
    /// In a transaction.
    Write,
}

/// Why the database does not do what it should.
#[derive(Clone)]
struct Unavailable {
    /// For the log.
    reason: String,
    /// For whoever asked.
    advice: &'static str,
}

impl Unavailable {
    fn told(self, maybe_written: bool) -> StorageError {
        StorageError::Unavailable { reason: self.reason, advice: self.advice, maybe_written }
    }
}

/// Where nothing better is known.
pub const LOOK_AND_TRY_AGAIN: &str = "Look at the service's log, then try again.";

/// A user who is to be created.
#[derive(Debug)]
struct NewUser {
    id: Uuid,
    name: Name,
    email: Email,
    secret: Secret,
    created_at: OffsetDateTime,
}

impl NewUser {
    fn new(name: Name, email: Email, secret: Secret) -> Self {
        Self { id: Uuid::new_v4(), name, email, secret, created_at: now() }
    }

    /// The user, once they have a number.
    fn with_number(self, number: ExtensionNumber) -> User {
        let Self { id, name, email, secret, created_at } = self;
        User { id, tenant_id: DEFAULT_TENANT, name, email, extension: Extension { number, secret }, created_at }
    }
}

/// A user's row with its extension's: id, tenant's id, name, e-mail address, time of creation, number, secret.
type UserRow = (Uuid, Uuid, String, String, OffsetDateTime, i32, String);

/// A row that the service can't have written is an error that names it.
fn parse_user(row: UserRow) -> Result<User, String> {
    let (id, tenant_id, name, email, created_at, number, secret) = row;
    let invalid = |column: &str, rule| format!("{column} of user {id} {rule}: it was edited by hand");
    Ok(User {
        id,
        tenant_id,
        name: Name::parse(&name).map_err(|rule| invalid("name", rule))?,
        email: Email::parse(&email).map_err(|rule| invalid("email", rule))?,
        extension: Extension {
            number: ExtensionNumber::try_from(i64::from(number)).map_err(|rule| invalid("extension", rule))?,
            secret: Secret::parse(&secret).map_err(|rule| invalid("secret", rule))?,
        },
        created_at,
    })
}

/// Whether this program can work with a schema whose latest migration is `version`; `None` before the first.
fn refuse_later(version: Option<i64>) -> Result<(), MigrationError> {
    match version.unwrap_or_default() / 1000 {
        major if major > SCHEMA_MAJOR_VERSION => Err(MigrationError::TooNew(major)),
        _ => Ok(()),
    }
}

macro_rules! on_either {
    ($storage:expr, $backend:ident => $call:expr) => {
        match $storage {
            Storage::Postgres($backend) => $call,
            Storage::Sqlite($backend) => $call,
        }
    };
}

impl Storage {
    /// Gets ready to use the database; nothing is connected yet. PostgreSQL's connections belong to the runtime that this is
    /// called in, SQLite's to two threads that are started here.
    ///
    /// # Errors
    /// No threads can be started.
    ///
    /// # Panics
    /// PostgreSQL's outside a runtime.
    pub fn new(url: &DatabaseUrl) -> io::Result<Self> {
        Ok(match url {
            DatabaseUrl::Postgres(options) => Self::Postgres(postgres::Backend::new(options)),
            DatabaseUrl::Sqlite(file) => Self::Sqlite(sqlite::Backend::new(file)?),
        })
    }

    /// Makes or upgrades the tables.
    ///
    /// # Errors
    /// [`MigrationError`].
    pub async fn migrate(&self) -> Result<(), MigrationError> {
        on_either!(self, backend => backend.migrate().await)
    }

    /// Creates a user with the lowest free extension, in one transaction.
    ///
    /// # Errors
    /// [`StorageError`], all three.
    pub async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        on_either!(self, backend => backend.create_user(name, email, secret).await)
    }

    /// All users of one snapshot, by extension number.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn users(&self) -> Result<Vec<User>, StorageError> {
        on_either!(self, backend => backend.users().await)
    }

    /// The same, with the database's state that they show, unless that is `known`: then nothing was committed since.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn users_unless(&self, known: State) -> Result<Option<(State, Vec<User>)>, StorageError> {
        on_either!(self, backend => backend.users_unless(known).await)
    }

    /// What kind of database it is, and of which version the schema in it: `None` for no schema yet.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn versions(&self) -> Result<(String, Option<i64>), StorageError> {
        on_either!(self, backend => backend.versions().await)
    }

    /// Deletes a user and frees its extension, which is given; `None` if there is no such user.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn delete_user(&self, id: Uuid) -> Result<Option<ExtensionNumber>, StorageError> {
        on_either!(self, backend => backend.delete_user(id).await)
    }

    /// Writes a new row of the audit log.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn begin_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        on_either!(self, backend => backend.begin_audit(entry).await)
    }

    /// Brings a row of the audit log to how its apply ended.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn finish_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        on_either!(self, backend => backend.finish_audit(entry).await)
    }
}

/// Now, as precisely as both databases keep it: what a create answers is what a list will.
pub(crate) fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_millisecond(now.millisecond()).expect("a millisecond of the clock")
}
