//! A call to either database: take a connection, begin, run the statements, commit. A call that only reads is one statement, which is
//! a transaction by itself.
//!
//! If the server refuses one more connection, sqlx's own pool keeps asking for it, although another one has become free: calls fail
//! that only had to wait. So this is a queue of our own.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::{CALL_WITHIN, Failure, StorageError, no_answer};
use super::statements::Connection;
use super::{postgres, sqlite};

/// A firewall may forget a connection that was idle for longer.
const IDLE_AT_MOST: Duration = Duration::from_mins(10);

/// How long one place stays unused after the server refused a connection for it.
const FULL_PAUSE: Duration = Duration::from_mins(1);

/// How long a full server may still count a connection that was closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

/// Between two tries to connect meanwhile.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How to reach each kind of database.
pub(super) enum Database {
    Postgres(postgres::Server),
    Sqlite(sqlite::File),
}

pub(super) struct Pool {
    pub(super) database: Database,
    /// All calls of PostgreSQL; those of SQLite that write.
    queue: Queue,
    /// SQLite's reads: another process may block those that write.
    reads: Queue,
    /// Counts the open connections: each has a clone.
    counter: Arc<()>,
}

/// Calls queue for connections: first come, first served.
struct Queue {
    /// One for each connection that may be open.
    places: Arc<Semaphore>,
    /// The connections that no call uses, and since when.
    idle: Mutex<Vec<(OpenConnection, Instant)>>,
}

struct OpenConnection {
    connection: Connection,
    _counted: Arc<()>,
}

/// What a call needs of the database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// One statement that reads.
    Read,
    /// A transaction.
    Write,
    /// A transaction that holds the lock on which creates queue.
    Create,
}

/// The statements of a call. Boxed, because stable Rust has no bound for the future of an async closure that is `Send`.
pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

