//! Evictions last: Asterisk takes back what it changed in its database within the last second if another process reads the file
//! when it commits, or if it is killed; and it may store a registration late. An old phone must not come back that way.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::{Reader, SetWhenDropped, commit, evicted, failed_apply, registered, registrations, script};
use crate::scenes::{Scene, Stage};
use crate::steps::{GIVE_ROUTING, kill_at};
use support::asterisk::{Options, Step};
use support::lab::Folder;
use support::{Asterisk, Phone, secs, strace, wait_until};

/// Columns of a listing of Asterisk's queues.
const PROCESSED: usize = 1;
const WAITING: usize = 2;

/// Somebody calls, and somebody else stays registered.
fn scene_at(asterisk: Asterisk) -> Scene {
    that_stays_registered(Scene::at(asterisk))
}

fn that_stays_registered(stage: Stage) -> Scene {
    let scene = stage.among(2).begin();
    assert_eq!(scene.others[1].register(), Some(200));
    scene
}

fn scene_that_holds_requests() -> Scene {
    scene_at(Asterisk::start_with(&Options { holds: true, ..Options::default() }))
}

/// Registers the owner's phone for good; then the number gets a new owner. Returns the old phone.
fn change_hands(scene: &mut Scene) -> Phone {
    let old = scene.phone();
    commit(&scene.asterisk);
    scene.hand_over();
    old
}

/// The sum of one column of these of Asterisk's queues.
fn queues(scene: &Scene, names: &str, column: usize) -> u64 {
    let listing = scene.asterisk.rx(&format!("core show taskprocessors like {names}"));
    let rows = listing.lines().filter(|row| row.starts_with(names));
    rows.filter_map(|row| row.split_whitespace().nth(column)?.parse::<u64>().ok()).sum()
}

/// The old phone's registration is accepted, and held in its queue. Asterisk gives a task to the first of its threads that has the
/// fewest waiting. So the thread that handles it gets another that waits, and is left alone: a reload goes to the next.
fn hold<'s>(scene: &'s Scene, old: &'s Phone, threads: &'s thread::Scope<'s, '_>) {
    scene.asterisk.hold(Step::Requests);
    threads.spawn(|| old.register());
    wait_until(secs(10), "it is held", || scene.asterisk.held(Step::Requests) > 0);
    threads.spawn(|| scene.others[1].register());
    wait_until(secs(10), "another waits", || queues(scene, "taskpool/s:pjsip", WAITING) > 0);
}

/// For some seconds nobody rings who has an old phone, and the one who stays always does. What Asterisk takes back, it takes back
/// when it commits, a second after its last write; nothing says that it will not.
#[track_caller]
fn silent(scene: &Scene, old: &Phone, status: u16, point: &str) {
    let end = Instant::now() + secs(3);
    while Instant::now() < end {
        assert_eq!((scene.call(), old.take_rings()), (Some(status), 0), "{point}: a call, and the old phone's rings");
        thread::sleep(Duration::from_millis(100));
    }
    let stays = &scene.others[1];
    assert_eq!(scene.others[0].call(&stays.number), Some(486), "{point}: who stays is still registered");
}

#[test]
fn a_reader_of_asterisks_database_brings_nobody_back() {
    let mut scene = scene_at(Asterisk::start());
    for (times, hold, pause) in [(1, 0.5, 0.0), (1, 3.0, 0.0), (10, 0.1, 0.3)] {
        let point = format!("{times} times {hold} s, each {pause} s later");
        let old = change_hands(&mut scene);
        let reader = Reader::start(&scene.asterisk, times, hold, pause);
        let applied = scene.portal.apply("suite");
        assert_eq!(evicted(&applied), [scene.number.as_str()], "{point}");
        silent(&scene, &old, 480, &point);
        reader.wait();
        scene.belongs_to_its_owner(&old, &point);
    }
}

#[test]
fn a_reader_that_never_ends_is_named_and_the_number_is_nobodys() {
    // The bound of a command is longer than the reader reads; an apply gives up earlier.
    let mut scene = that_stays_registered(Scene::at(Asterisk::start()).with("ASTERISK_TIMEOUT_SECS", 120));
    let old = change_hands(&mut scene);
    let reader = Reader::start(&scene.asterisk, 1, 60.0, 0.0);
    failed_apply(&scene.portal, &["astdb.sqlite3", &scene.number, "a backup, a monitor", "then apply again"]);
    silent(&scene, &old, 480, "while it reads");
    assert_eq!(old.register(), Some(401), "while it reads");
    drop(reader);
    scene.portal.apply("suite");
    silent(&scene, &old, 480, "after it");
    scene.belongs_to_its_owner(&old, "after it");
}

