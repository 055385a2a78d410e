//! SQLite: creates queue on the write lock. Within this process writes share one connection, so that they queue in turn, and a
//! create's turn creates all users who wait by then; other processes are met by trying again every millisecond, which starves
//! nobody as SQLite's own growing pauses would.

use std::io;
use std::iter::zip;
use std::mem;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde::Deserialize;
use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::queries::{
    self, Access, Failure, LOOK_AND_TRY_AGAIN, NewUser, Unavailable, insert_extension, insert_user, queries,
};
use super::{
    AuditEntry, DEADLINE, DEFAULT_TENANT, MigrationError, SCHEMA_MAJOR_VERSION, State, StorageError, UserRow,
    parse_user,
};
use crate::domain::{Email, ExtensionNumber, Name, Secret, User};

type Connection = sqlx::SqliteConnection;
type Id = Hyphenated;

/// Everybody, fifty to a row. sqlx hands rows and values over from a thread of SQLite's one by one, which takes three times as
/// long as the query itself; fifties are parsed while the next are read.
const USERS: &str = "\
    WITH RECURSIVE fifties (first) AS (SELECT 1000 UNION ALL SELECT first + 50 FROM fifties WHERE first < 1950) \
    SELECT (SELECT json_group_array(json_array(users.id, users.tenant_id, users.name, users.email, users.created_at, extensions.number, extensions.secret)) \
            FROM extensions JOIN users ON users.id = extensions.user_id WHERE extensions.number BETWEEN first AND first + 49) \
    FROM fifties";

/// At once: between two statements of a call, SQLite's thread and its caller wait for each other.
const INSERT: &str = concat!(insert_user!(), "; ", insert_extension!());

/// With the write lock, a statement sees what all earlier creates did.
const BEGIN_AND_INSERT: &str = concat!("BEGIN IMMEDIATE; ", insert_user!(), "; ", insert_extension!());

/// A connection's count of what others committed, which says nothing on another connection.
const STATE: &str = "SELECT connection || ' ' || data_version FROM temp.this_one, pragma_data_version";

/// Names a connection as none before it was.
const NAME_CONNECTION: &str =
    "PRAGMA temp_store = MEMORY; CREATE TEMP TABLE this_one AS SELECT hex(randomblob(16)) AS connection";

const SERVER_VERSION: &str = "SELECT 'SQLite ' || sqlite_version()";

/// Result codes, in their low byte.
const SQLITE_ERROR: i32 = 1;
/// A lock that somebody else holds.
const SQLITE_BUSY: i32 = 5;
const SQLITE_READONLY: i32 = 8;
const SQLITE_IOERR: i32 = 10;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_CANTOPEN: i32 = 14;
const SQLITE_NOTADB: i32 = 26;

const LOCKED: &str = "Another process holds the lock of the database's file: end it, then try again.";
const RESTORE: &str = "The database's file is damaged, or not in its place: stop the service, restore a backup, start the service; its log has the line that does so.";

/// Between two attempts to take the write lock.
const RETRY: Duration = Duration::from_millis(1);

/// Connections to one database file.
#[derive(Debug, Clone)]
pub struct Backend {
    reader: One,
    writer: One,
    options: Arc<SqliteConnectOptions>,
    file: Arc<DatabaseFile>,
    waiting: Arc<std::sync::Mutex<Vec<Waiting>>>,
    runtime: Handle,
}

/// A create that waits for its turn, and who waits for it.
type Waiting = (NewUser, oneshot::Sender<Result<User, StorageError>>);

/// SQLite goes on with a file that has no name any more, and with what is left of one that is damaged: what it would take
/// then is lost with the file. So once it is known, nothing is taken until a restart.
#[derive(Debug, Default)]
struct DatabaseFile {
    /// The device and inode that the service was started on.
    started_on: OnceLock<(u64, u64)>,
    /// What was seen of the damage.
    damage: OnceLock<String>,
}

impl Backend {
    pub(super) fn new(options: &SqliteConnectOptions) -> Self {
        // A commit that was answered outlasts a power cut: WAL with a flush for each commit.
        let options = options
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .create_if_missing(false)
            .busy_timeout(DEADLINE)
            .disable_statement_logging();
        Self {
            reader: One { first: NAME_CONNECTION, connection: Arc::default() },
            writer: One { first: "PRAGMA busy_timeout = 0", connection: Arc::default() },
            options: Arc::new(options),
            file: Arc::default(),
            waiting: Arc::default(),
            runtime: Handle::current(),
        }
    }

