//! PostgreSQL: creates queue on the tenant's row.

use std::fmt;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Pool, Postgres};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::queries::{self, insert_extension, insert_user};
use super::{
    Access, AuditEntry, DEADLINE, DEFAULT_TENANT, LOOK_AND_TRY_AGAIN, MigrationError, NewUser, State, StorageError,
    Unavailable, UserRow, parse_user, refuse_later,
};
use crate::domain::{Email, ExtensionNumber, Name, Secret, User};

type Connection = sqlx::PgConnection;

/// Enough to keep a database busy, with the one for reading; ten hosts stay well below a server's default of 100.
const WRITERS: u32 = 7;

/// In one statement, whose end finds the user of its beginning.
const INSERT_USER_AND_EXTENSION: &str = concat!("WITH created AS (", insert_user!(), ") ", insert_extension!());

/// Which transactions a statement sees: the snapshot's text differs as soon as one more of them that wrote anything has ended, as
/// long as the connection lasts: another server, or one that crashed, may come to the same numbers. A standby does not tell
/// its snapshots in full, and a proxy may lend a connection that has no name: then no state is like another.
const STATE: &str = "SELECT concat(coalesce(current_setting('portal.connection', true), random()::text), ' ', txid_current_snapshot(), \
    CASE WHEN pg_is_in_recovery() THEN clock_timestamp() END)";

const SERVER_VERSION: &str = "SELECT 'PostgreSQL ' || current_setting('server_version')";

/// How long a call waits for a connection: then it still has a moment to find out why there is none.
const PATIENCE: Duration = DEADLINE.saturating_sub(Duration::from_millis(1250));

/// A host that hangs inside a transaction must not keep the others from creating users.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '5s'; SET statement_timeout = '5s'";

/// Names a connection as none before it was.
const NAME_CONNECTION: &str =
    "SELECT set_config('portal.connection', md5(concat(random(), clock_timestamp(), pg_backend_pid())), false)";

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// In one message, with the lock of the tenant's row. FOR NO KEY UPDATE: creates exclude one another, foreign keys to the tenant
/// do not mind.
const BEGIN_CREATE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
    SELECT 1 FROM tenants WHERE id = 'a0000000-0000-0000-0000-000000000000' FOR NO KEY UPDATE";

/// Connections to one PostgreSQL. `Debug` does not show the password, as sqlx's options would.
#[derive(Clone)]
pub struct Backend {
    /// One connection, so that its state means something the next time.
    reader: Pool<Postgres>,
    writers: Pool<Postgres>,
    options: Arc<PgConnectOptions>,
    asking: Arc<Mutex<()>>,
    runtime: Handle,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend(…)")
    }
}

