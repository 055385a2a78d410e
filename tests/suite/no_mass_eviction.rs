//! Nobody is evicted by mistake: not by an Asterisk that is booting, that refuses its `pjsip.conf` or lacks a module, and not by
//! applies that fail again and again.

use std::fs;

use crate::fixtures::{evicted, failed_apply, registered, try_apply};
use crate::scenes::Scene;
use support::process::Signal;
use support::strace::Call;
use support::{Asterisk, Phone, secs, strace, wait_until};

/// Four users with registered phones. The last one's number can change hands; then an apply has to evict this one phone.
fn scene() -> (Scene, Phone) {
    let scene = Scene::at(Asterisk::start()).among(3).begin();
    for phone in &scene.others {
        assert_eq!(phone.register(), Some(200));
    }
    let phone = scene.phone();
    (scene, phone)
}

/// The phone of this user rings when the first one calls.
#[track_caller]
fn rings(scene: &Scene, index: usize) {
    let phone = &scene.others[index];
    assert_eq!((scene.others[0].call(&phone.number), phone.take_rings()), (Some(486), 1));
}

#[test]
fn an_asterisk_that_is_still_booting_gets_nobody_evicted_by_mistake() {
    let (mut scene, _old) = scene();
    let before = registered(&scene.asterisk);
    assert_eq!(before.len(), 4);
    scene.hand_over();

    // A configuration file whose text a program gives: Asterisk does not go on before the test lets it.
    let go = scene.asterisk.etc().join("go");
    let wait = format!("for i in $(seq 600); do test -e {} && break; sleep 0.1; done\n", go.display());
    scene.asterisk.write_config("wait.sh", &wait);
    scene.asterisk.edit_config("asterisk.conf", |text| format!("{text}\n[options]\nexecincludes = yes\n"));
    let program = scene.asterisk.etc().join("wait.sh");
    scene.asterisk.edit_config("rtp.conf", |text| format!("{text}#exec \"sh {}\"\n", program.display()));
    scene.asterisk.stop();
    scene.asterisk.begin_to_boot();
    let answers = |asterisk: &Asterisk| asterisk.try_rx("core show uptime").is_ok_and(|text| text.contains("uptime"));
    wait_until(secs(20), "the control socket answers", || answers(&scene.asterisk));
    let answer = std::thread::scope(|scope| {
        let applying = scope.spawn(|| try_apply(&scene.portal));
        wait_until(secs(20), "the auths are loaded", || {
            scene.asterisk.rx("pjsip show auths").contains("Objects found")
        });
        assert_eq!(registered(&scene.asterisk), before, "nobody is evicted before Asterisk is fully booted");
        assert!(!applying.is_finished(), "{}", applying.join().expect("an answer").text);
        scene.asterisk.write_config("go", "");
        applying.join().expect("an answer")
    });
    assert_eq!(answer.status, 200, "it waits for the boot: {}", answer.text);
    assert_eq!(evicted(&answer.json), ["1003"]);
    assert_eq!(registered(&scene.asterisk), before[..3]);

    // It lets others use its socket a moment after it made it (longer, if the group is looked up over the network), and it knows
    // its last commands a moment after it has booted.
    for late in [
        ["-f", "--trace=chmod", "--inject=chmod:delay_enter=2000000"].as_slice(),
        ["--trace=rt_sigprocmask", "--inject=rt_sigprocmask:delay_enter=20000"].as_slice(),
    ] {
        scene.asterisk.stop();
        scene.asterisk.begin_to_boot();
        scene.asterisk.signal(Signal::STOP);
        let (answer, calls) = strace::under(scene.asterisk.pid(), late, || {
            scene.asterisk.signal(Signal::CONT);
            wait_until(secs(20), "root may use the socket", || answers(&scene.asterisk));
            try_apply(&scene.portal)
        });
        let delayed = |call: &Call| call.name == "rt_sigprocmask" || call.text.contains("asterisk.ctl");
        assert!(calls.iter().any(delayed), "{late:?}: nothing was late: {calls:?}");
        assert_eq!(answer.status, 200, "{late:?}: it waits: {}", answer.text);
    }

    // Applies without pause, from before there is a socket until it is up.
    scene.asterisk.stop();
    assert_eq!(try_apply(&scene.portal).status, 500, "there is no Asterisk");
    scene.asterisk.begin_to_boot();
    wait_until(secs(60), "an apply succeeds", || try_apply(&scene.portal).status == 200);
    assert_eq!(registered(&scene.asterisk), before[..3]);
    rings(&scene, 2);
}

