//! What several tests begin with.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::portal::Settings;
use crate::support::{Answer, Asterisk, Portal, Postgres, postgres};

/// Makes Asterisk keep every auth as it is, while it says that it reloaded.
pub const TWO_OF_ONE_NAME: &str = "
[alice]
type=auth
auth_type=userpass
username=alice
password=x
[alice]
type=auth
auth_type=userpass
username=alice
password=x
";

/// Ends a thread that looks on, even if the test fails meanwhile.
pub struct SetWhenDropped<'a>(pub &'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

impl Database {
    /// Of a portal on the host of this Asterisk, with a fresh database.
    pub fn settings(self, asterisk: &Asterisk) -> Settings {
        match self {
            Self::Sqlite => Settings::of(asterisk),
            Self::Postgres => Settings::of(asterisk).with("DATABASE_URL", Postgres::database()),
        }
    }
}

/// An Asterisk, and a portal of its own on SQLite.
pub fn host() -> (Asterisk, Portal) {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk));
    (asterisk, portal)
}

/// Asks for an apply, whatever comes of it.
pub fn try_apply(portal: &Portal) -> Answer {
    portal.request("POST", "/apply", Some(&json!({"triggered_by": "suite"})))
}

/// Applies, which must fail with all of these words in its details; gives the answer.
#[track_caller]
pub fn failed_apply(portal: &Portal, words: &[&str]) -> Value {
    let answer = try_apply(portal);
    assert_eq!(
        (answer.status, answer.json["error"].as_str()),
        (500, Some("Apply operation failed")),
        "{}",
        answer.text
    );
    let details = answer.json["error_details"].as_str().expect("details");
    for word in words {
        assert!(details.contains(word), "{word:?} in {details:?}");
    }
    answer.json
}

/// A user's number and secret.
pub fn account(user: &Value) -> (String, String) {
    let extension = &user["extension"];
    let number = extension["number"].as_u64().expect("a number");
    (number.to_string(), extension["secret"].as_str().expect("a secret").to_owned())
}

pub fn id(user: &Value) -> &str {
    user["id"].as_str().expect("an id")
}

/// Runs SQL on the portal's default database.
pub fn sqlite(portal: &Portal, sql: &str) -> String {
    sqlite_file(&portal.data_dir().join("portal.db"), sql)
}

/// Runs SQL on a SQLite database, waiting for its lock.
pub fn sqlite_file(file: &Path, sql: &str) -> String {
    let output =
        Command::new("sqlite3").args(["-cmd", ".timeout 5000"]).arg(file).arg(sql).output().expect("run sqlite3");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs SQL on the database of a URL.
pub fn psql(url: &str, sql: &str) -> String {
    postgres::psql(url, sql).trim().to_owned()
}

/// How many registrations Asterisk keeps for a number.
pub fn registrations(asterisk: &Asterisk, number: &str) -> usize {
    let rows = asterisk.rx("database show registrar/contact");
    rows.lines().filter(|row| row.starts_with(&format!("/registrar/contact/{number};"))).count()
}

pub fn serves(asterisk: &Asterisk, number: &str) -> bool {
    !asterisk.rx(&format!("pjsip show endpoint {number}")).contains("Unable to find object")
}

/// The temporary files beside the generated ones.
pub fn left_overs(asterisk: &Asterisk) -> Vec<String> {
    let folders =
        [asterisk.endpoints_file(), asterisk.routing_file()].map(|file| fs::read_dir(file.with_file_name("")));
    let entries = folders.into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.expect("list a folder").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(".tmp")).collect()
}
