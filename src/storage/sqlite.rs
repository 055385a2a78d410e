//! SQLite. A call of it blocks, so two threads make them, one for reading and one for writing, each with a connection of its own:
//! so writes of this process queue in turn. Other processes are met by trying again every millisecond, which starves nobody as
//! SQLite's own growing pauses would.
//!
//! - **A call** is a job for one of the threads. Who waits for it gives it up at its deadline. A write goes on to its commit only
//!   before that, and is not given up after: one flag that only one of the two can set. So what was told as not written never is.
//! - **Creates** share commits, because each waits for the disk: whoever's turn it is takes the write lock, then everybody who waits
//!   to be created and has not given up. Who is refused is not created; the others are.
//! - **The connection** is closed, not used again, unless a call ended as it should, outside a transaction.

use std::fs::DirBuilder;
use std::io;
use std::iter::{repeat, zip};
use std::mem;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Params, Row, ffi, named_params, params};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use uuid::Uuid;

use super::queries::{self, insert_extension, insert_user};
use super::{
    Access, AuditEntry, DEADLINE, DEFAULT_TENANT, LOOK_AND_TRY_AGAIN, MigrationError, NewUser, State, StorageError,
    Unavailable, UserRow, parse_user, refuse_later,
};
use crate::domain::{Email, ExtensionNumber, Name, Secret, User};

/// A connection's count of what others committed, which says nothing on another connection.
const STATE: &str = "SELECT connection || ' ' || data_version FROM temp.this_one, pragma_data_version";

/// Names a connection as none before it was.
const NAME_CONNECTION: &str =
    "PRAGMA temp_store = MEMORY; CREATE TEMP TABLE this_one AS SELECT hex(randomblob(16)) AS connection";

const SERVER_VERSION: &str = "SELECT 'SQLite ' || sqlite_version()";

/// Which migrations were run, as sqlx keeps it.
const MIGRATIONS: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (\
    version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, \
    success BOOLEAN NOT NULL, checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)";

const LOCKED: &str = "Another process holds the lock of the database's file: end it, then try again.";
const NO_ANSWER: &str =
    "Another process holds the lock of the database's file, or its disk does not answer: look at both, then try again.";
const RESTORE: &str = "The database's file is damaged, or not in its place: stop the service, restore a backup, start the service; its log has the line that does so.";

/// Between two attempts to take the write lock.
const RETRY: Duration = Duration::from_millis(1);

/// A database file, and the threads that work on it.
#[derive(Debug, Clone)]
pub struct Backend {
    reader: Worker,
    writer: Worker,
    path: Arc<PathBuf>,
    file: Arc<DatabaseFile>,
    waiting: Arc<Mutex<Vec<Waiting>>>,
}

/// A create that waits for its turn, and who waits for it.
#[derive(Debug)]
struct Waiting {
    new: NewUser,
    call: Arc<Call>,
    done: oneshot::Sender<Result<User, StorageError>>,
}

/// SQLite goes on with a file that has no name any more, and with what is left of one that is damaged: what it would take
/// then is lost with the file. So once it is known, nothing is taken until a restart.
#[derive(Debug, Default)]
struct DatabaseFile {
    /// The device and inode that the service was started on.
    started_on: OnceLock<(u64, u64)>,
    /// What was seen of the damage.
    damage: OnceLock<String>,
}

/// A thread with a connection, for one job at a time.
#[derive(Debug, Clone)]
struct Worker(mpsc::Sender<Job>);

type Job = Box<dyn FnOnce(&mut Option<Connection>) + Send>;

impl Worker {
    fn start(name: &str) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut connection = None;
            for job in queue {
                if catch_unwind(AssertUnwindSafe(|| job(&mut connection))).is_err() {
                    connection = None;
                }
            }
        })?;
        Ok(Self(jobs))
    }

    fn queue(&self, job: impl FnOnce(&mut Option<Connection>) + Send + 'static) {
        // A job that is dropped is told as one that panicked.
        let _ = self.0.send(Box::new(job));
    }
}

/// Until when a call is waited for, and whether that, or its change, is decided.
#[derive(Debug)]
struct Call {
    deadline: Instant,
    decided: AtomicBool,
}

impl Call {
    fn new() -> Arc<Self> {
        Arc::new(Self { deadline: Instant::now() + DEADLINE, decided: AtomicBool::new(false) })
    }

