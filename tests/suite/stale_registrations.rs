//! A number that has another owner: the old owner's phone never rings for the new one.

use std::fs;

use crate::fixtures::{TWO_OF_ONE_NAME, account, evicted, failed_apply, host, registrations, sqlite};
use crate::scenes::Scene;
use crate::steps::{GIVE_ENDPOINTS, kill_at};
use support::asterisk::Options;
use support::sipp::{Called, Link, Phones};
use support::{Asterisk, Phone, secs, wait_until};

/// Something that happens.
type Happens = fn(&Scene);

#[test]
fn a_deleted_users_phone_is_out_and_gets_no_more_options_reused_or_not() {
    // Asked once a second instead of once a minute, by the administrator's hand.
    let often = |scene: &Scene| {
        let text = scene.files()[0].replace("qualify_frequency=60", "qualify_frequency=1");
        fs::write(scene.asterisk.endpoints_file(), text).expect("write the endpoints");
        scene.asterisk.rx("pjsip reload");
    };
    let mut scene = Scene::at(Asterisk::start()).among(2).begin();
    assert_eq!(scene.others[1].register(), Some(200));
    for reused in [false, true] {
        often(&scene);
        let phone = scene.phone();
        wait_until(secs(20), "the phone gets OPTIONS", || phone.pings() >= 2);
        scene.delete();
        if reused {
            scene.reuse();
        }
        assert_eq!(evicted(&scene.portal.apply("suite")), [scene.number.as_str()]);
        let pings = phone.pings();
        scene.is_out(&phone, if reused { 480 } else { 404 });

        often(&scene);
        let enough = scene.others[1].pings() + 4;
        wait_until(secs(20), "the other phone still gets OPTIONS", || scene.others[1].pings() >= enough);
        assert_eq!(phone.pings(), pings, "the old phone gets none");
        if !reused {
            scene.reuse();
            scene.portal.apply("suite");
        }
    }
}

#[test]
fn a_phone_over_tcp_or_ipv6_is_evicted_as_one_over_udp() {
    let mut scene = Scene::at(Asterisk::start_with(&Options { ipv6: true, ..Options::default() })).begin();
    let (ipv4, ipv6) = (scene.asterisk.sip(), scene.asterisk.sip6());
    for (link, server, uri) in [
        (Link::Udp, ipv4, "sip:1001@127.0.0.1:"),
        (Link::Tcp, ipv4, ";transport=TCP"),
        (Link::Udp, ipv6, "sip:1001@[::1]:"),
    ] {
        let secret = scene.secret();
        let phone = Phones::register_over(link, server, &[(&scene.number, &secret)], Called::Answer);
        let rung = || phone.requests("INVITE", &scene.number);
        assert_eq!((scene.call(), rung()), (Some(200), 1));
        scene.hand_over();
        let applied = scene.portal.apply("suite");
        assert_eq!(evicted(&applied), ["1001"], "{uri}");
        let contact = applied["registrations_evicted"][0]["contact"].as_str().expect("a contact");
        assert!(contact.contains(uri), "{uri}: {contact}");
        scene.nobody_is_there(480);
        let old = Phone::new(&scene.asterisk, &scene.number, &secret);
        assert_eq!((phone.requests("INVITE", &scene.number), old.register()), (1, Some(401)), "{uri}");
    }
}

#[test]
fn each_of_several_contacts_of_a_number_is_evicted() {
    let mut scene = Scene::at(Asterisk::start()).among(2).begin();
    let phone = scene.phone();
    // A second phone that answers to the same number, put there by hand: the AOR itself lets but one register.
    assert_eq!(scene.others[1].register(), Some(200));
    let uri = format!("sip:{}@{}", scene.number, scene.others[1].address());
    put_contact(&scene.asterisk, &scene.number, &uri);
    assert_eq!(registrations(&scene.asterisk, &scene.number), 2);
    scene.hand_over();
    let applied = scene.portal.apply("suite");
    assert_eq!(evicted(&applied), [scene.number.as_str(), &scene.number]);
    let told = applied["registrations_evicted"].to_string();
    assert!(told.contains(&format!("\"{uri}\"")) && told.contains(&phone.address().to_string()), "{told}");
    scene.is_out(&phone, 480);
    let second = &scene.others[1];
    assert_eq!(second.take_rings(), 0, "nor does the second phone ring");
    assert_eq!(registrations(&scene.asterisk, &second.number), 1, "as its own number it stays registered");
}

