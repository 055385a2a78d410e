//! SQLite: a file with a rollback journal, a connection that writes and one that reads.
//!
//! - **One file.** Between two writes the database is one file, so a copy of it is a backup. With a write-ahead log, the latest writes
//!   would be in a second file, which is easily forgotten.
//! - **The lock.** A commit waits until nobody reads, and nobody reads meanwhile. Calls of this process take turns ([`File::commits`]).
//!   Another process may hold the lock, so what finds it taken is repeated until the deadline. SQLite would sleep up to 100 ms between
//!   two tries, and another process that writes without pause would take the lock each time.
//! - **The file.** It may be deleted, replaced or damaged, so [`File::check`] looks when a call takes the connection, when it has the
//!   write lock, and at its end. A file that is put back is used again. One that is overwritten in place keeps its inode, and
//!   [`File::begin_read`] and [`File::begin_write`] forget what was read of the former content.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::Access;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::Instant;

use super::error::{CALL_WITHIN, Failure, LOOK_AND_TRY_AGAIN, StorageError, no_answer, text};
use super::schema::{Inspection, run_migrations};
use super::statements::Connection;
use crate::account::user_name;
use crate::problem::{Problem, problem};

/// For writes, and as many for reads.
pub(super) const CONNECTIONS: usize = 1;

/// How many rows the connection's thread reads ahead: a complete list, so that it never waits for us.
const ROWS_AHEAD: usize = 1000;

/// How long one try waits for the lock.
const LOCK_WITHIN: Duration = Duration::from_millis(5);

/// The last part of a call's time, in which no further try and no commit begins, so that it is known what came of the last one.
const COMMIT_RESERVE: Duration = Duration::from_millis(100);

/// Drops what a connection has read before. SQLite looks only at the file's change counter, which may be equal after the file was
/// overwritten in place.
const FORGET: &str = "PRAGMA shrink_memory";

const RESTORE_ADVICE: &str = "The database's file is damaged, or not in its place: stop the service, restore a backup, start the service; its log shows the command.";

pub(super) struct File {
    path: PathBuf,
    options: SqliteConnectOptions,
    /// Held shared by a read, and alone by a commit.
    commits: RwLock<()>,
    /// The device and inode of the file that was migrated; unset for the command `check`, which migrates none.
    started_on: OnceLock<(u64, u64)>,
    /// What SQLite said when it found damage.
    damage: OnceLock<String>,
}

impl File {
    pub(super) fn new(path: &Path) -> Self {
        // A confirmed write survives a power cut. FULL would not flush the folder after the journal's end, and a journal that came
        // back would undo the write.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .synchronous(SqliteSynchronous::Extra)
            .busy_timeout(LOCK_WITHIN)
            .row_buffer_size(ROWS_AHEAD)
            .disable_statement_logging();
        Self {
            path: path.to_owned(),
            options,
            commits: RwLock::default(),
            started_on: OnceLock::new(),
            damage: OnceLock::new(),
        }
    }