/// What is known of a try that failed, or that the time limit ended.
#[derive(Default)]
struct Attempt {
    /// The connection was open before. The server may have closed it, or its session may keep a setting that was changed.
    reused: bool,
    /// COMMIT was sent, so the write may have happened.
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
    /// before, and until the time limit while another process locks SQLite's file.
    pub(super) async fn call<T>(
        &self,
        access: Access,
        work: impl for<'c> Fn(&'c mut Connection) -> Work<'c, T>,
    ) -> Result<T, StorageError> {
        let deadline = Instant::now() + CALL_WITHIN;
        let mut attempt = Attempt::default();
        let calling = timeout_at(deadline, async {
            loop {
                attempt = Attempt::default();
                let error = match self.try_once(access, &work, &mut attempt, deadline).await {
                    Err(Failure::Database(error)) => error,
                    done => return done,
                };
                // The idle connections may fail for the same reason: the server was restarted, or a setting changed.
                self.queue.idle().clear();
                self.reads.idle().clear();
                if attempt.committing || !(attempt.reused || self.database.may_get_lock(&error, deadline)) {
                    return Err(error.into());
                }
            }
        });
        let called = calling.await.unwrap_or_else(|_| Err(no_answer().into()));
        called.map_err(|failure| {
            let mut error = self.database.explain(failure);
            if let StorageError::Unavailable { maybe_written, .. } = &mut error {
                *maybe_written = attempt.committing;
            }
            error
        })
    }

    async fn try_once<T>(
        &self,
        access: Access,
        work: &impl for<'c> Fn(&'c mut Connection) -> Work<'c, T>,
        attempt: &mut Attempt,
        deadline: Instant,
    ) -> Result<T, Failure> {
        let reads_sqlite = access == Access::Read && matches!(self.database, Database::Sqlite(_));
        let mut lease = self.lease(if reads_sqlite { &self.reads } else { &self.queue }, access, attempt).await?;
        let connection = &mut lease.open.as_mut().expect("it is there until it is returned").connection;
        let _reading = match (&self.database, access) {
            (Database::Sqlite(file), Access::Read) => Some(file.begin_read(connection).await?),
            (Database::Sqlite(file), _) => {
                file.begin_write(connection, deadline).await?;
                None
            }
            (Database::Postgres(_), Access::Read) => None,
            (Database::Postgres(_), _) => {
                let creates = access == Access::Create;
                connection.execute(if creates { postgres::BEGIN_CREATE } else { postgres::BEGIN }).await?;
                None
            }
        };
        let done = loop {
            match work(connection).await {
                // A read of SQLite takes the lock by its statement.
                Err(Failure::Database(error)) if reads_sqlite && self.database.may_get_lock(&error, deadline) => {}
                done => break done,
            }
        };
        match (&done, access) {
            // The connection may be broken. Its drop closes it, which rolls back.
            (Err(Failure::Database(_)), _) => return done,
            (_, Access::Read) => {}
            (Ok(_), _) => self.database.commit(connection, attempt, deadline).await?,
            (Err(_), _) => {
                if connection.execute("ROLLBACK").await.is_err() {
                    return done;
                }
            }
        }
        self.database.check()?;
        if let Some(open) = lease.open.take() {
            lease.queue.idle().push((open, Instant::now()));
        }
        done
    }

    /// Waits for a place, and takes a connection that is idle, or opens one. If the server allows fewer than there are places, this
    /// waits for one of those that are open.
    async fn lease<'q>(&self, queue: &'q Queue, access: Access, attempt: &mut Attempt) -> Result<Lease<'q>, Failure> {
        let mut retry_until = None;
        loop {
            let place = queue.places.clone().acquire_owned().await.expect("it is never closed");
            self.database.check()?;
            let idle = queue.idle().pop();
            if let Some((open, _)) = idle.filter(|(_, since)| since.elapsed() < IDLE_AT_MOST) {
                attempt.reused = true;
                return Ok(Lease { queue, open: Some(open), place: Some(place) });
            }
            let connected = match &self.database {
                Database::Postgres(server) => server.connect().await.map(Connection::Postgres),
                Database::Sqlite(file) => file.connect(access == Access::Read).await.map(Connection::Sqlite),
            };
            let error = match connected {
                Ok(connection) => {
                    let open = OpenConnection { connection, _counted: self.counter.clone() };
                    return Ok(Lease { queue, open: Some(open), place: Some(place) });
                }
                Err(error) => error,
            };
            let Database::Postgres(server) = &self.database else { return Err(error.into()) };
            let others_are_open = Arc::strong_count(&self.counter) > 1;
            let retry_until = *retry_until.get_or_insert_with(|| Instant::now() + CLOSED_WITHIN);
            if postgres::is_full(&error) && others_are_open {
                // Their calls return them. For a while, there is one place less.
                tokio::spawn(async move {
                    sleep(FULL_PAUSE).await;
                    drop(place);
                });
            } else if postgres::is_full(&error) && Instant::now() < retry_until {
                sleep(CONNECT_PAUSE).await;
            } else {
                return Err(server.connect_error(&error).into());
            }
        }
    }
}

impl Queue {
    fn idle(&self) -> MutexGuard<'_, Vec<(OpenConnection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Database {
    pub(super) fn explain(&self, failure: Failure) -> StorageError {
        failure.explained(|error| match self {
            Self::Postgres(server) => server.explain(error),
            Self::Sqlite(file) => file.explain(error),
        })
    }

    async fn commit(
        &self,
        connection: &mut Connection,
        attempt: &mut Attempt,
        deadline: Instant,
    ) -> Result<(), Failure> {
        match self {
            Self::Sqlite(file) => file.commit(connection, &mut attempt.committing, deadline).await?,
            Self::Postgres(_) => {
                attempt.committing = true;
                connection.execute("COMMIT").await?;
            }
        }
        Ok(())
    }

    /// Only SQLite's file can be replaced unnoticed.
    fn check(&self) -> Result<(), StorageError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(file) => file.check(),
        }
    }

    fn may_get_lock(&self, error: &sqlx::Error, deadline: Instant) -> bool {
        matches!(self, Self::Sqlite(_)) && sqlite::may_get_lock(error, deadline)
    }
}

/// A connection that a call uses. Drop closes it, after a panic too, unless it was taken out and so became idle.
struct Lease<'q> {
    queue: &'q Queue,
    open: Option<OpenConnection>,
    place: Option<OwnedSemaphorePermit>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Of PostgreSQL, only the socket is closed: a server that does not answer would not answer to the end of a session either.
        if let Some(OpenConnection { connection: Connection::Sqlite(connection), .. }) = self.open.take() {
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
