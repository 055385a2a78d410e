//! Two portals on one host that apply at once, and users who come and go meanwhile: one apply at a time, each of one snapshot.

use std::fs;
use std::thread::scope;

use serde_json::{Value, json};

use crate::fixtures::{Database, Pair, account, crowd, id, left_overs, script, serves, try_apply};
use crate::scenes::{apply_meanwhile, whole};
use crate::steps::{BEGINS, FAILED, LOCK, PREPARED, PROVEN, USERS_READ};
use support::lab::Folder;
use support::portal::Settings;
use support::process::Signal;
use support::{Asterisk, Portal, secs, strace, wait_until};

/// Two portals on one Asterisk and one database.
struct Host {
    pair: Pair,
    asterisk: Asterisk,
}

impl Host {
    fn start(database: Database) -> Self {
        let asterisk = Asterisk::start();
        Self { pair: Pair::on(database, &Settings::of(&asterisk)), asterisk }
    }

    /// With the folder of a script: there is `begun` once a reload has begun, which waits as long as there is `hold`.
    fn that_holds_reloads() -> (Self, Folder) {
        let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
        // Only reloads: the portal asks which Asterisk it reaches, too.
        let wait = "touch \"$here/begun\"; while [ -e \"$here/hold\" ]; do sleep 0.02; done";
        let body = format!("case $2 in *reload*) {wait};; esac\nexec $asterisk \"$@\"\n");
        let program = script(&asterisk, &folder, &body);
        fs::write(folder.path().join("hold"), "").expect("hold reloads");
        let settings = Settings::of(&asterisk).with("ASTERISK_BIN", program.display());
        (Self { pair: Pair::on(Database::Sqlite, &settings), asterisk }, folder)
    }

    /// By host: the outcome, and how an error begins.
    fn audit_log_is(&self, rows: [&str; 2]) {
        let row = "host || ' ' || outcome || coalesce(' ' || substr(error_details, 1, 11), '')";
        assert_eq!(self.pair.sql(&format!("SELECT {row} FROM apply_audit_logs ORDER BY host")), rows.join("\n"));
    }
}

/// The lines of both logs about the beginning and the end of applies, in their order in time.
fn begins_and_ends(portals: &[Portal]) -> Vec<String> {
    let logs: Vec<_> = portals.iter().map(Portal::log).collect();
    let lines = logs.iter().flat_map(|log| log.lines());
    let mut lines: Vec<_> = lines
        .filter(|line| [BEGINS, PROVEN, FAILED].iter().any(|what| line.contains(what)))
        .map(str::to_owned)
        .collect();
    lines.sort(); // each begins with its time
    lines
}

