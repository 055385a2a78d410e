//! A call to the database, from its connection to its COMMIT: the same for both.

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

/// What a call does with the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes, with the lock that all creates queue on.
    Create,
}

/// Why the database does not do what it should.
#[derive(Debug, Clone)]
pub(super) struct Unavailable {
    /// For the log.
    pub(super) reason: String,
    /// For the client.
    pub(super) advice: &'static str,
}

impl Unavailable {
    pub(super) fn error(self, maybe_written: bool) -> StorageError {
        StorageError::Unavailable { reason: self.reason, advice: self.advice, maybe_written }
    }
}

/// Why a call failed inside its transaction.
#[derive(Debug)]
pub(super) enum Failure {
    /// A statement failed.
    Statement(sqlx::Error),
    /// The database works, but cannot do this.
    Refused(StorageError),
    /// SQLite's file is not what it was.
    Unavailable(Unavailable),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(error)
    }
}

/// The statements of a call.
pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

impl Database {
    /// Does `work` in a transaction on a connection of a pool, within the deadline.
    pub(super) async fn call<T>(
        &self,
        access: Access,
        work: impl for<'c> FnOnce(&'c mut Connection) -> Work<'c, T>,
    ) -> Result<T, StorageError> {
        let deadline = Instant::now() + DEADLINE;
        let mut borrowed = Borrowed(Some(self.connection(access, deadline).await.map_err(|why| why.error(false))?));
        let connection = borrowed.connection();
        let mut committing = false;
        let ended = timeout_at(deadline, async {
            self.begin(connection, access, deadline).await?;
            let done = work(connection).await?;
            committing = access != Access::Read;
            connection.execute("COMMIT").await?;
            Ok(done)
        })
        .await;
        match ended {
            Ok(Ok(done)) => {
                self.check().map_err(|why| why.error(access != Access::Read))?;
                borrowed.give_back();
                Ok(done)
            }
            Ok(Err(Failure::Refused(refusal))) => {
                if let Ok(Ok(())) = timeout_at(deadline, connection.execute("ROLLBACK")).await {
                    borrowed.give_back();
                }
                Err(refusal)
            }
            Ok(Err(Failure::Unavailable(why))) => Err(why.error(committing)),
            Ok(Err(Failure::Statement(error))) => Err(self.explain(&error).error(committing)),
            Err(_) => Err(self.no_answer().error(committing)),
        }
    }

    async fn connection(&self, access: Access, deadline: Instant) -> Result<Connection, Unavailable> {
        match self {
            Self::Postgres(server) => server.connection(deadline).await.map(Connection::Postgres),
            Self::Sqlite(file) => file.connection(access, deadline).await.map(Connection::Sqlite),
        }
    }

    /// Begins a transaction, with the lock that the access needs.
    async fn begin(&self, connection: &mut Connection, access: Access, deadline: Instant) -> Result<(), Failure> {
        match self {
            Self::Postgres(_) => Ok(postgres::begin(connection, access).await?),
            Self::Sqlite(_) if access == Access::Read => Ok(connection.execute("BEGIN").await?),
            Self::Sqlite(file) => file.begin(connection, deadline).await,
        }
    }

    /// Whether the database is still the one that the service was started on. Only SQLite needs to be asked.
    fn check(&self) -> Result<(), Unavailable> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(file) => file.check(),
        }
    }

    fn explain(&self, error: &sqlx::Error) -> Unavailable {
        match self {
            Self::Postgres(_) => postgres::explain(error),
            Self::Sqlite(file) => file.explain(error),
        }
    }

    fn no_answer(&self) -> Unavailable {
        match self {
            Self::Postgres(_) => postgres::no_answer(),
            Self::Sqlite(file) => file.no_answer(),
        }
    }
}

/// A connection that is closed when it is dropped, after a panic too, unless it is given back.
struct Borrowed(Option<Connection>);

impl Borrowed {
    fn connection(&mut self) -> &mut Connection {
        self.0.as_mut().expect("it is there until it is given back")
    }

    fn give_back(mut self) {
        drop(self.0.take());
    }
}

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
