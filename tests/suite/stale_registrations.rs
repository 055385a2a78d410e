//! A number that has another owner: the old owner's phone never rings for the new one.

use std::net::SocketAddr;

use serde_json::Value;

use crate::fixtures::{TWO_OF_ONE_NAME, account, evicted, failed_apply, host, id, registrations, sqlite};
use crate::scenes::{Step, kill_at};
use support::asterisk::Options;
use support::portal::Settings;
use support::sipp::{Called, Link, Phones, call, register};
use support::{Asterisk, Portal, secs, wait_until};

/// A number whose owner has a phone, and somebody who calls it.
struct Scene {
    asterisk: Asterisk,
    portal: Portal,
    caller: (String, String),
    number: String,
    owner: Value,
}

impl Scene {
    /// 1001 of this Asterisk, applied.
    fn of(asterisk: Asterisk) -> Self {
        let portal = Portal::start(&Settings::of(&asterisk));
        let caller = account(&portal.create_user("Caller", "caller@example.com"));
        let owner = portal.create_user("Owner", "owner@example.com");
        let number = account(&owner).0;
        portal.apply("suite");
        Self { asterisk, portal, caller, number, owner }
    }

    fn secret(&self) -> String {
        account(&self.owner).1
    }

    /// Registers the owner's phone and calls it.
    fn phone(&self) -> Phones {
        self.phone_over(Link::Udp, self.asterisk.sip())
    }

    /// Like [`Self::phone`], over another link or address.
    fn phone_over(&self, link: Link, server: SocketAddr) -> Phones {
        let phone = Phones::register_over(link, server, &[(&self.number, &self.secret())], Called::Answer);
        assert_eq!(self.call(), 200);
        assert_eq!(phone.requests("INVITE", &self.number), 1, "the owner's phone rings");
        phone
    }

    fn call(&self) -> u16 {
        call(&self.asterisk, (&self.caller.0, &self.caller.1), &self.number)
    }

    fn delete(&self) {
        self.portal.delete_user(id(&self.owner));
    }

    /// Gives the freed number to somebody else.
    fn reuse(&mut self) {
        let email = format!("{}@example.com", self.secret());
        self.owner = self.portal.create_user("Next", &email);
        assert_eq!(account(&self.owner).0, self.number, "the lowest free number");
    }

    /// The phone's registration is gone with all that Asterisk knew of it: a call gets this status and does not ring it,
    /// and it can't register again.
    #[track_caller]
    fn is_out(&self, phone: &Phones, secret: &str, status: u16) {
        assert_eq!(registrations(&self.asterisk, &self.number), 0);
        let contacts = self.asterisk.rx("pjsip show contacts");
        assert!(!contacts.contains(&format!("{}/", self.number)), "{contacts}");
        let state = self.asterisk.rx(&format!("dialplan eval function DEVICE_STATE(PJSIP/{})", self.number));
        assert!(["UNAVAILABLE", "INVALID"].iter().any(|gone| state.contains(gone)), "{state}");
        let rung = phone.requests("INVITE", &self.number);
        assert_eq!(self.call(), status);
        assert_eq!(phone.requests("INVITE", &self.number), rung, "the old phone does not ring");
        assert_eq!(register(&self.asterisk, (&self.number, secret)), 401, "nor does it register again");
    }
}

/// Something that happens.
type Happens = fn(&Scene);

