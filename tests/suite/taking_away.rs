//! What Asterisk keeps of a former owner beside the registration: subscriptions, device states, and what an edited `sorcery.conf` makes
//! it keep elsewhere than the portal looks first.

use std::fs;

use serde_json::Value;

use crate::fixtures::{account, failed_apply, host, id, registrations};
use support::asterisk::Options;
use support::portal::Settings;
use support::{Asterisk, Phone, Portal, secs, wait_until};

/// A number with a registered phone, and somebody who calls it.
struct Scene {
    asterisk: Asterisk,
    portal: Portal,
    caller: Phone,
    owner: Value,
    number: String,
    phone: Phone,
}

impl Scene {
    fn of(asterisk: Asterisk) -> Self {
        let portal = Portal::start(&Settings::of(&asterisk));
        let (caller, secret) = account(&portal.create_user("Caller", "caller@example.com"));
        let owner = portal.create_user("Owner", "owner@example.com");
        portal.apply("suite");
        let caller = Phone::new(&asterisk, &caller, &secret);
        let (number, secret) = account(&owner);
        let phone = Phone::new(&asterisk, &number, &secret);
        assert_eq!(phone.register(), Some(200));
        Self { asterisk, portal, caller, owner, number, phone }
    }

    fn delete(&self) {
        self.portal.delete_user(id(&self.owner));
    }

    /// Gives the number to somebody else; returns the new owner's phone.
    fn change_hands(&mut self) -> Phone {
        self.delete();
        self.owner = self.portal.create_user("Next", &format!("{}@example.com", self.phone.secret));
        let (number, secret) = account(&self.owner);
        assert_eq!(number, self.number);
        Phone::new(&self.asterisk, &number, &secret)
    }

    /// Asterisk's database has a row of a subscription of this number.
    fn keeps_a_subscription(&self, number: &str) -> bool {
        self.asterisk.rx("database show subscription_persistence").contains(&format!("\"endpoint\":\"{number}\""))
    }

    #[track_caller]
    fn the_old_phone_is_silent(&self) {
        assert_eq!(self.caller.call(&self.number), Some(480));
        assert_eq!(self.phone.take_rings(), 0, "the old phone rings");
    }
}

/// A hint for each number.
const HINTS: &str = "\n[synergy-internal]\nexten => _1XXX,hint,PJSIP/${EXTEN}\n";

#[test]
fn a_former_owners_subscription_is_forgotten_and_a_live_one_is_warned_of() {
    for reused in [true, false] {
        let mut scene =
            Scene::of(Asterisk::start_with(&Options { extensions: HINTS.to_owned(), ..Options::default() }));
        let caller = scene.caller.number.clone();
        assert_eq!((scene.phone.subscribe(&caller), scene.caller.subscribe(&scene.number)), (Some(200), Some(200)));
        wait_until(secs(10), "Asterisk keeps both", || {
            scene.keeps_a_subscription(&scene.number) && scene.keeps_a_subscription(&caller)
        });
        if reused {
            drop(scene.change_hands());
        } else {
            scene.delete();
        }
        let applied = scene.portal.apply("suite");
        let message = applied["message"].as_str().expect("a message");
        let warning = format!("still see what they watch (hints, mailboxes), as: {}; restart Asterisk", scene.number);
        assert!(message.contains(&warning), "{message}");
        assert!(!scene.keeps_a_subscription(&scene.number) && scene.keeps_a_subscription(&caller), "reused: {reused}");
        let watching = || scene.asterisk.rx("pjsip show subscriptions inbound");
        assert!(watching().contains("2 active subscriptions"), "{}", watching());
        // The remedy.
        scene.asterisk.restart();
        wait_until(secs(10), "the other one is restored", || watching().contains("1 active subscriptions"));
        assert!(watching().contains(&format!("Endpoint: {caller}/")), "{}", watching());
        let again = scene.portal.apply("suite");
        assert!(!again["message"].to_string().contains("Warning"), "{again}");
    }
}

