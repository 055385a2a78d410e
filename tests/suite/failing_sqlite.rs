//! A SQLite file that fails in every way: 503 within five seconds with what to do, and never an answer from a file that is
//! not there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use serde_json::json;

use crate::fixtures::{
    ALL, WRITES, all_are_there, created_during, id, recovers, sqlite, sqlite_file, unavailable, without_asterisk,
};
use crate::foreign_hands::Done;
use crate::limits::handles;
use crate::operations::commands;
use crate::steps::{CONNECTS_AGAIN, FLUSH_THE_FILE, LOOK_AT_THE_FILE, WRITE_THE_SECOND_PAGE, threads_called};
use support::lab::{self, SmallDisk, User};
use support::portal::run;
use support::{Portal, secs, strace, wait_until};

/// What always writes: a DELETE of an unknown user does not.
const INSERTS: [&str; 2] = [ALL[0], ALL[3]];

fn database(portal: &Portal) -> PathBuf {
    portal.data_dir().join("portal.db")
}

/// Options of strace for what all threads do with this file.
fn of_file(file: &Path) -> [String; 3] {
    ["-f".to_owned(), "-P".to_owned(), file.display().to_string()]
}

/// Another process that holds the lock until it is dropped.
struct Locked(Child);

impl Locked {
    /// Against writes alone.
    fn new(file: &Path) -> Self {
        Self::by(file, "BEGIN IMMEDIATE")
    }

