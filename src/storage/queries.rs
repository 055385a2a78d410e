//! The calls and nearly all SQL, once. `$1` and `RETURNING` work on both databases; what differs is named by the backend: its
//! connections, its way to begin a write, how creates queue, its identifiers, its list and how it tells its state.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{DEFAULT_TENANT, StorageError, now};
use crate::domain::{Email, Extension, ExtensionNumber, Name, Secret, User};

/// A user: `$1` is its id, `$5` the time. Fails on the unique index `users_email_key` if the address is taken.
macro_rules! insert_user {
    () => {
        "INSERT INTO users (id, tenant_id, name, email, created_at) VALUES ($1, $2, $3, $4, $5)"
    };
}

/// The same user's extension, which gives its number, the lowest free one: the first of the pool, or one above a taken one,
/// that is not taken itself. Without a free one it gives, and does, nothing.
macro_rules! insert_extension {
    () => {
        "INSERT INTO extensions (id, number, user_id, secret, created_at) SELECT $6, candidates.number, $1, $7, $5 \
         FROM (SELECT 1000 AS number UNION ALL SELECT number + 1 FROM extensions) AS candidates \
         WHERE candidates.number <= 1999 AND NOT EXISTS (SELECT 1 FROM extensions WHERE extensions.number = candidates.number) \
         ORDER BY candidates.number LIMIT 1 RETURNING number"
    };
}

pub(super) const DELETE_EXTENSION: &str = "DELETE FROM extensions WHERE user_id = $1 RETURNING number";

pub(super) const DELETE_USER: &str = "DELETE FROM users WHERE id = $1";

pub(super) const INSERT_AUDIT: &str = "\
    INSERT INTO apply_audit_logs (id, triggered_at, triggered_by, host, outcome, error_details, files_written, reload_results) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

pub(super) const UPDATE_AUDIT: &str = "\
    UPDATE apply_audit_logs SET outcome = $2, error_details = $3, files_written = $4, reload_results = $5 WHERE id = $1";

pub(super) const SCHEMA_VERSION: &str = "SELECT max(version) FROM _sqlx_migrations";

/// Why a call did not succeed, before it is told to anybody.
pub(super) enum Failure {
    /// A statement failed.
    Statement(sqlx::Error),
    /// The database can't take it; nothing of the call is kept.
    Refused(StorageError),
}

/// What a call does with the database.
#[derive(Clone, Copy)]
pub(super) enum Access {
    Read,
    /// In a transaction, which its work begins.
    Write,
}

/// Why the database does not do what it should.
pub(super) struct Unavailable {
    /// For the log.
    pub reason: String,
    /// For whoever asked.
    pub advice: &'static str,
}

impl Unavailable {
    pub fn told(self, maybe_written: bool) -> StorageError {
        StorageError::Unavailable { reason: self.reason, advice: self.advice, maybe_written }
    }
}

/// Where nothing better is known.
pub const LOOK_AND_TRY_AGAIN: &str = "Look at the service's log, then try again.";

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(error)
    }
}

pub(super) use {insert_extension, insert_user};

/// A user who is to be created.
#[derive(Debug)]
pub(super) struct NewUser {
    pub id: Uuid,
    pub name: Name,
    pub email: Email,
    pub secret: Secret,
    pub created_at: OffsetDateTime,
}

impl NewUser {
    pub fn new(name: Name, email: Email, secret: Secret) -> Self {
        Self { id: Uuid::new_v4(), name, email, secret, created_at: now() }
    }

    /// The user, once they have a number.
    pub fn with_number(self, number: ExtensionNumber) -> User {
        let Self { id, name, email, secret, created_at } = self;
        User { id, tenant_id: DEFAULT_TENANT, name, email, extension: Extension { number, secret }, created_at }
    }
}