#[test]
fn a_hint_and_a_queue_member_follow_the_number_to_its_new_owner() {
    let asterisk = Asterisk::start_with(&Options { extensions: HINTS.to_owned(), ..Options::default() });
    asterisk.write_config("queues.conf", "[support]\nmember => PJSIP/1001\n");
    asterisk.restart();
    let mut scene = Scene::of(asterisk);
    let number = scene.number.clone();
    assert_eq!(scene.caller.subscribe(&number), Some(200), "somebody watches");
    let hint = || {
        let hints = scene.asterisk.rx("core show hints");
        let row = hints.lines().find(|line| line.starts_with(&format!("{number}@")));
        row.and_then(|row| row.split("State:").nth(1)?.split_whitespace().next()).unwrap_or_default().to_owned()
    };
    let member = || {
        let queue = scene.asterisk.rx("queue show support");
        queue.lines().find(|line| line.contains(&format!("PJSIP/{number}"))).expect("the member").to_owned()
    };
    wait_until(secs(20), "the phone is seen", || hint() == "Idle" && member().contains("Not in use"));
    scene.portal.delete_user(id(&scene.owner));
    scene.owner = scene.portal.create_user("Next", "next@example.com");
    scene.portal.apply("suite");
    // Nobody is there until the new owner's phone registers.
    wait_until(secs(20), "nobody is there", || hint() == "Unavailable");
    assert!(["Unavailable", "Invalid"].iter().any(|gone| member().contains(gone)), "{}", member());
    let (_, secret) = account(&scene.owner);
    let new = Phone::new(&scene.asterisk, &number, &secret);
    assert_eq!(new.register(), Some(200));
    wait_until(secs(20), "the new owner's phone is seen", || hint() == "Idle" && member().contains("Not in use"));
    assert_eq!(scene.caller.call(&number), Some(486));
    assert_eq!((new.take_rings(), scene.phone.take_rings()), (1, 0));
}

/// Asterisk was started with this `sorcery.conf`, which is gone since; nobody restarted it.
fn started_with(sorcery: &str) -> Asterisk {
    let asterisk = Asterisk::start();
    asterisk.write_config("sorcery.conf", sorcery);
    asterisk.restart();
    fs::remove_file(asterisk.etc().join("sorcery.conf")).expect("remove sorcery.conf");
    asterisk
}

#[test]
fn registrations_that_asterisk_keeps_elsewhere_than_its_files_say_are_seen() {
    let mut scene = Scene::of(started_with("[res_pjsip]\ncontact=memory\n"));
    assert_eq!(registrations(&scene.asterisk, &scene.number), 0, "not in its database");
    assert_eq!(scene.caller.call(&scene.number), Some(486));
    assert_eq!(scene.phone.take_rings(), 1);
    let new = scene.change_hands();
    for _ in 0..2 {
        let words = ["keeps registrations elsewhere", &scene.number, "sorcery.conf", "restart Asterisk"];
        failed_apply(&scene.portal, &words);
        scene.the_old_phone_is_silent();
        assert_eq!(new.register(), Some(401), "nothing is given");
    }
    scene.asterisk.restart();
    scene.portal.apply("suite");
    scene.the_old_phone_is_silent();
    assert_eq!(new.register(), Some(200));
}

#[test]
fn objects_that_asterisk_keeps_in_a_cache_are_seen() {
    let caches = ["endpoint", "auth", "aor"].map(|kind| {
        format!(
            "{kind}=config,pjsip.conf,criteria=type={kind}\n{kind}/cache=memory_cache,object_lifetime_maximum=1800\n"
        )
    });
    let mut scene = Scene::of(started_with(&format!("[res_pjsip]\n{}", caches.concat())));
    assert_eq!(scene.caller.call(&scene.number), Some(486), "its endpoint and AOR are in the cache");
    scene.phone.take_rings();
    scene.delete();
    failed_apply(&scene.portal, &["endpoints left over: ", &scene.number]);
    scene.owner = scene.portal.create_user("Next", "next@example.com");
    failed_apply(&scene.portal, &["keeps the endpoint, auth or AOR of their former owners", &scene.number]);
    scene.asterisk.restart();
    scene.portal.apply("suite");
    scene.the_old_phone_is_silent();
    let (number, secret) = account(&scene.owner);
    assert_eq!(Phone::new(&scene.asterisk, &number, &secret).register(), Some(200));
}

#[test]
fn a_registration_under_a_key_of_an_unknown_form_is_an_error() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    asterisk.rx(r#"database put registrar/contact 1000;@odd "{\"uri\":\"sip:x@127.0.0.1:9\"}""#);
    failed_apply(&portal, &["'1000;@odd'", "database del registrar/contact 1000;@odd"]);
    asterisk.rx("database del registrar/contact 1000;@odd");
    portal.apply("suite");
}