    /// Creates the file, and its folder with mode 0700, if they are missing. Nothing else creates them, so a file that vanishes
    /// later is not replaced by an empty one. One transaction holds the write lock from the first look to the last migration.
    pub(super) async fn migrate(&self) -> Result<Inspection, StorageError> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.folder()).map_err(|error| {
            let folder = self.folder().display();
            StorageError::Unusable(problem!(
                "the folder {folder} can't be created: {error}",
                "set PORTAL_DATA_DIR, or create it for the portal's user"
            ))
        })?;
        // Ends a write-ahead log: the file stores its journal's mode. Only here, because the command 'check' must not change the file.
        let options = self.options.clone().create_if_missing(true).journal_mode(SqliteJournalMode::Delete);
        let migrating = async {
            let mut connection = options.busy_timeout(CALL_WITHIN).connect().await?;
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let mut inspection = self.inspect_on(&mut transaction).await?;
            run_migrations(sqlx::migrate!("migrations/sqlite"), &mut *transaction).await?;
            transaction.commit().await?;
            let _ = connection.close().await;
            // SQLite leaves and ignores an empty write-ahead log, which looks like another program's.
            if self.log().metadata().is_ok_and(|log| log.len() == 0) {
                let _ = fs::remove_file(self.log());
            }
            let _ = self.started_on.set(identity(&self.path).map_err(sqlx::Error::from)?);
            // The service starts all the same: it can list users.
            inspection.advice = self.read_only().map(|problem| problem.to_string());
            Ok::<_, Failure>(inspection)
        };
        let failed = |error: &sqlx::Error| match code(error) {
            // It may pass, so the start tries again.
            Some(BUSY) if self.log().exists() => StorageError::unavailable(
                format!(
                    "{}: its write-ahead log can't be ended while another process has it open",
                    self.path.display()
                ),
                None,
                "End the process that uses the database's file (fuser -v on that file), then start again.",
            ),
            Some(BUSY) => self.explain(error),
            _ if is_damage(error) => StorageError::Unusable(self.how_to_restore(&text(error))),
            _ => StorageError::Unusable(Problem {
                what: format!("{}: {}", self.path.display(), text(error)),
                remedy: "look at DATABASE_URL or PORTAL_DATA_DIR, at who owns the file, and at its disk".to_owned(),
            }),
        };
        migrating.await.map_err(|failure| failure.explained(failed))
    }

    pub(super) async fn inspect(&self) -> Result<Inspection, Failure> {
        let options = self.options.clone().busy_timeout(CALL_WITHIN);
        let inspection = self.inspect_on(&mut options.connect().await?).await?;
        self.read_only().map_or(Ok(inspection), |problem| Err(StorageError::Unusable(problem).into()))
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
    }

    /// Why nothing can be written, and what to do. The journal needs the folder.
    fn read_only(&self) -> Option<Problem> {
        let refused = |(path, right): (&Path, Access)| {
            let error = rustix::fs::access(path, right).err()?;
            Some(Problem {
                what: format!("the user {} can't write to {}: {}", user_name(), path.display(), io::Error::from(error)),
                remedy: "make it writable for that user".to_owned(),
            })
        };
        [(self.path.as_path(), Access::WRITE_OK), (self.folder(), Access::WRITE_OK | Access::EXEC_OK)]
            .into_iter()
            .find_map(refused)
    }

    async fn inspect_on(&self, connection: &mut SqliteConnection) -> Result<Inspection, Failure> {
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

    pub(super) async fn connect(&self, to_read: bool) -> sqlx::Result<SqliteConnection> {
        let thread = if to_read { "sqlite-reader" } else { "sqlite-writer" };
        self.options.clone().thread_name(|_| thread.to_owned()).connect().await
    }

    /// Prepares a connection for a read, during which no call of this process commits.
    pub(super) async fn begin_read(&self, connection: &mut Connection) -> Result<RwLockReadGuard<'_, ()>, Failure> {
        let reading = self.commits.read().await;
        connection.execute(FORGET).await?;
        self.check()?;
        Ok(reading)
    }

    /// Begins a transaction with the write lock.
    pub(super) async fn begin_write(&self, connection: &mut Connection, deadline: Instant) -> Result<(), Failure> {
        connection.execute(FORGET).await?;
        execute_when_unlocked(connection, "BEGIN IMMEDIATE", deadline).await?;
        // The file may have been replaced while this waited for the lock.
        Ok(self.check()?)
    }

    pub(super) async fn commit(
        &self,
        connection: &mut Connection,
        committing: &mut bool,
        deadline: Instant,
    ) -> sqlx::Result<()> {
        let _alone = self.commits.write().await;
        if Instant::now() + COMMIT_RESERVE > deadline {
            return Err(no_answer());
        }
        *committing = true;
        let committed = execute_when_unlocked(connection, "COMMIT", deadline).await;
        // A commit that finds the file locked has not begun.
        *committing = !committed.as_ref().is_err_and(is_locked);
        committed
    }

    /// Fails if the file is known to be damaged, or is no longer the one that the service was started on.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        if let Some(damage) = self.damage.get() {
            return Err(self.to_be_restored(damage));
        }
        let Some(started_on) = self.started_on.get() else { return Ok(()) };
        let path = self.path.display();
        match identity(&self.path) {
            Err(error) => Err(self.to_be_restored(&error.to_string())),
            Ok(found) if found != *started_on => Err(StorageError::unavailable(
                format!("{path}: it was replaced: this is not the file that the service was started on"),
                None,
                "The database's file was replaced: restart the service to use the one that is there now, or put the former back.",
            )),
            Ok(_) if self.log().exists() => Err(StorageError::unavailable(
                format!("{path}: another program gave it a write-ahead log, {}", self.log().display()),
                None,
                "Another program gave the database's file a write-ahead log: restart the service, which ends it.",
            )),
            Ok(_) => Ok(()),
        }
    }

    /// The write-ahead log of another program, or of release 0.1.
    fn log(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push("-wal");
        name.into()
    }

    /// Turns an error into advice. Remembers damage.
    pub(super) fn explain(&self, error: &sqlx::Error) -> StorageError {
        // If the file was replaced, the error may be of the other one.
        if let Err(replaced) = self.check() {
            return replaced;
        }
        if is_damage(error) {
            return self.to_be_restored(self.damage.get_or_init(|| text(error)));
        }
        let advice = match code(error) {
            Some(BUSY) => {
                "The database's file is locked: end the process that locks it (fuser -v on that file), then try again."
            }
            Some(READONLY) => {
                "The database's file, its folder or its disk is read-only to the portal's user: make it writable, then try again."
            }
            Some(IOERR) => "The database's file can't be read or written: look at its disk, then try again.",
            Some(FULL) => "The disk of the database's file is full: free some of it, then try again.",
            Some(CANTOPEN) => "The database's file can't be opened: look at its owner and its folder, then try again.",
            _ if matches!(error, sqlx::Error::Io(cause) if cause.kind() == io::ErrorKind::TimedOut) => {
                "The database's file is locked, or its disk does not answer: look for another process that uses it (fuser -v on that file), and at the disk, then try again."
            }
            _ => LOOK_AND_TRY_AGAIN,
        };
        StorageError::unavailable(format!("{}: {}", self.path.display(), text(error)), None, advice)
    }

    /// The error of a file that is damaged or missing.
    fn to_be_restored(&self, what: &str) -> StorageError {
        let problem = self.how_to_restore(what);
        StorageError::Unavailable { problem, advice: RESTORE_ADVICE, maybe_written: false }
    }

    /// What is wrong with the file, and the commands that restore a backup. If its name is mistyped, nothing is changed. An old journal
    /// is removed, because SQLite would undo the restore with it.
    fn how_to_restore(&self, what: &str) -> Problem {
        let file = self.path.display();
        let folder = self.folder().display();
        problem!(
            "{file}: {what}",
            "stop the service, restore a backup, start the service: test -f BACKUP && rm -f '{file}-journal' '{file}-wal' && install --mode=600 BACKUP '{file}' && chown --reference='{folder}' '{file}'"
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

/// Runs a statement that takes a lock.
async fn execute_when_unlocked(connection: &mut Connection, sql: &'static str, deadline: Instant) -> sqlx::Result<()> {
    loop {
        match connection.execute(sql).await {
            Err(error) if may_get_lock(&error, deadline) => {}
            done => return done,
        }
    }
}

fn is_locked(error: &sqlx::Error) -> bool {
    code(error) == Some(BUSY)
}

/// Whether another process holds the lock, and there is time to try again and to report that.
pub(super) fn may_get_lock(error: &sqlx::Error, deadline: Instant) -> bool {
    is_locked(error) && Instant::now() + COMMIT_RESERVE < deadline
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