    /// Only here is the file made, and its folder (mode 0700) with it: one that vanishes later is not replaced by an empty one.
    /// One transaction holds the write lock from the first look to the last migration.
    pub(super) async fn migrate(&self) -> Result<(), MigrationError> {
        let file = self.options.get_filename();
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
                let folder = folder.display();
                MigrationError::Failed(format!(
                    "the folder {folder} can't be made: {error}; set PORTAL_DATA_DIR, or make it for the portal's user"
                ))
            })?;
        }
        let failed = |error: sqlx::Error| match low_code(&error) {
            Some(SQLITE_BUSY) => {
                MigrationError::Unavailable(format!("{} is locked by another process", file.display()))
            }
            _ if is_damage(&error) => MigrationError::Failed(self.restore(&error.to_string())),
            _ => MigrationError::Failed(format!(
                "{}: {error}; look at DATABASE_URL or PORTAL_DATA_DIR, at who owns the file, and at its disk",
                file.display()
            )),
        };
        let options = SqliteConnectOptions::clone(&self.options).create_if_missing(true);
        let mut connection = Connection::connect_with(&options).await.map_err(failed)?;
        let found: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await.map_err(failed)?;
        if found != "ok" {
            return Err(MigrationError::Failed(self.restore(&found)));
        }
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        run_migrations(&mut transaction).await?;
        transaction.commit().await.map_err(failed)?;
        let identity = identity(file).map_err(|error| failed(error.into()))?;
        self.file.started_on.get_or_init(|| identity);
        // The schema is there; how the connection closes changes nothing.
        let _ = connection.close().await;
        Ok(())
    }

    /// Whether the file is still the one that the service was started on, and sound as far as is known.
    fn check(&self) -> Result<(), Unavailable> {
        let restore = |what: &str| Err(Unavailable { reason: self.restore(what), advice: RESTORE });
        if let Some(damage) = self.file.damage.get() {
            return restore(damage);
        }
        match (identity(self.options.get_filename()), self.file.started_on.get()) {
            (Ok(found), Some(expected)) if found != *expected => {
                restore("this is not the file that the service was started on")
            }
            (Err(error), Some(_)) => restore(&error.to_string()),
            _ => Ok(()),
        }
    }

    fn explain(&self, error: &sqlx::Error) -> Unavailable {
        let file = self.options.get_filename().display();
        if is_damage(error) {
            let damage = self.file.damage.get_or_init(|| error.to_string());
            return Unavailable { reason: self.restore(damage), advice: RESTORE };
        }
        let advice = match low_code(error) {
            Some(SQLITE_BUSY) => LOCKED,
            Some(SQLITE_READONLY) => {
                "The database's file or its disk is read-only: make it writable for the portal's user, then try again."
            }
            Some(SQLITE_IOERR) => "The database's file can't be read or written: look at its disk, then try again.",
            Some(SQLITE_FULL) => "The disk of the database's file is full: free some of it, then try again.",
            Some(SQLITE_CANTOPEN) => {
                "The database's file can't be opened: look at who may use it and its folder, then try again."
            }
            _ => LOOK_AND_TRY_AGAIN,
        };
        Unavailable { reason: format!("{file}: {error}"), advice }
    }

    fn no_answer(&self) -> Unavailable {
        let file = self.options.get_filename().display();
        Unavailable {
            reason: format!("{file}: another process holds its lock, or its disk does not answer"),
            advice: LOCKED,
        }
    }

    #[expect(clippy::unused_async, reason = "on PostgreSQL it asks the server")]
    async fn why_no_connection(&self, _deadline: Instant) -> Unavailable {
        self.no_answer()
    }

    /// What is wrong with the file, and the line that brings a backup in its place. An old -wal would be read into the backup.
    fn restore(&self, what: &str) -> String {
        let file = self.options.get_filename();
        let folder = file.parent().unwrap_or(Path::new("")).join(".");
        let (file, folder) = (file.display(), folder.display());
        format!(
            "{file}: {what}; stop the service, restore a backup, start the service: rm -f '{file}-wal' '{file}-shm' && install --mode=600 BACKUP '{file}' && chown --reference='{folder}' '{file}'"
        )
    }

    /// A commit waits for the disk, so whoever is the next to write creates all who wait by then.
    pub(super) async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        let new = NewUser::new(name, email, secret);
        let id = new.id;
        let (done, outcome) = oneshot::channel();
        self.waiting().push((new, done));
        let own = self.runtime.spawn(self.clone().create_all(id));
        let panicked = tokio::select! {
            Ok(outcome) = outcome => return outcome,
            Err(panic) = own => panic.to_string(),
            else => "another create panicked".to_owned(),
        };
        Err(Unavailable { reason: panicked, advice: LOOK_AND_TRY_AGAIN }.told(true))
    }

    /// Creates the user with this `id`, if they still wait for it, and who waits with them. All share this one's deadline; when that
    /// is near, it is nobody else's.
    async fn create_all(self, id: Uuid) {
        let deadline = Instant::now() + DEADLINE;
        let borrowed = match self.ready(Access::Write, deadline).await {
            Ok(borrowed) => borrowed,
            Err(error) => return self.refuse(id, error),
        };
        let hurries = deadline.saturating_duration_since(Instant::now()) < DEADLINE / 2;
        let all: Vec<_> = {
            let mut waiting = self.waiting();
            match waiting.iter().position(|(new, _)| new.id == id) {
                None => Vec::new(),
                Some(own) if hurries => vec![waiting.remove(own)],
                Some(_) => mem::take(&mut *waiting),
            }
        };
        if all.is_empty() {
            return borrowed.give_back();
        }
        let (all, done): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let count = all.len();
        let created = self.call_on(borrowed, deadline, Access::Write, |connection| insert_all(connection, all)).await;
        for (done, outcome) in zip(done, created.unwrap_or_else(|error| vec![Err(error); count])) {
            // Nobody minds if the client has gone.
            let _ = done.send(outcome);
        }
    }

    /// Lets a create that still waits end with an error.
    fn refuse(&self, id: Uuid, error: StorageError) {
        let mut waiting = self.waiting();
        if let Some(place) = waiting.iter().position(|(new, _)| new.id == id) {
            let _ = waiting.remove(place).1.send(Err(error));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn borrow(&self, access: Access, deadline: Instant) -> sqlx::Result<Borrowed> {
        match access {
            Access::Read => self.reader.borrow(&self.options, deadline).await,
            Access::Write => self.writer.borrow(&self.options, deadline).await,
        }
    }
}

/// One connection, for one call at a time. A pool would ask SQLite's thread after each call whether it still lives.
#[derive(Debug, Clone)]
struct One {
    /// What it is made ready with.
    first: &'static str,
    connection: Arc<Mutex<Option<Connection>>>,
}

impl One {
    async fn borrow(&self, options: &SqliteConnectOptions, deadline: Instant) -> sqlx::Result<Borrowed> {
        let connected = timeout_at(deadline, async {
            let mut place = self.connection.clone().lock_owned().await;
            let connection = if let Some(connection) = place.take() {
                connection
            } else {
                let mut connection = Connection::connect_with(options).await?;
                connection.execute(self.first).await?;
                connection
            };
            Ok(Borrowed { place, connection })
        });
        connected.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }
}

/// A connection that is closed, not kept, unless that is said: after a panic too.
struct Borrowed {
    place: OwnedMutexGuard<Option<Connection>>,
    connection: Connection,
}

impl Borrowed {
    fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    fn give_back(self) {
        let Self { mut place, connection } = self;
        *place = Some(connection);
    }
}

fn identity(file: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(file).map(|file| (file.dev(), file.ino()))
}

fn low_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// Whether the file is not what it was; that the tables are gone tells it too.
fn is_damage(error: &sqlx::Error) -> bool {
    match low_code(error) {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => true,
        Some(SQLITE_ERROR) => error.to_string().contains("no such table"),
        _ => false,
    }
}

/// Tries until the caller's deadline ends it.
async fn begin_write(connection: &mut Connection) -> sqlx::Result<()> {
    loop {
        match connection.execute("BEGIN IMMEDIATE").await {
            Err(error) if is_locked(&error) => sleep(RETRY).await,
            begun => return begun.map(|_| ()),
        }
    }
}

/// Creates all of them in a transaction, which is begun here, as [`begin_write`] does. Who is refused is not created; the others
/// are.
fn insert_all(connection: &mut Connection, all: Vec<NewUser>) -> Work<'_, Vec<Result<User, StorageError>>> {
    Box::pin(async move {
        let mut outcomes = Vec::with_capacity(all.len());
        let mut statement = BEGIN_AND_INSERT;
        for new in all {
            let inserted = loop {
                match insert_by(statement, &mut *connection, &new).await {
                    Err(Failure::Statement(error)) if is_locked(&error) => sleep(RETRY).await,
                    inserted => break inserted,
                }
            };
            statement = INSERT;
            outcomes.push(match inserted {
                Ok(number) => Ok(new.with_number(number)),
                Err(Failure::Refused(refusal)) => {
                    // Where no number is free, the user stands there without one.
                    sqlx::query(queries::DELETE_USER).bind(Id::from(new.id)).execute(&mut *connection).await?;
                    Err(refusal)
                }
                Err(failure) => return Err(failure),
            });
        }
        if outcomes.iter().all(Result::is_err) {
            // Nothing is kept, so nothing is to be flushed.
            connection.execute("ROLLBACK; BEGIN").await?;
        }
        Ok(outcomes)
    })
}

fn is_locked(error: &sqlx::Error) -> bool {
    low_code(error) == Some(SQLITE_BUSY)
}

/// By extension number.
async fn read_users(connection: &mut Connection) -> sqlx::Result<Vec<User>> {
    let parse = async |fifty: String| {
        let rows: Vec<UserRow<Rfc3339>> =
            serde_json::from_str(&fifty).map_err(|error| sqlx::Error::Decode(error.into()))?;
        rows.into_iter().map(parse_user).collect::<sqlx::Result<Vec<_>>>()
    };
    let mut users: Vec<_> = sqlx::query_scalar(USERS).fetch(connection).and_then(parse).try_concat().await?;
    users.sort_unstable_by_key(|user| user.extension.number);
    Ok(users)
}

/// A time as it is stored.
#[derive(Deserialize)]
struct Rfc3339(#[serde(with = "time::serde::rfc3339")] OffsetDateTime);

impl From<Rfc3339> for OffsetDateTime {
    fn from(time: Rfc3339) -> Self {
        time.0
    }
}

fn violates_email(refusal: &dyn DatabaseError) -> bool {
    refusal.message().contains("users_email_key")
}

fn migrations() -> Migrator {
    sqlx::migrate!("migrations/sqlite")
}

queries!();
