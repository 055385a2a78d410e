//! PostgreSQL: a pool of connections to one server, directly or through PgBouncer.
//!
//! A PgBouncer in transaction mode lends a server connection for one transaction. So nothing here outlasts a transaction:
//! settings are `SET LOCAL`, locks are released by COMMIT, and no statement is prepared under a name.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, FromRow as _, PgConnection, Pool, Postgres, Row as _};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::call::{Access, no_answer, text};
use super::{DEADLINE, Inspection, LOOK_AND_TRY_AGAIN, MigrationError, StorageError, Wire, run_migrations};
use crate::settings::is_this_machine;

/// Enough to keep a server busy. Ten hosts stay well below the default limit of a server, 100.
const CONNECTIONS: u32 = 8;

/// How long a call waits for a connection. It then still has time to find out why there is none.
const PATIENCE: Duration = DEADLINE.saturating_sub(Duration::from_millis(1250));

/// How often [`eagerly`] polls: 320 rounds of the hash, some hundred microseconds.
const POLLS_A_TURN: u32 = 64;

/// The time-outs end a transaction whose host hangs, so that it does not block other hosts.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
    SET LOCAL statement_timeout = '5s'; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// Like [`BEGIN`], and locks the tenant's row. FOR NO KEY UPDATE excludes other creates, but not foreign keys to the tenant.
const BEGIN_CREATE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
    SET LOCAL statement_timeout = '5s'; SET LOCAL idle_in_transaction_session_timeout = '5s'; \
    SELECT 1 FROM tenants WHERE id = 'a0000000-0000-0000-0000-000000000000' FOR NO KEY UPDATE";

/// One process migrates a database at a time. COMMIT releases the lock.
const LOCK_MIGRATIONS: &str = "SELECT pg_advisory_xact_lock(hashtext('pbx-portal migrations'))";

/// Connections to one PostgreSQL. `Debug` does not show the password, as sqlx's options would.
#[derive(Clone)]
pub(super) struct Server {
    pool: Pool<Postgres>,
    options: Arc<PgConnectOptions>,
    asking: Arc<Mutex<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server(…)")
    }
}