#[test]
fn a_deleted_users_phone_is_out_and_gets_no_more_options_reused_or_not() {
    // Asked once a second instead of once a minute, by the administrator's hand.
    let often = |asterisk: &Asterisk| {
        let text = std::fs::read_to_string(asterisk.endpoints_file()).expect("the endpoints");
        std::fs::write(asterisk.endpoints_file(), text.replace("qualify_frequency=60", "qualify_frequency=1"))
            .expect("write the endpoints");
        asterisk.rx("pjsip reload");
    };
    let mut scene = Scene::of(Asterisk::start());
    let colleague = account(&scene.portal.create_user("Colleague", "colleague@example.com"));
    scene.portal.apply("suite");
    let colleagues_phone = Phones::register(&scene.asterisk, &[(&colleague.0, &colleague.1)], Called::Answer);
    for reused in [false, true] {
        often(&scene.asterisk);
        let secret = scene.secret();
        let phone = scene.phone();
        let options = || phone.requests("OPTIONS", &scene.number);
        wait_until(secs(20), "the phone gets OPTIONS", || options() >= 2);
        scene.delete();
        if reused {
            scene.reuse();
        }
        assert_eq!(evicted(&scene.portal.apply("suite")), [scene.number.as_str()]);
        let asked = phone.requests("OPTIONS", &scene.number);
        scene.is_out(&phone, &secret, if reused { 480 } else { 404 });

        often(&scene.asterisk);
        let others = || colleagues_phone.requests("OPTIONS", &colleague.0);
        let enough = others() + 4;
        wait_until(secs(20), "the other phone still gets OPTIONS", || others() >= enough);
        assert_eq!(phone.requests("OPTIONS", &scene.number), asked, "the old phone gets none");
        if !reused {
            scene.reuse();
            scene.portal.apply("suite");
        }
    }
}

#[test]
fn a_phone_over_tcp_or_ipv6_is_evicted_as_one_over_udp() {
    let mut scene = Scene::of(Asterisk::start_with(&Options { ipv6: true, ..Options::default() }));
    let (ipv4, ipv6) = (scene.asterisk.sip(), scene.asterisk.sip6());
    for (link, server, uri) in [
        (Link::Udp, ipv4, "sip:1001@127.0.0.1:"),
        (Link::Tcp, ipv4, ";transport=TCP"),
        (Link::Udp, ipv6, "sip:1001@[::1]:"),
    ] {
        let (phone, secret) = (scene.phone_over(link, server), scene.secret());
        scene.delete();
        scene.reuse();
        let applied = scene.portal.apply("suite");
        assert_eq!(evicted(&applied), ["1001"], "{uri}");
        let contact = applied["registrations_evicted"][0]["contact"].as_str().expect("a contact");
        assert!(contact.contains(uri), "{uri}: {contact}");
        scene.is_out(&phone, &secret, 480);
    }
}

#[test]
fn each_of_several_contacts_of_a_number_is_evicted() {
    let mut scene = Scene::of(Asterisk::start());
    let other = account(&scene.portal.create_user("Other", "other@example.com"));
    scene.portal.apply("suite");
    let (phone, secret) = (scene.phone(), scene.secret());
    // A second phone that answers to the same number, put there by hand: the AOR itself lets but one register.
    let second = Phones::register(&scene.asterisk, &[(&other.0, &other.1)], Called::Answer);
    let uri = format!("sip:{}@127.0.0.1:{}", scene.number, second.port());
    put_contact(&scene.asterisk, &scene.number, &uri);
    assert_eq!(registrations(&scene.asterisk, &scene.number), 2);
    scene.delete();
    scene.reuse();
    let applied = scene.portal.apply("suite");
    assert_eq!(evicted(&applied), [scene.number.as_str(), &scene.number]);
    let told = applied["registrations_evicted"].to_string();
    assert!(told.contains(&format!("\"{uri}\"")) && told.contains(&phone.port().to_string()), "{told}");
    scene.is_out(&phone, &secret, 480);
    assert_eq!(second.requests("INVITE", &scene.number), 0, "nor does the second phone ring");
    assert_eq!(registrations(&scene.asterisk, &other.0), 1, "as its own number it stays registered");
}

