//! Users, extensions and the audit log, in PostgreSQL or SQLite.
//!
//! A call takes a connection from a pool, begins a transaction, runs its statements and commits. A call that only reads is one
//! message. That is the same on both databases. What differs is in [`postgres`] and [`sqlite`]: how to connect, how to begin,
//! what an error means.
//!
//! - **Allocation.** A create first takes the one lock that all creates queue on: the tenant's row in PostgreSQL, the write
//!   lock in SQLite. From then on nobody else can take a number, so the lowest free one is free.
//! - **Time.** Each call but a migration ends within [`DEADLINE`], whatever the database does.
//! - **Truth.** A call that fails before it sends COMMIT has changed nothing, and says so. After that, it is unknown.
//! - **Connections.** A connection goes back to its pool only outside a transaction. After any other end it is closed. A client
//!   that hangs up cancels nothing, because each call is a task of its own.
//! - **Schema.** Migrations run at start, one process at a time. The thousands of their numbers are the schema's major version;
//!   within one they only add, and a binary runs on any newer schema of its own major version.

mod call;
mod postgres;
mod sqlite;
mod statements;

use std::time::Duration;

use serde_json::Value;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use uuid::{Uuid, uuid};

use crate::domain::{Email, ExtensionNumber, Name, Secret, User};
use crate::settings::DatabaseUrl;
use call::{Access, Database, Work};
use statements::Connection;

/// The one tenant, made by the first migration.
pub const DEFAULT_TENANT: Uuid = uuid!("a0000000-0000-0000-0000-000000000000");

/// The bound of one call. The API promises an answer within 5 seconds.
pub const DEADLINE: Duration = Duration::from_millis(4250);

/// The schema's major version: migrations 1001 to 1999.
const SCHEMA_MAJOR_VERSION: i64 = 1;

/// The advice for an error without one of its own.
pub const LOOK_AND_TRY_AGAIN: &str = "Look at the service's log, then try again.";

/// The database behind the service.
#[derive(Debug, Clone)]
pub struct Storage {
    database: Database,
    /// Connections belong to the runtime that opened them.
    runtime: Handle,
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// It cannot be reached, did not answer in time, or failed.
    #[error("{reason}; {advice}")]
    Unavailable {
        /// The database's message, for the log; never a URL, a password or a value.
        reason: String,
        /// What to do about it, for the client.
        advice: &'static str,
        /// Whether a write may have happened all the same.
        maybe_written: bool,
    },
    /// Somebody edited a row by hand: which one, and how to correct it.
    #[error("{0}")]
    DamagedRow(String),
    /// The address belongs to another user.
    #[error("the e-mail address belongs to another user")]
    EmailInUse,
    /// All numbers are taken.
    #[error("all extensions from 1000 to 1999 are taken")]
    PoolExhausted,
    /// Nobody has this id.
    #[error("there is no such user")]
    UserNotFound,
}

impl StorageError {
    /// A failure. [`Database::call`] sets `maybe_written` later.
    fn unavailable(reason: String, advice: &'static str) -> Self {
        Self::Unavailable { reason, advice, maybe_written: false }
    }
}

/// Why the service cannot start on a database.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// It cannot be reached. That may end by itself.
    #[error("the database can't be reached: {0}")]
    Unavailable(String),
    /// It can be reached but not used, or a migration failed and was rolled back.
    #[error("the database can't be used: {0}")]
    Failed(String),
}

/// What a database says about itself.
#[derive(Debug)]
pub struct Inspection {
    /// Product and version.
    pub server: String,
    /// The number of the latest migration; `None` before the first.
    pub schema: Option<i64>,
    /// Why the service cannot work with it, and what to do.
    pub obstacle: Option<String>,
}

impl Inspection {
    fn new(server: String, schema: Option<i64>, obstacle: Option<String>) -> Self {
        let major = schema.unwrap_or_default() / 1000;
        let too_new = (major > SCHEMA_MAJOR_VERSION).then(|| {
            format!(
                "its schema is of major version {major}, this program's is {SCHEMA_MAJOR_VERSION}; install the release that made it"
            )
        });
        Self { server, schema, obstacle: obstacle.or(too_new) }
    }

    fn refuse_obstacle(&self) -> Result<(), MigrationError> {
        self.obstacle.clone().map_or(Ok(()), |obstacle| Err(MigrationError::Failed(obstacle)))
    }
}

