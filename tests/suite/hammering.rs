//! The old owner's phone registers some fifty times a second and its number is called without pause, before, during and after
//! the apply that gives the number to somebody else, or that is killed while it does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::fixtures::{SetWhenDropped, crowd, evicted, registrations};
use crate::scenes::Scene;
use crate::steps::{FLUSH_GIVEN_ENDPOINTS, GIVE_ENDPOINTS, GIVE_ROUTING, kill_at};
use support::sipp::{Caller, HAMMERING_AT_ONCE, Phones};
use support::{secs, wait_until};

/// Each user makes the reloads, and so the time in which something could go wrong, longer; without any, it is shortest.
const OTHER_USERS: usize = 200;

/// A number that gets another owner again and again, among other users.
fn scene_among(other_users: usize) -> Scene {
    let scene = Scene::new();
    crowd(&scene.portal, other_users);
    scene.portal.apply("suite");
    scene
}

/// The owner's phone hammers, somebody calls it without pause, and the number gets another owner.
fn change_hands(scene: &mut Scene) -> (Phones, Caller) {
    let (number, caller) = (&scene.number, &scene.others[0]);
    let phone = Phones::hammer(&scene.asterisk, (number, &scene.secret()));
    let caller = Caller::start(&scene.asterisk, (&caller.number, &caller.secret), number);
    wait_until(secs(20), "the owner's phone rings", || phone.requests("INVITE", number) >= 3);
    scene.hand_over();
    (phone, caller)
}

/// From the first call that is refused on, none is answered and none rings the phone.
#[track_caller]
fn silent(scene: &Scene, phone: &Phones, caller: &Caller) {
    caller.wait_for_calls(10);
    // One call at a time: what rang the phone has ended when the next call is refused.
    let calls = caller.calls();
    let refused = calls.iter().position(|(_, status)| *status == 480).expect("a refused call");
    let arrivals = phone.arrivals("INVITE", &scene.number);
    assert!(arrivals.iter().all(|at| *at < calls[refused].0), "after {:?} it rings: {arrivals:?}", calls[refused]);
    // A challenge from before a reload is stale after it (401); a phone that is not SIPp answers the new one.
    let later: Vec<_> = calls[refused..].iter().map(|(_, status)| *status).collect();
    assert!(later.iter().all(|status| [401, 480].contains(status)), "{later:?}");
    assert_eq!(later.last(), Some(&480), "{later:?}");
}

/// Applies, and the old phone is out; returns the answer.
#[track_caller]
fn apply(scene: &Scene, phone: &Phones, caller: &Caller) -> Value {
    let applied = scene.portal.apply("suite");
    is_out(scene, phone, caller);
    applied
}

/// After an apply.
#[track_caller]
fn is_out(scene: &Scene, phone: &Phones, caller: &Caller) {
    let rung = phone.requests("INVITE", &scene.number);
    refused(phone);
    assert_eq!(registrations(&scene.asterisk, &scene.number), 0);
    silent(scene, phone, caller);
    assert_eq!(phone.requests("INVITE", &scene.number), rung, "no call after the apply rings it");
}

/// The phone goes on and is refused each time.
#[track_caller]
fn refused(phone: &Phones) {
    let tried = phone.registrations().len();
    wait_until(secs(20), "the old phone goes on", || phone.registrations().len() >= tried + 50);
    let later = phone.registrations().split_off(tried + HAMMERING_AT_ONCE);
    assert!(later.iter().all(|(_, status)| *status == 401), "{later:?}");
}

#[test]
fn a_hammering_old_phone_never_rings_for_the_new_owner() {
    for other_users in [OTHER_USERS, 0] {
        let mut scene = scene_among(other_users);
        for _ in 0..5 {
            let (phone, caller) = change_hands(&mut scene);
            let evicted = &apply(&scene, &phone, &caller)["registrations_evicted"];
            assert!(evicted.to_string().contains(&scene.number), "{evicted}");
        }
    }
}

#[test]
fn a_hammering_old_phone_never_rings_while_an_administrator_reloads_again_and_again() {
    let mut scene = scene_among(OTHER_USERS);
    for pause in [0, 20, 50, 80, 110] {
        let (phone, caller) = change_hands(&mut scene);
        let done = AtomicBool::new(false);
        thread::scope(|threads| {
            let applied = SetWhenDropped(&done);
            threads.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    scene.asterisk.rx("pjsip reload");
                    thread::sleep(Duration::from_millis(100)); // so that the apply's own reloads get their turn
                }
            });
            // Somewhere in the middle of one.
            thread::sleep(Duration::from_millis(300 + pause));
            scene.portal.apply("suite");
            drop(applied);
        });
        is_out(&scene, &phone, &caller);
    }
}

#[test]
fn a_hammering_old_phone_never_rings_after_a_crash_and_an_administrators_own_reload() {
    let mut scene = scene_among(OTHER_USERS);
    // Whether the new secret is on disk then.
    for (step, on_disk) in [(GIVE_ENDPOINTS, false), (FLUSH_GIVEN_ENDPOINTS, true), (GIVE_ROUTING, true)] {
        let (phone, caller) = change_hands(&mut scene);
        kill_at(step, &scene.asterisk, &scene.portal);
        assert_eq!(scene.files()[0].contains(&scene.secret()), on_disk, "{step:?}");
        assert!(scene.auth().contains("Unable to find object"), "{step:?}: it is nobody's");
        silent(&scene, &phone, &caller);

        for reload in ["dialplan reload", "pjsip reload"] {
            scene.asterisk.rx(reload);
            silent(&scene, &phone, &caller);
        }
        refused(&phone);
        scene.portal.kill();
        scene.portal.boot();
        apply(&scene, &phone, &caller);
    }
}

#[test]
fn a_phone_that_registers_as_fast_as_it_can_does_not_hold_up_the_apply() {
    let mut scene = scene_among(OTHER_USERS);
    let phone = scene.new_phone();
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| phone.hammer(&done));
        let done = SetWhenDropped(&done);
        wait_until(secs(20), "it registers again and again", || phone.accepted() > 500);
        scene.hand_over();
        let before = phone.accepted();
        let applied = scene.portal.apply("suite");
        assert!(phone.accepted() > before + 5, "it went on until the number was taken away");
        let (accepted, refused) = (phone.accepted(), phone.refused());
        assert!(evicted(&applied).contains(&scene.number), "{applied}");
        wait_until(secs(20), "it goes on", || phone.refused() > refused + 50);
        assert_eq!(phone.accepted(), accepted, "it is refused");
        scene.nobody_is_there(480);
        drop(done);
    });
}