#[test]
fn a_number_changes_hands_whatever_happens_between_the_delete_and_the_next_apply() {
    let mut scene = Scene::new();
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
            let phone = scene.phone();
            scene.delete();
            if before_the_reuse {
                happens(&scene);
                scene.reuse();
            } else {
                scene.reuse();
                happens(&scene);
            }
            scene.portal.apply("suite");
            scene.is_out(&phone, 480);
        }
    }
}

#[test]
fn a_database_that_came_back_from_a_backup_gives_numbers_back_without_the_later_phones() {
    let mut scene = Scene::new();
    let database = scene.portal.data_dir().join("portal.db");
    let backup = database.with_file_name("backup.db");
    let first_owner = scene.owner.clone();
    sqlite(&scene.portal, &format!(".backup {}", backup.display()));
    scene.hand_over();
    scene.portal.apply("suite");
    let phone = scene.phone();

    scene.portal.stop();
    fs::copy(&backup, &database).expect("restore the backup");
    scene.portal.boot();
    assert_eq!(scene.portal.users().last().map(account), Some(account(&first_owner)), "as it was");
    assert_eq!(evicted(&scene.portal.apply("suite")), [scene.number.as_str()]);
    scene.is_out(&phone, 480);
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
    let mut scene = Scene::new();
    let old = scene.phone();
    scene.hand_over();
    assert_ne!(scene.secret(), old.secret);
    let applied = scene.portal.apply("suite");
    assert_eq!(evicted(&applied), [scene.number.as_str()]);
    let contact = applied["registrations_evicted"][0]["contact"].as_str();
    assert!(contact.is_some_and(|contact| contact.starts_with("sip:")), "{applied}");
    scene.is_out(&old, 480);

    let new = scene.phone();
    assert_eq!(evicted(&scene.portal.apply("suite")), [""; 0], "the new owner's phone stays");
    scene.rings(&new);
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
    let mut scene = Scene::at(Asterisk::start_with(&Options { extensions: pattern, ..Options::default() })).begin();
    let phone = scene.phone();
    scene.hand_over();
    kill_at(GIVE_ENDPOINTS, &scene.asterisk, &scene.portal);
    scene.is_silent(&phone, 480, "after the kill");
    for reload in ["dialplan reload", "pjsip reload"] {
        scene.asterisk.rx(reload);
        scene.is_silent(&phone, 480, reload);
    }
    scene.asterisk.restart();
    scene.is_silent(&phone, 480, "after a restart");
    scene.portal.kill();
    scene.portal.boot();
    scene.portal.apply("suite");
    scene.is_out(&phone, 480);
}

#[test]
fn a_removal_that_asterisk_refuses_gives_the_number_to_nobody() {
    let mut scene = Scene::new();
    let old = scene.phone();
    scene.hand_over();

    // Two sections of one name and type: Asterisk keeps every auth as it was, and says that it reloaded.
    scene.asterisk.edit_config("pjsip.conf", |text| format!("{text}{TWO_OF_ONE_NAME}"));
    failed_apply(&scene.portal, &[&format!("the endpoint, auth or AOR of their former owners: {}", scene.number)]);
    // It has no endpoint and no AOR, and an auth alone lets nobody register.
    scene.is_silent(&old, 480, "refused");

    scene.asterisk.edit_config("pjsip.conf", |text| text.replace(TWO_OF_ONE_NAME, ""));
    scene.portal.apply("suite");
    assert_eq!(registrations(&scene.asterisk, &scene.number), 0);
    scene.belongs_to_its_owner(&old, "not refused any more");
}
