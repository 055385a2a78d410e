//! What several tests begin with.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

pub use support::SetWhenDropped;
use support::lab::{Folder, PORTAL, User, install_program, make_dir};
use support::portal::Settings;
pub use support::postgres::psql;
use support::process::Process;
use support::{Answer, Asterisk, Portal, Postgres, secs, wait_until};

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

    /// A fresh one for several portals: its URL, and the folder that keeps it.
    pub fn shared(self) -> (Folder, String) {
        let (folder, User(owner)) = (Folder::new("shared"), PORTAL);
        let data = folder.path().join("data");
        make_dir(&data, owner, owner, 0o700);
        let url = match self {
            Self::Sqlite => format!("sqlite://{}", data.join("portal.db").display()),
            Self::Postgres => Postgres::database(),
        };
        (folder, url)
    }
}

/// Two portals on one fresh database.
pub struct Pair {
    pub portals: [Portal; 2],
    pub url: String,
    _folder: Folder,
}

impl Pair {
    pub fn on(database: Database, settings: &Settings) -> Self {
        let (folder, url) = database.shared();
        let start = |name| Portal::start(&settings.clone().with("DATABASE_URL", &url).with("PORTAL_HOST", name));
        Self { portals: ["one", "two"].map(start), url, _folder: folder }
    }

    pub fn sql(&self, statement: &str) -> String {
        sql(&self.url, statement)
    }
}

/// An Asterisk, and a portal of its own on SQLite.
pub fn host() -> (Asterisk, Portal) {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk));
    (asterisk, portal)
}

/// An Asterisk, and a portal that runs this [`script`] instead of `asterisk`; the script's folder.
pub fn host_with_script(body: &str) -> (Asterisk, Portal, Folder) {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    let program = script(&asterisk, &folder, body);
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    (asterisk, portal, folder)
}

/// Creates so many users, and returns them.
pub fn crowd(portal: &Portal, count: usize) -> Vec<Value> {
    (0..count).map(|index| portal.create_user("User", &format!("user{index}@example.com"))).collect()
}

/// Of a portal that is asked for nothing of Asterisk.
pub fn without_asterisk() -> Settings {
    Settings::default().with("ASTERISK_CONFIG_DIR", "/nonexistent").with("ASTERISK_RUN_DIR", "/nonexistent")
}

/// The four operations.
pub const ALL: [&str; 4] =
    ["POST /users", "GET /users", "DELETE /users/0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90", "POST /apply"];

/// Those that write.
pub const WRITES: [&str; 3] = [ALL[0], ALL[2], ALL[3]];

/// Asks for these operations at once. Each must be a 503 within five seconds, whose body has this advice.
#[track_caller]
pub fn unavailable(portal: &Portal, operations: &[&str], advice: &str) {
    let ask = |operation: &str| {
        let (method, path) = operation.split_once(' ').expect("a method and a path");
        let body = match operation {
            "POST /users" => Some(json!({"name": "Nobody", "email": "nobody@example.com"})),
            "POST /apply" => Some(json!({"triggered_by": "suite"})),
            _ => None,
        };
        portal.request(method, path, body.as_ref())
    };
    let logged = portal.log().len();
    let answers: Vec<_> = thread::scope(|scope| {
        let asking: Vec<_> = operations.iter().map(|operation| scope.spawn(|| ask(operation))).collect();
        asking.into_iter().map(|asking| asking.join().expect("an answer")).collect()
    });
    for (operation, answer) in operations.iter().zip(answers) {
        let message = answer.json["message"].as_str().unwrap_or_default();
        assert_eq!(
            (answer.status, answer.json["error"].as_str()),
            (503, Some("Database unavailable")),
            "{operation}: {}",
            answer.text
        );
        assert!(message.contains(advice), "{operation}: {message:?} does not say {advice:?}\n{}", portal.log());
    }
    // By the service's own clock: on a busy machine a client waits for more than the answer.
    let log = portal.log();
    let took = log[logged..].lines().filter(|line| line.contains("status=503"));
    let took = took.filter_map(|line| line.rsplit_once("milliseconds=")?.1.split(' ').next()?.parse::<f64>().ok());
    let took: Vec<_> = took.collect();
    assert!(took.len() >= operations.len() && took.iter().all(|took| *took < 5000.0), "{took:?}");
}

/// The extensions that an apply's answer names as evicted.
pub fn evicted(applied: &Value) -> Vec<String> {
    let registrations = applied["registrations_evicted"].as_array().expect("a list");
    registrations.iter().map(|registration| registration["extension"].to_string()).collect()
}

/// The keys of all registrations, with what a phone that registers again does not change.
pub fn registered(asterisk: &Asterisk) -> Vec<String> {
    let row = |(key, json): &(String, String)| {
        let value: Value = serde_json::from_str(json).expect("JSON");
        format!("{key} {} {}", value["uri"], value["call_id"])
    };
    asterisk.contacts().iter().map(row).collect()
}

