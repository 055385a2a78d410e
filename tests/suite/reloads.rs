//! Reloads that Asterisk drops because it is busy with another, listings that lose lines because the reader is slow, and an
//! Asterisk that hangs under a reload.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::thread;

use crate::fixtures::{
    account, crowd, evicted, failed_apply, host, host_with_script, id, registrations, script, try_apply,
};
use crate::scenes::Scene;
use crate::steps::{LISTS_AGAIN, RELOAD_DROPPED, RELOADS_AGAIN, inject};
use support::asterisk::{Options, Step};
use support::lab::Folder;
use support::portal::Settings;
use support::process::Signal;
use support::sipp::{Called, Phones};
use support::strace;
use support::{Asterisk, Portal, secs, wait_until};

/// Each user makes reloads and listings longer.
const USERS: usize = 300;

/// Makes a reload of `res_pjsip_notify.so` go on as long as there is a file `busy`; then there is `busy.begun` too.
fn can_be_busy(asterisk: &Asterisk) -> PathBuf {
    let busy = asterisk.etc().join("busy");
    let wait = format!("test -e {0} && touch {0}.begun\nwhile test -e {0}; do sleep 0.02; done\n", busy.display());
    asterisk.write_config("busy.sh", &wait);
    asterisk.write_config("pjsip_notify.conf", &format!("#exec \"sh {}.sh\"\n", busy.display()));
    asterisk.edit_config("asterisk.conf", |text| format!("{text}\n[options]\nexecincludes=yes\n"));
    asterisk.restart();
    busy
}

/// An `asterisk` whose `pjsip reload` begins once there is no file `hold`, and which keeps what that prints.
const KEEPING: &str = "[ \"$2\" = 'pjsip reload' ] || exec $asterisk \"$@\"
touch \"$here/begun\"
while test -e \"$here/hold\"; do sleep 0.02; done
$asterisk \"$@\" | tee -a \"$here/printed\"
";

#[test]
fn dropped_reloads_of_all_modules_or_of_one_are_retried() {
    let asterisk = Asterisk::start_with(&Options { holds: true, ..Options::default() });
    let (busy, folder) = (can_be_busy(&asterisk), Folder::new("script"));
    let begun = busy.with_added_extension("begun");
    let program = script(&asterisk, &folder, KEEPING);
    let [hold, reloads, printed] = ["hold", "begun", "printed"].map(|name| folder.path().join(name));
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    let retried = || portal.log().matches(RELOADS_AGAIN).count();
    for (round, dropped) in ["all", "one"].into_iter().enumerate() {
        portal.create_user("User", &format!("{dropped}@example.com"));
        fs::write(&hold, "").expect("hold the reload");
        thread::scope(|scope| {
            let applying = scope.spawn(|| portal.apply("suite"));
            wait_until(secs(20), "the apply begins to reload", || reloads.exists());
            asterisk.write_config("busy", "");
            let other = scope.spawn(|| asterisk.rx("module reload res_pjsip_notify.so"));
            wait_until(secs(20), "somebody else reloads", || begun.exists());
            if dropped == "one" {
                asterisk.hold(Step::Drops);
            }
            fs::remove_file(&hold).expect("let the apply reload");
            if dropped == "one" {
                wait_until(secs(20), "the first module's is dropped", || asterisk.held(Step::Drops) > 0);
                fs::remove_file(&busy).expect("end the other reload");
                other.join().expect("an answer");
                asterisk.release(Step::Drops);
            } else {
                wait_until(secs(20), "it is retried", || retried() > round);
                fs::remove_file(&busy).expect("end the other reload");
            }
            assert_eq!(applying.join().expect("an answer")["users_applied"], round + 1);
        });
        let text = fs::read_to_string(&printed).expect("what the reloads printed");
        let (first, _) = text.split_at(text.find("Module 'res_pjsip.so' reloaded").expect("the retry"));
        assert_eq!(first.contains("reloaded successfully"), dropped == "one", "{dropped}: {text}");
        assert!(first.contains(RELOAD_DROPPED) && retried() > round, "{dropped}: {text}");
        for file in [&begun, &reloads, &printed] {
            fs::remove_file(file).expect("for the next round");
        }
    }
}