#[test]
fn a_number_changes_hands_whatever_happens_between_the_delete_and_the_next_apply() {
    let mut scene = Scene::of(Asterisk::start());
    let between: [(&str, Happens); 6] = [
        ("an apply that Asterisk refuses", |scene| {
            scene.asterisk.edit_config("pjsip.conf", |text| format!("{text}{TWO_OF_ONE_NAME}"));
            failed_apply(&scene.portal, &["1001", "[alice] of type=auth"]);
            scene.asterisk.edit_config("pjsip.conf", |text| text.replace(TWO_OF_ONE_NAME, ""));
        }),
        ("an apply while Asterisk is down", |scene| {
            scene.asterisk.stop();
            failed_apply(&scene.portal, &["Asterisk is not running"]);
            scene.asterisk.boot();
        }),
        ("the portal restarts", |scene| {
            scene.portal.stop();
            scene.portal.boot();
        }),
        ("the portal crashes", |scene| {
            scene.portal.kill();
            scene.portal.boot();
        }),
        ("Asterisk restarts", |scene| scene.asterisk.restart()),
        ("Asterisk crashes", |scene| {
            scene.asterisk.kill();
            scene.asterisk.boot();
        }),
    ];
    for (what, happens) in between {
        for before_the_reuse in [true, false] {
            eprintln!("{what}, before the number is reused: {before_the_reuse}");
            let (phone, secret) = (scene.phone(), scene.secret());
            scene.delete();
            if before_the_reuse {
                happens(&scene);
                scene.reuse();
            } else {
                scene.reuse();
                happens(&scene);
            }
            scene.portal.apply("suite");
            scene.is_out(&phone, &secret, 480);
        }
    }
}

#[test]
fn a_database_that_came_back_from_a_backup() {
    let mut scene = Scene::of(Asterisk::start());
    let database = scene.portal.data_dir().join("portal.db");
    let backup = database.with_file_name("backup.db");
    let first_owner = scene.owner.clone();
    sqlite(&scene.portal, &format!(".backup {}", backup.display()));
    scene.delete();
    scene.reuse();
    scene.portal.apply("suite");
    let (phone, secret) = (scene.phone(), scene.secret());

    scene.portal.stop();
    std::fs::copy(&backup, &database).expect("restore the backup");
    scene.portal.boot();
    assert_eq!(scene.portal.users().last().map(account), Some(account(&first_owner)), "as it was");
    assert_eq!(evicted(&scene.portal.apply("suite")), [scene.number.as_str()]);
    scene.is_out(&phone, &secret, 480);
    scene.owner = first_owner;
    let _phone_of_the_first_owner = scene.phone();
    assert_eq!(evicted(&scene.portal.apply("suite")), [] as [String; 0]);
}

/// Puts a contact into Asterisk's own database, as a registration made with an earlier configuration.
fn put_contact(asterisk: &Asterisk, number: &str, uri: &str) {
    let key = format!("{number};@{}", "0123456789abcdef".repeat(2));
    asterisk.rx(&format!(
        r#"database put registrar/contact {key} "{{\"uri\":\"{uri}\",\"expiration_time\":\"4102444800\"}}""#
    ));
}

#[test]
fn a_number_reused_without_an_apply_between_changes_hands() {
    let (asterisk, portal) = host();
    let caller = account(&portal.create_user("Caller", "caller@example.com"));
    let caller = (caller.0.as_str(), caller.1.as_str());
    let old_user = portal.create_user("Old", "old@example.com");
    let (number, old_secret) = account(&old_user);
    portal.apply("suite");
    let old_phone = Phones::register(&asterisk, &[(&number, &old_secret)], Called::Answer);
    assert_eq!(call(&asterisk, caller, &number), 200);
    let rung = old_phone.requests("INVITE", &number);

    portal.delete_user(id(&old_user));
    let (same_number, new_secret) = account(&portal.create_user("New", "new@example.com"));
    assert_eq!((number == same_number, old_secret == new_secret), (true, false));
    let applied = portal.apply("suite");
    let evicted = &applied["registrations_evicted"];
    assert_eq!(
        (evicted[0]["extension"].as_u64(), evicted.as_array().map(Vec::len)),
        (number.parse().ok(), Some(1)),
        "{evicted}"
    );
    assert!(evicted[0]["contact"].as_str().is_some_and(|contact| contact.starts_with("sip:")), "{evicted}");

    assert_eq!(registrations(&asterisk, &number), 0);
    let state = asterisk.rx(&format!("dialplan eval function DEVICE_STATE(PJSIP/{number})"));
    assert!(["UNAVAILABLE", "INVALID"].iter().any(|gone| state.contains(gone)), "{state}");
    assert_eq!(call(&asterisk, caller, &number), 480, "nobody is there yet");
    assert_eq!(old_phone.requests("INVITE", &number), rung, "the old phone does not ring");
    assert_eq!(register(&asterisk, (&number, &old_secret)), 401, "nor does it register again");

    let new_phone = Phones::register(&asterisk, &[(&number, &new_secret)], Called::Answer);
    assert_eq!(call(&asterisk, caller, &number), 200);
    assert_eq!(new_phone.requests("INVITE", &number), 1);
    assert_eq!(
        portal.apply("suite")["registrations_evicted"].as_array().map(Vec::len),
        Some(0),
        "the new owner's phone stays"
    );
    assert_eq!(call(&asterisk, caller, &number), 200);
}