impl Backend {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        let options = options.clone().application_name("pbx-portal").disable_statement_logging();
        let pool = |connections| PgPoolOptions::new().max_connections(connections).acquire_timeout(PATIENCE);
        let reader = pool(1).after_connect(|connection, _| {
            Box::pin(async move {
                connection.execute(SESSION).await?;
                connection.execute(NAME_CONNECTION).await.map(|_| ())
            })
        });
        let writers = pool(WRITERS)
            .after_connect(|connection, _| Box::pin(async move { connection.execute(SESSION).await.map(|_| ()) }));
        Self {
            reader: reader.connect_lazy_with(options.clone()),
            writers: writers.connect_lazy_with(options.clone()),
            options: Arc::new(options),
            asking: Arc::default(),
            runtime: Handle::current(),
        }
    }

    /// An advisory lock keeps two processes from migrating at once.
    pub(super) async fn migrate(&self) -> Result<(), MigrationError> {
        let connected = timeout(DEADLINE, Connection::connect_with(&self.options)).await;
        let mut connection = connected
            .map_err(|over| MigrationError::Unavailable(over.to_string()))?
            .map_err(|error| cannot_connect(&error, &self.options))?;
        run_migrations(&mut connection).await?;
        // The schema is there; how the connection closes changes nothing.
        let _ = connection.close().await;
        Ok(())
    }

    /// The pool only says that it took too long. One call at a time asks for itself: a slow database must not get a connection
    /// more for each call that waits.
    async fn why_no_connection(&self, deadline: Instant) -> Unavailable {
        let ask = async {
            let _turn = self.asking.lock().await;
            Connection::connect_with(&self.options).await
        };
        match timeout_at(deadline, ask).await {
            Ok(Ok(_)) => Unavailable {
                reason: "all connections to it were busy".to_owned(),
                advice: "The database is too slow, or somebody holds its locks: look at pg_stat_activity, then try again.",
            },
            Ok(Err(error)) => explain(&error),
            Err(_) => no_answer(),
        }
    }

    /// Once the tenant's row is locked, a statement sees what all earlier creates did.
    pub(super) async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        self.call(Access::Write, move |connection| {
            Box::pin(async move {
                let new = NewUser::new(name, email, secret);
                sqlx::raw_sql(BEGIN_CREATE).fetch_one(&mut *connection).await?;
                let number = insert(connection, &new).await?;
                Ok(new.with_number(number))
            })
        })
        .await
    }

    pub(super) async fn users(&self) -> Result<Vec<User>, StorageError> {
        self.call(Access::Read, |connection| Box::pin(async move { Ok(read_users(connection).await?) })).await
    }

    /// The state is asked for first: what was committed between the two shows as another state the next time.
    pub(super) async fn users_unless(&self, known: State) -> Result<Option<(State, Vec<User>)>, StorageError> {
        self.call(Access::Read, |connection| {
            Box::pin(async move {
                let state = State(sqlx::query_scalar(STATE).fetch_one(&mut *connection).await?);
                if state == known { Ok(None) } else { Ok(Some((state, read_users(connection).await?))) }
            })
        })
        .await
    }

    pub(super) async fn versions(&self) -> Result<(String, Option<i64>), StorageError> {
        self.call(Access::Read, |connection| {
            Box::pin(async move {
                let server: String = sqlx::query_scalar(SERVER_VERSION).fetch_one(&mut *connection).await?;
                let schema = match sqlx::query_scalar(queries::SCHEMA_VERSION).fetch_one(connection).await {
                    // There is no such table before the first migration.
                    Err(sqlx::Error::Database(_)) => None,
                    version => version?,
                };
                Ok((server, schema))
            })
        })
        .await
    }

    pub(super) async fn delete_user(&self, id: Uuid) -> Result<Option<ExtensionNumber>, StorageError> {
        self.call(Access::Write, move |connection| {
            Box::pin(async move {
                connection.execute(BEGIN).await?;
                let number: Option<i32> =
                    sqlx::query_scalar(queries::DELETE_EXTENSION).bind(id).fetch_optional(&mut *connection).await?;
                sqlx::query(queries::DELETE_USER).bind(id).execute(&mut *connection).await?;
                Ok(number.and_then(|number| ExtensionNumber::try_from(i64::from(number)).ok()))
            })
        })
        .await
    }

    pub(super) async fn begin_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        self.call(Access::Write, move |connection| {
            Box::pin(async move {
                connection.execute(BEGIN).await?;
                Ok(insert_audit(connection, &entry).await?)
            })
        })
        .await
    }

    /// The row may be gone, with a database that fell back to an earlier state: then it is written anew.
    pub(super) async fn finish_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        self.call(Access::Write, move |connection| {
            Box::pin(async move {
                connection.execute(BEGIN).await?;
                let updated = sqlx::query(queries::UPDATE_AUDIT)
                    .bind(entry.id)
                    .bind(entry.outcome())
                    .bind(&entry.error_details)
                    .bind(&entry.files_written)
                    .bind(&entry.reload_results)
                    .execute(&mut *connection)
                    .await?;
                if updated.rows_affected() == 0 {
                    insert_audit(connection, &entry).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Does `work` on a connection, a write in a transaction that it begins, as a task of its own on the service's runtime (a
    /// connection belongs to the one that made it), within the deadline.
    ///
    /// Transactions are begun and ended by plain statements: sqlx's own, cancelled while it begins, can go back to the pool open.
    async fn call<T: Send + 'static>(
        &self,
        access: Access,
        work: impl for<'c> FnOnce(&'c mut Connection) -> Work<'c, T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let backend = self.clone();
        let task = self.runtime.spawn(async move { backend.call_here(access, work).await });
        task.await.unwrap_or_else(|panic| {
            Err(Unavailable { reason: panic.to_string(), advice: LOOK_AND_TRY_AGAIN }.told(true))
        })
    }

    /// Does `work` where it is called. The connection is used again only after a call that ended as it should, outside a
    /// transaction. It is closed otherwise: a session that was opened while the database took no writes would never take any.
    async fn call_here<T>(
        &self,
        access: Access,
        work: impl for<'c> FnOnce(&'c mut Connection) -> Work<'c, T>,
    ) -> Result<T, StorageError> {
        let deadline = Instant::now() + DEADLINE;
        let pool = match access {
            Access::Read => &self.reader,
            Access::Write => &self.writers,
        };
        let mut borrowed = match pool.acquire().await {
            Ok(connection) => Borrowed(Some(connection)),
            Err(sqlx::Error::PoolTimedOut) => return Err(self.why_no_connection(deadline).await.told(false)),
            Err(error) => return Err(explain(&error).told(false)),
        };
        let connection = borrowed.connection();
        let mut committing = false;
        let ended = timeout_at(deadline, async {
            let done = work(connection).await?;
            if let Access::Write = access {
                committing = true;
                connection.execute("COMMIT").await?;
            }
            Ok(done)
        })
        .await;
        match ended {
            Ok(Ok(done)) => {
                borrowed.give_back();
                Ok(done)
            }
            Ok(Err(Failure::Refused(refusal))) => {
                if let Ok(Ok(_)) = timeout_at(deadline, connection.execute("ROLLBACK")).await {
                    borrowed.give_back();
                }
                Err(refusal)
            }
            Ok(Err(Failure::Statement(error))) => Err(explain(&error).told(committing)),
            Err(_) => Err(no_answer().told(committing)),
        }
    }
}

/// Why a call did not succeed, before it is told to anybody.
enum Failure {
    /// A statement failed.
    Statement(sqlx::Error),
    /// The database can't take it; nothing of the call is kept.
    Refused(StorageError),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(error)
    }
}