    /// For whoever waits, to give it up. False: something may be changed by now.
    fn give_up(&self) -> bool {
        !self.decided.swap(true, Ordering::AcqRel)
    }

    /// For the thread, to change something. False: it is given up.
    fn claim(&self) -> bool {
        Instant::now() < self.deadline && !self.decided.swap(true, Ordering::AcqRel)
    }

    /// Whether there is nothing to do for it: it is given up, or was done along with another.
    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline || self.decided.load(Ordering::Acquire)
    }
}

impl Backend {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            reader: Worker::start("sqlite-reader")?,
            writer: Worker::start("sqlite-writer")?,
            path: Arc::new(path.to_owned()),
            file: Arc::default(),
            waiting: Arc::default(),
        })
    }

    /// Only here is the file made, and its folder (mode 0700) with it: one that vanishes later is not replaced by an empty one.
    /// One transaction holds the write lock from the first look to the last migration.
    #[expect(clippy::unused_async, reason = "on PostgreSQL it asks the server")]
    pub(super) async fn migrate(&self) -> Result<(), MigrationError> {
        let path = self.path.as_path();
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
                let folder = folder.display();
                MigrationError::Failed(format!(
                    "the folder {folder} can't be made: {error}; set PORTAL_DATA_DIR, or make it for the portal's user"
                ))
            })?;
        }
        let failed = |error: rusqlite::Error| match code(&error) {
            Some(ErrorCode::DatabaseBusy) => {
                MigrationError::Unavailable(format!("{} is locked by another process", path.display()))
            }
            _ if is_damage(&error) => MigrationError::Failed(self.restore(&error.to_string())),
            _ => MigrationError::Failed(format!(
                "{}: {error}; look at DATABASE_URL or PORTAL_DATA_DIR, at who owns the file, and at its disk",
                path.display()
            )),
        };
        let connection = self.open(OpenFlags::SQLITE_OPEN_CREATE).map_err(failed)?;
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if found != "ok" {
            return Err(MigrationError::Failed(self.restore(&found)));
        }
        connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
        refuse_later(schema_version(&connection).map_err(failed)?)?;
        if let Some(changed) = run_migrations(&connection).map_err(failed)? {
            return Err(MigrationError::Failed(format!(
                "{}: its migration {changed} is another than this program's; install the release that made it",
                path.display()
            )));
        }
        connection.execute_batch("COMMIT").map_err(failed)?;
        let identity =
            identity(path).map_err(|error| MigrationError::Failed(format!("{}: {error}", path.display())))?;
        self.file.started_on.get_or_init(|| identity);
        Ok(())
    }

    /// A commit that was answered outlasts a power cut: WAL with a flush for each commit.
    fn open(&self, also: OpenFlags) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | also;
        let connection = Connection::open_with_flags(self.path.as_path(), flags)?;
        connection.busy_timeout(DEADLINE)?;
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")?;
        Ok(connection)
    }

    /// Whether the file is still the one that the service was started on, and sound as far as is known.
    fn check(&self) -> Result<(), Unavailable> {
        let restore = |what: &str| Err(Unavailable { reason: self.restore(what), advice: RESTORE });
        if let Some(damage) = self.file.damage.get() {
            return restore(damage);
        }
        match (identity(&self.path), self.file.started_on.get()) {
            (Ok(found), Some(expected)) if found != *expected => {
                restore("this is not the file that the service was started on")
            }
            (Err(error), Some(_)) => restore(&error.to_string()),
            _ => Ok(()),
        }
    }

    fn explain(&self, error: &rusqlite::Error) -> Unavailable {
        if is_damage(error) {
            let damage = self.file.damage.get_or_init(|| error.to_string());
            return Unavailable { reason: self.restore(damage), advice: RESTORE };
        }
        let advice = match code(error) {
            Some(ErrorCode::DatabaseBusy) => LOCKED,
            Some(ErrorCode::ReadOnly) => {
                "The database's file or its disk is read-only: make it writable for the portal's user, then try again."
            }
            Some(ErrorCode::SystemIoFailure) => {
                "The database's file can't be read or written: look at its disk, then try again."
            }
            Some(ErrorCode::DiskFull) => "The disk of the database's file is full: free some of it, then try again.",
            Some(ErrorCode::CannotOpen) => {
                "The database's file can't be opened: look at who may use it and its folder, then try again."
            }
            _ => LOOK_AND_TRY_AGAIN,
        };
        Unavailable { reason: format!("{}: {error}", self.path.display()), advice }
    }

    /// What is wrong with the file, and the line that brings a backup in its place. An old -wal would be read into the backup.
    fn restore(&self, what: &str) -> String {
        let file = self.path.as_path();
        let folder = file.parent().unwrap_or(Path::new("")).join(".");
        let (file, folder) = (file.display(), folder.display());
        format!(
            "{file}: {what}; stop the service, restore a backup, start the service: rm -f '{file}-wal' '{file}-shm' && install --mode=600 BACKUP '{file}' && chown --reference='{folder}' '{file}'"
        )
    }

    pub(super) async fn create_user(&self, name: Name, email: Email, secret: Secret) -> Result<User, StorageError> {
        let (new, call) = (NewUser::new(name, email, secret), Call::new());
        let (done, outcome) = oneshot::channel();
        let (backend, own) = (self.clone(), call.clone());
        self.waiting().push(Waiting { new, call: call.clone(), done });
        self.writer.queue(move |connection| backend.create_waiting(connection, &own));
        self.outcome(&call, outcome).await
    }

    /// Creates the user of this call, unless somebody else did, and who waits with them.
    fn create_waiting(&self, place: &mut Option<Connection>, own: &Arc<Call>) {
        let take_own = || {
            let mut waiting = self.waiting();
            let place = waiting.iter().position(|waiting| Arc::ptr_eq(&waiting.call, own));
            place.map(|place| waiting.swap_remove(place))
        };
        if own.is_over() {
            // Given up, they are among those who wait still.
            take_own();
            return;
        }
        let (mut taken, mut inserted, mut committing) = (Vec::new(), Vec::new(), false);
        let created = self.on(place, Access::Write, |connection| {
            self.begin(connection, own)?;
            taken = mem::take(&mut *self.waiting());
            taken.retain(|waiting| waiting.call.claim());
            for waiting in &taken {
                inserted.push(insert(connection, &waiting.new)?);
            }
            if inserted.iter().all(Result::is_err) {
                // Nothing is kept, so nothing is to be flushed.
                return connection.execute_batch("ROLLBACK");
            }
            committing = true;
            execute(connection, "COMMIT", []).map(|_| ())
        });
        let Err(failure) = created else {
            for (Waiting { new, done, .. }, number) in zip(taken, inserted) {
                // Nobody minds if the client has gone.
                let _ = done.send(number.map(|number| new.with_number(number)));
            }
            return;
        };
        if taken.is_empty() {
            taken.extend(take_own());
        }
        let refused = inserted.iter().map(Result::is_err).chain(repeat(false));
        for (Waiting { done, .. }, refused) in zip(taken, refused) {
            let _ = done.send(Err(failure.clone().told(committing && !refused)));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn users(&self) -> Result<Vec<User>, StorageError> {
        self.call(Access::Read, read_users).await
    }

    /// The state is asked for first: what was committed between the two shows as another state the next time.
    pub(super) async fn users_unless(&self, known: State) -> Result<Option<(State, Vec<User>)>, StorageError> {
        self.call(Access::Read, move |connection| {
            let state = State(connection.prepare_cached(STATE)?.query_row([], |row| row.get(0))?);
            if state == known { Ok(None) } else { Ok(Some((state, read_users(connection)?))) }
        })
        .await
    }

    pub(super) async fn versions(&self) -> Result<(String, Option<i64>), StorageError> {
        self.call(Access::Read, |connection| {
            Ok((connection.query_row(SERVER_VERSION, [], |row| row.get(0))?, schema_version(connection)?))
        })
        .await
    }

    pub(super) async fn delete_user(&self, id: Uuid) -> Result<Option<ExtensionNumber>, StorageError> {
        self.call(Access::Write, move |connection| {
            let id = id.to_string();
            let mut delete = connection.prepare_cached(queries::DELETE_EXTENSION)?;
            let number: Option<i64> = delete.query_one([&id], |row| row.get(0)).optional()?;
            execute(connection, queries::DELETE_USER, [&id])?;
            Ok(number.and_then(|number| ExtensionNumber::try_from(number).ok()))
        })
        .await
    }

    pub(super) async fn begin_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        self.call(Access::Write, move |connection| insert_audit(connection, &entry)).await
    }

    /// The row may be gone, with a database that fell back to an earlier state: then it is written anew.
    pub(super) async fn finish_audit(&self, entry: AuditEntry) -> Result<(), StorageError> {
        self.call(Access::Write, move |connection| {
            let values = named_params! {
                "$1": entry.id.to_string(),
                "$2": entry.outcome(),
                "$3": entry.error_details,
                "$4": entry.files_written.to_string(),
                "$5": entry.reload_results.to_string(),
            };
            match execute(connection, queries::UPDATE_AUDIT, values)? {
                0 => insert_audit(connection, &entry),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Does `work` on one of the threads, a write in a transaction, within the deadline.
    async fn call<T: Send + 'static>(
        &self,
        access: Access,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let call = Call::new();
        let (done, outcome) = oneshot::channel();
        let (backend, own) = (self.clone(), call.clone());
        let job = move |place: &mut Option<Connection>| {
            if own.is_over() {
                return;
            }
            let mut committing = false;
            let outcome = backend.on(place, access, |connection| {
                if let Access::Read = access {
                    return work(connection);
                }
                backend.begin(connection, &own)?;
                let done = work(connection)?;
                committing = own.claim();
                if !committing {
                    return Err(given_up());
                }
                execute(connection, "COMMIT", [])?;
                Ok(done)
            });
            if outcome.is_ok() || committing || !own.is_over() {
                // Nobody minds if the client has gone.
                let _ = done.send(outcome.map_err(|failure| failure.told(committing)));
            }
        };
        match access {
            Access::Read => self.reader.queue(job),
            Access::Write => self.writer.queue(job),
        }
        self.outcome(&call, outcome).await
    }

    /// Does `work` on the connection in its place, or on a new one, and leaves it there if all went well.
    fn on<T>(
        &self,
        place: &mut Option<Connection>,
        access: Access,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Unavailable> {
        // What a file says that is not the right one does not matter.
        let explain = |error: rusqlite::Error| self.check().err().unwrap_or_else(|| self.explain(&error));
        self.check()?;
        let connection = match place.take() {
            Some(connection) => connection,
            None => self.connect(access).map_err(explain)?,
        };
        let done = work(&connection).map_err(explain)?;
        self.check()?;
        *place = Some(connection);
        Ok(done)
    }

    /// Takes the write lock: what is seen with it is final. Tries until the call's deadline.
    fn begin(&self, connection: &Connection, call: &Call) -> rusqlite::Result<()> {
        loop {
            match execute(connection, "BEGIN IMMEDIATE", []) {
                Err(error) if code(&error) == Some(ErrorCode::DatabaseBusy) && !call.is_over() => thread::sleep(RETRY),
                // The file may be another one by now.
                Ok(_) if self.check().is_err() => return Err(given_up()),
                begun => return begun.map(|_| ()),
            }
        }
    }

    fn connect(&self, access: Access) -> rusqlite::Result<Connection> {
        let connection = self.open(OpenFlags::empty())?;
        match access {
            Access::Read => connection.execute_batch(NAME_CONNECTION)?,
            // `begin` tries again by itself.
            Access::Write => connection.busy_timeout(Duration::ZERO)?,
        }
        Ok(connection)
    }

    /// Waits for what a thread tells, until the call's deadline.
    async fn outcome<T>(
        &self,
        call: &Call,
        outcome: oneshot::Receiver<Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        match timeout_at(call.deadline.into(), outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) if Instant::now() < call.deadline => {
                let reason = "a call panicked".to_owned();
                Err(Unavailable { reason, advice: LOOK_AND_TRY_AGAIN }.told(true))
            }
            Ok(Err(_)) | Err(_) => {
                let reason =
                    format!("{}: another process holds its lock, or its disk does not answer", self.path.display());
                Err(Unavailable { reason, advice: NO_ANSWER }.told(!call.give_up()))
            }
        }
    }
}

fn identity(file: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(file).map(|file| (file.dev(), file.ino()))
}

fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    match error {
        rusqlite::Error::SqliteFailure(error, _) | rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        _ => None,
    }
}

/// Whether the file is not what it was; that the tables are gone tells it too.
fn is_damage(error: &rusqlite::Error) -> bool {
    match code(error) {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => true,
        _ => lacks_table(error),
    }
}

fn lacks_table(error: &rusqlite::Error) -> bool {
    error.to_string().contains("no such table")
}

/// What nobody is told: nobody waits for it, or the file tells more.
fn given_up() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None)
}

