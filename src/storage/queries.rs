//! What both databases are asked, once. `$1` and `RETURNING` work on both; to SQLite `$1` is a name, numbered as it first stands:
//! values are bound by position only where the numbers stand in order.

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

/// By extension number.
pub(super) const USERS: &str = "\
    SELECT users.id, users.tenant_id, users.name, users.email, users.created_at, extensions.number, extensions.secret \
    FROM extensions JOIN users ON users.id = extensions.user_id ORDER BY extensions.number";

pub(super) const SCHEMA_VERSION: &str = "SELECT max(version) FROM _sqlx_migrations";

pub(super) use {insert_extension, insert_user};