type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

/// A connection that is closed, not given back to the pool, unless that is said: after a panic too.
struct Borrowed(Option<PoolConnection<Postgres>>);

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
        drop(self.0.take().map(PoolConnection::detach));
    }
}

/// A server that is not up yet or full is worth waiting for; a wrong password, database or certificate is not.
fn cannot_connect(error: &sqlx::Error, options: &PgConnectOptions) -> MigrationError {
    let worth_waiting = match error {
        // A certificate that is wrong is invalid data, and its file may be missing; a socket may be, until the server is up.
        sqlx::Error::Io(cause) => match cause.kind() {
            ErrorKind::InvalidData | ErrorKind::PermissionDenied => false,
            ErrorKind::NotFound => options.get_socket().is_some(),
            _ => true,
        },
        // Starting or stopping, and out of connections.
        sqlx::Error::Database(refusal) => {
            refusal.code().is_some_and(|code| code.starts_with("57") || code.starts_with("53"))
        }
        _ => false,
    };
    if worth_waiting {
        MigrationError::Unavailable(error.to_string())
    } else {
        MigrationError::Failed(format!("{error}; look at DATABASE_URL"))
    }
}

fn explain(error: &sqlx::Error) -> Unavailable {
    Unavailable { reason: error.to_string(), advice: advice(error) }
}

fn no_answer() -> Unavailable {
    Unavailable { reason: "no answer in time".to_owned(), advice: NO_ANSWER }
}

const NO_ANSWER: &str = "Look whether its server runs and can be reached from this host, and in pg_stat_activity who holds its locks; then try again.";