/// Waits until users can be created again, and creates one.
pub fn recovers(portal: &Portal, email: &str) {
    wait_until(secs(20), "users can be created again", || {
        portal.request("POST", "/users", Some(&json!({"name": "After", "email": email}))).status == 201
    });
}

/// Eight clients that create users while something happens to the database. Each answer must be a 201 or a 503; gives the
/// users that were created.
pub fn created_during(portal: &Portal, what_happens: impl FnOnce(&dyn Fn() -> usize)) -> Vec<Value> {
    let (done, created) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for client in 0..8 {
            let (done, created) = (&done, &created);
            scope.spawn(move || {
                for index in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let body = json!({"name": "During", "email": format!("during.{client}.{index}@example.com")});
                    let answer = portal.request("POST", "/users", Some(&body));
                    assert!(matches!(answer.status, 201 | 503), "{}", answer.text);
                    if answer.status == 201 {
                        created.lock().expect("no client panicked").push(answer.json);
                    }
                    // The pool must not run out.
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let ended = SetWhenDropped(&done);
        what_happens(&|| created.lock().expect("no client panicked").len());
        drop(ended);
    });
    created.into_inner().expect("no client panicked")
}

/// Nothing of what was created is missing.
#[track_caller]
pub fn all_are_there(portal: &Portal, created: &[Value]) {
    let users = portal.users();
    for user in created {
        assert!(users.contains(user), "{user} was answered 201, and is missing");
    }
}

/// Makes Asterisk commit to its database, so that no reader of it can make Asterisk take back what it has stored.
pub fn commit(asterisk: &Asterisk) {
    wait_until(secs(10), "Asterisk commits", || {
        asterisk.rx("database query \"COMMIT; BEGIN; SELECT 'yes' AS committed\"").contains("committed: yes")
    });
}

/// A process that reads Asterisk's database, until it is dropped.
pub struct Reader {
    process: Process,
    _folder: Folder,
}

impl Reader {
    /// Holds a read transaction so often, for so many seconds, with pauses. The first has begun.
    pub fn start(asterisk: &Asterisk, times: u32, hold: f64, pause: f64) -> Self {
        // The last one replaces the shell, so that it ends with this process.
        let script = "read='BEGIN; SELECT count(*) FROM astdb;'
        for turn in $(seq 2 $2); do
            sqlite3 \"$1\" \"$read\" '.shell touch reading' \".shell sleep $3\"; sleep $4
        done
        exec sqlite3 \"$1\" \"$read\" '.shell touch reading' \".shell sleep $3\"";
        let folder = Folder::new("reader");
        let database = asterisk.etc().with_file_name("db").join("astdb.sqlite3");
        let mut command = Command::new("sh");
        command.args(["-c", script, "reader"]).arg(database).arg(times.to_string());
        command.args([hold.to_string(), pause.to_string()]).current_dir(folder.path());
        let process = Process::start(&mut command, &folder.path().join("log"));
        wait_until(secs(10), "the reader reads", || folder.path().join("reading").exists());
        Self { process, _folder: folder }
    }

    pub fn wait(mut self) {
        wait_until(secs(20), "the reader ends", || self.process.ended().is_some());
    }
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

/// The URL of the portal's default database.
pub fn sqlite_url(portal: &Portal) -> String {
    format!("sqlite://{}/portal.db", portal.data_dir().display())
}

/// Runs SQL on the database of this URL.
pub fn sql(url: &str, sql: &str) -> String {
    match url.strip_prefix("sqlite://") {
        Some(file) => sqlite_file(Path::new(file), sql),
        None => psql(url, sql),
    }
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

/// How many registrations Asterisk keeps for a number.
pub fn registrations(asterisk: &Asterisk, number: &str) -> usize {
    asterisk.contacts().iter().filter(|(key, _)| key.split(';').next() == Some(number)).count()
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

/// Method, path and status of each answer in a portal's log.
pub fn answers(log: &str) -> BTreeSet<(String, String, u16)> {
    let answered = log.lines().filter(|line| line.contains(": answered "));
    let field = |line: &str, name: &str| {
        let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{name} in {line}")).trim_matches('"').to_owned()
    };
    answered
        .map(|line| (field(line, "method"), field(line, "path"), field(line, "status").parse().expect("a status")))
        .collect()
}

/// An `asterisk` that is a shell script: `body` runs with the real one in `$asterisk`, and with a folder in `$here` in which the
/// portal may write.
pub fn script(asterisk: &Asterisk, folder: &Folder, body: &str) -> PathBuf {
    let User(owner) = PORTAL;
    make_dir(folder.path(), owner, owner, 0o755);
    let (source, program) = (folder.path().join("asterisk.sh"), folder.path().join("asterisk"));
    let (real, here) = (asterisk.bin(), folder.path());
    let text = format!("#!/bin/sh\nasterisk={}\nhere={}\n{body}", real.display(), here.display());
    fs::write(&source, text).expect("write a script");
    install_program(&source, &program);
    program
}
