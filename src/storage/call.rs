//! A call to either database: take a connection, begin, run the statements, commit. A call that only reads is one message, which
//! is a transaction by itself.

use std::pin::Pin;

use sqlx::pool::PoolConnection;
use tokio::time::{Instant, timeout_at};

use super::statements::Connection;
use super::{DEADLINE, StorageError, postgres, sqlite};

/// What a database that does not answer in time fails with. It is sqlx's own for a pool that has no connection.
pub(super) use sqlx::Error::PoolTimedOut as NoAnswer;

/// How to reach each kind of database.
pub(super) enum Database {
    Postgres(postgres::Server),
    Sqlite(sqlite::File),
}

/// What a call does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads, by one message.
    Read,
    /// Writes, in a transaction.
    Write,
    /// Writes, and holds the lock that creates queue on.
    Create,
}

/// Why a call failed after it got its connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) enum Failure {
    Statement(#[from] sqlx::Error),
    /// The statements worked but the call must not go on; or SQLite's file was replaced or damaged.
    Refused(#[from] StorageError),
}

impl Failure {
    /// The error for the caller. `explain` says what an error of a statement means.
    pub(super) fn explained(self, explain: impl FnOnce(&sqlx::Error) -> StorageError) -> StorageError {
        match self {
            Self::Statement(error) => explain(&error),
            Self::Refused(refusal) => refusal,
        }
    }
}

/// The statements of a call.
pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

/// The database's own message.
pub(super) fn text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(refusal) => refusal.message().to_owned(),
        NoAnswer => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}

impl Database {
    /// Runs `work` on a pooled connection, within [`DEADLINE`]: in a transaction, unless it only reads.
    pub(super) async fn call<T>(
        &self,
        access: Access,
        work: impl for<'c> FnOnce(&'c mut Connection) -> Work<'c, T>,
    ) -> Result<T, StorageError> {
        let deadline = Instant::now() + DEADLINE;
        let writes = access != Access::Read;
        let mut committing = false;
        let called = timeout_at(deadline, async {
            let connection = match self {
                Self::Postgres(server) => server.connection().await.map(Connection::Postgres),
                Self::Sqlite(file) => file.connection(access).await.map(Connection::Sqlite),
            };
            let mut borrowed = ClosedUnlessReturned(Some(connection?));
            let connection = borrowed.0.as_mut().expect("it is there until it is returned");
            match self {
                Self::Sqlite(file) if writes => file.begin(connection, deadline).await?,
                Self::Postgres(_) if access == Access::Create => connection.execute(postgres::BEGIN_CREATE).await?,
                Self::Postgres(_) if writes => connection.execute(postgres::BEGIN).await?,
                _ => {}
            }
            let done = work(connection).await;
            // The connection may be broken. It is closed, which rolls back.
            if let Err(Failure::Statement(_)) = done {
                return done;
            }
            if writes && done.is_err() && connection.execute("ROLLBACK").await.is_err() {
                return done;
            }
            if writes && done.is_ok() {
                committing = true;
                connection.execute("COMMIT").await?;
            }
            // Only SQLite's file can be replaced unnoticed.
            if let Self::Sqlite(file) = self {
                file.check()?;
            }
            drop(borrowed.0.take()); // Returns it.
            done
        })
        .await;
        called.unwrap_or_else(|_| Err(NoAnswer.into())).map_err(|failure| {
            let mut failure = failure.explained(|error| match self {
                Self::Postgres(_) => postgres::explain(error),
                Self::Sqlite(file) => file.explain(error),
            });
            if let StorageError::Unavailable { maybe_written, .. } = &mut failure {
                *maybe_written = committing;
            }
            failure
        })
    }
}

/// A connection. Drop closes it, after a panic too, unless it was taken out and so returned to its pool.
struct ClosedUnlessReturned(Option<Connection>);

impl Drop for ClosedUnlessReturned {
    fn drop(&mut self) {
        match self.0.take() {
            // A server that does not answer would not answer to the end of a session either.
            Some(Connection::Postgres(connection)) => drop(PoolConnection::detach(connection)),
            // Its thread may still wait for the disk. Until that ends, the connection counts as one of the pool, so a disk
            // that hangs does not make the service start ever more threads.
            Some(Connection::Sqlite(connection)) => drop(tokio::spawn(connection.close())),
            None => {}
        }
    }
}
