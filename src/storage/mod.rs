//! Users, extensions and the audit log, in PostgreSQL or SQLite.
//!
//! A [`call`] is the same on both databases. What differs is in [`postgres`] and [`sqlite`]: how to connect, how to begin, what an
//! error means. Why so is in `docs/architecture.md`.
//!
//! - **Time.** Each call but a migration ends within [`error::CALL_WITHIN`], whatever the database does.
//! - **Truth.** A call that fails before it sends COMMIT has changed nothing, and says so. After that, the caller learns that the write may have happened.
//! - **Connections.** A connection is used again only outside a transaction. After any other end it is closed. A client that hangs
//!   up cancels nothing, because each call is a task of its own.

mod call;
mod error;
mod postgres;
mod schema;
mod sqlite;
mod statements;

use std::sync::Arc;

use tokio::time::timeout;
use uuid::Uuid;

use crate::domain::{Email, ExtensionNumber, Name, Secret, User};
use crate::problem::Problem;
use crate::settings::DatabaseUrl;
use call::{Access, Database, Pool, Work};
use error::{CALL_WITHIN, no_answer};
pub use error::{LOOK_AND_TRY_AGAIN, StorageError};
pub use schema::Inspection;
pub use statements::AuditEntry;
use statements::Connection;
pub(crate) use statements::now;

#[derive(Clone)]
pub struct Storage {
    pool: Arc<Pool>,
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
        let database = &self.pool.database;
        let inspecting = timeout(CALL_WITHIN, async {
            match database {
                Database::Postgres(server) => server.inspect().await,
                Database::Sqlite(file) => file.inspect().await,
            }
        });
        let inspected = inspecting.await.unwrap_or_else(|_| Err(no_answer().into()));
        inspected.map_err(|failure| database.explain(failure))
    }

    /// Creates a user with the lowest free extension. Fails with `EmailInUse` or `NoFreeExtension`, besides `Unavailable`.
    pub async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        self.call(Access::Create, move |connection| {
            Box::pin(connection.insert_user(name.clone(), email.clone(), secret.clone()))
        })
        .await
    }

    /// All users of one snapshot, by extension number. Fails with `DamagedRow`, besides `Unavailable`.
    pub async fn users(&self) -> Result<Vec<User>, StorageError> {
        self.call(Access::Read, |connection| Box::pin(connection.users())).await
    }

    /// Deletes a user. Returns the extension that is free again; `None` if the user had none. Fails with `UserNotFound`, besides `Unavailable`.
    pub async fn delete_user(&self, id: Uuid) -> Result<Option<ExtensionNumber>, StorageError> {
        self.call(Access::Write, move |connection| Box::pin(connection.delete_user(id))).await
    }

    /// Inserts or updates a row of the audit log. An update inserts it if a restored backup lacks it.
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
            let problem = Problem { what: panic.to_string(), remedy: LOOK_AND_TRY_AGAIN.to_owned() };
            Err(StorageError::Unavailable { problem, advice: LOOK_AND_TRY_AGAIN, maybe_written: true })
        })
    }
}