#[test]
fn a_freed_number_whose_registration_may_come_back_is_warned_of() {
    let scene = scene_at(Asterisk::start());
    let old = scene.phone();
    commit(&scene.asterisk);
    scene.delete();
    let reader = Reader::start(&scene.asterisk, 1, 60.0, 0.0);
    let applied = scene.portal.apply("suite");
    let message = applied["message"].as_str().expect("a message");
    assert!(message.contains("are not evicted for good: a process that reads astdb.sqlite3"), "{message}");
    silent(&scene, &old, 404, "while it reads");
    drop(reader);
    let applied = scene.portal.apply("suite");
    assert!(!applied["message"].to_string().contains("Warning"), "{applied}");
}

/// SQLite's rollback journal, removed but not yet flushed, could be there again after a power cut, and undo the deletion.
#[test]
fn a_committed_eviction_cannot_be_undone_by_a_power_cut() {
    let mut scene = scene_at(Asterisk::start());
    let old = change_hands(&mut scene);
    let removes_and_flushes = ["-f", "-y", "--trace=unlink,fsync,fdatasync"];
    let (_, calls) = strace::under(scene.asterisk.pid(), &removes_and_flushes, || scene.portal.apply("suite"));
    let removed = calls.iter().rposition(|call| call.text.contains("astdb.sqlite3-journal")).expect("a commit");
    let thread = &calls[removed].thread;
    let next = calls[removed + 1..].iter().find(|call| call.thread == *thread);
    let folder = format!("{}>", scene.asterisk.etc().with_file_name("db").display());
    assert!(calls[removed].name == "unlink" && next.is_some_and(|next| next.text.contains(&folder)), "{next:?}");
    silent(&scene, &old, 480, "given");
}

/// The old phone's secret is right when its registration is accepted. If Asterisk went on with it once the number is given, it would be stored
/// for the new owner.
#[test]
fn a_registration_that_was_accepted_before_is_worked_off_before_the_number_is_given() {
    let mut scene = scene_that_holds_requests();
    let old = change_hands(&mut scene);
    thread::scope(|threads| {
        hold(&scene, &old, threads);
        let applying = threads.spawn(|| scene.portal.apply("suite"));
        let endpoint = || scene.asterisk.rx(&format!("pjsip show endpoint {}", scene.number));
        wait_until(secs(10), "the number is nobody's", || endpoint().contains("Unable to find object"));
        let done = queues(&scene, "pjsip/distributor", PROCESSED);
        wait_until(secs(20), "the apply pings the queues, or does not wait", || {
            queues(&scene, "pjsip/distributor", PROCESSED) > done + 10 || applying.is_finished()
        });
        scene.asterisk.release(Step::Requests);
        assert_eq!(evicted(&applying.join().expect("an answer")), [scene.number.as_str()]);
    });
    silent(&scene, &old, 480, "worked off");
    scene.belongs_to_its_owner(&old, "worked off");
}

#[test]
fn a_queue_that_does_not_move_is_named_and_the_number_is_nobodys() {
    let mut scene = scene_that_holds_requests();
    let old = change_hands(&mut scene);
    thread::scope(|threads| {
        hold(&scene, &old, threads);
        let words =
            ["does not finish the SIP requests", "core show taskprocessors", "calls to them get 480", &scene.number];
        failed_apply(&scene.portal, &words);
        scene.asterisk.release(Step::Requests);
    });
    silent(&scene, &old, 480, "after it moved");
    scene.portal.apply("suite");
    silent(&scene, &old, 480, "after the next apply");
    scene.belongs_to_its_owner(&old, "after the next apply");
}

