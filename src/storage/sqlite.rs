//! SQLite: a file, one connection that writes and some that read. The deadline, the end of a transaction and what happens to the
//! connection are in [`super::call`]; which number is taken is in [`super::statements`].
//!
//! - **The write lock.** Writes of this process queue for the one connection. Another process may hold the lock, so [`File::begin`]
//!   repeats `BEGIN IMMEDIATE` until the deadline. SQLite would sleep up to 100 ms between two tries, and another process that
//!   writes without pause would take the lock each time.
//! - **The file.** It may be deleted, replaced or damaged, so [`File::check`] looks when a call takes a connection, when it has the
//!   write lock, and at its end. A file that is put back is used again. One that is overwritten in place keeps its inode; only
//!   SQLite itself can find that, as damage.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Pool, Sqlite, SqliteConnection};
use tokio::time::{Instant, timeout};

use super::call::{Access, Failure, NoAnswer, text};
use super::statements::Connection;
use super::{DEADLINE, Inspection, LOOK_AND_TRY_AGAIN, StorageError, run_migrations};

/// Enough for the disk and the two cores of a small server.
const READERS: u32 = 4;

/// How many rows a connection's thread reads ahead: a whole list, so that it never waits for us.
const ROWS_AHEAD: usize = 1000;

/// How long one `BEGIN IMMEDIATE` waits for the lock.
const LOCK_WAIT: Duration = Duration::from_millis(5);

const RESTORE_ADVICE: &str = "The database's file is damaged, or not in its place: stop the service, restore a backup, start the service; its log shows the command.";

/// A database file.
pub(super) struct File {
    path: PathBuf,
    options: SqliteConnectOptions,
    readers: Pool<Sqlite>,
    writer: Pool<Sqlite>,
    /// The device and inode of the file that was migrated; unset for the command `check`, which migrates none.
    started_on: OnceLock<(u64, u64)>,
    /// What SQLite said when it found damage.
    damage: OnceLock<String>,
}

impl File {
    pub(super) fn new(path: &Path) -> Self {
        // WAL with a flush for each commit: a confirmed write survives a power cut.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(DEADLINE)
            .row_buffer_size(ROWS_AHEAD)
            .disable_statement_logging();
        let pool = |connections| {
            // There is no server that could have ended a connection, so none is tested before use.
            SqlitePoolOptions::new().max_connections(connections).acquire_timeout(DEADLINE).test_before_acquire(false)
        };
        Self {
            path: path.to_owned(),
            readers: pool(READERS).connect_lazy_with(options.clone()),
            writer: pool(1)
                .connect_lazy_with(options.clone().busy_timeout(LOCK_WAIT).thread_name(|_| "sqlite-writer".to_owned())),
            options,
            started_on: OnceLock::new(),
            damage: OnceLock::new(),
        }
    }