#[test]
fn a_server_with_registrations_of_its_own_is_adopted() {
    let (asterisk, portal) = host();
    put_contact(&asterisk, "1000", "sip:old@127.0.0.1:9");
    put_contact(&asterisk, "2000", "sip:other@127.0.0.1:9");
    assert_eq!(registrations(&asterisk, "1000"), 1);
    portal.create_user("First", "first@example.com");
    let applied = portal.apply("suite");
    assert_eq!(applied["registrations_evicted"][0]["contact"].as_str(), Some("sip:old@127.0.0.1:9"), "{applied}");
    assert_eq!((registrations(&asterisk, "1000"), registrations(&asterisk, "2000")), (0, 1), "ours alone is evicted");
}

#[test]
fn a_number_that_is_nobodys_rings_nobody_whatever_the_dialplan_dials() {
    let pattern = "\n[synergy-internal]\nexten => _1XXX,1,Dial(PJSIP/${EXTEN},25)\n".to_owned();
    let mut scene = Scene::of(Asterisk::start_with(&Options { extensions: pattern, ..Options::default() }));
    let (phone, secret) = (scene.phone(), scene.secret());
    scene.delete();
    scene.reuse();
    kill_at(Step::GiveEndpoints, &scene.asterisk, &scene.portal);
    let rung = phone.requests("INVITE", &scene.number);
    let nobodys = |what: &str| {
        assert_eq!(register(&scene.asterisk, (&scene.number, &secret)), 401, "{what}");
        assert_eq!((scene.call(), phone.requests("INVITE", &scene.number)), (480, rung), "{what}");
    };
    nobodys("after the kill");
    for reload in ["dialplan reload", "pjsip reload"] {
        scene.asterisk.rx(reload);
        nobodys(reload);
    }
    scene.asterisk.restart();
    nobodys("after a restart");
    scene.portal.kill();
    scene.portal.boot();
    scene.portal.apply("suite");
    scene.is_out(&phone, &secret, 480);
}

#[test]
fn a_removal_that_asterisk_refuses_gives_the_number_to_nobody() {
    let (asterisk, portal) = host();
    let caller = account(&portal.create_user("Caller", "caller@example.com"));
    let old_user = portal.create_user("Old", "old@example.com");
    let (number, old_secret) = account(&old_user);
    portal.apply("suite");
    let old_phone = Phones::register(&asterisk, &[(&number, &old_secret)], Called::Answer);
    let rung = old_phone.requests("INVITE", &number);
    portal.delete_user(id(&old_user));
    let (_, new_secret) = account(&portal.create_user("New", "new@example.com"));

    // Two sections of one name and type: Asterisk keeps every auth as it was, and says that it reloaded.
    asterisk.edit_config("pjsip.conf", |text| format!("{text}{TWO_OF_ONE_NAME}"));
    let answer = portal.request("POST", "/apply", Some(&serde_json::json!({"triggered_by": "suite"})));
    let details = answer.json["error_details"].as_str().expect("details");
    assert!(
        answer.status == 500
            && details.contains(&format!("the endpoint, auth or AOR of their former owners: {number}")),
        "{}",
        answer.text
    );
    assert_eq!(call(&asterisk, (&caller.0, &caller.1), &number), 480, "it has no endpoint and no AOR");
    assert_eq!(register(&asterisk, (&number, &old_secret)), 401, "and an auth alone lets nobody register");
    assert_eq!(old_phone.requests("INVITE", &number), rung);

    asterisk.edit_config("pjsip.conf", |text| text.replace(TWO_OF_ONE_NAME, ""));
    portal.apply("suite");
    assert_eq!((registrations(&asterisk, &number), register(&asterisk, (&number, &new_secret))), (0, 200));
}