    fn by(file: &Path, sql: &str) -> Self {
        let mut sqlite3 = Command::new("sqlite3");
        sqlite3.args(["-cmd", ".timeout 5000"]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = sqlite3.spawn().expect("start sqlite3");
        lab::guard(shell.id());
        let commands = shell.stdin.as_mut().expect("its input");
        writeln!(commands, "{sql};\nSELECT 'locked';").expect("lock it");
        let mut answers = BufReader::new(shell.stdout.as_mut().expect("its output")).lines().map_while(Result::ok);
        assert!(answers.any(|answer| answer == "locked"), "{sql}");
        Self(shell)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        lab::release(self.0.id());
    }
}

/// Does this, then waits until the thread that writes has tried again and again to get the lock. Without a write it sleeps.
fn tries_to_write<T>(portal: &Portal, work: impl FnOnce() -> T) -> T {
    let status = format!("/proc/{0}/task/{1}/status", portal.pid(), writer(portal));
    let slept = || {
        let status = fs::read_to_string(&status).expect("the thread's status");
        let times = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        times.and_then(|times| times.trim().parse::<u32>().ok()).expect("how often it slept")
    };
    let before = slept();
    let done = work();
    wait_until(secs(3), "it tries to write", || slept() > before + 5);
    done
}

#[test]
fn a_locked_or_read_only_sqlite_file_is_a_503_for_writes_and_recovers() {
    let portal = Portal::start(&without_asterisk());
    let file = database(&portal);
    let alice = portal.create_user("Alice", "alice@example.com");

    let locked = Locked::new(&file);
    thread::scope(|scope| {
        scope.spawn(|| unavailable(&portal, &WRITES, "The database's file is locked"));
        assert_eq!(portal.users(), std::slice::from_ref(&alice), "reads go on");
    });
    drop(locked);
    recovers(&portal, "locked@example.com");
    let locked = Locked::by(&file, "BEGIN EXCLUSIVE");
    unavailable(&portal, &ALL, "The database's file is locked");
    drop(locked);
    recovers(&portal, "exclusive@example.com");
    // It reads, so nobody can end a write.
    let locked = Locked::by(&file, "BEGIN; SELECT count(*) FROM users");
    unavailable(&portal, &INSERTS, "nothing was changed. The database's file is locked");
    drop(locked);
    recovers(&portal, "read@example.com");

    let immutable = [file.clone(), portal.data_dir()].map(|path| Done::immutable(&path));
    unavailable(&portal, &INSERTS, "its folder or its disk is read-only");
    assert!(portal.users().contains(&alice), "reads go on");
    drop(immutable);
    let created = portal.create_user("Bob", "readonly@example.com");
    assert!(portal.users().contains(&created), "it is over for each connection");
}

#[test]
fn a_read_only_file_or_folder_is_a_warning_at_start_and_fails_in_check() {
    let portal = Portal::start(&without_asterisk());
    let alice = portal.create_user("Alice", "alice@example.com");
    for path in [database(&portal), portal.data_dir()] {
        portal.stop();
        let immutable = Done::immutable(&path);
        let started = portal.log().len();
        portal.boot();
        let words = format!("can't write to {}: ", path.display());
        let line = portal.log()[started..].lines().find(|line| line.contains(" WARN ")).map(str::to_owned);
        assert!(line.as_ref().is_some_and(|line| line.contains(&words)), "{line:?}");
        unavailable(&portal, &INSERTS, "");
        assert_eq!(portal.users(), std::slice::from_ref(&alice), "reads go on");
        let report = String::from_utf8(run(&["check"], portal.settings()).stdout).expect("a report");
        let database = report.lines().find(|line| line.contains("the database")).expect("a line about the database");
        assert!(database.starts_with("FAIL") && database.contains(&words), "{report}");
        drop(immutable);
    }
    recovers(&portal, "after@example.com");
}

/// What a backup script, `rm` and an administrator do to it between two writes.
#[test]
fn between_two_writes_sqlite_is_one_file_and_a_copy_of_it_is_a_backup() {
    let portal = Portal::start(&without_asterisk());
    let (file, backup) = (database(&portal), portal.work_dir().join("backup.db"));
    let names = || fs::read_dir(portal.data_dir()).expect("list it").flatten().map(|entry| entry.file_name());
    for index in 0..50 {
        portal.create_user("User", &format!("user{index}@example.com"));
        assert!(names().eq(["portal.db"]), "{:?}", names().collect::<Vec<_>>());
    }
    let users = portal.users();
    fs::copy(&file, &backup).expect("copy it");
    for suffix in ["-wal", "-shm", "-journal"] {
        let _ = fs::remove_file(format!("{}{suffix}", file.display()));
    }
    // As many writes before the restore as after it, which another process has not seen.
    let url = format!("sqlite://{}", file.display());
    let second = Portal::start(&without_asterisk().with("DATABASE_URL", url));
    for round in ["before", "after"] {
        let mut created = Vec::new();
        for index in 0..5 {
            created.push(portal.create_user("User", &format!("{round}{index}@example.com")));
        }
        assert_eq!(second.users(), [&users[..], &created].concat(), "{round}");
        portal.kill();
        portal.boot();
        assert_eq!(portal.users(), [&users[..], &created].concat(), "{round}, after a start");
        // Over the file of a service that runs.
        fs::copy(&backup, &file).expect("restore it");
        assert_eq!(sqlite(&portal, "PRAGMA integrity_check"), "ok");
    }
    assert_eq!(portal.users(), users);
}

/// With the commands of docs/operations.md.
#[test]
fn a_restore_after_a_kill_in_the_middle_of_a_write_is_not_undone() {
    let portal = Portal::start(&without_asterisk());
    let (file, backup) = (database(&portal), portal.work_dir().join("backup.db"));
    let alice = portal.create_user("Alice", "alice@example.com");
    fs::copy(&file, &backup).expect("copy it");
    portal.create_user("Bob", "bob@example.com");
    let path = file.display().to_string();
    strace::under(portal.pid(), &[&of_file(&file)[..], &WRITE_THE_SECOND_PAGE.inject("signal=KILL")].concat(), || {
        let body = json!({"name": "Carol", "email": "carol@example.com"});
        assert!(portal.try_request("POST", "/users", Some(&body)).is_err(), "it was killed");
    });
    assert!(file.with_extension("db-journal").exists(), "in the middle of a write");
    let document = commands("docs/operations.md");
    let block = document.iter().find(|block| block.heading == "Restore SQLite").expect("the commands");
    let User(owner) = lab::PORTAL;
    let script = block.text.replace("/root/pbx-portal-backup.db", &backup.display().to_string());
    let script = script.replace("/var/lib/pbx-portal/portal.db", &path);
    let script = script.replace("-o pbx-portal -g pbx-portal", &format!("-o {owner} -g {owner}"));
    let lines: Vec<_> = script.lines().filter(|line| !line.starts_with("systemctl")).collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.contains(&path)), "{lines:?}");
    let status = Command::new("sh").args(["-ec", &lines.join("\n")]).status().expect("run sh");
    assert!(status.success());
    portal.boot();
    assert_eq!(portal.users(), [alice]);
    recovers(&portal, "after@example.com");
}