    /// Creates the file, and its folder with mode 0700, if they are missing. Nothing else creates them, so a file that vanishes
    /// later is not replaced by an empty one. One transaction holds the write lock from the first look to the last migration.
    pub(super) async fn migrate(&self) -> Result<Inspection, StorageError> {
        let path = self.path.as_path();
        let folder = path.parent().unwrap_or(path);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            StorageError::Unusable(format!(
                "the folder {} can't be created: {error}; set PORTAL_DATA_DIR, or create it for the portal's user",
                folder.display()
            ))
        })?;
        let migrating = async {
            let mut connection = self.options.clone().create_if_missing(true).connect().await?;
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let inspection = self.inspected(&mut transaction).await?;
            run_migrations(sqlx::migrate!("migrations/sqlite"), &mut *transaction).await?;
            transaction.commit().await?;
            let _ = connection.close().await;
            let identity = identity(path).map_err(sqlx::Error::from)?;
            self.started_on.get_or_init(|| identity);
            Ok::<_, Failure>(inspection)
        };
        let failed = |error: &sqlx::Error| match code(error) {
            // It may pass, so the start tries again.
            Some(BUSY) => self.explain(error),
            _ if is_damage(error) => StorageError::Unusable(self.how_to_restore(&text(error))),
            _ => StorageError::Unusable(format!(
                "{}: {}; look at DATABASE_URL or PORTAL_DATA_DIR, at who owns the file, and at its disk",
                path.display(),
                text(error)
            )),
        };
        migrating.await.map_err(|failure| failure.explained(failed))
    }

    pub(super) async fn inspect(&self) -> Result<Inspection, StorageError> {
        self.check()?;
        let inspecting = async { self.inspected(&mut *self.readers.acquire().await?).await };
        let inspected = timeout(DEADLINE, inspecting).await.unwrap_or_else(|_| Err(NoAnswer.into()));
        inspected.map_err(|failure| failure.explained(|error| self.explain(error)))
    }

    async fn inspected(&self, connection: &mut SqliteConnection) -> Result<Inspection, Failure> {
        let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut *connection).await?;
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *connection).await?;
        if verdict != "ok" {
            return Err(StorageError::Unusable(self.how_to_restore(&verdict)).into());
        }
        let schema = match sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await {
            Err(error) if lacks_table(&error) => None,
            found => found?,
        };
        Ok(Inspection::new(format!("SQLite {version}"), schema, None)?)
    }

    /// Takes a connection from the pool that the call needs.
    pub(super) async fn connection(&self, access: Access) -> Result<PoolConnection<Sqlite>, StorageError> {
        self.check()?;
        let pool = if access == Access::Read { &self.readers } else { &self.writer };
        pool.acquire().await.map_err(|error| self.explain(&error))
    }

    /// Begins a transaction with the write lock.
    pub(super) async fn begin(&self, connection: &mut Connection, deadline: Instant) -> Result<(), Failure> {
        // Stop early enough to report the lock before the caller's time is over.
        let last = deadline - 2 * LOCK_WAIT;
        loop {
            match connection.execute("BEGIN IMMEDIATE").await {
                Err(error) if code(&error) == Some(BUSY) && Instant::now() < last => {}
                begun => break begun?,
            }
        }
        // The file may have been replaced while this waited for the lock.
        Ok(self.check()?)
    }

    /// Fails if the file is known to be damaged, or is no longer the one that the service was started on.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        let replaced = |started_on: &(u64, u64)| match identity(&self.path) {
            Ok(found) if found == *started_on => None,
            Ok(_) => Some("this is not the file that the service was started on".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let problem = self.damage.get().cloned().or_else(|| self.started_on.get().and_then(replaced));
        problem.map_or(Ok(()), |problem| Err(StorageError::unavailable(self.how_to_restore(&problem), RESTORE_ADVICE)))
    }

    /// Turns an error into advice. Remembers damage.
    pub(super) fn explain(&self, error: &sqlx::Error) -> StorageError {
        if is_damage(error) && self.check().is_ok() {
            self.damage.get_or_init(|| text(error));
        }
        // The error may be of another file, which was put in its place.
        if let Err(replaced) = self.check() {
            return replaced;
        }
        let advice = match code(error) {
            Some(BUSY) => {
                "The database's file is locked: end the process that locks it (fuser -v on that file), then try again."
            }
            Some(READONLY) => {
                "The database's file or its disk is read-only to the portal's user: make it writable, then try again."
            }
            Some(IOERR) => "The database's file can't be read or written: look at its disk, then try again.",
            Some(FULL) => "The disk of the database's file is full: free some of it, then try again.",
            Some(CANTOPEN) => "The database's file can't be opened: look at its owner and its folder, then try again.",
            None if matches!(error, NoAnswer) => {
                "The database's file is locked, or its disk does not answer: look for another process that uses it (fuser -v on that file), and at the disk, then try again."
            }
            _ => LOOK_AND_TRY_AGAIN,
        };
        StorageError::unavailable(format!("{}: {}", self.path.display(), text(error)), advice)
    }

    /// What is wrong with the file, and the commands that restore a backup. If its name is mistyped, the first fails and nothing is
    /// changed. The old -wal is removed, because SQLite would apply it to the backup.
    fn how_to_restore(&self, what: &str) -> String {
        let file = self.path.as_path();
        let folder = file.parent().unwrap_or(Path::new("")).join(".");
        let (file, folder) = (file.display(), folder.display());
        format!(
            "{file}: {what}; stop the service, restore a backup, start the service: install --mode=600 BACKUP '{file}' && rm -f '{file}-wal' '{file}-shm' && chown --reference='{folder}' '{file}'"
        )
    }
}

// SQLite's primary result codes (<https://www.sqlite.org/rescode.html>).
const BUSY: i32 = 5;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;

/// The primary result code, which is the low byte of an extended one.
fn code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// Whether the error shows that the file is damaged. A missing table does too: migrations made all of them before any call.
fn is_damage(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(CORRUPT | NOTADB)) || lacks_table(error)
}

/// SQLite has no result code of its own for this.
fn lacks_table(error: &sqlx::Error) -> bool {
    text(error).contains("no such table")
}

fn identity(file: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(file).map(|file| (file.dev(), file.ino()))
}
