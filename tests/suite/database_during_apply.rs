//! The database fails, or the clock goes back, while an apply runs: what the client is told and what the audit log says
//! is true, and the next apply succeeds by itself.

use std::fs;
use std::thread::scope;

use serde_json::{Value, json};

use crate::fixtures::{Database, evicted, failed_apply, left_overs, try_apply};
use crate::scenes::{Scene, Selection, apply_meanwhile};
use crate::steps::threads_called;
use support::lab::{Folder, PORTAL, write_file};
use support::{Answer, Asterisk, Portal, Postgres, postgres, secs, wait_until};

/// The threads and files of a portal's writes to SQLite.
fn to_sqlite(portal: &Portal) -> Selection {
    let files = ["portal.db", "portal.db-journal"].map(|name| portal.data_dir().join(name));
    let paths = files.iter().flat_map(|file| ["-P".to_owned(), file.display().to_string()]);
    Selection(portal.pid(), ["-f".to_owned()].into_iter().chain(paths).collect())
}

/// The thread that sends to PostgreSQL: the only one that runs tasks, which is older than those that block.
fn to_postgres(portal: &Portal) -> Selection {
    Selection(threads_called("tokio-rt-worker", portal)[0], Vec::new())
}

type Check = fn(&Scene, Option<&Answer>, &str);

/// The fault at each write to the file and its journal, of whatever kind.
fn at_each_write_to_sqlite(fault: &str, check: Check) {
    let calls = ["write", "writev", "pwrite64", "pwritev", "fsync", "fdatasync", "ftruncate", "fallocate", "unlink"];
    at_each_of_sqlite(&calls, fault, check);
}

fn at_each_of_sqlite(calls: &[&str], fault: &str, check: Check) {
    let mut scene = Scene::at(Asterisk::start()).among(0).begin();
    let points: usize = calls.iter().map(|name| scene.at_each(name, fault, to_sqlite, check)).sum();
    assert!(points >= 6, "two commits of a page and a flush at least: {points}");
}

fn at_each_write_to_postgres(fault: &str, check: Check) {
    let mut scene =
        Scene::at(Asterisk::start()).on(Database::Postgres).with("TOKIO_WORKER_THREADS", 1).among(0).begin();
    let points = scene.at_each("sendto", fault, to_postgres, check);
    assert!(points >= 7, "two transactions and a query between them: {points}");
}

/// A write fails: whatever is answered is what the row says, if not at once.
fn reported_and_repaired(scene: &Scene, answer: Option<&Answer>, point: &str) {
    let answer = answer.unwrap_or_else(|| panic!("{point}: no answer"));
    let point = format!("{point}: {}", answer.text);
    let becomes = |row: &str| {
        wait_until(secs(20), &format!("{point}: the row becomes {row:?}, not {:?}", scene.row()), || {
            scene.row() == row
        });
    };
    match answer.status {
        200 => assert_eq!((scene.row().as_str(), scene.served()), ("success", true), "{point}"),
        503 => {
            let unknown = answer.text.contains("unknown whether an audit row was written");
            let row = if unknown {
                "failure the database did not confirm this row in time, and nothing was touched; apply again"
            } else {
                ""
            };
            becomes(row);
            assert!(!scene.served(), "{point}: nothing was touched");
        }
        500 if scene.served() => {
            assert!(
                answer.json["message"].as_str().is_some_and(|text| text.contains("serves the new state")),
                "{point}"
            );
            becomes("success");
        }
        500 => {
            let details = answer.json["error_details"].as_str().expect("details");
            becomes(&format!("failure {}", details.split("; the audit row says").next().expect("a beginning")));
        }
        _ => panic!("{point}"),
    }
}

/// The service is killed: the row is what is true of an apply that was interrupted, or ended.
fn true_after_a_kill(scene: &Scene, answer: Option<&Answer>, point: &str) {
    scene.killed(answer, point);
    let row = scene.row();
    let is_true = match row.split(' ').next() {
        Some("success") => scene.served(),
        Some("failure") => row.starts_with("failure interrupted"),
        _ => row.is_empty() && !scene.served(),
    };
    assert!(is_true, "{point}: {row}");
}

#[test]
fn an_error_of_the_disk_at_any_write_to_sqlite_is_reported_and_repaired() {
    at_each_write_to_sqlite("error=EIO", reported_and_repaired);
    at_each_of_sqlite(&["pwrite64"], "error=ENOSPC", reported_and_repaired);
}

#[test]
fn sigkill_or_sigterm_at_any_write_to_sqlite_leaves_a_true_row() {
    at_each_write_to_sqlite("signal=KILL", true_after_a_kill);
    at_each_write_to_sqlite("signal=TERM", Scene::stopped_after_success);
}

#[test]
fn an_error_of_the_socket_at_any_write_to_postgres_is_reported_and_repaired() {
    at_each_write_to_postgres("error=EIO", reported_and_repaired);
}

#[test]
fn sigkill_or_sigterm_at_any_write_to_postgres_leaves_a_true_row() {
    at_each_write_to_postgres("signal=KILL", true_after_a_kill);
    at_each_write_to_postgres("signal=TERM", Scene::stopped_after_success);
}

/// A number that changes hands with the next apply, on a PostgreSQL that can be stopped.
fn stoppable() -> (Scene, Postgres) {
    let options = postgres::Options { conf: "max_prepared_transactions = 1\n".into(), ..postgres::Options::default() };
    let cluster = Postgres::start(&options);
    let mut scene = Scene::at(Asterisk::start()).on_url(cluster.new_database()).begin();
    scene.next_owner();
    (scene, cluster)
}

