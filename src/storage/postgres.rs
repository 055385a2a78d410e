//! PostgreSQL: connections to one server, directly or through PgBouncer.
//!
//! Nothing outlasts a transaction, because a PgBouncer may lend another server connection to the next one.

use std::env::{home_dir, var_os};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, FromRow, PgConnection, Row as _};
use tokio::time::timeout;

use super::error::{CALL_WITHIN, Failure, LOOK_AND_TRY_AGAIN, StorageError, no_answer, text};
use super::schema::{Inspection, run_migrations};
use crate::problem::Problem;
use crate::settings::{address, is_this_machine};

/// Enough to keep a server busy. Ten hosts stay well below the default limit of a server, 100.
pub(super) const CONNECTIONS: usize = 8;

/// The time-outs, longer than a call, end a transaction whose host hangs, so that it does not block other hosts.
macro_rules! begin {
    ($then:literal) => {
        concat!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '5s'; \
             SET LOCAL idle_in_transaction_session_timeout = '5s'",
            $then
        )
    };
}

pub(super) const BEGIN: &str = begin!("");

/// Locks the tenant's row, too. FOR NO KEY UPDATE excludes other creates, but not foreign keys to the tenant.
pub(super) const BEGIN_CREATE: &str =
    begin!("; SELECT 1 FROM tenants WHERE id = 'a0000000-0000-0000-0000-000000000000' FOR NO KEY UPDATE");

/// One process migrates a database at a time. COMMIT releases the lock.
const LOCK_MIGRATIONS: &str = "SELECT pg_advisory_xact_lock(hashtext('pbx-portal migrations'))";

const UNVERIFIED: &str = "the database's server is not verified, so another machine could read SIP secrets: add sslmode=verify-full to DATABASE_URL, and sslrootcert=FILE for an authority of your own";

pub(super) struct Server {
    options: PgConnectOptions,
}