#[test]
fn a_write_ahead_log_is_ended_by_the_start_or_the_start_fails() {
    let portal = Portal::start(&without_asterisk());
    let (file, alice) = (database(&portal), portal.create_user("Alice", "alice@example.com"));
    let mode = || sqlite(&portal, "PRAGMA journal_mode");
    portal.stop();
    // As release 0.1 left it.
    assert_eq!(sqlite(&portal, "PRAGMA journal_mode = WAL"), "wal");
    let open = Locked::by(&file, "SELECT count(*) FROM users");
    let refused = run(&["serve"], portal.settings());
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains("its write-ahead log can't be ended"), "{stderr}");
    run(&["check"], portal.settings());
    drop(open);
    assert_eq!(mode(), "wal", "check changes nothing");
    portal.boot();
    assert_eq!((mode().as_str(), portal.users()), ("delete", vec![alice]));

    // Another program begins one while the service runs.
    assert_eq!(sqlite(&portal, "PRAGMA journal_mode = WAL"), "wal");
    let create = || portal.request("POST", "/users", Some(&json!({"name": "Bob", "email": "bob@example.com"})));
    wait_until(secs(5), "it is noticed", || create().status == 503);
    unavailable(&portal, &ALL, "restart the service");
    portal.stop();
    portal.boot();
    assert_eq!(mode(), "delete");
    recovers(&portal, "after@example.com");

    // An empty one that a restored file has beside it.
    portal.stop();
    fs::write(file.with_file_name("portal.db-wal"), "").expect("make an empty log");
    portal.boot();
    recovers(&portal, "again@example.com");
}

#[test]
fn creates_that_wait_for_the_lock_are_each_taken_or_refused_and_a_refused_one_leaves_nothing() {
    const FREE: usize = 5;
    let portal = Portal::start(&without_asterisk());
    let file = database(&portal);
    portal.create_user("Model", "model@example.com");
    let taken = 1000 - FREE;
    sqlite_file(
        &file,
        &format!(
            "WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < {taken}) \
             INSERT INTO users SELECT 'id' || n, tenant_id, name, n || '@example.com', created_at FROM users, n; \
             INSERT INTO extensions SELECT 'x' || users.id, 1000 + row_number() OVER (), users.id, 'secret', users.created_at \
             FROM users WHERE users.id LIKE 'id%';"
        ),
    );
    let addresses = ["a", "same", "b", "same", "same", "c", "d", "e", "same", "f", "g", "h"];
    let locked = Locked::new(&file);
    let before = handles(&portal);
    let answers: Vec<_> = thread::scope(|scope| {
        let create = |name: &'static str| {
            let body = json!({"name": "User", "email": format!("{name}@example.org")});
            scope.spawn({
                let portal = &portal;
                move || portal.request("POST", "/users", Some(&body))
            })
        };
        let creating: Vec<_> = tries_to_write(&portal, || addresses.map(create)).into();
        // One may use a connection that was open before.
        let all = before + addresses.len() - 1;
        wait_until(secs(3), "all of them have asked", || handles(&portal) >= all);
        drop(locked);
        creating.into_iter().map(|creating| creating.join().expect("an answer")).collect()
    });
    let with = |status: u16| answers.iter().filter(move |answer| answer.status == status).collect::<Vec<_>>();
    assert_eq!((with(201).len(), with(409).len()), (FREE, addresses.len() - FREE), "{answers:?}");
    let errors: BTreeSet<_> = with(409).iter().map(|answer| answer.json["error"].as_str()).collect();
    assert!(errors.contains(&Some("Extension pool exhausted")), "{errors:?}");
    let created: BTreeSet<_> = with(201).iter().map(|answer| answer.json["email"].to_string()).collect();
    assert_eq!(created.len(), FREE, "no address twice");
    let numbers: BTreeSet<_> =
        with(201).iter().filter_map(|answer| answer.json["extension"]["number"].as_u64()).collect();
    assert!(numbers.into_iter().eq(1995..2000), "the last ones");
    let rows = "SELECT (SELECT count(*) FROM users) || ' ' || (SELECT count(*) FROM extensions)";
    assert_eq!(sqlite_file(&file, rows), "1000 1000", "whoever is refused is not there");
    let written = || fs::read(&file).expect("what was committed");
    let before = written();
    let refused = portal.request("POST", "/users", Some(&json!({"name": "Late", "email": "late@example.org"})));
    assert_eq!(refused.status, 409);
    assert!(written() == before, "a refused create writes nothing");
}

#[test]
fn a_file_moved_away_during_a_wait_for_its_lock_is_not_written_to() {
    let portal = Portal::start(&without_asterisk());
    let (file, aside) = (database(&portal), portal.work_dir().join("aside.db"));
    let alice = portal.create_user("Alice", "alice@example.com");
    let locked = Locked::new(&file);
    thread::scope(|scope| {
        tries_to_write(&portal, || {
            let advice = "nothing was changed. The database's file is damaged, or not in";
            scope.spawn(|| unavailable(&portal, &INSERTS, advice))
        });
        fs::rename(&file, &aside).expect("move it away");
        drop(locked);
    });
    fs::rename(&aside, &file).expect("move it back");
    assert_eq!(portal.users(), [alice]);
    recovers(&portal, "moved@example.com");
}