fn execute(connection: &Connection, statement: &str, values: impl Params) -> rusqlite::Result<usize> {
    connection.prepare_cached(statement)?.execute(values)
}

/// Inserts a new user, and gives their number, or why they are refused: then they are not there.
fn insert(connection: &Connection, new: &NewUser) -> rusqlite::Result<Result<ExtensionNumber, StorageError>> {
    let (id, created_at) = (new.id.to_string(), rfc3339(new.created_at));
    let user = params![id, DEFAULT_TENANT.to_string(), new.name.as_str(), new.email.as_str(), created_at];
    match execute(connection, insert_user!(), user) {
        Err(error) if error.to_string().contains("users_email_key") => return Ok(Err(StorageError::EmailInUse)),
        inserted => inserted?,
    };
    let extension = named_params! {
        "$6": Uuid::new_v4().to_string(), "$1": id, "$7": new.secret.reveal(), "$5": created_at
    };
    let mut insert = connection.prepare_cached(insert_extension!())?;
    let number: Option<i64> = insert.query_one(extension, |row| row.get(0)).optional()?;
    let Some(number) = number else {
        execute(connection, queries::DELETE_USER, [&id])?;
        return Ok(Err(StorageError::PoolExhausted));
    };
    Ok(Ok(ExtensionNumber::try_from(number).expect("the query stays within the pool")))
}