#[test]
fn an_asterisk_that_is_killed_after_the_answer_brings_nobody_back() {
    let mut scene = scene_at(Asterisk::start());
    for milliseconds in [0, 300, 700, 1000, 1500] {
        let point = format!("killed {milliseconds} ms after the answer");
        let old = change_hands(&mut scene);
        scene.portal.apply("suite");
        thread::sleep(Duration::from_millis(milliseconds)); // before, at and after Asterisk's own commit
        scene.asterisk.kill();
        scene.asterisk.boot();
        silent(&scene, &old, 480, &point);
        scene.belongs_to_its_owner(&old, &point);
    }
}

#[test]
fn a_new_owner_who_registers_while_an_apply_is_repeated_stays_registered() {
    let mut scene = scene_at(Asterisk::start());
    let old = change_hands(&mut scene);
    kill_at(GIVE_ROUTING, &scene.asterisk, &scene.portal);
    scene.asterisk.rx("pjsip reload");
    scene.portal.kill();
    scene.portal.boot();
    let new = scene.new_phone();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| new.hammer(&done));
        let _done = SetWhenDropped(&done);
        wait_until(secs(10), "the new owner's phone is registered", || new.accepted() > 10);
        assert_eq!(evicted(&scene.portal.apply("suite")), [""; 0]);
        assert_eq!(scene.call(), Some(486), "and still is");
    });
    assert_eq!(old.take_rings(), 0);
}

#[test]
fn a_freed_number_is_given_away_without_its_former_phone() {
    let mut scene = scene_at(Asterisk::start());
    for at_once in [false, true] {
        let old = scene.phone();
        commit(&scene.asterisk);
        scene.delete();
        if at_once {
            // Asterisk commits this, and then nothing for a second: the number has its next owner before the eviction fails.
            scene.asterisk.rx("database put suite pause 1");
        }
        // For longer than an apply tries to evict for good.
        let reader = Reader::start(&scene.asterisk, 1, 5.0, 0.0);
        let applied = scene.portal.apply("suite");
        assert_eq!(evicted(&applied), [scene.number.as_str()]);
        if !at_once {
            wait_until(secs(10), "Asterisk takes the eviction back", || {
                registrations(&scene.asterisk, &scene.number) == 1
            });
            silent(&scene, &old, 404, "without an owner");
        }
        scene.reuse();
        scene.portal.apply("suite");
        silent(&scene, &old, 480, "with a new owner");
        drop(reader);
        scene.belongs_to_its_owner(&old, "with a new owner");
    }
}

/// The number changes hands, but the apply fails after it has evicted the old phone. Then the number is freed, and given away again.
#[test]
fn an_apply_that_failed_after_an_eviction_brings_nobody_back() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    let failing = "[ \"$2\" = 'pjsip reload' ] && [ -e \"$here/fail\" ] && exit 1\nexec $asterisk \"$@\"\n";
    let program = script(&asterisk, &folder, failing);
    let mut scene = that_stays_registered(Scene::at(asterisk).with("ASTERISK_BIN", program.display()));
    let old = change_hands(&mut scene);
    fs::write(folder.path().join("fail"), "").expect("make reloads fail");
    // As above.
    scene.asterisk.rx("database put suite pause 1");
    let reader = Reader::start(&scene.asterisk, 1, 1.5, 0.0);
    failed_apply(&scene.portal, &["pjsip reload"]);
    fs::remove_file(folder.path().join("fail")).expect("let reloads work");
    scene.delete();
    scene.portal.apply("suite");
    scene.reuse();
    scene.portal.apply("suite");
    silent(&scene, &old, 480, "with the owner after the next");
    drop(reader);
    scene.belongs_to_its_owner(&old, "with the owner after the next");
}

#[test]
fn a_routing_file_that_is_missing_or_emptied_evicts_nobody() {
    let scene = scene_at(Asterisk::start());
    let phone = scene.phone();
    let contacts = registered(&scene.asterisk);
    let routing = scene.asterisk.routing_file();
    let whole = fs::read_to_string(&routing).expect("the routing");
    for left in [None, Some(""), Some("[synergy-internal]\n"), Some(&whole[..whole.len() / 2])] {
        match left {
            None => fs::remove_file(&routing).expect("remove the routing"),
            Some(text) => fs::write(&routing, text).expect("write the routing"),
        }
        scene.asterisk.rx("dialplan reload");
        let applied = scene.portal.apply("suite");
        assert_eq!((evicted(&applied), registered(&scene.asterisk)), (Vec::new(), contacts.clone()), "{left:?}");
        scene.rings(&phone);
    }
}