/// How the service is connected to its database.
#[derive(Debug)]
pub struct Wire {
    /// In words: whether it is encrypted, and the server verified.
    pub found: String,
    /// What to add to `DATABASE_URL`, if secrets leave this machine and the server is not verified.
    pub advice: Option<&'static str>,
}

/// A row of the audit log while its apply runs: what is true if the service dies now.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    /// The client gets it as `audit_log_id`.
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

/// Runs the migrations that are missing. The caller holds a lock, and a transaction that it commits.
async fn run_migrations(mut migrator: Migrator, transaction: &mut impl Migrate) -> sqlx::Result<()> {
    migrator.set_ignore_missing(true).set_locking(false);
    migrator.run_direct(None, transaction, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
        other => other.into(),
    })
}

impl Storage {
    /// Prepares to use the database. Nothing is connected yet.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(url: &DatabaseUrl) -> Self {
        let database = match url {
            DatabaseUrl::Postgres(options) => Database::Postgres(postgres::Server::new(options)),
            DatabaseUrl::Sqlite(file) => Database::Sqlite(sqlite::File::new(file)),
        };
        Self { database, runtime: Handle::current() }
    }

    /// Makes or upgrades the tables.
    ///
    /// # Errors
    /// [`MigrationError`].
    pub async fn migrate(&self) -> Result<(), MigrationError> {
        match &self.database {
            Database::Postgres(server) => server.migrate().await,
            Database::Sqlite(file) => file.migrate().await,
        }
    }

    /// Finds out which database it is, and whether the service can work with it.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn inspect(&self) -> Result<Inspection, StorageError> {
        match &self.database {
            Database::Postgres(server) => server.inspect().await,
            Database::Sqlite(file) => file.inspect().await,
        }
    }

    /// How the service is connected; `None` for a file.
    pub async fn wire(&self) -> Option<Wire> {
        match &self.database {
            Database::Postgres(server) => Some(server.wire().await),
            Database::Sqlite(_) => None,
        }
    }

    /// Creates a user with the lowest free extension.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`], [`StorageError::EmailInUse`], [`StorageError::PoolExhausted`].
    pub async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        self.call(Access::Create, |connection| Box::pin(connection.insert_user(name, email, secret))).await
    }

    /// All users of one snapshot, by extension number.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`], [`StorageError::DamagedRow`].
    pub async fn users(&self) -> Result<Vec<User>, StorageError> {
        self.call(Access::Read, |connection| Box::pin(connection.users())).await
    }

    /// Deletes a user. Returns the extension that is free again; `None` if the user had none.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`], [`StorageError::UserNotFound`].
    pub async fn delete_user(&self, id: Uuid) -> Result<Option<ExtensionNumber>, StorageError> {
        self.call(Access::Write, move |connection| {
            Box::pin(async move {
                let number = connection.delete_extension(id).await?;
                if connection.delete_user(id).await? { Ok(number) } else { Err(StorageError::UserNotFound.into()) }
            })
        })
        .await
    }

    /// Writes a new row of the audit log.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn begin_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        self.call(Access::Write, |connection| Box::pin(async move { Ok(connection.insert_audit(&entry).await?) })).await
    }

    /// Updates a row of the audit log to how its apply ended. Inserts it if it is gone, as it is from a restored backup.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn finish_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        self.call(Access::Write, |connection| {
            Box::pin(async move {
                if !connection.update_audit(&entry).await? {
                    connection.insert_audit(&entry).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Does `work` in a task, so that a caller who goes away does not cancel it.
    async fn call<T: Send + 'static>(
        &self,
        access: Access,
        work: impl for<'c> FnOnce(&'c mut Connection) -> Work<'c, T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let database = self.database.clone();
        let task = self.runtime.spawn(async move { database.call(access, work).await });
        task.await.unwrap_or_else(|panic| {
            let (reason, advice) = (panic.to_string(), LOOK_AND_TRY_AGAIN);
            Err(StorageError::Unavailable { reason, advice, maybe_written: true })
        })
    }
}

/// Now, to the millisecond. Both databases keep that, so a list shows the same time as the answer to a create.
pub(crate) fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_millisecond(now.millisecond()).expect("a millisecond of the clock")
}
