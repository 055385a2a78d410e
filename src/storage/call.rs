//! A call to either database: take a connection, begin, run the statements, commit. A call that only reads is one message, which
//! is a transaction by itself.
//!
//! sqlx's own pool opens a connection while another one is free, again and again, if the server refuses more. Then calls fail
//! that only had to wait. So this is a queue of our own.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::statements::Connection;
use super::{DEADLINE, StorageError, postgres, sqlite};

/// What a database that does not answer in time fails with.
pub(super) use sqlx::Error::PoolTimedOut as NoAnswer;

/// A firewall may forget a connection that was idle for longer.
const IDLE: Duration = Duration::from_mins(10);

/// How long a server that refused one more connection is not asked for it again.
const FULL: Duration = Duration::from_mins(1);

/// How long a server may count a connection that was closed.
const CLOSING: Duration = Duration::from_secs(1);

/// How to reach each kind of database.
pub(super) enum Database {
    Postgres(postgres::Server),
    Sqlite(sqlite::File),
}

/// The connections to a database. Calls queue for them: first come, first served.
pub(super) struct Pool {
    pub(super) database: Database,
    /// One for each connection that may be open.
    places: Arc<Semaphore>,
    /// The connections that no call uses, and since when.
    idle: Mutex<Vec<(Open, Instant)>>,
    /// Counts the connections that are open or being opened: each has a clone.
    counter: Arc<()>,
}

