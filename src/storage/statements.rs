//! The statements on users, extensions and the audit log, written once for both databases, and a connection to either that runs them.
//!
//! PostgreSQL has types for identifiers and times; SQLite keeps both as text, so that the sqlite3 shell shows what the API
//! shows. `on_either!` therefore compiles each statement twice, once for each kind of connection, with `Id` as that database's
//! identifier. No statement is `persistent`, because a PgBouncer may lend another server connection to each transaction.

use std::array;

use futures_util::TryStreamExt as _;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _, SqliteConnection};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use uuid::fmt::Hyphenated;
use uuid::{Uuid, uuid};

use super::error::{Failure, StorageError};
use crate::domain::{Email, Extension, ExtensionNumber, Name, Secret, User};
use crate::problem::{Problem, problem};

/// Inserts nothing if the address is taken. A violation of its index would put it into PostgreSQL's log.
const INSERT_USER: &str =
    "INSERT INTO users (id, tenant_id, name, email, created_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";

/// The lowest free number is 1000, or the successor of a number that is taken, and is not taken itself. Inserts nothing if
/// there is none. The caller holds the lock that creates queue on, so nobody else takes the number meanwhile.
const INSERT_EXTENSION: &str = "INSERT INTO extensions (id, number, user_id, secret, created_at) SELECT $1, candidates.number, $2, $3, $4 \
    FROM (SELECT 1000 AS number UNION ALL SELECT number + 1 FROM extensions) AS candidates \
    WHERE candidates.number <= 1999 AND NOT EXISTS (SELECT 1 FROM extensions WHERE extensions.number = candidates.number) \
    ORDER BY candidates.number LIMIT 1 RETURNING number";

const DELETE_EXTENSION: &str = "DELETE FROM extensions WHERE user_id = $1 RETURNING number";

const DELETE_USER: &str = "DELETE FROM users WHERE id = $1";

const WRITE_AUDIT: &str = "INSERT INTO apply_audit_logs \
    (id, triggered_at, triggered_by, host, outcome, error_details, files_written, reload_results) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
    ON CONFLICT (id) DO UPDATE SET outcome = excluded.outcome, error_details = excluded.error_details, \
    files_written = excluded.files_written, reload_results = excluded.reload_results";

/// The one tenant, made by the first migration.
pub const DEFAULT_TENANT: Uuid = uuid!("a0000000-0000-0000-0000-000000000000");

/// A row of the audit log: how its apply ended, or what is true if the service dies now.
#[derive(Clone)]
pub struct AuditEntry {
    pub id: Uuid,
    pub triggered_at: OffsetDateTime,
    pub triggered_by: Name,
    pub host: String,
    /// `None` for a success.
    pub error_details: Option<String>,
    pub files_written: Value,
    pub reload_results: Value,
}

pub(super) enum Connection {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

/// Runs `$statement` on either kind of connection; `$id` is the type of its identifiers.
macro_rules! on_either {
    ($either:expr, |$connection:ident, $id:ident| $statement:expr) => {
        match $either {
            Connection::Postgres($connection) => {
                type $id = Uuid;
                $statement
            }
            Connection::Sqlite($connection) => {
                type $id = Hyphenated;
                $statement
            }
        }
    };
}

impl Connection {
    pub(super) async fn execute(&mut self, sql: &'static str) -> sqlx::Result<()> {
        on_either!(self, |connection, _Id| sqlx::raw_sql(sql).execute(connection).await.map(|_| ()))
    }

    /// Inserts a user with the lowest free number.
    pub(super) async fn insert_user(&mut self, name: Name, email: Email, secret: Secret) -> Result<User, Failure> {
        let (id, created_at) = (Uuid::new_v4(), now());
        let number: Option<i32> = on_either!(self, |connection, Id| {
            let user = sqlx::query(INSERT_USER).persistent(false).bind(Id::from(id)).bind(Id::from(DEFAULT_TENANT));
            let user = user.bind(name.as_str()).bind(email.as_str()).bind(created_at);
            if user.execute(&mut *connection).await?.rows_affected() == 0 {
                return Err(StorageError::EmailInUse.into());
            }
            let extension = sqlx::query_scalar(INSERT_EXTENSION).persistent(false).bind(Id::from(Uuid::new_v4()));
            let extension = extension.bind(Id::from(id)).bind(secret.reveal()).bind(created_at);
            extension.fetch_optional(connection).await?
        });
        let number = number.ok_or(StorageError::NoFreeExtension)?;
        let number = ExtensionNumber::new(number).expect("the statement inserts only 1000 to 1999");
        Ok(User { id, tenant_id: DEFAULT_TENANT, name, email, extension: Extension { number, secret }, created_at })
    }

    /// Deletes a user and their extension. Returns its number; `None` if the user had none.
    pub(super) async fn delete_user(&mut self, id: Uuid) -> Result<Option<ExtensionNumber>, Failure> {
        let (number, deleted) = on_either!(self, |connection, Id| {
            let extension = sqlx::query_scalar(DELETE_EXTENSION).persistent(false).bind(Id::from(id));
            let number: Option<i32> = extension.fetch_optional(&mut *connection).await?;
            let user = sqlx::query(DELETE_USER).persistent(false).bind(Id::from(id));
            (number, user.execute(connection).await?.rows_affected())
        });
        if deleted == 0 {
            return Err(StorageError::UserNotFound.into());
        }
        Ok(number.and_then(ExtensionNumber::new))
    }