impl Server {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        // PgBouncer refuses a session that asks for extra_float_digits.
        let mut options = options.clone().extra_float_digits(None).disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("pbx-portal");
        }
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
        Self { pool: pool.connect_lazy_with(options.clone()), options: Arc::new(options), asking: Arc::default() }
    }

    async fn connect(&self, deadline: Instant) -> sqlx::Result<PgConnection> {
        let connecting = eagerly(PgConnection::connect_with(&self.options));
        timeout_at(deadline, connecting).await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// One transaction holds an advisory lock from the first look to the last migration.
    pub(super) async fn migrate(&self) -> Result<(), MigrationError> {
        let connected = self.connect(Instant::now() + DEADLINE).await;
        let mut connection = connected.map_err(|error| self.cannot_connect(&error))?;
        let failed = |error: sqlx::Error| MigrationError::Failed(explain(&error).to_string());
        let inspection = inspect(&mut connection).await.map_err(failed)?;
        inspection.refuse_obstacle()?;
        // sqlx prepares its statements under names, which an untracked PgBouncer mixes up. Usually there is nothing to do.
        let migrator = sqlx::migrate!("migrations/postgres");
        if inspection.schema.is_none() || !is_up_to_date(&mut connection, &migrator).await.map_err(failed)? {
            let mut transaction = connection.begin().await.map_err(failed)?;
            sqlx::raw_sql(LOCK_MIGRATIONS).execute(&mut *transaction).await.map_err(failed)?;
            run_migrations(migrator, &mut *transaction).await.map_err(failed)?;
            transaction.commit().await.map_err(failed)?;
        }
        let _ = connection.close().await;
        Ok(())
    }

    pub(super) async fn inspect(&self) -> Result<Inspection, StorageError> {
        let deadline = Instant::now() + DEADLINE;
        let mut connection = self.connect(deadline).await.map_err(|error| self.cannot_be_reached(&error))?;
        let inspection = timeout_at(deadline, inspect(&mut connection)).await.unwrap_or_else(|_| Err(no_answer()));
        let _ = connection.close().await;
        inspection.map_err(|error| explain(&error))
    }

    /// How this process is connected to its server.
    pub(super) async fn wire(&self) -> Wire {
        let mode = self.options.get_ssl_mode();
        let remote = self.options.get_socket().is_none() && !is_this_machine(self.options.get_host());
        let encrypted = match mode {
            PgSslMode::Disable | PgSslMode::Allow => false,
            // It falls back to plain text silently, so try whether the server can do better.
            PgSslMode::Prefer => {
                let required = (*self.options).clone().ssl_mode(PgSslMode::Require);
                matches!(timeout(DEADLINE, PgConnection::connect_with(&required)).await, Ok(Ok(_)))
            }
            PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => true,
        };
        let found = match (self.options.get_socket(), mode, encrypted) {
            (Some(_), _, _) => "over a local socket",
            (_, PgSslMode::VerifyFull, _) => "encrypted, and the server is verified",
            (_, PgSslMode::VerifyCa, _) => "encrypted, and the server's certificate is verified, but not its name",
            (_, _, true) => "encrypted, but the server is not verified",
            (_, _, false) => "not encrypted",
        };
        let advice = (remote && !matches!(mode, PgSslMode::VerifyFull)).then_some(
            "the database's server is not verified, so another machine could read SIP secrets: add sslmode=verify-full to DATABASE_URL, and sslrootcert=FILE for an authority of your own",
        );
        Wire { found: found.to_owned(), advice }
    }

    pub(super) async fn connection(&self, deadline: Instant) -> Result<PoolConnection<Postgres>, StorageError> {
        match eagerly(self.pool.acquire()).await {
            Err(sqlx::Error::PoolTimedOut) => Err(self.why_no_connection(deadline).await),
            connection => connection.map_err(|error| self.cannot_be_reached(&error)),
        }
    }

    /// Finds out why the pool gave no connection in time. One call at a time, so that a slow server does not get one more connection
    /// for each call that waits.
    async fn why_no_connection(&self, deadline: Instant) -> StorageError {
        let Ok(_turn) = timeout_at(deadline, self.asking.lock()).await else { return explain(&no_answer()) };
        match self.connect(deadline).await {
            Ok(_) => StorageError::unavailable(
                "all connections to it were busy".to_owned(),
                "The database is too slow, or somebody holds its locks: look at pg_stat_activity, then try again.",
            ),
            Err(error) => self.cannot_be_reached(&error),
        }
    }

    fn cannot_be_reached(&self, error: &sqlx::Error) -> StorageError {
        StorageError::unavailable(self.refusal(error), advice(error))
    }

    /// At start, only failures that may end by themselves are retried.
    fn cannot_connect(&self, error: &sqlx::Error) -> MigrationError {
        let may_pass = match error {
            // An invalid certificate is invalid data; a file may be missing. A socket may be missing until the server is up.
            sqlx::Error::Io(cause) => match cause.kind() {
                ErrorKind::InvalidData | ErrorKind::PermissionDenied => false,
                ErrorKind::NotFound => self.options.get_socket().is_some(),
                _ => true,
            },
            // The server starts or stops, or is out of connections.
            sqlx::Error::Database(refusal) => {
                refusal.code().is_some_and(|code| code.starts_with("57") || code.starts_with("53"))
            }
            _ => false,
        };
        let reason = self.refusal(error);
        if may_pass {
            MigrationError::Unavailable(reason)
        } else {
            MigrationError::Failed(format!("{reason}; look at DATABASE_URL"))
        }
    }

    /// Why the server refuses a connection, with the SQL that mends it where that is known.
    fn refusal(&self, error: &sqlx::Error) -> String {
        let role = self.options.get_username();
        let database = quoted(self.options.get_database().unwrap_or(role));
        let (role, why) = (quoted(role), text(error));
        match sqlstate(error).as_str() {
            "3D000" => format!("{why}; as a superuser run: CREATE DATABASE {database} OWNER {role}"),
            "42501" => format!("{why}; as a superuser run: GRANT CONNECT ON DATABASE {database} TO {role}"),
            _ => why,
        }
    }
}