/// The calls of [`super::Storage`] on a backend, but for creating users, which queue in ways of their own. The backend has the
/// types `Connection` and `Id`, the statements `STATE` and `SERVER_VERSION`, the `migrations`, the field `runtime`, the methods
/// `borrow`, `check`, `explain`, `no_answer` and `why_no_connection`, and the functions `begin_write`, `violates_email` and
/// `read_users`. What `borrow` gives has a `connection`, and closes it unless it is told to `give_back`. For creating users it is
/// given `call`, or `ready` and `call_on`, and `insert_by`. A macro, because a function over any database would take a page of
/// bounds to say so.
///
/// Transactions are begun and ended by plain statements: sqlx's own, cancelled while it begins, can go back to the pool open.
macro_rules! queries {
    () => {
        impl Backend {
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
                        begin_write(connection).await?;
                        let number: Option<i32> = sqlx::query_scalar(queries::DELETE_EXTENSION)
                            .bind(Id::from(id))
                            .fetch_optional(&mut *connection)
                            .await?;
                        sqlx::query(queries::DELETE_USER).bind(Id::from(id)).execute(&mut *connection).await?;
                        Ok(number.and_then(|number| ExtensionNumber::try_from(i64::from(number)).ok()))
                    })
                })
                .await
            }

            pub(super) async fn begin_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
                self.call(Access::Write, move |connection| {
                    Box::pin(async move {
                        begin_write(connection).await?;
                        Ok(insert_audit(connection, &entry).await?)
                    })
                })
                .await
            }

            /// The row may be gone, with a database that fell back to an earlier state: then it is written anew.
            pub(super) async fn finish_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
                self.call(Access::Write, move |connection| {
                    Box::pin(async move {
                        begin_write(connection).await?;
                        let updated = sqlx::query(queries::UPDATE_AUDIT)
                            .bind(Id::from(entry.id))
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

            /// Does `work` on a connection, a write in a transaction, as a task of its own on the service's runtime (a connection
            /// belongs to the one that made it), within the deadline.
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

            /// Does `work` where it is called, within the deadline.
            async fn call_here<T>(
                &self,
                access: Access,
                work: impl for<'c> FnOnce(&'c mut Connection) -> Work<'c, T>,
            ) -> Result<T, StorageError> {
                let deadline = Instant::now() + DEADLINE;
                let borrowed = self.ready(access, deadline).await?;
                self.call_on(borrowed, deadline, access, work).await
            }

            /// A connection to a database that is sound as far as is known.
            async fn ready(&self, access: Access, deadline: Instant) -> Result<Borrowed, StorageError> {
                self.check().map_err(|gone| gone.told(false))?;
                match self.borrow(access, deadline).await {
                    Ok(borrowed) => Ok(borrowed),
                    Err(sqlx::Error::PoolTimedOut) => Err(self.why_no_connection(deadline).await.told(false)),
                    Err(error) => Err(self.explain(&error).told(false)),
                }
            }

            /// The same on a connection that is there. It is used again only after a call that ended as it should, outside a
            /// transaction. It is closed otherwise: a session that was opened while the database took no writes would never take any.
            async fn call_on<T>(
                &self,
                mut borrowed: Borrowed,
                deadline: Instant,
                access: Access,
                work: impl for<'c> FnOnce(&'c mut Connection) -> Work<'c, T>,
            ) -> Result<T, StorageError> {
                let connection = borrowed.connection();
                let mut committing = false;
                let ended = timeout_at(deadline, async {
                    let done = work(connection).await?;
                    if let Access::Read = access {
                        return Ok(done);
                    }
                    committing = true;
                    connection.execute("COMMIT").await?;
                    Ok(done)
                })
                .await;
                let outcome = match ended {
                    Ok(Ok(done)) => Ok(done),
                    Ok(Err(Failure::Refused(refusal))) => {
                        let rolled_back = timeout_at(deadline, connection.execute("ROLLBACK")).await;
                        // Otherwise the connection is closed on the way out.
                        if !matches!(rolled_back, Ok(Ok(_))) {
                            return Err(refusal);
                        }
                        Err(refusal)
                    }
                    Ok(Err(Failure::Statement(error))) => return Err(self.explain(&error).told(committing)),
                    Err(_) => return Err(self.no_answer().told(committing)),
                };
                self.check().map_err(|gone| gone.told(committing))?;
                borrowed.give_back();
                outcome
            }
        }

        /// Inserts a new user by `statement`, and gives their number.
        async fn insert_by(
            statement: &'static str,
            connection: &mut Connection,
            new: &NewUser,
        ) -> Result<ExtensionNumber, Failure> {
            let insert = sqlx::query_scalar(statement)
                .bind(Id::from(new.id))
                .bind(Id::from(DEFAULT_TENANT))
                .bind(new.name.as_str())
                .bind(new.email.as_str())
                .bind(new.created_at)
                .bind(Id::from(Uuid::new_v4()))
                .bind(new.secret.reveal());
            let number: Option<i32> = match insert.fetch_optional(connection).await {
                Err(sqlx::Error::Database(refusal)) if violates_email(refusal.as_ref()) => {
                    return Err(Failure::Refused(StorageError::EmailInUse));
                }
                inserted => inserted?,
            };
            let number = number.ok_or(Failure::Refused(StorageError::PoolExhausted))?;
            Ok(ExtensionNumber::try_from(i64::from(number)).expect("the query stays within the pool"))
        }

        type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

        async fn insert_audit(connection: &mut Connection, entry: &AuditEntry) -> sqlx::Result<()> {
            sqlx::query(queries::INSERT_AUDIT)
                .bind(Id::from(entry.id))
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

        /// Runs the migrations, and refuses a schema of a later major version.
        async fn run_migrations(connection: &mut Connection) -> Result<(), MigrationError> {
            // None before the first migration: there is no such table.
            let version = sqlx::query_scalar(queries::SCHEMA_VERSION).fetch_one(&mut *connection).await;
            if let Ok(version) = version {
                let version: Option<i64> = version;
                let major = version.unwrap_or_default() / 1000;
                if major > SCHEMA_MAJOR_VERSION {
                    return Err(MigrationError::TooNew(major));
                }
            }
            let mut migrator = migrations();
            migrator.set_ignore_missing(true);
            migrator
                .run_direct(None, connection, false)
                .await
                .map_err(|error| MigrationError::Failed(error.to_string()))
        }
    };
}

pub(super) use queries;
