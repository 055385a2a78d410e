//! Two portals on one host that apply at once, and users who come and go meanwhile: one apply at a time, each of one snapshot.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::scope;

use serde_json::{Value, json};

use crate::fixtures::{Database, account, id, left_overs, psql, serves, sqlite_file, try_apply};
use crate::scenes::whole;
use support::lab::{Folder, PORTAL, User, install_program, make_dir, write_file};
use support::portal::Settings;
use support::process::Signal;
use support::{Asterisk, Portal, secs, strace, wait_until};

/// Two portals on one Asterisk and one database.
struct Host {
    portals: [Portal; 2],
    asterisk: Asterisk,
    url: String,
    folders: Vec<Folder>,
}

impl Host {
    fn start(database: Database) -> Self {
        Self::of(Asterisk::start(), database, &[])
    }

    fn of(asterisk: Asterisk, database: Database, more: &[(&str, &str)]) -> Self {
        let (folder, url) = database.shared();
        let settings = Settings::of(&asterisk).with("DATABASE_URL", &url);
        let settings = more.iter().fold(settings, |settings, (name, value)| settings.with(name, value));
        let portals = ["one", "two"].map(|name| Portal::start(&settings.clone().with("PORTAL_HOST", name)));
        Self { portals, asterisk, url, folders: vec![folder] }
    }

    /// With two files: the one is there once a reload has begun, which waits as long as the other is there.
    fn that_holds_reloads() -> (Self, [PathBuf; 2]) {
        let (folder, User(owner)) = (Folder::new("slow"), PORTAL);
        make_dir(folder.path(), owner, owner, 0o700);
        let [begun, hold, script, slow] =
            ["begun", "hold", "asterisk.sh", "asterisk"].map(|name| folder.path().join(name));
        let asterisk = Asterisk::start();
        let wait = format!("touch {}; while [ -e {} ]; do sleep 0.02; done", begun.display(), hold.display());
        // Only reloads: the portal asks which Asterisk it reaches, too.
        let wait = format!("case $2 in *reload*) {wait};; esac");
        write_file(&script, PORTAL, 0o644, &format!("#!/bin/sh\n{wait}\nexec {} \"$@\"\n", asterisk.bin().display()));
        install_program(&script, &slow);
        write_file(&hold, PORTAL, 0o644, "");
        let mut host = Self::of(asterisk, Database::Sqlite, &[("ASTERISK_BIN", &slow.display().to_string())]);
        host.folders.push(folder);
        (host, [begun, hold])
    }

    fn sql(&self, sql: &str) -> String {
        match self.url.strip_prefix("sqlite://") {
            Some(file) => sqlite_file(Path::new(file), sql),
            None => psql(&self.url, sql),
        }
    }

    /// By host: the outcome, and how an error begins.
    fn audit_log_is(&self, rows: [&str; 2]) {
        let row = "host || ' ' || outcome || coalesce(' ' || substr(error_details, 1, 11), '')";
        assert_eq!(self.sql(&format!("SELECT {row} FROM apply_audit_logs ORDER BY host")), rows.join("\n"));
    }
}

/// The lines of both logs about the beginning and the end of applies, in their order in time.
fn begins_and_ends(portals: &[Portal]) -> Vec<String> {
    let logs: Vec<_> = portals.iter().map(Portal::log).collect();
    let lines = logs.iter().flat_map(|log| log.lines());
    let mut lines: Vec<_> = lines
        .filter(|line| ["apply begins", "apply proven", "apply failed"].iter().any(|what| line.contains(what)))
        .map(str::to_owned)
        .collect();
    lines.sort(); // each begins with its time
    lines
}