impl Server {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        // PgBouncer refuses a session that asks for extra_float_digits.
        let mut options = options.clone().extra_float_digits(None).disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("pbx-portal");
        }
        Self { options }
    }

    /// Runs the migrations that are missing, in one transaction under an advisory lock. Looks before without the lock, because usually
    /// none is missing.
    pub(super) async fn migrate(&self) -> Result<Inspection, StorageError> {
        let mut connection = self.connect().await.map_err(|error| self.connect_error_at_start(&error))?;
        let migrating = async {
            let inspection = self.inspect_on(&mut connection).await?;
            // sqlx prepares its statements under names, which an untracked PgBouncer mixes up. Usually there is nothing to do.
            let migrator = sqlx::migrate!("migrations/postgres");
            if inspection.schema.is_none() || !is_up_to_date(&mut connection, &migrator).await? {
                let mut transaction = connection.begin().await?;
                sqlx::raw_sql(LOCK_MIGRATIONS).execute(&mut *transaction).await?;
                run_migrations(migrator, &mut *transaction).await?;
                transaction.commit().await?;
            }
            let _ = connection.close().await;
            Ok::<_, Failure>(inspection)
        };
        let failed = |error: &sqlx::Error| as_unusable(self.explain(error));
        migrating.await.map_err(|failure| failure.explained(failed))
    }

    pub(super) async fn inspect(&self) -> Result<Inspection, Failure> {
        let mut connection = self.connect().await.map_err(|error| self.connect_error(&error))?;
        let inspection = self.inspect_on(&mut connection).await;
        let _ = connection.close().await;
        inspection
    }

    /// Finds out which server it is, how the service is connected to it, and whether it can work with it.
    async fn inspect_on(&self, connection: &mut PgConnection) -> Result<Inspection, Failure> {
        let found = sqlx::raw_sql(include_str!("inspect.sql")).fetch_one(&mut *connection).await?;
        let server: String = found.try_get("server")?;
        let obstacle: Option<Vec<String>> = found.try_get("obstacle")?;
        let has_migrations: bool = found.try_get("has_migrations")?;
        if let Some([what, remedy]) = obstacle.as_deref() {
            let problem = Problem { what: what.clone(), remedy: remedy.clone() };
            return Err(StorageError::Unusable(problem).into());
        }
        let schema = if has_migrations {
            sqlx::raw_sql("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await?.try_get(0)?
        } else {
            None
        };
        let unverified = self.is_unverified().then(|| UNVERIFIED.to_owned());
        let advice: Vec<_> = unverified.into_iter().chain(self.ignored()).collect();
        let advice = (!advice.is_empty()).then(|| advice.join("; "));
        Ok(Inspection::new(format!("{server} ({})", self.protection().await), schema, advice)?)
    }

    /// Whether another machine could take the server's place.
    fn is_unverified(&self) -> bool {
        let is_local = self.options.get_socket().is_some() || is_this_machine(self.options.get_host());
        !is_local && !matches!(self.options.get_ssl_mode(), PgSslMode::VerifyFull)
    }

    /// How connections are protected.
    async fn protection(&self) -> &'static str {
        match self.options.get_ssl_mode() {
            _ if self.options.get_socket().is_some() => "over a local socket",
            PgSslMode::VerifyFull => "encrypted, and the server is verified",
            PgSslMode::VerifyCa => "encrypted, and the server's certificate is verified, but not its name",
            PgSslMode::Disable | PgSslMode::Allow => "not encrypted",
            // It falls back to plain text silently, so try whether the server can do better.
            PgSslMode::Prefer if connect(&self.options.clone().ssl_mode(PgSslMode::Require)).await.is_err() => {
                "not encrypted"
            }
            PgSslMode::Prefer | PgSslMode::Require => "encrypted, but the server is not verified",
        }
    }

    pub(super) async fn connect(&self) -> sqlx::Result<PgConnection> {
        connect(&self.options).await
    }

    /// Why there is no connection, and what to do.
    pub(super) fn connect_error(&self, error: &sqlx::Error) -> StorageError {
        let (what, sql, advice) = match self.tls_problem(error) {
            Some((what, advice)) => (what, None, advice),
            None => (self.refusal(error), self.sql_for(error), advice(error)),
        };
        let details: Vec<_> = sql.into_iter().chain(self.ignored()).collect();
        StorageError::unavailable(what, (!details.is_empty()).then(|| details.join("; ")), advice)
    }

    /// Turns an error of an open connection into advice.
    pub(super) fn explain(&self, error: &sqlx::Error) -> StorageError {
        match error {
            // It names the address.
            sqlx::Error::Io(_) => self.connect_error(error),
            _ => StorageError::unavailable(text(error), None, advice(error)),
        }
    }

    /// At start, only failures that may end by themselves are retried.
    fn connect_error_at_start(&self, error: &sqlx::Error) -> StorageError {
        let may_pass = match error {
            // An invalid certificate is invalid data; a file may be missing. A socket may be missing until the server is up.
            sqlx::Error::Io(cause) if cause.kind() == ErrorKind::NotFound => self.options.get_socket().is_some(),
            sqlx::Error::Io(cause) => !matches!(cause.kind(), ErrorKind::InvalidData | ErrorKind::PermissionDenied),
            // The server starts or stops, or is out of connections.
            _ => is_full(error) || matches!(sqlstate(error).get(..2), Some("57" | "53")),
        };
        let unavailable = self.connect_error(error);
        if may_pass { unavailable } else { as_unusable(unavailable) }
    }

    /// Why the server refuses a connection. An error of something else does not name the server.
    fn refusal(&self, error: &sqlx::Error) -> String {
        let why = text(error);
        if sqlstate(error).is_empty() { format!("{}: {why}", address(&self.options)) } else { why }
    }

    /// The SQL that makes the server accept the connection, where it is known.
    fn sql_for(&self, error: &sqlx::Error) -> Option<String> {
        let role = self.options.get_username();
        let database = quoted(self.options.get_database().unwrap_or(role));
        let role = quoted(role);
        let why = text(error);
        let sql = match sqlstate(error).as_str() {
            "3D000" => format!("CREATE DATABASE {database} OWNER {role}"),
            "42501" => format!("GRANT CONNECT ON DATABASE {database} TO {role}"),
            "53300" if why.contains("for role") => format!("ALTER ROLE {role} CONNECTION LIMIT -1"),
            "53300" if why.contains("for database") => format!("ALTER DATABASE {database} CONNECTION LIMIT -1"),
            _ => return None,
        };
        Some(format!("as a superuser run: {sql}"))
    }

    /// What is wrong with TLS or its files, and what to do. sqlx reads the files for each connection, and does not name them.
    fn tls_problem(&self, error: &sqlx::Error) -> Option<(String, &'static str)> {
        use ErrorKind::{InvalidData, IsADirectory, NotFound, PermissionDenied};
        let is_of_files = matches!(error, sqlx::Error::Tls(_) | sqlx::Error::Configuration(_));
        let may_be =
            |cause: &std::io::Error| matches!(cause.kind(), InvalidData | IsADirectory | NotFound | PermissionDenied);
        if !is_of_files && !matches!(error, sqlx::Error::Io(cause) if may_be(cause)) {
            return None;
        }
        let url = self.fit_for_url().to_url_lossy();
        // sqlx shows a file as `sslrootcert=file: PATH`.
        let files =
            url.query_pairs().filter_map(|(name, value)| Some((name, value.strip_prefix("file: ")?.to_owned())));
        let mut names = Vec::new();
        for (name, file) in files {
            let wrong = match std::fs::read(&file) {
                Err(error) => format!("can't be read: {error}"),
                Ok(bytes) if bytes.trim_ascii().is_empty() => "is empty".to_owned(),
                Ok(bytes) if !String::from_utf8_lossy(&bytes).contains("-----BEGIN ") => {
                    "is not in PEM form".to_owned()
                }
                Ok(_) => {
                    names.push(format!("{name}={file}"));
                    continue;
                }
            };
            return Some((format!("{name}={file} {wrong}"), TLS));
        }
        let (why, address) = (text(error), address(&self.options));
        if let Some((_, advice)) = TLS_ADVICE.iter().find(|(words, _)| why.contains(words)) {
            return Some((format!("{address}: {why}"), advice));
        }
        let what = if names.is_empty() { address } else { format!("{} can't be used", names.join(", ")) };
        is_of_files.then(|| (format!("{what}: {why}"), TLS))
    }

    /// What libpq would use and sqlx does not, and what to do.
    fn ignored(&self) -> Vec<String> {
        let mut ignored = Vec::new();
        if var_os("PGSERVICE").is_some() {
            ignored.push("PGSERVICE is ignored; set DATABASE_URL to what it stands for".to_owned());
        }
        let files = [var_os("PGPASSFILE").map(PathBuf::from), home_dir().map(|home| home.join(".pgpass"))];
        let has_password = self.fit_for_url().to_url_lossy().password().is_some();
        for file in files.into_iter().flatten() {
            if !has_password && file.metadata().is_ok_and(|file| file.mode() & 0o077 != 0) {
                ignored.push(format!("{0} is ignored, because others may read it; run: chmod 600 {0}", file.display()));
            }
        }
        ignored
    }

    /// sqlx shows the password and the TLS files only in a URL, which can't have every host and user: here, both are others.
    fn fit_for_url(&self) -> PgConnectOptions {
        self.options.clone().host("host").username("user")
    }
}

