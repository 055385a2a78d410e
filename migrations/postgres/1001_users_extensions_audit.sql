-- The thousands of a migration's number are the schema's major version: see src/storage/mod.rs.

CREATE TABLE tenants (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    created_at timestamptz NOT NULL
);

INSERT INTO tenants (id, name, created_at) VALUES ('a0000000-0000-0000-0000-000000000000', 'Default', now());

CREATE TABLE users (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    name text NOT NULL,
    email text NOT NULL,
    created_at timestamptz NOT NULL
);

-- Kept as typed, unique whatever its case. An address is ASCII, so the collation must not have a say.
CREATE UNIQUE INDEX users_email_key ON users (lower(email COLLATE "C"));

CREATE TABLE extensions (
    id uuid PRIMARY KEY,
    number integer NOT NULL UNIQUE CHECK (number BETWEEN 1000 AND 1999),
    user_id uuid NOT NULL UNIQUE REFERENCES users (id) ON DELETE CASCADE,
    secret text NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE apply_audit_logs (
    id uuid PRIMARY KEY,
    triggered_at timestamptz NOT NULL,
    triggered_by text NOT NULL,
    host text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('success', 'failure')),
    error_details text,
    files_written jsonb NOT NULL,
    reload_results jsonb NOT NULL,
    CHECK ((outcome = 'success') = (error_details IS NULL))
);
