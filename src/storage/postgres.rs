//! PostgreSQL: creates queue on the tenant's row.

use std::fmt;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Pool, Postgres};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::queries::{
    self, Access, Failure, LOOK_AND_TRY_AGAIN, NewUser, Unavailable, insert_extension, insert_user, queries,
};
use super::{
    AuditEntry, DEADLINE, DEFAULT_TENANT, MigrationError, SCHEMA_MAJOR_VERSION, State, StorageError, parse_user,
};
use crate::domain::{Email, ExtensionNumber, Name, Secret, User};

type Connection = sqlx::PgConnection;
type Id = Uuid;

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

const USERS: &str = "\
    SELECT users.id, users.tenant_id, users.name, users.email, users.created_at, extensions.number, extensions.secret \
    FROM extensions JOIN users ON users.id = extensions.user_id ORDER BY extensions.number";

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

    /// A server that is another one, or gone, shows it by its answers.
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "on SQLite it looks at the file")]
    fn check(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "on SQLite it names the file")]
    fn explain(&self, error: &sqlx::Error) -> Unavailable {
        Unavailable { reason: error.to_string(), advice: advice(error) }
    }

    #[expect(clippy::unused_self, reason = "on SQLite it names the file")]
    fn no_answer(&self) -> Unavailable {
        Unavailable { reason: "no answer in time".to_owned(), advice: NO_ANSWER }
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
            Ok(Err(error)) => self.explain(&error),
            Err(_) => self.no_answer(),
        }
    }

    /// Once the tenant's row is locked, a statement sees what all earlier creates did.
    pub(super) async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        self.call(Access::Write, move |connection| {
            Box::pin(async move {
                let new = NewUser::new(name, email, secret);
                sqlx::raw_sql(BEGIN_CREATE).fetch_one(&mut *connection).await?;
                let number = insert_by(INSERT_USER_AND_EXTENSION, connection, &new).await?;
                Ok(new.with_number(number))
            })
        })
        .await
    }

    async fn borrow(&self, access: Access, _deadline: Instant) -> sqlx::Result<Borrowed> {
        let pool = match access {
            Access::Read => &self.reader,
            Access::Write => &self.writers,
        };
        pool.acquire().await.map(|connection| Borrowed(Some(connection)))
    }
}

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

async fn begin_write(connection: &mut Connection) -> sqlx::Result<()> {
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map(|_| ())
}

/// By extension number.
async fn read_users(connection: &mut Connection) -> sqlx::Result<Vec<User>> {
    // Planned anew each time: a plan for a few users is kept until PostgreSQL counts them again, and takes 40 ms for a thousand.
    let users = sqlx::query_as(USERS).persistent(false).fetch_all(connection).await?;
    users.into_iter().map(parse_user::<OffsetDateTime>).collect()
}

fn violates_email(refusal: &dyn DatabaseError) -> bool {
    refusal.constraint() == Some("users_email_key")
}

fn migrations() -> Migrator {
    sqlx::migrate!("migrations/postgres")
}

queries!();

#[cfg(test)]
mod tests {
    use crate::config::DatabaseUrl;
    use crate::storage::Storage;

    #[tokio::test]
    async fn the_password_is_not_shown_by_debug() {
        let url = DatabaseUrl::parse("postgres://portal:hunter2@localhost/portal").expect("a URL");
        let shown = format!("{:?}", Storage::new(&url));
        assert!(shown.contains("Postgres") && !shown.contains("hunter2"), "{shown}");
    }
}