/// Whether the audit row of this answer begins like this.
fn row_says(scene: &Scene, answer: &Value, text: &str) -> bool {
    let id = answer["audit_log_id"].as_str().expect("an id");
    let row = format!("SELECT outcome || ' ' || error_details FROM apply_audit_logs WHERE id = '{id}'");
    scene.sql(&row).starts_with(text)
}

#[test]
fn a_database_stopped_before_the_first_write_leaves_everything_untouched() {
    let (scene, cluster) = stoppable();
    let before = scene.files();
    cluster.stop();
    let answer = try_apply(&scene.portal);
    assert_eq!((answer.status, answer.json["error"].as_str()), (503, Some("Database unavailable")));
    cluster.boot();
    assert_eq!((scene.row().as_str(), scene.files()), ("", before));
    assert_eq!(left_overs(&scene.asterisk), [""; 0]);
    assert_eq!(scene.portal.apply("suite")["users_applied"].as_u64(), Some(2));
}

#[test]
fn a_first_write_that_is_not_confirmed_touches_nothing_and_its_row_says_so_when_it_can() {
    let (scene, cluster) = stoppable();
    let before = scene.files();
    let standby = cluster.synchronous_standby();
    standby.stop();
    let answer = try_apply(&scene.portal);
    assert!(
        answer.status == 503 && answer.text.contains("unknown whether an audit row was written"),
        "{}",
        answer.text
    );
    assert_eq!((scene.row().as_str(), scene.files()), ("", before.clone()));
    standby.boot();
    wait_until(secs(60), "the row is completed", || {
        scene.row().starts_with("failure the database did not confirm this row")
    });
    assert!(scene.row().contains("nothing was touched") && scene.files() == before, "{}", scene.row());
    assert_eq!(scene.portal.apply("suite")["users_applied"].as_u64(), Some(2));
}

#[test]
fn a_database_stopped_before_the_snapshot_leaves_everything_untouched_and_the_row_says_so_when_it_can() {
    let (scene, cluster) = stoppable();
    let before = scene.files();
    // A prepared transaction keeps its lock while the server stops; a session's would be gone a moment before the apply's own.
    scene.sql("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock'");
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted";
    let answer = scope(|threads| {
        let applying = threads.spawn(|| failed_apply(&scene.portal, &["the users can't be read"]));
        wait_until(secs(10), "the apply waits for the table", || scene.sql(waiting) == "1");
        cluster.stop();
        applying.join().expect("an answer")
    });
    assert_eq!((&answer["files_written"], scene.files()), (&json!([]), before));
    cluster.boot();
    let completed = || row_says(&scene, &answer, "failure the users can't be read");
    // The session that the server ended last may have completed the row before.
    let says_so =
        answer["error_details"].as_str().is_some_and(|text| text.contains("the audit row says \"interrupted\""));
    assert!(says_so || completed(), "{answer}");
    wait_until(secs(20), "the row is completed", completed);
    scene.sql("ROLLBACK PREPARED 'lock'");
    assert_eq!(scene.portal.apply("suite")["users_applied"].as_u64(), Some(2));
}

#[test]
fn a_service_that_stops_before_the_row_can_be_completed_leaves_it_interrupted() {
    let (scene, cluster) = stoppable();
    let (answer, ()) = apply_meanwhile(&scene.asterisk, &scene.portal, || cluster.stop());
    assert!(answer.status == 500 && answer.text.contains("Asterisk serves the new state"), "{}", answer.text);
    assert!(scene.portal.stop().success());
    cluster.boot();
    assert!(row_says(&scene, &answer.json, "failure interrupted"), "{}", scene.row());
    scene.portal.boot();
    assert_eq!(scene.portal.apply("suite")["users_applied"].as_u64(), Some(2));
}

#[test]
fn a_clock_that_goes_back_a_year_between_and_during_applies_changes_nothing() {
    let asterisk = Asterisk::start();
    let folder = Folder::new("clock");
    let clock = folder.path().join("clock");
    let set = |offset: &str| write_file(&clock, PORTAL, 0o644, offset);
    set("+0");
    let library = fs::read_dir("/usr/lib")
        .expect("list the libraries")
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let library = library.into_iter().find(|path| path.exists()).expect("libfaketime is installed: run `make setup`");
    let stage =
        Scene::at(asterisk).with("LD_PRELOAD", library.display()).with("FAKETIME_TIMESTAMP_FILE", clock.display());
    // A clock that is set does not move the monotonic one.
    let mut scene = stage.with("FAKETIME_NO_CACHE", 1).with("FAKETIME_DONT_FAKE_MONOTONIC", 1).begin();
    let year =
        |user: &Value| user["created_at"].as_str().and_then(|time| time[..4].parse::<i32>().ok()).expect("a year");
    let this_year = year(&scene.owner);

    // Between two applies, and while one waits for Asterisk: back, and forward again.
    for (between, during) in [("-365d", "-365d"), ("-365d", "-730d"), ("-730d", "+0"), ("+0", "-365d")] {
        let old = scene.phone();
        set(between);
        scene.next_owner();
        assert_eq!(year(&scene.owner) < this_year, between != "+0", "the clock of the portal is set: {}", scene.owner);
        let (applied, ()) = apply_meanwhile(&scene.asterisk, &scene.portal, || set(during));
        assert_eq!(evicted(&applied.json), [scene.number.as_str()], "{}", applied.text);
        assert_eq!(scene.row(), "success");
        scene.is_out(&old, 480);
    }
    assert!(scene.portal.stop().success());
}