#[test]
fn a_reload_of_somebody_else_that_never_ends_is_named() {
    let asterisk = Asterisk::start();
    let (busy, folder) = (can_be_busy(&asterisk), Folder::new("script"));
    let program = script(&asterisk, &folder, KEEPING);
    let [hold, reloads] = ["hold", "begun"].map(|name| folder.path().join(name));
    let settings = Settings::of(&asterisk).with("ASTERISK_BIN", program.display()).with("ASTERISK_TIMEOUT_SECS", 15);
    let portal = Portal::start(&settings);
    fs::write(&hold, "").expect("hold the reload");
    let words = ["busy with other reloads for 15 s", "if nobody does, a reload hangs: look at 'core show locks'"];
    thread::scope(|scope| {
        let applying = scope.spawn(|| failed_apply(&portal, &words));
        wait_until(secs(20), "the apply begins to reload", || reloads.exists());
        asterisk.write_config("busy", "");
        let other = scope.spawn(|| asterisk.rx("module reload res_pjsip_notify.so"));
        wait_until(secs(20), "somebody else reloads", || busy.with_added_extension("begun").exists());
        fs::remove_file(&hold).expect("let the apply reload");
        let applied = applying.join();
        fs::remove_file(&busy).expect("end the other reload");
        other.join().expect("an answer");
        applied.expect("an answer");
    });
    portal.apply("suite");
}

/// One that runs may have read an older file, with a former owner, and put that in force after the apply has looked.
#[test]
fn before_a_number_is_taken_away_no_other_reload_runs() {
    let mut scene = Scene::new();
    scene.hand_over();
    let asks_and_renames = ["-f", "-s", "200", "--trace=sendto,rename,renameat,renameat2"];
    let (_, calls) = strace::under(scene.portal.pid(), &asks_and_renames, || scene.portal.apply("suite"));
    let asks = calls.iter().position(|call| call.text.contains("module reload res_pjsip.so.none"));
    let renames = calls.iter().position(|call| call.name.starts_with("rename")).expect("a file is published");
    assert!(asks.is_some_and(|asks| asks < renames), "{calls:?}");
}

