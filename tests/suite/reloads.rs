//! Reloads that Asterisk drops because it is busy with another, listings that lose lines because the reader is slow, and an
//! Asterisk that hangs under a reload.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};

use crate::fixtures::{SetWhenDropped, account, evicted, failed_apply, host, id, script, try_apply};
use crate::support::lab::Folder;
use crate::support::portal::Settings;
use crate::support::process::Signal;
use crate::support::sipp::{Called, Phones};
use crate::support::strace;
use crate::support::{Asterisk, Portal, secs, wait_until};

/// Each user makes reloads and listings longer.
const USERS: usize = 300;

/// Creates users and gives them.
fn crowd(portal: &Portal) -> Vec<serde_json::Value> {
    (0..USERS).map(|index| portal.create_user("User", &format!("user{index}@example.com"))).collect()
}

const DROPPED: &str = "already in progress";

#[test]
fn dropped_reloads_of_all_modules_or_of_one_are_retried() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    let keeping = "out=$(mktemp \"$here/XXXXXX.out\")\n$asterisk \"$@\" >\"$out\"\ncat \"$out\"\n";
    let program = script(&asterisk, &folder, keeping);
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    let mut users = crowd(&portal);
    portal.apply("suite");
    // What each command of the portal printed, if Asterisk dropped something: whether all of it.
    let dropped = || {
        let files = fs::read_dir(folder.path()).expect("list").map(|file| file.expect("a file").path());
        let texts = files.filter(|file| file.extension().is_some_and(|end| end == "out")).map(fs::read_to_string);
        let texts = texts.map(|text| text.expect("what was printed")).filter(|text| text.contains(DROPPED));
        texts.map(|text| !text.contains("reloaded successfully")).collect::<Vec<_>>()
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // `dialplan reload` is never dropped, and makes nobody else's be.
        for command in ["pjsip reload", "module reload res_pjsip_notify.so"] {
            let (asterisk, done) = (&asterisk, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    asterisk.rx(command);
                }
            });
        }
        let _done = SetWhenDropped(&done);
        // Most are dropped whole; one in some fifteen applies meets the end of the other reload.
        wait_until(secs(300), "reloads are dropped, some whole and some in part", || {
            portal.delete_user(id(&users.pop().expect("a user")));
            assert_eq!(portal.apply("suite")["users_applied"].as_u64(), u64::try_from(users.len()).ok());
            [true, false].iter().all(|whole| dropped().contains(whole))
        });
    });
    assert_eq!(portal.log().matches("Asterisk dropped the reload; it is retried").count(), dropped().len());
}

#[test]
fn truncated_listings_are_retried() {
    let (asterisk, portal) = host();
    let mut users = VecDeque::from(crowd(&portal));
    portal.apply("suite");
    let accounts: Vec<_> = users.iter().map(account).collect();
    let accounts: Vec<_> = accounts.iter().map(|(number, secret)| (number.as_str(), secret.as_str())).collect();
    let _phones = Phones::register(&asterisk, &accounts, Called::Answer);
    // Gives the next number to somebody else and applies with strace at the portal.
    let mut apply_under = |arguments: &[&str]| {
        let left = users.pop_front().expect("a user");
        portal.delete_user(id(&left));
        portal.create_user("Next", &format!("next{}@example.com", account(&left).0));
        let (answer, calls) = thread::scope(|scope| {
            let applying = scope.spawn(|| strace::under(portal.pid(), arguments, || try_apply(&portal)));
            // A reader that is stopped, for a second at most.
            while !applying.is_finished() {
                sleep(secs(1));
                portal.signal(Signal::CONT);
            }
            applying.join().expect("an answer")
        });
        assert_eq!(answer.status, 200, "{}", answer.text);
        let evicted = &answer.json["registrations_evicted"];
        assert_eq!(evicted.as_array().map(Vec::len), Some(1), "{evicted}");
        assert_eq!(evicted[0]["extension"].to_string(), account(&left).0);
        calls
    };

    let questions = ["-f", "-s", "80", "-e", "trace=sendto"];
    let calls = apply_under(&questions);
    let thread = &calls.iter().find(|call| call.text.contains("dialplan show")).expect("a listing").thread;
    let asked: Vec<_> = calls.iter().filter(|call| call.thread == *thread).collect();
    for listing in ["module show", "dialplan show synergy-internal", "database show registrar/contact"] {
        let retried = format!("it is retried command=\"{listing}\"");
        let places = asked.iter().enumerate().filter(|(_, call)| call.text.contains(listing));
        // Questions that run side by side may change places, and not every stop costs a line.
        let near = places.flat_map(|(index, _)| [index + 1, index + 2, index.max(1)]);
        for place in near.cycle().take(30) {
            // It asks, and does not read the answer until it may go on.
            let stop = format!("inject=sendto:signal=STOP:when={place}");
            apply_under(&[&questions[..], &["-e", &stop]].concat());
            if portal.log().contains(&retried) {
                break;
            }
        }
        assert!(portal.log().contains(&retried), "{listing} lost lines");
    }
}