/// Opens a connection. sqlx hashes the password for it, and yields 800 times meanwhile. On a busy event loop each time costs a turn,
/// so a connection could take seconds. So it is polled many times in each turn.
async fn eagerly<T>(opening: impl Future<Output = T>) -> T {
    let mut opening = pin!(opening);
    poll_fn(|context| {
        let mut polls = (0..POLLS_A_TURN).map(|_| opening.as_mut().poll(context));
        polls.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// Begins a transaction that writes, a create with its lock, in one message.
pub(super) fn begin(access: Access) -> &'static str {
    if access == Access::Create { BEGIN_CREATE } else { BEGIN }
}

/// Whether each migration was run, with the same text.
async fn is_up_to_date(connection: &mut PgConnection, migrator: &Migrator) -> sqlx::Result<bool> {
    let rows =
        sqlx::raw_sql("SELECT version, checksum FROM _sqlx_migrations WHERE success").fetch_all(connection).await?;
    let ran = |row: &PgRow| Ok((row.try_get::<i64, _>(0)?, row.try_get::<Vec<u8>, _>(1)?));
    let ran = rows.iter().map(ran).collect::<sqlx::Result<BTreeMap<_, _>>>()?;
    Ok(migrator.iter().all(|one| ran.get(&one.version).is_some_and(|checksum| **checksum == *one.checksum)))
}

/// Finds out which server it is, and whether the service can work with it, in one unnamed statement.
async fn inspect(connection: &mut PgConnection) -> sqlx::Result<Inspection> {
    let row = sqlx::raw_sql(
        "SELECT 'PostgreSQL ' || current_setting('server_version') AS server, getdatabaseencoding()::text AS encoding, \
         current_user::text AS role, current_database()::text AS database, current_schema()::text AS schema, \
         pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only, \
         coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create, \
         to_regclass('_sqlx_migrations') IS NOT NULL AS migrated, \
         (SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class \
          WHERE oid IN (to_regclass('tenants'), to_regclass('users'), to_regclass('extensions'), to_regclass('apply_audit_logs'), to_regclass('_sqlx_migrations')) \
          AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT') \
          AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))) AS closed",
    )
    .fetch_one(&mut *connection)
    .await?;
    let found = Found::from_row(&row)?;
    let schema = if found.migrated && found.closed.is_none() {
        let version = sqlx::raw_sql("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await?;
        version.try_get(0)?
    } else {
        None
    };
    let obstacle = found.obstacle();
    Ok(Inspection::new(found.server, schema, obstacle))
}

/// What a server says about the database and the portal's role in it.
#[derive(sqlx::FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "the server's own answers")]
struct Found {
    server: String,
    encoding: String,
    role: String,
    database: String,
    /// The schema for new tables: the first of `search_path` that exists.
    schema: Option<String>,
    standby: bool,
    read_only: bool,
    may_create: bool,
    migrated: bool,
    /// Tables that the role may not use.
    closed: Option<String>,
}

impl Found {
    /// Why the service cannot work with it, and what to do.
    fn obstacle(&self) -> Option<String> {
        let (role, database) = (quoted(&self.role), quoted(&self.database));
        if !["UTF8", "SQL_ASCII"].contains(&self.encoding.as_str()) {
            return Some(format!(
                "the database {database} has the encoding {}, which cannot hold every name; make one with CREATE DATABASE name OWNER {role} ENCODING 'UTF8' TEMPLATE template0, and point DATABASE_URL at it",
                self.encoding
            ));
        }
        if self.standby {
            return Some("the server is a standby, which takes no writes; point DATABASE_URL at the primary, or promote it with SELECT pg_promote()".to_owned());
        }
        if self.read_only {
            return Some(format!(
                "the role {role} is read-only in the database {database}; as a superuser run: ALTER ROLE {role} RESET default_transaction_read_only; ALTER DATABASE {database} RESET default_transaction_read_only"
            ));
        }
        let Some(schema) = self.schema.as_deref().map(quoted) else {
            return Some(format!(
                "the role {role} has no schema in its search_path that it may use; as a superuser, in the database {database}, run: GRANT USAGE, CREATE ON SCHEMA public TO {role}; ALTER ROLE {role} IN DATABASE {database} SET search_path = public"
            ));
        };
        if let Some(tables) = &self.closed {
            return Some(format!(
                "the role {role} may not read and write the tables {tables}; as their owner, in the database {database}, run: GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {role}"
            ));
        }
        (!self.migrated && !self.may_create).then(|| {
            format!(
                "the role {role} may not create tables in the schema {schema} of the database {database}; as a superuser, in that database, run: GRANT CREATE ON SCHEMA {schema} TO {role}"
            )
        })
    }
}

/// An identifier, quoted for SQL if necessary.
fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Turns an error of an open connection into advice.
pub(super) fn explain(error: &sqlx::Error) -> StorageError {
    StorageError::unavailable(text(error), advice(error))
}

/// PostgreSQL's code of an error; empty for an error of something else.
fn sqlstate(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(DatabaseError::code).unwrap_or_default().into_owned()
}

/// What to do about an error.
fn advice(error: &sqlx::Error) -> &'static str {
    const NO_ANSWER: &str = "Check that its server is running and can be reached from this host, and look in pg_stat_activity for who holds its locks; then try again.";
    const NO_TABLES: &str = "The database lacks the portal's tables or rows: it is another one than before. Bring the right one back; only for a new one restart the service, which makes them.";
    match (error, sqlstate(error).as_str()) {
        (sqlx::Error::Io(_), _) => NO_ANSWER,
        (sqlx::Error::RowNotFound, _) | (_, "42P01" | "42703" | "3F000") => NO_TABLES,
        (_, "53300") => {
            "The database's server has no connection left: end some, or raise max_connections; then try again."
        }
        (_, "53100") => "The disk of the database's server is full: free some of it, then try again.",
        (_, "25006") => {
            "The database is read-only: make it writable, or point DATABASE_URL at the one that is; then try again."
        }
        (_, "42501") => "The portal's role lacks a right: 'pbx-portal check' says which, and the SQL that grants it.",
        (_, "26000" | "42P05") => {
            "A PgBouncer that does not track prepared statements stands in between: set its max_prepared_statements, or pool_mode = session."
        }
        (_, "3D000") => "The server has no such database: bring it back, or look at DATABASE_URL; then try again.",
        (_, code) if code.starts_with("57P") => "The database's server is stopping or starting: try again in a moment.",
        (_, code) if code.starts_with("28") => {
            "The database's server does not let the portal in: look at DATABASE_URL and pg_hba.conf."
        }
        (_, "55P03" | "57014" | "40P01") => {
            "Somebody holds the database's locks: look at pg_stat_activity, then try again."
        }
        _ => LOOK_AND_TRY_AGAIN,
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::DatabaseUrl;
    use crate::storage::Storage;

    #[tokio::test]
    async fn debug_does_not_show_the_password() {
        let url = DatabaseUrl::parse("postgres://portal:hunter2@localhost/portal").expect("a URL");
        let shown = format!("{:?}", Storage::new(&url));
        assert!(shown.contains("Postgres") && !shown.contains("hunter2"), "{shown}");
    }
}