#[test]
fn many_applies_at_once_run_one_after_another_or_are_refused() {
    for database in [Database::Sqlite, Database::Postgres] {
        let host = Host::start(database);
        crowd(&host.pair.portals[0], 20);
        let statuses: Vec<Vec<u16>> = scope(|threads| {
            let clients: Vec<_> = (0..12)
                .map(|client| {
                    let portal = &host.pair.portals[client % 2];
                    threads.spawn(move || {
                        (0..4)
                            .map(|_| try_apply(portal))
                            .map(|answer| {
                                let told = answer.status == 200 || answer.json["error"] == "Apply in progress";
                                assert!(told, "{database:?}: {}", answer.text);
                                answer.status
                            })
                            .collect()
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().expect("a client")).collect()
        });
        let statuses: Vec<_> = statuses.concat();
        let count = |status| statuses.iter().filter(|found| **found == status).count();
        assert!(count(200) >= 2 && count(409) >= 2 && count(200) + count(409) == 48, "{database:?}: {statuses:?}");
        assert_eq!(
            host.pair.sql("SELECT count(*) FROM apply_audit_logs"),
            count(200).to_string(),
            "no row of a refused one"
        );
        assert_eq!(host.pair.sql("SELECT count(*) FROM apply_audit_logs WHERE outcome <> 'success'"), "0");

        let lines = begins_and_ends(&host.pair.portals);
        assert_eq!(lines.len(), 2 * count(200));
        for pair in lines.chunks(2) {
            assert!(pair[0].contains(BEGINS) && pair[1].contains(PROVEN), "two at once: {lines:#?}");
            let row = |line: &str| line.split_once("audit_log_id=").map(|(_, id)| id[..36].to_owned());
            assert_eq!(row(&pair[0]), row(&pair[1]), "two at once: {lines:#?}");
        }
    }
}

#[test]
fn a_killed_holder_leaves_the_lock_to_the_other_at_once() {
    let host = Host::start(Database::Postgres);
    let [holder, other] = &host.pair.portals;
    let user = other.create_user("Alice", "alice@example.com");
    host.asterisk.signal(Signal::STOP);
    scope(|threads| {
        threads.spawn(|| holder.try_request("POST", "/apply", Some(&json!({"triggered_by": "killed"}))));
        wait_until(secs(10), "the holder applies", || holder.log().contains(USERS_READ));
        assert_eq!(try_apply(other).status, 409);
        holder.kill();
        let applying = threads.spawn(|| try_apply(other));
        wait_until(secs(10), "the other applies", || other.log().contains(USERS_READ));
        host.asterisk.signal(Signal::CONT);
        let answer = applying.join().expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
    });
    assert!(serves(&host.asterisk, &account(&user).0));
    host.audit_log_is(["one failure interrupted", "two success"]);
}

#[test]
fn a_reload_that_outlives_its_holder_does_not_keep_the_lock() {
    let (host, folder) = Host::that_holds_reloads();
    let [begun, hold] = ["begun", "hold"].map(|name| folder.path().join(name));
    let [holder, other] = &host.pair.portals;
    let user = other.create_user("Alice", "alice@example.com");
    scope(|threads| {
        threads.spawn(|| holder.try_request("POST", "/apply", Some(&json!({"triggered_by": "killed"}))));
        wait_until(secs(10), "the holder reloads", || begun.exists());
        assert_eq!(try_apply(other).status, 409);
        holder.kill();
        let applying = threads.spawn(|| try_apply(other));
        wait_until(secs(10), "the other applies", || other.log().contains(PREPARED));
        // Now the killed one's reload comes to Asterisk too.
        fs::remove_file(&hold).expect("let them go on");
        let answer = applying.join().expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
    });
    assert!(serves(&host.asterisk, &account(&user).0));
    assert_eq!(left_overs(&host.asterisk), [""; 0]);
    host.audit_log_is(["one failure interrupted", "two success"]);
}

#[test]
fn a_lock_file_that_is_removed_while_it_is_taken_is_not_the_lock() {
    let host = Host::start(Database::Sqlite);
    let [holder, other] = &host.pair.portals;
    holder.create_user("Alice", "alice@example.com");
    let lock = host.asterisk.endpoints_file().with_file_name(".pbx-portal.lock");
    let opened = || {
        let handles = fs::read_dir(format!("/proc/{}/fd", holder.pid())).expect("its handles").flatten();
        handles.filter_map(|handle| fs::read_link(handle.path()).ok()).any(|path| path == lock)
    };
    host.asterisk.signal(Signal::STOP);
    // It opens the file, and locks it when the file is another's already.
    let slowly = [&["-f".to_owned()][..], &LOCK.inject("delay_enter=3s")].concat();
    scope(|threads| {
        let applying = threads.spawn(|| strace::under(holder.pid(), &slowly, || try_apply(holder)).0);
        wait_until(secs(20), "the lock file is open", opened);
        fs::remove_file(&lock).expect("remove the lock file");
        wait_until(secs(20), "the holder applies", || holder.log().contains(USERS_READ));
        let refused = try_apply(other);
        assert_eq!((refused.status, refused.json["error"].as_str()), (409, Some("Apply in progress")));
        host.asterisk.signal(Signal::CONT);
        assert_eq!(applying.join().expect("an answer").status, 200);
    });
}

#[test]
fn two_applies_at_once_leave_complete_files_and_one_says_so() {
    let (host, folder) = Host::that_holds_reloads();
    let [begun, hold] = ["begun", "hold"].map(|name| folder.path().join(name));
    let [first, second] = &host.pair.portals;
    let former = first.create_user("Alice", "alice@example.com");
    fs::remove_file(&hold).expect("let reloads go on");
    first.apply("suite");
    first.delete_user(id(&former));
    let user = second.create_user("Alice", "alice@example.com");
    assert_eq!(account(&user).0, account(&former).0, "the number changes hands");
    fs::remove_file(&begun).expect("nothing has begun");
    fs::write(&hold, "").expect("hold reloads again");
    let answers = scope(|threads| {
        let one = threads.spawn(|| try_apply(first));
        // Between the files' preparation and their publication.
        wait_until(secs(10), "the first takes away", || begun.exists());
        fs::remove_file(host.asterisk.endpoints_file().with_file_name(".pbx-portal.lock")).expect("remove the lock");
        let another = threads.spawn(|| try_apply(second));
        wait_until(secs(10), "the second has prepared", || second.log().contains(PREPARED));
        fs::remove_file(&hold).expect("let them go on");
        [one, another].map(|applying| applying.join().expect("an answer"))
    });
    // There is one temporary file for both: who comes too late finds none, if it does not find the other's routing before.
    for answer in &answers {
        assert!(answer.status == 200 || answer.json["error_details"].is_string(), "{}", answer.text);
    }
    assert!(answers.iter().any(|answer| answer.status == 500), "{answers:?}");
    whole(&host.asterisk, "two at once");
    assert_eq!(second.apply("suite")["users_applied"].as_u64(), Some(1));
    assert!(serves(&host.asterisk, &account(&user).0));
    assert_eq!(left_overs(&host.asterisk), [""; 0]);
}

#[test]
fn users_who_come_and_go_during_an_apply_are_left_to_the_next_one() {
    for database in [Database::Sqlite, Database::Postgres] {
        let host = Host::start(database);
        let [portal, other] = &host.pair.portals;
        let [stays, goes] = ["stays", "goes"].map(|name| portal.create_user(name, &format!("{name}@example.com")));
        let (answer, [comes, takes_over]) = apply_meanwhile(&host.asterisk, portal, || {
            // Through either portal, while the apply waits for Asterisk.
            let comes = portal.create_user("Comes", "comes@example.com");
            other.delete_user(id(&goes));
            let takes_over = other.create_user("Takes over", "over@example.com");
            assert_eq!(account(&takes_over).0, account(&goes).0, "the number is free at once");
            assert_eq!(portal.users().len(), 3);
            [comes, takes_over]
        });
        assert_eq!((answer.status, &answer.json["users_applied"]), (200, &json!(2)), "{database:?}: {}", answer.text);
        assert_eq!(answer.json["extensions_generated"], 2);
        let secret_in_force = |user: &Value| {
            let (number, secret) = account(user);
            host.asterisk.rx(&format!("pjsip show auth {number}")).contains(&secret)
        };
        assert_eq!(
            [&stays, &goes, &comes, &takes_over].map(secret_in_force),
            [true, true, false, false],
            "the snapshot"
        );
        assert!(!serves(&host.asterisk, &account(&comes).0));

        assert_eq!(other.apply("suite")["users_applied"].as_u64(), Some(3));
        assert_eq!([&stays, &goes, &comes, &takes_over].map(secret_in_force), [true, false, true, true], "the rest");
    }
}