/// A failure that does not end by itself.
fn as_unusable(error: StorageError) -> StorageError {
    match error {
        StorageError::Unavailable { problem, .. } => StorageError::Unusable(problem),
        other => other,
    }
}

/// Within the limit of a call: a migration has none of its own.
async fn connect(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    timeout(CALL_WITHIN, PgConnection::connect_with(options)).await.unwrap_or_else(|_| Err(no_answer()))
}

/// Whether each migration was run, with the same text.
async fn is_up_to_date(connection: &mut PgConnection, migrator: &Migrator) -> sqlx::Result<bool> {
    let sql = "SELECT version, checksum FROM _sqlx_migrations WHERE success";
    let rows = sqlx::raw_sql(sql).fetch_all(connection).await?;
    let ran = rows.iter().map(FromRow::from_row).collect::<sqlx::Result<Vec<(i64, Vec<u8>)>>>()?;
    Ok(migrator.iter().all(|one| ran.contains(&(one.version, one.checksum.to_vec()))))
}

/// An identifier, quoted for SQL if necessary.
fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// PostgreSQL's code of an error; empty for an error of something else.
fn sqlstate(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(DatabaseError::code).unwrap_or_default().into_owned()
}

/// Whether the server refuses one more connection.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    // A PgBouncer has a code of its own.
    sqlstate(error) == "53300" || text(error).contains("no more connections allowed")
}