/// An open connection.
struct Open {
    connection: Connection,
    _counted: Arc<()>,
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

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) enum Failure {
    Statement(#[from] sqlx::Error),
    /// The statements worked but the call must not go on; or there is no connection; or SQLite's file was replaced or damaged.
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
        sqlx::Error::Io(cause) => cause.to_string(),
        sqlx::Error::Tls(cause) => cause.to_string(),
        NoAnswer => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}

/// How far a call has come.
#[derive(Default)]
struct Attempt {
    /// On a connection that was open before. The server may have ended it, and its session keeps a setting that is over.
    reused: bool,
    committing: bool,
}

impl Pool {
    pub(super) fn new(database: Database) -> Self {
        let connections = match database {
            Database::Postgres(_) => postgres::CONNECTIONS,
            Database::Sqlite(_) => sqlite::CONNECTIONS,
        };
        let places = Arc::new(Semaphore::new(connections));
        Self { database, places, idle: Mutex::default(), counter: Arc::default() }
    }

    /// Runs `work` on a connection, within [`DEADLINE`]: in a transaction, unless it only reads.
    ///
    /// What fails before it commits has changed nothing. It is repeated on a new connection if it failed on one that was open
    /// before, and until the deadline while SQLite's file is locked.
    pub(super) async fn call<T>(
        &self,
        access: Access,
        work: impl for<'c> Fn(&'c mut Connection) -> Work<'c, T>,
    ) -> Result<T, StorageError> {
        let deadline = Instant::now() + DEADLINE;
        let mut attempt = Attempt::default();
        let called = timeout_at(deadline, async {
            loop {
                attempt = Attempt::default();
                let failure = match self.attempt(access, &work, &mut attempt).await {
                    Err(Failure::Statement(error)) => error,
                    done => return done,
                };
                self.close_idle();
                let is_locked = self.database.is_locked(&failure) && Instant::now() + 2 * sqlite::LOCK_WAIT < deadline;
                if attempt.committing || !(attempt.reused || is_locked) {
                    return Err(failure.into());
                }
            }
        });
        let called = called.await.unwrap_or_else(|_| Err(NoAnswer.into()));
        called.map_err(|failure| {
            let mut failure = failure.explained(|error| match &self.database {
                Database::Postgres(server) => server.explain(error),
                Database::Sqlite(file) => file.explain(error),
            });
            if let StorageError::Unavailable { maybe_written, .. } = &mut failure {
                *maybe_written = attempt.committing;
            }
            failure
        })
    }

    async fn attempt<T>(
        &self,
        access: Access,
        work: &impl for<'c> Fn(&'c mut Connection) -> Work<'c, T>,
        attempt: &mut Attempt,
    ) -> Result<T, Failure> {
        let mut lease = self.lease(&mut attempt.reused).await?;
        let connection = &mut lease.open.as_mut().expect("it is there until it is returned").connection;
        match (&self.database, access) {
            (Database::Sqlite(file), _) => file.begin(connection, access).await?,
            (Database::Postgres(_), Access::Create) => connection.execute(postgres::BEGIN_CREATE).await?,
            (Database::Postgres(_), Access::Write) => connection.execute(postgres::BEGIN).await?,
            (Database::Postgres(_), Access::Read) => {}
        }
        let done = work(connection).await;
        // The connection may be broken. It is closed, which rolls back.
        if let Err(Failure::Statement(_)) = done {
            return done;
        }
        if access != Access::Read && done.is_err() && connection.execute("ROLLBACK").await.is_err() {
            return done;
        }
        if access != Access::Read && done.is_ok() {
            attempt.committing = true;
            let committed = connection.execute("COMMIT").await;
            // A commit that finds SQLite's file locked has not begun.
            attempt.committing = !committed.as_ref().is_err_and(|error| self.database.is_locked(error));
            committed?;
        }
        self.database.check()?;
        self.idle().extend(lease.open.take().map(|open| (open, Instant::now())));
        done
    }

    /// Waits for a place, and takes a connection that is idle, or opens one. If the server allows fewer than there are places, this
    /// waits for one of those that are open.
    async fn lease(&self, reused: &mut bool) -> Result<Lease, Failure> {
        let patience = Instant::now() + CLOSING;
        loop {
            let place = self.places.clone().acquire_owned().await.expect("it is never closed");
            self.database.check()?;
            let idle = self.idle().pop();
            if let Some((open, _)) = idle.filter(|(_, since)| since.elapsed() < IDLE) {
                *reused = true;
                return Ok(Lease { open: Some(open), place: Some(place) });
            }
            let counted = self.counter.clone();
            let opened = match &self.database {
                Database::Postgres(server) => server.connect().await.map(Connection::Postgres),
                Database::Sqlite(file) => file.connect().await.map(Connection::Sqlite),
            };
            match (opened, &self.database) {
                (Ok(connection), _) => {
                    let open = Some(Open { connection, _counted: counted });
                    return Ok(Lease { open, place: Some(place) });
                }
                (Err(error), Database::Sqlite(_)) => return Err(error.into()),
                // Somebody else has a connection, and will return it.
                (Err(error), _) if postgres::is_full(&error) && Arc::strong_count(&self.counter) > 2 => {
                    tokio::spawn(async move {
                        sleep(FULL).await;
                        drop(place);
                    });
                }
                (Err(error), _) if postgres::is_full(&error) && Instant::now() < patience => {
                    drop(counted); // This one will return nothing.
                    sleep(CLOSING / 20).await;
                }
                (Err(error), Database::Postgres(server)) => return Err(server.cannot_be_reached(&error).into()),
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Open, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one connection failed of, the others may have too: the server's end, or a setting that is over.
    fn close_idle(&self) {
        self.idle().clear();
    }
}

impl Database {
    /// Only SQLite's file can be replaced unnoticed.
    fn check(&self) -> Result<(), StorageError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(file) => file.check(),
        }
    }

    fn is_locked(&self, error: &sqlx::Error) -> bool {
        matches!(self, Self::Sqlite(_)) && sqlite::is_locked(error)
    }
}

/// A connection that a call uses. Drop closes it, after a panic too, unless it was taken out and so became idle.
struct Lease {
    open: Option<Open>,
    place: Option<OwnedSemaphorePermit>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A PostgreSQL server that does not answer would not answer to the end of a session either.
        if let Some(Open { connection: Connection::Sqlite(connection), .. }) = self.open.take() {
            // Its thread may still wait for the disk. Until that ends, it keeps its place, so a disk that hangs does not make the
            // service start ever more threads.
            let place = self.place.take();
            tokio::spawn(async move {
                let _ = sqlx::Connection::close(connection).await;
                drop(place);
            });
        }
    }
}
