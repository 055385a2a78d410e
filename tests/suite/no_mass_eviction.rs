//! Nobody is evicted by mistake: not by an Asterisk that is booting, that refuses its `pjsip.conf` or lacks a module, and not by
//! applies that fail again and again.

use std::fs;

use serde_json::Value;

use crate::fixtures::{account, failed_apply, host, id, registered, try_apply};
use support::process::Signal;
use support::sipp::{Called, Phones, call, register};
use support::strace::Call;
use support::{Asterisk, Portal, secs, strace, wait_until};

/// A few users with registered phones.
struct Scene {
    asterisk: Asterisk,
    portal: Portal,
    users: Vec<Value>,
    phones: Phones,
}

impl Scene {
    fn new() -> Self {
        let (asterisk, portal) = host();
        let users: Vec<_> =
            (0..4).map(|index| portal.create_user("User", &format!("user{index}@example.com"))).collect();
        portal.apply("suite");
        let accounts: Vec<_> = users.iter().map(account).collect();
        let accounts: Vec<_> = accounts.iter().map(|(number, secret)| (number.as_str(), secret.as_str())).collect();
        let phones = Phones::register(&asterisk, &accounts, Called::Answer);
        Self { asterisk, portal, users, phones }
    }

    /// The last user's number gets another owner; the next apply has to evict this one phone.
    fn last_changes_hands(&mut self) {
        let last = self.users.last_mut().expect("a user");
        self.portal.delete_user(id(last));
        let next = self.portal.create_user("Next", "next@example.com");
        assert_eq!(account(&next).0, account(last).0);
        *last = next;
    }

    fn registered(&self) -> Vec<String> {
        registered(&self.asterisk)
    }

    /// The phone of this user rings when the first one calls.
    #[track_caller]
    fn rings(&self, index: usize) {
        let (from, to) = (account(&self.users[0]), account(&self.users[index]).0);
        let rung = self.phones.requests("INVITE", &to);
        assert_eq!(call(&self.asterisk, (&from.0, &from.1), &to), 200);
        assert_eq!(self.phones.requests("INVITE", &to), rung + 1);
    }
}

#[test]
fn by_an_asterisk_that_is_still_booting() {
    let mut scene = Scene::new();
    let registered = scene.registered();
    assert_eq!(registered.len(), 4);
    scene.last_changes_hands();

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
        assert_eq!(scene.registered(), registered, "nobody is evicted before Asterisk is fully booted");
        assert!(!applying.is_finished(), "{}", applying.join().expect("an answer").text);
        scene.asterisk.write_config("go", "");
        applying.join().expect("an answer")
    });
    assert_eq!(answer.status, 200, "it waits for the boot: {}", answer.text);
    let evicted = &answer.json["registrations_evicted"];
    assert_eq!((evicted.as_array().map(Vec::len), evicted[0]["extension"].as_u64()), (Some(1), Some(1003)));
    assert_eq!(scene.registered(), registered[..3]);

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
    assert_eq!(scene.registered(), registered[..3]);
    scene.rings(2);
}

#[test]
fn by_an_asterisk_that_was_restarted_on_a_broken_pjsip_conf() {
    let mut scene = Scene::new();
    let registered = scene.registered();
    let mut left = registered.len();
    let sound = fs::read_to_string(scene.asterisk.etc().join("pjsip.conf")).expect("pjsip.conf");
    for (broken, why) in [("[nobody\n", "has no closing ]"), ("[nobody](+type=endpoint)\n", "does not exist above")] {
        scene.asterisk.write_config("pjsip.conf", &format!("{sound}{broken}"));
        scene.asterisk.restart();
        let auths = scene.asterisk.rx("pjsip show auths");
        assert!(auths.contains("No objects found"), "{broken} refuses everything: {auths}");
        for _ in 0..2 {
            failed_apply(&scene.portal, &["endpoints missing", "likely cause", "pjsip.conf:", why]);
            assert_eq!(scene.registered(), registered[..left], "{broken}");
        }
        // One number changes hands meanwhile: its phone alone is evicted, once.
        if left == registered.len() {
            scene.last_changes_hands();
            left -= 1;
            failed_apply(&scene.portal, &["endpoints missing"]);
            assert_eq!(scene.registered(), registered[..left]);
        }
        scene.asterisk.write_config("pjsip.conf", &sound);
        scene.asterisk.restart();
        assert_eq!(scene.portal.apply("suite")["registrations_evicted"].as_array().map(Vec::len), Some(0));
        assert_eq!(scene.registered(), registered[..left]);
        scene.rings(1);
        scene.rings(2);
    }
}

/// Asterisk reads no secret then, and our file says nothing to it; but it is the same file as before.
#[test]
fn by_a_file_that_hides_ours_from_asterisk() {
    let scene = Scene::new();
    let registered = scene.registered();
    scene.asterisk.edit_config("pjsip.conf", |text| text.replace("generated_endpoints.conf", "*.conf"));
    for hides in ["[bob](nobody)\n", ";--\n", "--;\n"] {
        scene.asterisk.write_config("pjsip.d/synergycall/a.conf", hides);
        scene.asterisk.restart();
        for _ in 0..2 {
            failed_apply(&scene.portal, &["endpoints missing"]);
            assert_eq!(scene.registered(), registered, "{hides}");
        }
    }
    scene.asterisk.write_config("pjsip.d/synergycall/a.conf", "");
    assert_eq!(scene.portal.apply("suite")["registrations_evicted"].as_array().map(Vec::len), Some(0));
    assert_eq!(scene.registered(), registered);
    scene.rings(2);
}

#[test]
fn by_applies_that_keep_failing_while_new_secrets_are_in_force() {
    let mut scene = Scene::new();
    let number = account(&scene.users[3]).0;
    let old_secret = account(&scene.users[3]).1;
    scene.last_changes_hands();
    scene.portal.apply("suite");
    let new_phone = Phones::register(&scene.asterisk, &[(&number, &account(&scene.users[3]).1)], Called::Answer);
    let contacts = scene.registered();
    assert_eq!(contacts.len(), 4);
    let caller = account(&scene.users[0]);
    let mut rung = 0;
    // Of the type that has two sections of one name, Asterisk keeps all as they were: a new user's are missing.
    for kind in ["endpoint", "aor"] {
        scene.portal.create_user("Late", &format!("late.{kind}@example.com"));
        let twice = format!("[alice]\ntype={kind}\n[alice]\ntype={kind}\n");
        scene.asterisk.edit_config("pjsip.conf", |text| format!("{text}{twice}"));
        for _ in 0..3 {
            failed_apply(&scene.portal, &[if kind == "aor" { "AORs missing" } else { "endpoints missing" }]);
            assert_eq!(scene.registered(), contacts, "everybody's phone stays, whatever fails");
            assert_eq!(call(&scene.asterisk, (&caller.0, &caller.1), &number), 200);
            rung += 1;
            assert_eq!(new_phone.requests("INVITE", &number), rung);
        }
        assert_eq!(register(&scene.asterisk, (&number, &old_secret)), 401);
        scene.asterisk.edit_config("pjsip.conf", |text| text.replace(&twice, ""));
        assert_eq!(scene.portal.apply("suite")["registrations_evicted"].as_array().map(Vec::len), Some(0));
        assert_eq!(scene.registered(), contacts);
    }
}
