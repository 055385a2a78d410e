//! A call to either database: take a connection, begin, run the statements, commit. A call that only reads is one message, which
//! is a transaction by itself.

use std::io;
use std::pin::Pin;

use sqlx::pool::PoolConnection;
use tokio::time::{Instant, timeout_at};

use super::statements::Connection;
use super::{DEADLINE, StorageError, postgres, sqlite};

/// How to reach each kind of database.
#[derive(Debug, Clone)]
pub(super) enum Database {
    /// Production, many hosts.
    Postgres(postgres::Server),
    /// Embedded, one host.
    Sqlite(sqlite::File),
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads, by one message.
    Read,
    /// Writes.
    Write,
    /// Writes, and holds the lock that creates queue on.
    Create,
}

/// Why a call failed after it got its connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) enum Failure {
    /// A statement failed.
    Statement(#[from] sqlx::Error),
    /// The statements worked but the call must not go on; or SQLite's file was replaced or damaged.
    Refused(#[from] StorageError),
}

/// The statements of a call.
pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

/// The error of a database that does not answer in time.
pub(super) fn no_answer() -> sqlx::Error {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

/// Whether the error is [`no_answer`], or a pool's time-out.
pub(super) fn is_no_answer(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut)
        || matches!(error, sqlx::Error::Io(cause) if cause.kind() == io::ErrorKind::TimedOut)
}

/// The database's own message.
pub(super) fn text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(refusal) => refusal.message().to_owned(),
        error if is_no_answer(error) => "no answer in time".to_owned(),
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
        let mut borrowed = Borrowed(Some(self.connection(access, deadline).await?));
        let connection = borrowed.0.as_mut().expect("it is there until it is given back");
        let writes = access != Access::Read;
        let mut committing = false;
        let ended = timeout_at(deadline, async {
            if writes {
                self.begin(connection, access, deadline).await?;
            }
            let done = work(connection).await?;
            if writes {
                committing = true;
                connection.execute("COMMIT").await?;
            }
            self.check()?;
            Ok(done)
        })
        .await;
        let mut failure = match ended {
            Ok(Ok(done)) => {
                drop(borrowed.0.take());
                return Ok(done);
            }
            // Not on a file that was replaced: this connection may be one to the wrong file.
            Ok(Err(Failure::Refused(refusal))) if !matches!(refusal, StorageError::Unavailable { .. }) => {
                if !writes || matches!(timeout_at(deadline, connection.execute("ROLLBACK")).await, Ok(Ok(()))) {
                    drop(borrowed.0.take());
                }
                refusal
            }
            Ok(Err(Failure::Refused(unavailable))) => unavailable,
            Ok(Err(Failure::Statement(error))) => self.explain(&error),
            Err(_) => self.explain(&no_answer()),
        };
        if let StorageError::Unavailable { maybe_written, .. } = &mut failure {
            *maybe_written = committing;
        }
        Err(failure)
    }

    async fn connection(&self, access: Access, deadline: Instant) -> Result<Connection, StorageError> {
        match self {
            Self::Postgres(server) => server.connection(deadline).await.map(Connection::Postgres),
            Self::Sqlite(file) => file.connection(access, deadline).await.map(Connection::Sqlite),
        }
    }

    /// Begins a transaction that writes, with the lock that the access needs.
    async fn begin(&self, connection: &mut Connection, access: Access, deadline: Instant) -> Result<(), Failure> {
        match self {
            Self::Postgres(_) => Ok(connection.execute(postgres::begin(access)).await?),
            Self::Sqlite(file) => file.begin(connection, deadline).await,
        }
    }

    /// Fails if the database is not the one that the service was started on. Only SQLite can be replaced unnoticed.
    fn check(&self) -> Result<(), StorageError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(file) => file.check(),
        }
    }

    fn explain(&self, error: &sqlx::Error) -> StorageError {
        match self {
            Self::Postgres(_) => postgres::explain(error),
            Self::Sqlite(file) => file.explain(error),
        }
    }
}

/// A connection. Drop closes it, after a panic too, unless it was taken out, which gives it back to its pool.
struct Borrowed(Option<Connection>);

impl Drop for Borrowed {
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
