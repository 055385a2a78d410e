//! Users, extensions and the audit log, in PostgreSQL or SQLite.
//!
//! A [`call`] is the same on both databases. What differs is in [`postgres`] and [`sqlite`]: how to connect, how to begin, what an
//! error means. Why so is in `docs/architecture.md`.
//!
//! - **Time.** Each call but a migration ends within [`DEADLINE`], whatever the database does.
//! - **Truth.** A call that fails before it sends COMMIT has changed nothing, and says so. After that, it is unknown.
//! - **Connections.** A connection is used again only outside a transaction. After any other end it is closed. A client that hangs
//!   up cancels nothing, because each call is a task of its own.

mod call;
mod postgres;
mod sqlite;
mod statements;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use time::OffsetDateTime;
use uuid::{Uuid, uuid};

use crate::domain::{Email, ExtensionNumber, Name, Secret, User};
use crate::settings::DatabaseUrl;
use call::{Access, Database, Pool, Work};
use statements::Connection;

/// The one tenant, made by the first migration.
pub const DEFAULT_TENANT: Uuid = uuid!("a0000000-0000-0000-0000-000000000000");

/// The bound of one call. The API promises an answer within 5 seconds.
pub const DEADLINE: Duration = Duration::from_millis(4250);

/// The schema's major version, the thousands of a migration's number. Within one, migrations only add, so that a binary runs on any
/// newer schema of it.
const SCHEMA_MAJOR_VERSION: i64 = 1;

/// The advice for an error without one of its own.
pub const LOOK_AND_TRY_AGAIN: &str = "Look at the service's log, then try again.";

/// The database behind the service.
#[derive(Clone)]
pub struct Storage {
    pool: Arc<Pool>,
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// It cannot be reached, did not answer in time, or failed. That may end by itself.
    #[error("{reason}; {advice}")]
    Unavailable {
        /// The database's message, for the log; never a URL, a password or a value.
        reason: String,
        advice: &'static str,
        /// Whether a write may have happened all the same; [`Pool::call`] sets it.
        maybe_written: bool,
    },
    /// At start: it can be reached but not used, or a migration failed and was rolled back.
    #[error("the database can't be used: {0}")]
    Unusable(String),
    /// Somebody edited a row by hand: which one, and how to correct it.
    #[error("{0}")]
    DamagedRow(String),
    #[error("the e-mail address belongs to another user")]
    EmailInUse,
    #[error("all extensions from 1000 to 1999 are taken")]
    PoolExhausted,
    #[error("there is no such user")]
    UserNotFound,
}

impl StorageError {
    /// A failure. [`Pool::call`] sets `maybe_written` later.
    fn unavailable(reason: String, advice: &'static str) -> Self {
        Self::Unavailable { reason, advice, maybe_written: false }
    }
}

/// What a database says about itself.
pub struct Inspection {
    /// Product and version, and how the service is connected.
    pub server: String,
    /// The number of the latest migration; `None` before the first.
    pub schema: Option<i64>,
    /// What is not as it should be though the service starts, and what to do.
    pub advice: Option<String>,
}

impl Inspection {
    fn new(server: String, schema: Option<i64>, advice: Option<String>) -> Result<Self, StorageError> {
        let major = schema.unwrap_or_default() / 1000;
        if major > SCHEMA_MAJOR_VERSION {
            return Err(StorageError::Unusable(format!(
                "its schema is of major version {major}, this program's is {SCHEMA_MAJOR_VERSION}; install the release that made it"
            )));
        }
        Ok(Self { server, schema, advice })
    }
}

/// A row of the audit log while its apply runs: what is true if the service dies now.
#[derive(Clone)]
pub struct AuditEntry {
    pub id: Uuid,
    pub triggered_at: OffsetDateTime,
    pub triggered_by: Name,
    pub host: String,
    /// `None` for a success.
    pub error_details: Option<String>,
    pub files_written: Value,
    pub reload_results: Value,
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
    pub fn new(url: &DatabaseUrl) -> Self {
        let database = match url {
            DatabaseUrl::Postgres(options) => Database::Postgres(postgres::Server::new(options)),
            DatabaseUrl::Sqlite(file) => Database::Sqlite(sqlite::File::new(file)),
        };
        Self { pool: Arc::new(Pool::new(database)) }
    }

    /// Makes or upgrades the tables. [`StorageError::Unavailable`] may end by itself.
    pub async fn migrate(&self) -> Result<Inspection, StorageError> {
        match &self.pool.database {
            Database::Postgres(server) => server.migrate().await,
            Database::Sqlite(file) => file.migrate().await,
        }
    }

    /// Finds out which database it is, and whether the service can work with it.
    pub async fn inspect(&self) -> Result<Inspection, StorageError> {
        match &self.pool.database {
            Database::Postgres(server) => server.inspect().await,
            Database::Sqlite(file) => file.inspect().await,
        }
    }

    /// Creates a user with the lowest free extension. Can also fail with `EmailInUse` or `PoolExhausted`.
    pub async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        self.call(Access::Create, move |connection| {
            Box::pin(connection.insert_user(name.clone(), email.clone(), secret.clone()))
        })
        .await
    }

    /// All users of one snapshot, by extension number. Can also fail with `DamagedRow`.
    pub async fn users(&self) -> Result<Vec<User>, StorageError> {
        self.call(Access::Read, |connection| Box::pin(connection.users())).await
    }

    /// Deletes a user. Returns the extension that is free again; `None` if the user had none. Can also fail with `UserNotFound`.
    pub async fn delete_user(&self, id: Uuid) -> Result<Option<ExtensionNumber>, StorageError> {
        self.call(Access::Write, move |connection| Box::pin(connection.delete_user(id))).await
    }

    /// Inserts a row of the audit log, or updates it to how its apply ended. It may be gone, after a restored backup.
    pub async fn write_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        self.call(Access::Write, move |connection| Box::pin(connection.write_audit(entry.clone()))).await
    }

    /// Does `work` in a task, so that a caller who goes away does not cancel it.
    async fn call<T: Send + 'static>(
        &self,
        access: Access,
        work: impl for<'c> Fn(&'c mut Connection) -> Work<'c, T> + Send + Sync + 'static,
    ) -> Result<T, StorageError> {
        let pool = self.pool.clone();
        let task = tokio::spawn(async move { pool.call(access, work).await });
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