#[test]
fn an_asterisk_restarted_on_a_broken_pjsip_conf_gets_nobody_evicted() {
    let (mut scene, _old) = scene();
    let before = registered(&scene.asterisk);
    let mut left = before.len();
    let sound = fs::read_to_string(scene.asterisk.etc().join("pjsip.conf")).expect("pjsip.conf");
    for (broken, why) in [("[nobody\n", "has no closing ]"), ("[nobody](+type=endpoint)\n", "does not exist above")] {
        scene.asterisk.write_config("pjsip.conf", &format!("{sound}{broken}"));
        scene.asterisk.restart();
        let auths = scene.asterisk.rx("pjsip show auths");
        assert!(auths.contains("No objects found"), "{broken} refuses everything: {auths}");
        for _ in 0..2 {
            failed_apply(&scene.portal, &["endpoints missing", "likely cause", "pjsip.conf:", why]);
            assert_eq!(registered(&scene.asterisk), before[..left], "{broken}");
        }
        // One number changes hands meanwhile: its phone alone is evicted, once.
        if left == before.len() {
            scene.hand_over();
            left -= 1;
            failed_apply(&scene.portal, &["endpoints missing"]);
            assert_eq!(registered(&scene.asterisk), before[..left]);
        }
        scene.asterisk.write_config("pjsip.conf", &sound);
        scene.asterisk.restart();
        assert_eq!(evicted(&scene.portal.apply("suite")), [""; 0]);
        assert_eq!(registered(&scene.asterisk), before[..left]);
        rings(&scene, 1);
        rings(&scene, 2);
    }
}

/// Asterisk reads no secret then, and our file says nothing to it; but it is the same file as before.
#[test]
fn a_file_that_hides_ours_from_asterisk_gets_nobody_evicted() {
    let (scene, _phone) = scene();
    let before = registered(&scene.asterisk);
    scene.asterisk.edit_config("pjsip.conf", |text| text.replace("generated_endpoints.conf", "*.conf"));
    for hides in ["[bob](nobody)\n", ";--\n", "--;\n"] {
        scene.asterisk.write_config("pjsip.d/synergycall/a.conf", hides);
        scene.asterisk.restart();
        for _ in 0..2 {
            failed_apply(&scene.portal, &["endpoints missing"]);
            assert_eq!(registered(&scene.asterisk), before, "{hides}");
        }
    }
    scene.asterisk.write_config("pjsip.d/synergycall/a.conf", "");
    assert_eq!(evicted(&scene.portal.apply("suite")), [""; 0]);
    assert_eq!(registered(&scene.asterisk), before);
    rings(&scene, 2);
}

#[test]
fn applies_that_keep_failing_while_new_secrets_are_in_force_evict_nobody() {
    let (mut scene, old) = scene();
    scene.hand_over();
    scene.portal.apply("suite");
    let new = scene.phone();
    let contacts = registered(&scene.asterisk);
    assert_eq!(contacts.len(), 4);
    // Of the type that has two sections of one name, Asterisk keeps all as they were: a new user's are missing.
    for kind in ["endpoint", "aor"] {
        scene.portal.create_user("Late", &format!("late.{kind}@example.com"));
        let twice = format!("[alice]\ntype={kind}\n[alice]\ntype={kind}\n");
        scene.asterisk.edit_config("pjsip.conf", |text| format!("{text}{twice}"));
        for _ in 0..3 {
            failed_apply(&scene.portal, &[if kind == "aor" { "AORs missing" } else { "endpoints missing" }]);
            assert_eq!(registered(&scene.asterisk), contacts, "everybody's phone stays, whatever fails");
            scene.rings(&new);
        }
        assert_eq!(old.register(), Some(401));
        scene.asterisk.edit_config("pjsip.conf", |text| text.replace(&twice, ""));
        assert_eq!(evicted(&scene.portal.apply("suite")), [""; 0]);
        assert_eq!(registered(&scene.asterisk), contacts);
    }
}