#[test]
fn what_somebody_changes_between_a_reload_and_its_retry_is_found() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    // The first reload reads the file, and is then said to be dropped for a later module.
    let body = format!(
        "[ \"$2\" = 'pjsip reload' ] || exec $asterisk \"$@\"
if mkdir \"$here/first\" 2>/dev/null; then
    $asterisk \"$@\"
    echo 'A module reload request is {DROPPED}; please be patient'
else
    sed -i s/^direct_media=no/direct_media=yes/ {}
    exec $asterisk \"$@\"
fi
",
        asterisk.endpoints_file().display()
    );
    let program = script(&asterisk, &folder, &body);
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    portal.create_user("Alice", "alice@example.com");
    failed_apply(&portal, &["endpoints with another direct_media: 1000"]);
}

#[test]
fn a_reload_that_fails_after_asterisk_has_read_the_file_fails_the_apply() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    let program = script(&asterisk, &folder, "$asterisk \"$@\"\n[ \"$2\" != 'pjsip reload' ]\n");
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    portal.create_user("Alice", "alice@example.com");
    failed_apply(
        &portal,
        &["-rx 'pjsip reload' ended with exit status: 1: Module 'res_pjsip.so' reloaded successfully."],
    );
    assert!(asterisk.rx("pjsip show endpoints").contains("1000/1000"), "Asterisk has read the file");
}

/// The processes of a group, ended ones that nobody has waited for among them, with their command lines.
fn group(id: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("list /proc").map(|entry| entry.expect("list /proc").path());
    let of_group = processes.filter(|process| {
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        // `pid (name) state parent group …`, where the name may hold anything.
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(2)) == Some(id)
    });
    of_group.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

#[test]
fn a_reload_that_hangs_is_killed_with_all_its_processes() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    // The real client is the script's child; it waits until the test has stopped Asterisk.
    let body = "[ \"$2\" = 'core show settings' ] && exec $asterisk \"$@\"\necho $$ >>\"$here/groups\"\nuntil test -e \"$here/go\"; do sleep 0.02; done\n$asterisk \"$@\"\nexit $?\n";
    let program = script(&asterisk, &folder, body);
    let settings = Settings::of(&asterisk).with("ASTERISK_BIN", program.display()).with("ASTERISK_TIMEOUT_SECS", 2);
    let portal = Portal::start(&settings);
    portal.create_user("Alice", "alice@example.com");
    let ids = || fs::read_to_string(folder.path().join("groups")).unwrap_or_default();
    let clients = || ids().lines().map(group).collect::<Vec<_>>();
    let answer = thread::scope(|scope| {
        let applying = scope.spawn(|| failed_apply(&portal, &["-rx 'pjsip reload' did not end within 2 s"]));
        wait_until(secs(20), "both reloads begin", || ids().lines().count() == 2);
        asterisk.signal(Signal::STOP);
        fs::write(folder.path().join("go"), "").expect("let it go on");
        let waits = |client: &Vec<String>| client.iter().any(|line| line.contains("asterisk.conf"));
        wait_until(secs(20), "both clients wait", || clients().iter().all(waits));
        applying.join().expect("an answer")
    });
    for (reload, command) in [("pjsip_reload", "pjsip reload"), ("dialplan_reload", "dialplan reload")] {
        let reload = &answer["reload_results"][reload];
        assert_eq!(reload["command"].as_str(), Some(&*format!("{} -rx '{command}'", program.display())));
        assert!(reload["exit_code"].is_null(), "{reload}");
    }
    wait_until(secs(10), "no process of them is left, and none that nobody waited for", || {
        clients().concat().is_empty()
    });
    asterisk.signal(Signal::CONT);
    portal.apply("suite");
}