#[test]
fn truncated_listings_are_retried() {
    let (asterisk, portal) = host();
    let mut users = VecDeque::from(crowd(&portal, USERS));
    portal.apply("suite");
    let accounts: Vec<_> = users.iter().map(account).collect();
    let accounts: Vec<_> = accounts.iter().map(|(number, secret)| (number.as_str(), secret.as_str())).collect();
    let _phones = Phones::register(&asterisk, &accounts, Called::Answer);
    // Gives the next number to somebody else and applies with strace at the portal.
    let mut apply_under = |arguments: &[String]| {
        let left = users.pop_front().expect("a user");
        portal.delete_user(id(&left));
        portal.create_user("Next", &format!("next{}@example.com", account(&left).0));
        let (answer, calls) = thread::scope(|scope| {
            let applying = scope.spawn(|| strace::under(portal.pid(), arguments, || try_apply(&portal)));
            // A reader that is stopped, for a second at most.
            while !applying.is_finished() {
                thread::sleep(secs(1));
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

    let calls = apply_under(&["-f", "-s", "80", "-e", "trace=sendto"].map(str::to_owned));
    let thread = &calls.iter().find(|call| call.text.contains("dialplan show")).expect("a listing").thread;
    let asked: Vec<_> = calls.iter().filter(|call| call.thread == *thread).collect();
    for listing in ["module show", "dialplan show synergy-internal", "database show registrar/contact"] {
        let retried = format!("{LISTS_AGAIN} command=\"{listing}\"");
        let places = asked.iter().enumerate().filter(|(_, call)| call.text.contains(listing));
        // Questions that run side by side may change places, and not every stop costs a line.
        let near = places.flat_map(|(index, _)| [index + 1, index + 2, index.max(1)]);
        for place in near.cycle().take(30) {
            // It asks, and does not read the answer until it may go on.
            apply_under(&[&["-f".to_owned()][..], &inject("sendto", place, "signal=STOP")].concat());
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
    echo 'A module reload request is {RELOAD_DROPPED}; please be patient'
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
    let (asterisk, portal, _folder) = host_with_script("$asterisk \"$@\"\n[ \"$2\" != 'pjsip reload' ]\n");
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

#[test]
fn a_number_that_changes_hands_is_nobodys_before_it_is_given() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    // Each reload of the endpoints waits as long as there is a file of its name.
    let held = "case \"$2\" in
    'module reload res_pjsip.so') hold=taking;;
    'pjsip reload') hold=giving;;
    *) exec $asterisk \"$@\";;
esac
touch \"$here/$hold-begun\"
while test -e \"$here/$hold\"; do sleep 0.02; done
exec $asterisk \"$@\"
";
    let program = script(&asterisk, &folder, held);
    let [taking, giving] = ["taking", "giving"].map(|name| folder.path().join(name));
    let begun = |hold: &PathBuf| hold.with_file_name(format!("{}-begun", hold.display())).exists();
    let release = |hold: &PathBuf| fs::remove_file(hold).expect("let it go on");
    let mut scene = Scene::at(asterisk).with("ASTERISK_BIN", program.display()).begin();
    let old = scene.phone();
    scene.hand_over();
    let on_disk = |secret: &str| scene.files()[0].contains(secret);

    for hold in [&taking, &giving] {
        fs::write(hold, "").expect("hold");
        let _ = fs::remove_file(format!("{}-begun", hold.display())); // of the first apply
    }
    thread::scope(|scope| {
        let applying = scope.spawn(|| scene.portal.apply("suite"));
        wait_until(secs(20), "taking away begins", || begun(&taking));
        assert!(scene.auth().contains(&old.secret), "it is the former owner's still");
        assert!(!on_disk(&old.secret) && !on_disk(&scene.secret()), "on the disk it is nobody's");
        release(&taking);
        wait_until(secs(20), "giving begins", || begun(&giving));
        assert!(scene.auth().contains("Unable to find object"), "it is nobody's");
        assert_eq!(registrations(&scene.asterisk, &scene.number), 0, "its former owner's phone is evicted");
        assert_eq!(old.register(), Some(401), "and can't register");
        assert!(on_disk(&scene.secret()), "only then a file names the new owner");
        release(&giving);
        assert_eq!(evicted(&applying.join().expect("an answer")), [scene.number.as_str()]);
    });
    assert!(scene.auth().contains(&scene.secret()), "it is the new owner's");
}

#[test]
fn a_removal_that_asterisk_did_not_load_ends_the_apply_before_anything_is_given() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    let deaf = "test -e \"$here/deaf\" && [ \"$2\" = 'module reload res_pjsip.so' ] &&
    exec echo \"Module 'res_pjsip.so' reloaded successfully.\"\nexec $asterisk \"$@\"\n";
    let program = script(&asterisk, &folder, deaf);
    let mut scene = Scene::at(asterisk).with("ASTERISK_BIN", program.display()).among(0).begin();
    scene.hand_over();
    fs::write(folder.path().join("deaf"), "").expect("make Asterisk deaf");
    let answer = failed_apply(&scene.portal, &["keeps the endpoint, auth or AOR of their former owners: 1000"]);
    let reloads = &answer["reload_results"];
    let removal = reloads["pjsip_reload"]["command"].as_str().expect("a command");
    assert!(removal.ends_with("-rx 'module reload res_pjsip.so'"), "{removal}");
    assert!(reloads["dialplan_reload"].is_null(), "{answer}");
    assert!(!scene.files()[0].contains(&scene.secret()));
    fs::remove_file(folder.path().join("deaf")).expect("let it hear again");
    scene.portal.apply("suite");
    assert!(scene.served());
}