    /// Inserts a row of the audit log, or updates it to how its apply ended.
    pub(super) async fn write_audit(&mut self, entry: AuditEntry) -> Result<(), Failure> {
        let outcome = if entry.error_details.is_none() { "success" } else { "failure" };
        on_either!(self, |connection, Id| {
            let row = sqlx::query(WRITE_AUDIT).persistent(false).bind(Id::from(entry.id)).bind(entry.triggered_at);
            let row = row.bind(entry.triggered_by.as_str()).bind(&entry.host).bind(outcome);
            let row = row.bind(&entry.error_details).bind(&entry.files_written).bind(&entry.reload_results);
            row.execute(connection).await?;
        });
        Ok(())
    }

    /// All users, by number. Parses each row while the database reads the next.
    ///
    /// It has no parameters, so PostgreSQL plans it anew, runs it in one message, which is one transaction, and sends every column as
    /// text. A named statement would keep its plan until ANALYZE; a plan made for a few users needs 40 ms for a thousand.
    pub(super) async fn users(&mut self) -> Result<Vec<User>, Failure> {
        let (limits, created_at) = match self {
            Self::Postgres(_) => (
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '5s';",
                "users.created_at AT TIME ZONE 'UTC' || 'Z'",
            ),
            Self::Sqlite(_) => ("", "users.created_at"),
        };
        // FULL JOIN also finds a user without an extension and the reverse, which somebody edited by hand.
        let sql = format!(
            "{limits} SELECT users.id, users.tenant_id, users.name, users.email, {created_at}, extensions.number, extensions.secret \
            FROM users FULL JOIN extensions ON extensions.user_id = users.id ORDER BY extensions.number"
        );
        // Reads every row, even if one is damaged, so that the connection can be used again.
        let users: Vec<_> = on_either!(self, |connection, _Id| {
            let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch(connection);
            rows.map_ok(|row| parse(array::from_fn(|column| row.try_get_unchecked(column).unwrap_or_default())))
                .try_collect()
                .await?
        });
        users.into_iter().map(|user| user.map_err(|which| StorageError::DamagedRow(which).into())).collect()
    }
}

/// Parses the columns of [`Connection::users`].
///
/// The service writes no row that fails here. Somebody edited it, so the error says which column, and how to correct it.
fn parse(row: [Option<&str>; 7]) -> Result<User, Problem> {
    if let [None, .., Some(number), _] = &row {
        return Err(problem!(
            "extension {number} belongs to no user: the user's row was deleted by hand",
            "free the number with DELETE FROM extensions WHERE number = {number}"
        ));
    }
    let [id, tenant_id, name, email, created_at, number, secret] = row.map(Option::unwrap_or_default);
    let invalid = |table: &str, column: &str, key: &str, rule: &str| {
        problem!(
            "{column} of user {id} in table {table} was edited by hand: it {rule}",
            "correct it with UPDATE {table} SET {column} = '…' WHERE {key} = '{id}', or delete the user with DELETE /users/{id}"
        )
    };
    let user = |column: &str, rule: &str| invalid("users", column, "id", rule);
    let extension = |column: &str, rule: &str| invalid("extensions", column, "user_id", rule);
    let uuid = |text: &str| Uuid::parse_str(text).ok().filter(|uuid| uuid.to_string() == text);
    let Some(parsed_id) = uuid(id) else {
        return Err(problem!(
            "id of a user in table users was edited by hand: '{id}' is not a UUID in lower case",
            "delete the user with DELETE FROM extensions WHERE user_id = '{id}'; DELETE FROM users WHERE id = '{id}'"
        ));
    };
    if number.is_empty() {
        return Err(problem!(
            "user {id} has no extension: its row was deleted by hand",
            "insert it again, or delete the user with DELETE /users/{id}"
        ));
    }
    Ok(User {
        id: parsed_id,
        tenant_id: uuid(tenant_id).ok_or_else(|| user("tenant_id", "must be a UUID in lower case"))?,
        name: Name::stored(name).map_err(|rule| user("name", rule))?,
        email: Email::parse(email).map_err(|rule| user("email", rule))?,
        extension: Extension {
            number: ExtensionNumber::parse(number).ok_or_else(|| extension("number", ExtensionNumber::INVALID))?,
            secret: Secret::parse(secret).map_err(|rule| extension("secret", rule))?,
        },
        created_at: OffsetDateTime::parse(created_at, &Rfc3339)
            .ok()
            .and_then(|time| time.checked_to_offset(UtcOffset::UTC).filter(|time| time.year() >= 0))
            .ok_or_else(|| user("created_at", "must be a time such as 2026-11-21T08:00:00Z"))?,
    })
}

/// Now, to the millisecond. Both databases keep that, so a list shows the same time as the answer to a create.
pub(crate) fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_millisecond(now.millisecond()).expect("a millisecond is below 1000")
}
