//! Which database it is, and its migrations.

use sqlx::migrate::{Migrate, MigrateError, Migrator};

use super::error::StorageError;
use crate::problem::problem;

/// The schema's major version, the thousands of a migration's number. Within one, migrations only add, so that a binary runs on any
/// newer schema of it.
const SCHEMA_MAJOR_VERSION: i64 = 1;

/// What a database says about itself.
pub struct Inspection {
    /// Product and version, and how the service is connected.
    pub server: String,
    /// The number of the latest migration; `None` before the first.
    pub schema: Option<i64>,
    /// What is not as it should be though the service starts, and what to do.
    pub advice: Option<String>,
}

impl Inspection {
    pub(super) fn new(server: String, schema: Option<i64>, advice: Option<String>) -> Result<Self, StorageError> {
        let major = schema.unwrap_or_default() / 1000;
        if major > SCHEMA_MAJOR_VERSION {
            return Err(StorageError::Unusable(problem!(
                "its schema is of major version {major}, this program's is {SCHEMA_MAJOR_VERSION}",
                "install the release that made it"
            )));
        }
        Ok(Self { server, schema, advice })
    }
}

/// Runs the migrations that are missing. The caller holds a lock, and a transaction that it commits.
pub(super) async fn run_migrations(mut migrator: Migrator, transaction: &mut impl Migrate) -> sqlx::Result<()> {
    migrator.set_ignore_missing(true).set_locking(false);
    migrator.run_direct(None, transaction, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
        other => other.into(),
    })
}