/// Holds up `pjsip reload` before it begins as long as there is a file `before`, and what Asterisk printed for it as long as there
/// is `after`.
const HELD: &str = "\
[ \"$2\" = 'pjsip reload' ] || exec $asterisk \"$@\"
touch \"$here/begun\"
while test -e \"$here/before\"; do sleep 0.02; done
$asterisk \"$@\" > \"$here/printed\"
while test -e \"$here/after\"; do sleep 0.02; done
cat \"$here/printed\"
";

#[test]
fn quarantine_goes_on_until_the_reload_of_the_endpoints_has_ended_and_old_phones_are_evicted() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    let program = script(&asterisk, &folder, HELD);
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    let [begun, before, after] = ["begun", "before", "after"].map(|name| folder.path().join(name));
    let release = |file: &PathBuf| fs::remove_file(file).expect("let it go on");
    let former = portal.create_user("Former", "former@example.com");
    portal.apply("suite");
    portal.delete_user(id(&former));
    let (number, secret) = account(&portal.create_user("Owner", "owner@example.com"));
    assert_eq!(account(&former).0, number, "it changes hands");
    let is_first = |application: &str| {
        asterisk.rx(&format!("dialplan show {number}@synergy-internal")).contains(&format!("1. {application}"))
    };

    for file in [&before, &after] {
        fs::write(file, "").expect("hold");
    }
    fs::remove_file(&begun).expect("of the first apply");
    thread::scope(|scope| {
        let applying = scope.spawn(|| portal.apply("suite"));
        wait_until(secs(20), "the reload begins", || begun.exists());
        sleep(secs(1));
        assert!(is_first("Hangup(1)"), "the new secret is not in force");
        let key = format!("registrar/contact {number};@{}", "0123456789abcdef".repeat(2));
        let contact = r#"{\"uri\":\"sip:old@127.0.0.1:9\",\"expiration_time\":\"4102444800\"}"#;
        asterisk.rx(&format!(r#"database put {key} "{contact}""#));
        release(&before);
        let in_force = || asterisk.rx(&format!("pjsip show auth {number}")).contains(&secret);
        wait_until(secs(20), "the new secret is in force", in_force);
        sleep(secs(1));
        assert!(is_first("Hangup(1)"), "the reload has not ended");
        release(&after);
        let applied = applying.join().expect("an answer");
        assert_eq!(evicted(&applied), [number.as_str()]);
        assert!(is_first(&format!("Dial(PJSIP/{number},25)")));
    });
}

#[test]
fn a_quarantine_that_asterisk_did_not_load_ends_the_apply_before_the_new_endpoints() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    let deaf = "test -e \"$here/deaf\" && [ \"$2\" = 'dialplan reload' ] && exec echo 'Dialplan reloaded.'\nexec $asterisk \"$@\"\n";
    let program = script(&asterisk, &folder, deaf);
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    let user = portal.create_user("Former", "former@example.com");
    portal.apply("suite");
    portal.delete_user(id(&user));
    portal.create_user("Owner", "owner@example.com");
    fs::write(folder.path().join("deaf"), "").expect("make Asterisk deaf");
    let answer = failed_apply(&portal, &["does not keep them at 404", "1000"]);
    assert!(answer["reload_results"]["pjsip_reload"].is_null(), "{answer}");
    fs::remove_file(folder.path().join("deaf")).expect("let it hear again");
    portal.apply("suite");
}
