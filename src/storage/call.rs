//! A call to either database: take a connection, begin, run the statements, commit. A call that only reads is one message, which
//! is a transaction by itself.
//!
//! sqlx's own pool opens a connection while another one is free, again and again, if the server refuses more. Then calls fail
//! that only had to wait. So this is a queue of our own.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::{CALL_WITHIN, Failure, StorageError, no_answer};
use super::statements::{Access, Connection};
use super::{postgres, sqlite};

/// A firewall may forget a connection that was idle for longer.
const IDLE_AT_MOST: Duration = Duration::from_mins(10);

/// How long a server that refused one more connection is not asked for it again.
const FULL_PAUSE: Duration = Duration::from_mins(1);

/// How long a server may count a connection that was closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

/// Between two tries to connect to it.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How to reach each kind of database.
pub(super) enum Database {
    Postgres(postgres::Server),
    Sqlite(sqlite::File),
}

/// The connections to a database.
pub(super) struct Pool {
    pub(super) database: Database,
    queue: Queue,
    /// SQLite has a connection of its own for reads: another process may let nobody write.
    reads: Queue,
    /// Counts the open connections: each has a clone.
    counter: Arc<()>,
}

/// Calls queue for connections: first come, first served.
struct Queue {
    /// One for each connection that may be open.
    places: Arc<Semaphore>,
    /// The connections that no call uses, and since when.
    idle: Mutex<Vec<(Open, Instant)>>,
}

/// An open connection.
struct Open {
    connection: Connection,
    _counted: Arc<()>,
}

/// The statements of a call.
pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

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
        let queue = || Queue { places: Arc::new(Semaphore::new(connections)), idle: Mutex::default() };
        Self { database, queue: queue(), reads: queue(), counter: Arc::default() }
    }

    /// Runs `work` on a connection, within [`CALL_WITHIN`]: in a transaction, unless it only reads.
    ///
    /// What fails before it commits has changed nothing. It is repeated on a new connection if it failed on one that was open
    /// before, and until the deadline while another process locks SQLite's file.
    pub(super) async fn call<T>(
        &self,
        access: Access,
        work: impl for<'c> Fn(&'c mut Connection) -> Work<'c, T>,
    ) -> Result<T, StorageError> {
        let deadline = Instant::now() + CALL_WITHIN;
        let mut attempt = Attempt::default();
        let called = timeout_at(deadline, async {
            loop {
                attempt = Attempt::default();
                let failure = match self.attempt(access, &work, &mut attempt, deadline).await {
                    Err(Failure::Statement(error)) => error,
                    done => return done,
                };
                // What one connection failed of, the others may have too: the server's end, or a setting that is over.
                self.queue.idle().clear();
                self.reads.idle().clear();
                if attempt.committing || !(attempt.reused || self.database.is_worth_waiting_for(&failure, deadline)) {
                    return Err(failure.into());
                }
            }
        });
        let called = called.await.unwrap_or_else(|_| Err(no_answer().into()));
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
        deadline: Instant,
    ) -> Result<T, Failure> {
        let is_own_read = access == Access::Read && matches!(self.database, Database::Sqlite(_));
        let queue = if is_own_read { &self.reads } else { &self.queue };
        let mut lease = self.lease(queue, access, &mut attempt.reused).await?;
        let _reading = match &self.database {
            Database::Sqlite(file) if is_own_read => Some(file.commits.read().await),
            _ => None,
        };
        let connection = &mut lease.open.as_mut().expect("it is there until it is returned").connection;
        match (&self.database, access) {
            (Database::Sqlite(file), _) => file.begin(connection, access, deadline).await?,
            (Database::Postgres(_), Access::Create) => connection.execute(postgres::BEGIN_CREATE).await?,
            (Database::Postgres(_), Access::Write) => connection.execute(postgres::BEGIN).await?,
            (Database::Postgres(_), Access::Read) => {}
        }
        let done = loop {
            match work(connection).await {
                Err(Failure::Statement(error))
                    if is_own_read && self.database.is_worth_waiting_for(&error, deadline) => {}
                done => break done,
            }
        };
        // The connection may be broken. It is closed, which rolls back.
        if let Err(Failure::Statement(_)) = done {
            return done;
        }
        if access != Access::Read && done.is_err() && connection.execute("ROLLBACK").await.is_err() {
            return done;
        }
        if access != Access::Read && done.is_ok() {
            match &self.database {
                Database::Sqlite(file) => file.commit(connection, &mut attempt.committing, deadline).await?,
                Database::Postgres(_) => {
                    attempt.committing = true;
                    connection.execute("COMMIT").await?;
                }
            }
        }
        self.database.check()?;
        queue.idle().extend(lease.open.take().map(|open| (open, Instant::now())));
        done
    }

    /// Waits for a place, and takes a connection that is idle, or opens one. If the server allows fewer than there are places, this
    /// waits for one of those that are open.
    async fn lease(&self, queue: &Queue, access: Access, reused: &mut bool) -> Result<Lease, Failure> {
        let closed = Instant::now() + CLOSED_WITHIN;
        loop {
            let place = queue.places.clone().acquire_owned().await.expect("it is never closed");
            self.database.check()?;
            let idle = queue.idle().pop();
            if let Some((open, _)) = idle.filter(|(_, since)| since.elapsed() < IDLE_AT_MOST) {
                *reused = true;
                return Ok(Lease { open: Some(open), place: Some(place) });
            }
            let opened = match &self.database {
                Database::Postgres(server) => server.connect().await.map(Connection::Postgres),
                Database::Sqlite(file) => file.connect(access).await.map(Connection::Sqlite),
            };
            match (opened, &self.database) {
                (Ok(connection), _) => {
                    let open = Some(Open { connection, _counted: self.counter.clone() });
                    return Ok(Lease { open, place: Some(place) });
                }
                (Err(error), Database::Sqlite(_)) => return Err(error.into()),
                // Somebody else has a connection, and will return it.
                (Err(error), _) if postgres::is_full(&error) && Arc::strong_count(&self.counter) > 1 => {
                    tokio::spawn(async move {
                        sleep(FULL_PAUSE).await;
                        drop(place);
                    });
                }
                (Err(error), _) if postgres::is_full(&error) && Instant::now() < closed => {
                    sleep(CONNECT_PAUSE).await;
                }
                (Err(error), Database::Postgres(server)) => return Err(server.cannot_be_reached(&error).into()),
            }
        }
    }
}

impl Queue {
    fn idle(&self) -> MutexGuard<'_, Vec<(Open, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn is_worth_waiting_for(&self, error: &sqlx::Error, deadline: Instant) -> bool {
        matches!(self, Self::Sqlite(_)) && sqlite::is_worth_waiting_for(error, deadline)
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