fn insert_audit(connection: &Connection, entry: &AuditEntry) -> rusqlite::Result<()> {
    let values = params![
        entry.id.to_string(),
        rfc3339(entry.triggered_at),
        entry.triggered_by.as_str(),
        entry.host,
        entry.outcome(),
        entry.error_details,
        entry.files_written.to_string(),
        entry.reload_results.to_string(),
    ];
    execute(connection, queries::INSERT_AUDIT, values).map(|_| ())
}

/// By extension number.
fn read_users(connection: &Connection) -> rusqlite::Result<Vec<User>> {
    let mut list = connection.prepare_cached(queries::USERS)?;
    list.query_and_then([], |row| parse_user(user_row(row)?).map_err(unreadable))?.collect()
}

fn user_row(row: &Row<'_>) -> rusqlite::Result<UserRow> {
    let id = |index| Uuid::parse_str(row.get_ref(index)?.as_str()?).map_err(unreadable);
    let created_at = OffsetDateTime::parse(row.get_ref(4)?.as_str()?, &Rfc3339).map_err(unreadable)?;
    Ok((id(0)?, id(1)?, row.get(2)?, row.get(3)?, created_at, row.get(5)?, row.get(6)?))
}

/// Of a value that the service can't have written.
fn unreadable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(usize::MAX, Type::Text, why.into())
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("a year of four digits")
}

/// That of the latest migration; `None` before the first.
fn schema_version(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    match connection.query_row(queries::SCHEMA_VERSION, [], |row| row.get(0)) {
        Err(error) if lacks_table(&error) => Ok(None),
        version => version,
    }
}

/// Runs those that were not run yet; gives the version of one that was run with another content.
fn run_migrations(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection.execute_batch(MIGRATIONS)?;
    for migration in sqlx::migrate!("migrations/sqlite").iter() {
        let (version, checksum) = (migration.version, migration.checksum.as_ref());
        let known = "SELECT checksum FROM _sqlx_migrations WHERE version = ?1";
        let known: Option<Vec<u8>> = connection.query_row(known, [version], |row| row.get(0)).optional()?;
        match known {
            Some(known) if known == checksum => continue,
            Some(_) => return Ok(Some(version)),
            None => {}
        }
        let began = Instant::now();
        connection.execute_batch(migration.sql.as_str())?;
        let took = i64::try_from(began.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let ran = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (?1, ?2, TRUE, ?3, ?4)";
        connection.execute(ran, params![version, migration.description, checksum, took])?;
    }
    Ok(None)
}