/// The thread that writes to the database.
fn writer(portal: &Portal) -> u32 {
    let writers = threads_called("sqlite-writer", portal);
    assert_eq!(writers.len(), 1, "one thread writes");
    writers[0]
}

#[test]
fn a_write_that_was_reported_as_failed_is_not_made_later() {
    let portal = Portal::start(&without_asterisk());
    let alice = portal.create_user("Alice", "alice@example.com");
    let delete = format!("DELETE /users/{}", id(&alice));
    let locked = Locked::new(&database(&portal));
    unavailable(&portal, &["POST /users", &delete], "nothing was changed");
    drop(locked);
    let bob = portal.create_user("Bob", "bob@example.com");
    assert_eq!(portal.users(), [&alice, &bob].map(Clone::clone));

    // Given up while it has the lock: its first look at what somebody else changed takes longer.
    let [_, of, file] = of_file(&database(&portal));
    let slow = [&[of, file][..], &LOOK_AT_THE_FILE.inject("delay_enter=6s")].concat();
    for (operation, next) in [("POST /users", "first@example.com"), (&delete, "second@example.com")] {
        sqlite(&portal, "UPDATE tenants SET name = name || '.'");
        let ((), calls) = strace::under(writer(&portal), &slow, || {
            unavailable(&portal, &[operation], "nothing was changed");
            wait_until(secs(10), "the next one is taken", || {
                let body = json!({"name": "Next", "email": next});
                portal.request("POST", "/users", Some(&body)).status == 201
            });
        });
        assert!(!calls.is_empty(), "{operation}: nothing was delayed");
    }
    let names: Vec<_> = portal.users().iter().map(|user| user["name"].to_string()).collect();
    assert_eq!(names, [r#""Alice""#, r#""Bob""#, r#""Next""#, r#""Next""#]);
}

#[test]
fn a_create_whose_flush_takes_too_long_is_reported_as_unknown_and_is_written() {
    let portal = Portal::start(&without_asterisk());
    portal.create_user("Alice", "alice@example.com");
    let slow = [&of_file(&database(&portal))[..], &FLUSH_THE_FILE.inject("delay_enter=6s")].concat();
    strace::under(portal.pid(), &slow, || {
        unavailable(&portal, &["POST /users"], "it is unknown whether the user was created");
        wait_until(secs(10), "it is done", || portal.users().len() == 2);
    });
    portal.create_user("Bob", "bob@example.com");
    assert_eq!(portal.users().len(), 3);
}

#[test]
fn a_start_waits_for_the_lock_of_sqlite_and_logs_that() {
    let portal = Portal::start(&without_asterisk());
    portal.stop();
    let locked = Locked::new(&database(&portal));
    thread::scope(|scope| {
        scope.spawn(|| portal.boot());
        wait_until(secs(20), "it tells so", || portal.log().contains(CONNECTS_AGAIN));
        drop(locked);
    });
    portal.create_user("Alice", "alice@example.com");
}

#[test]
fn a_request_that_waited_too_long_fails_alone() {
    let portal = Portal::start(&without_asterisk());
    let locked = Locked::new(&database(&portal));
    thread::scope(|scope| {
        let [first, second, third] = [("first", 0), ("second", 100), ("third", 3900)].map(|(name, later)| {
            let (portal, body) = (&portal, json!({"name": "User", "email": format!("{name}@example.com")}));
            scope.spawn(move || {
                sleep(Duration::from_millis(later)); // less than each may wait
                portal.request("POST", "/users", Some(&body))
            })
        });
        let early = [first, second].map(|creating| creating.join().expect("an answer"));
        assert!(early.iter().all(|answer| answer.status == 503), "{early:?}");
        drop(locked);
        let late = third.join().expect("an answer");
        assert_eq!(late.status, 201, "{late:?}");
    });
    assert_eq!(portal.users().len(), 1);
}

#[test]
fn sqlite_on_a_full_disk_is_a_503_until_there_is_space_again() {
    let disk = SmallDisk::new(lab::PORTAL, 8);
    let portal = Portal::start(&without_asterisk().with("PORTAL_DATA_DIR", disk.path().display()));
    let created = created_during(&portal, |created| {
        wait_until(secs(20), "users are created", || created() > 10);
        disk.fill();
        // The end of a journal leaves space for a few more.
        for index in 0..3 {
            wait_until(secs(20), "a create is refused", || {
                let body = json!({"name": "x".repeat(255), "email": format!("full{index}@example.com")});
                let answer = portal.request("POST", "/users", Some(&body));
                answer.status == 503 && answer.text.contains("disk of the database's file is full")
            });
        }
        disk.free();
        let before = created();
        wait_until(secs(20), "users are created again", || created() > before + 10);
    });
    all_are_there(&portal, &created);
    portal.kill();
    portal.boot();
    all_are_there(&portal, &created);
    assert_eq!(sqlite_file(&disk.path().join("portal.db"), "PRAGMA integrity_check"), "ok");
}

#[test]
fn a_sqlite_file_that_is_deleted_or_moved_away_is_a_503_and_no_new_file_takes_its_place() {
    let portal = Portal::start(&without_asterisk());
    let (file, aside) = (database(&portal), portal.work_dir().join("aside.db"));
    let backup = portal.work_dir().join("backup.db");
    let advice = "stop the service, restore a backup";

    let created = created_during(&portal, |created| {
        for _ in 0..5 {
            let before = created();
            wait_until(secs(20), "users are created", || created() > before + 5);
            fs::rename(&file, &aside).expect("move it away");
            unavailable(&portal, &ALL, advice);
            let before = created();
            unavailable(&portal, &WRITES, advice);
            assert_eq!(created(), before, "nothing is created without the file");
            assert!(!file.exists(), "no new file");
            fs::rename(&aside, &file).expect("move it back");
        }
    });
    all_are_there(&portal, &created);

    sqlite(&portal, &format!(".backup '{}'", backup.display()));
    let users = portal.users();
    fs::remove_file(&file).expect("remove it");
    unavailable(&portal, &ALL, advice);
    assert!(!file.exists(), "no new file");
    // Another one in its place is not the one that was answered from.
    fs::copy(&backup, &file).expect("copy a backup");
    unavailable(&portal, &ALL, "file was replaced: restart the service to use the one that is there");
    assert!(portal.log().contains(&format!("{}: it was replaced", file.display())), "{}", portal.log());
    restore(&portal, &backup);
    assert_eq!(portal.users(), users);
    portal.create_user("After", "after@example.com");
}

#[test]
fn a_damaged_sqlite_file_is_a_503_or_a_refusal_to_start() {
    let portal = Portal::start(&without_asterisk());
    let (file, backup) = (database(&portal), portal.work_dir().join("backup.db"));
    for index in 0..200 {
        portal.create_user(&"x".repeat(255), &format!("user{index}@example.com"));
    }
    sqlite(&portal, &format!(".backup '{}'", backup.display()));
    let users = portal.users();
    portal.stop();
    portal.boot();
    damage(&file);
    assert_eq!(portal.request("GET", "/users", None).status, 503);
    // Also what does not read the damaged page: a write would make the damage worse.
    unavailable(&portal, &ALL, "stop the service, restore a backup");
    portal.stop();
    let refused = run(&["serve"], portal.settings());
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains("restore a backup"), "{stderr}");
    let report = String::from_utf8(run(&["check"], portal.settings()).stdout).expect("a report");
    let database = report.lines().find(|line| line.contains("the database")).expect("a line about the database");
    assert!(database.starts_with("FAIL"), "{report}");
    restore(&portal, &backup);
    assert_eq!(portal.users(), users);

    // No database at all.
    portal.stop();
    fs::write(&file, "x".repeat(8192)).expect("write");
    let refused = run(&["serve"], portal.settings());
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains("restore a backup"), "{stderr}");
    assert_eq!(fs::read(&file).expect("read"), "x".repeat(8192).as_bytes(), "it is left as it is");
}

/// One page of the users' names, which only a list reads.
fn damage(file: &Path) {
    let page = "SELECT max(pageno) FROM dbstat WHERE name = 'users' AND pagetype = 'leaf'";
    let page: u64 = sqlite_file(file, page).parse().expect("a page");
    File::options()
        .write(true)
        .open(file)
        .expect("open it")
        .write_all_at(&[0xa5; 4096], (page - 1) * 4096)
        .expect("damage it");
}

/// Does what the log says.
fn restore(portal: &Portal, backup: &Path) {
    let log = portal.log();
    let (_, line) = log.rsplit_once("start the service: ").expect("the line that restores a backup");
    let (line, _) = line.split_once('"').unwrap_or((line, ""));
    if portal.running() {
        portal.stop();
    }
    let line = line.replace("BACKUP", &backup.display().to_string());
    let status = Command::new("sh").args(["-c", &line]).status().expect("run sh");
    assert!(status.success(), "{line}: {status}");
    portal.boot();
}
