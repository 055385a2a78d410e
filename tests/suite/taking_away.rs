//! What Asterisk keeps of a former owner beside the registration: subscriptions, device states, and what an edited `sorcery.conf` makes
//! it keep elsewhere than the portal looks first.

use std::fs;

use crate::fixtures::{failed_apply, host, registrations};
use crate::scenes::Scene;
use support::asterisk::Options;
use support::{Asterisk, secs, wait_until};

/// Whether Asterisk's database has a row of a subscription of this number.
fn keeps_a_subscription(scene: &Scene, number: &str) -> bool {
    scene.asterisk.rx("database show subscription_persistence").contains(&format!("\"endpoint\":\"{number}\""))
}

/// A hint for each number.
const HINTS: &str = "\n[synergy-internal]\nexten => _1XXX,hint,PJSIP/${EXTEN}\n";

#[test]
fn a_former_owners_subscription_is_forgotten_and_a_live_one_is_warned_of() {
    for reused in [true, false] {
        let asterisk = Asterisk::start_with(&Options { extensions: HINTS.to_owned(), ..Options::default() });
        let mut scene = Scene::at(asterisk).begin();
        let (phone, caller) = (scene.phone(), scene.others[0].number.clone());
        assert_eq!((phone.subscribe(&caller), scene.others[0].subscribe(&scene.number)), (Some(200), Some(200)));
        wait_until(secs(10), "Asterisk keeps both", || {
            keeps_a_subscription(&scene, &scene.number) && keeps_a_subscription(&scene, &caller)
        });
        // An administrator's own endpoints, whose names begin with the number.
        let others = [format!("{}0", scene.number), format!("{}-lobby", scene.number)];
        for name in &others {
            let row = format!("{{\\\"endpoint\\\":\\\"{name}\\\"}}");
            scene.asterisk.rx(&format!("database put subscription_persistence {name} \"{row}\""));
        }
        scene.delete();
        if reused {
            scene.reuse();
        }
        let applied = scene.portal.apply("suite");
        assert!(others.iter().all(|name| keeps_a_subscription(&scene, name)), "reused: {reused}");
        let message = applied["message"].as_str().expect("a message");
        let warning = format!("still see what they watch (hints, mailboxes), as: {}; restart Asterisk", scene.number);
        assert!(message.contains(&warning), "{message}");
        assert!(
            !keeps_a_subscription(&scene, &scene.number) && keeps_a_subscription(&scene, &caller),
            "reused: {reused}"
        );
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
    let mut scene = Scene::at(asterisk).begin();
    let (old, number) = (scene.phone(), scene.number.clone());
    assert_eq!(scene.others[0].subscribe(&number), Some(200), "somebody watches");
    let hint = |scene: &Scene| {
        let hints = scene.asterisk.rx("core show hints");
        let row = hints.lines().find(|line| line.starts_with(&format!("{number}@")));
        row.and_then(|row| row.split("State:").nth(1)?.split_whitespace().next()).unwrap_or_default().to_owned()
    };
    let member = |scene: &Scene| {
        let queue = scene.asterisk.rx("queue show support");
        queue.lines().find(|line| line.contains(&format!("PJSIP/{number}"))).expect("the member").to_owned()
    };
    let seen = |scene: &Scene| hint(scene) == "Idle" && member(scene).contains("Not in use");
    wait_until(secs(20), "the phone is seen", || seen(&scene));
    scene.hand_over();
    scene.portal.apply("suite");
    // Nobody is there until the new owner's phone registers.
    wait_until(secs(20), "nobody is there", || hint(&scene) == "Unavailable");
    assert!(["Unavailable", "Invalid"].iter().any(|gone| member(&scene).contains(gone)), "{}", member(&scene));
    let new = scene.phone();
    wait_until(secs(20), "the new owner's phone is seen", || seen(&scene));
    scene.rings(&new);
    assert_eq!(old.take_rings(), 0);
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
    let mut scene = Scene::at(started_with("[res_pjsip]\ncontact=memory\n")).begin();
    let old = scene.phone();
    assert_eq!(registrations(&scene.asterisk, &scene.number), 0, "not in its database");
    scene.hand_over();
    let new = scene.new_phone();
    for _ in 0..2 {
        let words = ["keeps registrations elsewhere", &scene.number, "sorcery.conf", "restart Asterisk"];
        failed_apply(&scene.portal, &words);
        scene.is_silent(&old, 480, "nothing is taken");
        assert_eq!(new.register(), Some(401), "nothing is given");
    }
    scene.asterisk.restart();
    scene.portal.apply("suite");
    scene.is_silent(&old, 480, "given");
    assert_eq!(new.register(), Some(200));
}

#[test]
fn objects_that_asterisk_keeps_in_a_cache_are_seen() {
    let caches = ["endpoint", "auth", "aor"].map(|kind| {
        format!(
            "{kind}=config,pjsip.conf,criteria=type={kind}\n{kind}/cache=memory_cache,object_lifetime_maximum=1800\n"
        )
    });
    let mut scene = Scene::at(started_with(&format!("[res_pjsip]\n{}", caches.concat()))).begin();
    let old = scene.phone(); // its endpoint and AOR are in the cache
    scene.delete();
    failed_apply(&scene.portal, &["endpoints left over: ", &scene.number]);
    scene.reuse();
    failed_apply(&scene.portal, &["keeps the endpoint, auth or AOR of their former owners", &scene.number]);
    scene.asterisk.restart();
    scene.portal.apply("suite");
    scene.is_silent(&old, 480, "after a restart");
    scene.belongs_to_its_owner(&old, "after a restart");
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
