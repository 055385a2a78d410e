//! A database beside the portal: its own tools as baselines, and edits that the API does not offer.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::figures::timed;
use support::lab::Folder;
use support::postgres;

/// What a list is.
const LIST: &str = "SELECT users.id, users.tenant_id, users.name, users.email, users.created_at, extensions.number, extensions.secret FROM extensions JOIN users ON users.id = extensions.user_id ORDER BY extensions.number;";

const LOWEST_FREE: &str = "SELECT candidates.number FROM (SELECT 1000 AS number UNION ALL SELECT number + 1 FROM extensions) AS candidates WHERE candidates.number <= 1999 AND NOT EXISTS (SELECT 1 FROM extensions WHERE extensions.number = candidates.number) ORDER BY candidates.number LIMIT 1";

const TENANT: &str = "'a0000000-0000-0000-0000-000000000000'";

pub enum Database {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Database {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }

    pub fn delete_all(&self) {
        self.run("DELETE FROM extensions; DELETE FROM users;");
    }

    /// Gives new secrets to these numbers, as the API never does.
    pub fn new_secrets(&self, condition: &str) {
        let random = match self {
            Self::Sqlite(_) => "lower(hex(randomblob(15)))",
            Self::Postgres(_) => "substr(md5(random()::text || id::text), 1, 30)",
        };
        self.run(&format!("UPDATE extensions SET secret = {random} WHERE {condition};"));
    }

    fn run(&self, sql: &str) {
        match self {
            Self::Sqlite(_) => _ = self.sqlite3(&[sql]),
            Self::Postgres(url) => _ = postgres::psql(url, sql),
        }
    }

    /// Milliseconds of one bare list, the mean of many on an open connection.
    pub fn list(&self, times: usize) -> f64 {
        match self {
            Self::Sqlite(_) => self.sqlite3(&vec![LIST; times]) / times as f64,
            Self::Postgres(url) => {
                let text = pgbench(url, LIST, 1, times);
                let latency = text
                    .lines()
                    .find_map(|line| line.strip_prefix("latency average = ")?.strip_suffix(" ms")?.parse().ok());
                latency.unwrap_or_else(|| panic!("{text}"))
            }
        }
    }

    /// Bare creates a second: by as many clients, or by SQLite's one writer.
    pub fn creates(&self, clients: usize, count: usize) -> f64 {
        match self {
            Self::Sqlite(_) => {
                let create = format!(
                    "BEGIN IMMEDIATE; INSERT INTO users (id, tenant_id, name, email, created_at) VALUES (hex(randomblob(16)), {TENANT}, 'User', hex(randomblob(8)) || '@example.com', '2026-01-01T00:00:00Z'); INSERT INTO extensions (id, number, user_id, secret, created_at) SELECT hex(randomblob(16)), number, (SELECT id FROM users WHERE rowid = last_insert_rowid()), 'secret', '2026-01-01T00:00:00Z' FROM ({LOWEST_FREE}); COMMIT;"
                );
                count as f64 / self.sqlite3(&vec![create.as_str(); count]) * 1000.0
            }
            Self::Postgres(url) => {
                let create = format!(
                    "BEGIN;\nSELECT 1 FROM tenants WHERE id = {TENANT} FOR NO KEY UPDATE;\nWITH created AS (INSERT INTO users (id, tenant_id, name, email, created_at) VALUES (gen_random_uuid(), {TENANT}, 'User', gen_random_uuid() || '@example.com', now()) RETURNING id) INSERT INTO extensions (id, number, user_id, secret, created_at) SELECT gen_random_uuid(), free.number, created.id, 'secret', now() FROM ({LOWEST_FREE}) AS free, created RETURNING number;\nCOMMIT;\n"
                );
                rate(&pgbench(url, &create, clients, count / clients))
            }
        }
    }

    /// Milliseconds of one `sqlite3` process for these statements, without its start.
    fn sqlite3(&self, statements: &[&str]) -> f64 {
        let Self::Sqlite(file) = self else { panic!("SQLite alone has this tool") };
        let mut command = Command::new("sqlite3");
        command.arg("-bail").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("run sqlite3");
        let mut input = process.stdin.take().expect("its input");
        let mut output = process.stdout.take().expect("its output");
        let mut buffer = vec![0; 512 * 1024];
        let mut ask = |text: String| {
            // While it is asked, it answers: neither pipe may fill up.
            std::thread::scope(|scope| {
                scope.spawn(|| input.write_all(format!("{text}\nSELECT 'done';\n").as_bytes()).expect("ask"));
                let mut tail = Vec::new();
                while !tail.ends_with(b"done\n") {
                    let read = output.read(&mut buffer).expect("an answer");
                    assert!(read > 0, "sqlite3 ended");
                    tail.extend_from_slice(&buffer[read.saturating_sub(5)..read]);
                    tail.drain(..tail.len().saturating_sub(5));
                }
            });
        };
        // As durable as the portal's own connection; the journal's mode is the file's.
        ask(".timeout 5000\nPRAGMA synchronous = EXTRA; PRAGMA foreign_keys = ON;".to_owned());
        let took = timed(|| ask(statements.join("\n")));
        drop(input);
        assert!(process.wait().expect("its end").success(), "sqlite3");
        took
    }
}

/// Transactions a second, by `pgbench`.
fn rate(text: &str) -> f64 {
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.unwrap_or_else(|| panic!("{text}"))
}

/// What `pgbench` says of a script that each client runs so many times, on open connections.
fn pgbench(url: &str, script: &str, clients: usize, times: usize) -> String {
    let folder = Folder::new("pgbench");
    let file = folder.path().join("script.sql");
    fs::write(&file, script).expect("write the script");
    let (clients, times) = (clients.to_string(), times.to_string());
    let mut command = Command::new(postgres::program("pgbench"));
    command.args(["-n", "-M", "prepared", "-c", &clients, "-j", "2", "-t", &times, "-f"]).arg(&file).arg(url);
    let output = command.output().expect("run pgbench");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{text}");
    text
}