#[test]
fn many_applies_at_once_run_one_after_another_or_are_refused() {
    for database in [Database::Sqlite, Database::Postgres] {
        let host = Host::start(database);
        for number in 0..20 {
            host.portals[0].create_user("User", &format!("user{number}@example.com"));
        }
        let statuses: Vec<Vec<u16>> = scope(|threads| {
            let clients: Vec<_> = (0..12)
                .map(|client| {
                    let portal = &host.portals[client % 2];
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
            host.sql("SELECT count(*) FROM apply_audit_logs"),
            count(200).to_string(),
            "no row of a refused one"
        );
        assert_eq!(host.sql("SELECT count(*) FROM apply_audit_logs WHERE outcome <> 'success'"), "0");

        let lines = begins_and_ends(&host.portals);
        assert_eq!(lines.len(), 2 * count(200));
        for pair in lines.chunks(2) {
            assert!(pair[0].contains("apply begins") && pair[1].contains("apply proven"), "two at once: {lines:#?}");
            let row = |line: &str| line.split_once("audit_log_id=").map(|(_, id)| id[..36].to_owned());
            assert_eq!(row(&pair[0]), row(&pair[1]), "two at once: {lines:#?}");
        }
    }
}

#[test]
fn a_killed_holder_leaves_the_lock_to_the_other_at_once() {
    let host = Host::start(Database::Postgres);
    let [holder, other] = &host.portals;
    let user = other.create_user("Alice", "alice@example.com");
    host.asterisk.signal(Signal::STOP);
    scope(|threads| {
        threads.spawn(|| holder.try_request("POST", "/apply", Some(&json!({"triggered_by": "killed"}))));
        wait_until(secs(10), "the holder applies", || holder.log().contains("step=\"snapshot\""));
        assert_eq!(try_apply(other).status, 409);
        holder.kill();
        let applying = threads.spawn(|| try_apply(other));
        wait_until(secs(10), "the other applies", || other.log().contains("step=\"snapshot\""));
        host.asterisk.signal(Signal::CONT);
        let answer = applying.join().expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
    });
    assert!(serves(&host.asterisk, &account(&user).0));
    host.audit_log_is(["one failure interrupted", "two success"]);
}

#[test]
fn a_reload_that_outlives_its_holder_does_not_keep_the_lock() {
    let (host, [begun, hold]) = Host::that_holds_reloads();
    let [holder, other] = &host.portals;
    let user = other.create_user("Alice", "alice@example.com");
    scope(|threads| {
        threads.spawn(|| holder.try_request("POST", "/apply", Some(&json!({"triggered_by": "killed"}))));
        wait_until(secs(10), "the holder reloads", || begun.exists());
        assert_eq!(try_apply(other).status, 409);
        holder.kill();
        let applying = threads.spawn(|| try_apply(other));
        wait_until(secs(10), "the other applies", || other.log().contains("step=\"prepare\""));
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
    let [holder, other] = &host.portals;
    holder.create_user("Alice", "alice@example.com");
    let lock = host.asterisk.endpoints_file().with_file_name(".pbx-portal.lock");
    let opened = || {
        let handles = fs::read_dir(format!("/proc/{}/fd", holder.pid())).expect("its handles").flatten();
        handles.filter_map(|handle| fs::read_link(handle.path()).ok()).any(|path| path == lock)
    };
    host.asterisk.signal(Signal::STOP);
    // It opens the file, and locks it when the file is another's already.
    let slowly = ["-f", "-e", "trace=flock", "-e", "inject=flock:delay_enter=3s:when=1"];
    scope(|threads| {
        let applying = threads.spawn(|| strace::under(holder.pid(), &slowly, || try_apply(holder)).0);
        wait_until(secs(20), "the lock file is open", opened);
        fs::remove_file(&lock).expect("remove the lock file");
        wait_until(secs(20), "the holder applies", || holder.log().contains("step=\"snapshot\""));
        let refused = try_apply(other);
        assert_eq!((refused.status, refused.json["error"].as_str()), (409, Some("Apply in progress")));
        host.asterisk.signal(Signal::CONT);
        assert_eq!(applying.join().expect("an answer").status, 200);
    });
}

#[test]
fn two_at_once_because_somebody_removed_the_lock_file_leave_whole_files_and_one_says_so() {
    let (host, [begun, hold]) = Host::that_holds_reloads();
    let [first, second] = &host.portals;
    let former = first.create_user("Alice", "alice@example.com");
    fs::remove_file(&hold).expect("let reloads go on");
    first.apply("suite");
    first.delete_user(id(&former));
    let user = second.create_user("Alice", "alice@example.com");
    assert_eq!(account(&user).0, account(&former).0, "the number changes hands");
    fs::remove_file(&begun).expect("nothing has begun");
    write_file(&hold, PORTAL, 0o644, "");
    let answers = scope(|threads| {
        let one = threads.spawn(|| try_apply(first));
        // Between the files' preparation and their publication.
        wait_until(secs(10), "the first takes away", || begun.exists());
        fs::remove_file(host.asterisk.endpoints_file().with_file_name(".pbx-portal.lock")).expect("remove the lock");
        let another = threads.spawn(|| try_apply(second));
        wait_until(secs(10), "the second has prepared", || second.log().contains("step=\"prepare\""));
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
        let [portal, other] = &host.portals;
        let [stays, goes] = ["stays", "goes"].map(|name| portal.create_user(name, &format!("{name}@example.com")));
        host.asterisk.signal(Signal::STOP);
        let (answer, comes) = scope(|threads| {
            let applying = threads.spawn(|| portal.apply("suite"));
            wait_until(secs(10), "the users are read", || portal.log().contains("step=\"snapshot\""));
            // Through either portal, while the apply waits for Asterisk.
            let comes = portal.create_user("Comes", "comes@example.com");
            other.delete_user(id(&goes));
            let takes_over = other.create_user("Takes over", "over@example.com");
            assert_eq!(account(&takes_over).0, account(&goes).0, "the number is free at once");
            assert_eq!(portal.users().len(), 3);
            assert!(!applying.is_finished(), "{database:?}");
            host.asterisk.signal(Signal::CONT);
            (applying.join().expect("an answer"), [comes, takes_over])
        });
        let [comes, takes_over] = comes;
        assert_eq!((answer["users_applied"].as_u64(), answer["extensions_generated"].as_u64()), (Some(2), Some(2)));
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
