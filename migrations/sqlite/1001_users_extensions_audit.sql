-- The thousands of a migration's number are the schema's major version: see src/storage/mod.rs.
-- Identifiers are hyphenated text and times RFC 3339, so that the sqlite3 shell shows what the API shows.

CREATE TABLE tenants (
    id text PRIMARY KEY NOT NULL,
    name text NOT NULL,
    created_at text NOT NULL
) STRICT;

INSERT INTO tenants (id, name, created_at)
VALUES ('a0000000-0000-0000-0000-000000000000', 'Default', strftime('%Y-%m-%dT%H:%M:%fZ'));

CREATE TABLE users (
    id text PRIMARY KEY NOT NULL,
    tenant_id text NOT NULL REFERENCES tenants (id),
    name text NOT NULL,
    email text NOT NULL,
    created_at text NOT NULL
) STRICT;

-- Kept as typed, unique whatever its case. An address is ASCII, and so is this lower().
CREATE UNIQUE INDEX users_email_key ON users (lower(email));

CREATE TABLE extensions (
    id text PRIMARY KEY NOT NULL,
    number integer NOT NULL UNIQUE CHECK (number BETWEEN 1000 AND 1999),
    user_id text NOT NULL UNIQUE REFERENCES users (id) ON DELETE CASCADE,
    secret text NOT NULL,
    created_at text NOT NULL
) STRICT;

CREATE TABLE apply_audit_logs (
    id text PRIMARY KEY NOT NULL,
    triggered_at text NOT NULL,
    triggered_by text NOT NULL,
    host text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('success', 'failure')),
    error_details text,
    files_written text NOT NULL CHECK (json_valid(files_written)),
    reload_results text NOT NULL CHECK (json_valid(reload_results)),
    CHECK ((outcome = 'success') = (error_details IS NULL))
) STRICT;