const NO_ANSWER: &str = "Check that its server is running and can be reached from this host, and look in pg_stat_activity for who holds its locks; then try again.";
const TLS: &str = "TLS with the database's server does not work: look at the sslmode, sslrootcert, sslcert and sslkey of DATABASE_URL and at their files; the service's log says what is wrong.";

/// Words of an error of TLS, and what to do.
const TLS_ADVICE: [(&str, &str); 6] = [
    (
        "CaUsedAsEndEntity",
        "The server's certificate is an authority's. Make one that is not: openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -keyout server.key -out server.crt -subj /CN=HOST -addext subjectAltName=DNS:HOST -addext basicConstraints=critical,CA:FALSE; then give that as sslrootcert.",
    ),
    (
        "UnknownIssuer",
        "The authority that signed the server's certificate is not known: set sslrootcert=FILE in DATABASE_URL to that authority's certificate.",
    ),
    // Of "Expired" and "expired".
    ("xpired", "The certificate of the database's server has expired: renew it, or set this machine's clock."),
    (
        "not valid yet",
        "The certificate of the database's server is not valid yet: set this machine's clock, or that server's.",
    ),
    (
        "not valid for name",
        "The certificate of the database's server is of another host name: name in DATABASE_URL the host that it is of, or make one for this name.",
    ),
    (
        "server does not support TLS",
        "The database's server has no TLS: set ssl = on in its postgresql.conf, or another sslmode in DATABASE_URL.",
    ),
];

/// What to do about an error.
fn advice(error: &sqlx::Error) -> &'static str {
    let why = text(error);
    match sqlstate(error).as_str() {
        _ if matches!(error, sqlx::Error::Io(_)) => NO_ANSWER,
        "42P01" | "42703" | "3F000" | "23503" => {
            "The database lacks the portal's tables or rows: it is another one than before. Bring the right one back; only for a new one restart the service, which makes them."
        }
        "53300" if why.contains("for role") => {
            "The portal's role has no connection left: end some, or raise the role's CONNECTION LIMIT; then try again."
        }
        "53300" if why.contains("for database") => {
            "The database has no connection left: end some, or raise its CONNECTION LIMIT; then try again."
        }
        "53300" => "The database's server has no connection left: end some, or raise max_connections; then try again.",
        _ if why.contains("no more connections allowed") => {
            "The PgBouncer before the database has no connection left: end some, or raise its limit, which the service's log names; then try again."
        }
        "53100" => "The disk of the database's server is full: free some of it, then try again.",
        "25006" => "The database is read-only: make it writable, or set DATABASE_URL to one that is; then try again.",
        "42501" => "The portal's role lacks a right: 'pbx-portal check' says which, and the SQL that grants it.",
        "26000" | "42P05" => {
            "A PgBouncer that does not track prepared statements stands in between: set its max_prepared_statements, or pool_mode = session."
        }
        "3D000" => "The server has no such database: bring it back, or look at DATABASE_URL; then try again.",
        code if code.starts_with("57P") => "The database's server is stopping or starting: try again in a moment.",
        code if code.starts_with("28") => {
            "The server does not let the portal in: look at DATABASE_URL and pg_hba.conf."
        }
        "55P03" | "57014" | "40P01" => "Somebody holds the database's locks: look at pg_stat_activity, then try again.",
        _ => LOOK_AND_TRY_AGAIN,
    }
}