/// What to do about an error.
fn advice(error: &sqlx::Error) -> &'static str {
    const NO_TABLES: &str = "The database lacks the portal's tables or rows: it is another one than before. Bring the right one back; only for a new one restart the service, which makes them.";
    match error {
        sqlx::Error::Io(_) => NO_ANSWER,
        sqlx::Error::RowNotFound => NO_TABLES,
        sqlx::Error::Database(refusal) => match refusal.code().as_deref().unwrap_or_default() {
            "53300" => {
                "The database's server has no connection left: end some, or raise max_connections; then try again."
            }
            "53100" => "The disk of the database's server is full: free some of it, then try again.",
            "25006" => {
                "The database is read-only: make it writable, or point DATABASE_URL at the one that is; then try again."
            }
            "42P01" | "42703" | "3F000" => NO_TABLES,
            "3D000" => "The server has no such database: bring it back, or look at DATABASE_URL; then try again.",
            code if code.starts_with("57P") => "The database's server is stopping or starting: try again in a moment.",
            code if code.starts_with("28") => {
                "The database's server does not let the portal in: look at DATABASE_URL and pg_hba.conf."
            }
            "55P03" | "57014" | "40P01" => {
                "Somebody holds the database's locks: look at pg_stat_activity, then try again."
            }
            _ => LOOK_AND_TRY_AGAIN,
        },
        _ => LOOK_AND_TRY_AGAIN,
    }
}

/// Inserts a new user, and gives their number.
async fn insert(connection: &mut Connection, new: &NewUser) -> Result<ExtensionNumber, Failure> {
    let insert = sqlx::query_scalar(INSERT_USER_AND_EXTENSION)
        .bind(new.id)
        .bind(DEFAULT_TENANT)
        .bind(new.name.as_str())
        .bind(new.email.as_str())
        .bind(new.created_at)
        .bind(Uuid::new_v4())
        .bind(new.secret.reveal());
    let number: Option<i32> = match insert.fetch_optional(connection).await {
        Err(sqlx::Error::Database(refusal)) if refusal.constraint() == Some("users_email_key") => {
            return Err(Failure::Refused(StorageError::EmailInUse));
        }
        inserted => inserted?,
    };
    let number = number.ok_or(Failure::Refused(StorageError::PoolExhausted))?;
    Ok(ExtensionNumber::try_from(i64::from(number)).expect("the query stays within the pool"))
}

async fn insert_audit(connection: &mut Connection, entry: &AuditEntry) -> sqlx::Result<()> {
    sqlx::query(queries::INSERT_AUDIT)
        .bind(entry.id)
        .bind(entry.triggered_at)
        .bind(entry.triggered_by.as_str())
        .bind(&entry.host)
        .bind(entry.outcome())
        .bind(&entry.error_details)
        .bind(&entry.files_written)
        .bind(&entry.reload_results)
        .execute(connection)
        .await
        .map(|_| ())
}

/// By extension number.
async fn read_users(connection: &mut Connection) -> sqlx::Result<Vec<User>> {
    // Planned anew each time: a plan for a few users is kept until PostgreSQL counts them again, and takes 40 ms for a thousand.
    let users: Vec<UserRow> = sqlx::query_as(queries::USERS).persistent(false).fetch_all(connection).await?;
    let users = users.into_iter().map(|row| parse_user(row).map_err(|why| sqlx::Error::Decode(why.into())));
    users.collect()
}

/// Runs the migrations, and refuses a schema of a later major version.
async fn run_migrations(connection: &mut Connection) -> Result<(), MigrationError> {
    // None before the first migration: there is no such table.
    let version = sqlx::query_scalar(queries::SCHEMA_VERSION).fetch_one(&mut *connection).await;
    refuse_later(version.ok().flatten())?;
    let mut migrator = sqlx::migrate!("migrations/postgres");
    migrator.set_ignore_missing(true);
    migrator.run_direct(None, connection, false).await.map_err(|error| MigrationError::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use crate::settings::DatabaseUrl;
    use crate::storage::Storage;

    #[tokio::test]
    async fn the_password_is_not_shown_by_debug() {
        let url = DatabaseUrl::parse("postgres://portal:hunter2@localhost/portal").expect("a URL");
        let shown = format!("{:?}", Storage::new(&url).expect("nothing is connected yet"));
        assert!(shown.contains("Postgres") && !shown.contains("hunter2"), "{shown}");
    }
}
