//! SQLite: creates queue on the write lock. Within this process writes share one connection, so that they queue in turn;
//! other processes are met by trying again every millisecond, which starves nobody as SQLite's own growing pauses would.

use std::fmt::Display;
use std::os::unix::fs::DirBuilderExt as _;
use std::pin::Pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde::Deserialize;
use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Pool, Sqlite};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::queries::{self, Failure, queries};
use super::{
    AuditEntry, DEADLINE, DEFAULT_TENANT, MigrationError, SCHEMA_MAJOR_VERSION, StorageError, UserRow, now, parse_user,
};
use crate::domain::{Email, Extension, ExtensionNumber, Name, Secret, User};

type Database = Sqlite;
type Connection = sqlx::SqliteConnection;
type Id = Hyphenated;

const READERS: u32 = 4;

/// Everybody, fifty to a row. sqlx hands rows and values over from a thread of SQLite's one by one, which takes three times as
/// long as the query itself; fifties are parsed while the next are read.
const USERS: &str = "\
    WITH RECURSIVE fifties (first) AS (SELECT 1000 UNION ALL SELECT first + 50 FROM fifties WHERE first < 1950) \
    SELECT (SELECT json_group_array(json_array(users.id, users.tenant_id, users.name, users.email, users.created_at, extensions.number, extensions.secret)) \
            FROM extensions JOIN users ON users.id = extensions.user_id WHERE extensions.number BETWEEN first AND first + 49) \
    FROM fifties";

const SERVER_VERSION: &str = "SELECT 'SQLite ' || sqlite_version()";

/// The result code of a lock that somebody else holds, in its low byte.
const SQLITE_BUSY: i32 = 5;

/// Between two attempts to take the write lock.
const RETRY: Duration = Duration::from_millis(1);

/// Connections to one database file.
#[derive(Debug, Clone)]
pub struct Backend {
    readers: Pool<Sqlite>,
    writer: Pool<Sqlite>,
    options: SqliteConnectOptions,
    runtime: Handle,
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
            .disable_statement_logging();
        let options = options.busy_timeout(DEADLINE);
        let pool = |connections| {
            SqlitePoolOptions::new().max_connections(connections).acquire_timeout(DEADLINE).test_before_acquire(false)
        };
        Self {
            readers: pool(READERS).connect_lazy_with(options.clone()),
            writer: pool(1)
                .after_connect(|connection, _| {
                    Box::pin(async move { connection.execute("PRAGMA busy_timeout = 0").await.map(|_| ()) })
                })
                .connect_lazy_with(options.clone()),
            options,
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
        let unavailable = |error: sqlx::Error| match &error {
            sqlx::Error::Database(refusal) if is_busy(refusal.as_ref()) => {
                MigrationError::Unavailable(format!("{} is locked by another process", file.display()))
            }
            _ => MigrationError::Failed(format!(
                "{}: {error}; look at DATABASE_URL or PORTAL_DATA_DIR, and who owns the file",
                file.display()
            )),
        };
        let options = self.options.clone().create_if_missing(true).busy_timeout(DEADLINE);
        let mut connection = Connection::connect_with(&options).await.map_err(unavailable)?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
        run_migrations(&mut transaction).await?;
        transaction.commit().await.map_err(unavailable)?;
        // The schema is there; how the connection closes changes nothing.
        let _ = connection.close().await;
        Ok(())
    }

    fn read_pool(&self) -> &Pool<Sqlite> {
        &self.readers
    }

    fn write_pool(&self) -> &Pool<Sqlite> {
        &self.writer
    }
}

fn is_busy(refusal: &dyn DatabaseError) -> bool {
    refusal.code().and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == SQLITE_BUSY)
}

/// Tries until the caller's deadline ends it.
async fn begin_write(connection: &mut Connection) -> sqlx::Result<()> {
    loop {
        match connection.execute("BEGIN IMMEDIATE").await {
            Err(sqlx::Error::Database(refusal)) if is_busy(refusal.as_ref()) => sleep(RETRY).await,
            begun => return begun.map(|_| ()),
        }
    }
}

/// The write lock is held since the transaction began.
#[expect(clippy::unused_async, reason = "on PostgreSQL it is a query")]
async fn lock_allocation(_connection: &mut Connection) -> sqlx::Result<()> {
    Ok(())
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
