//! A number that has another owner: the old owner's phone never rings for the new one.

use crate::fixtures::{TWO_OF_ONE_NAME, account, host, id, registrations};
use crate::support::sipp::{Called, Phones, call, register};

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
    assert!(state.contains("UNAVAILABLE"), "{state}");
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
    let contact = format!("1000;@{}", "0123456789abcdef".repeat(2));
    asterisk.rx(&format!(r#"database put registrar/contact {contact} "{{\"uri\":\"sip:old@127.0.0.1:9\",\"expiration_time\":\"4102444800\"}}""#));
    let foreign = format!("2000;@{}", "0123456789abcdef".repeat(2));
    asterisk.rx(&format!(r#"database put registrar/contact {foreign} "{{\"uri\":\"sip:other@127.0.0.1:9\"}}""#));
    assert_eq!(registrations(&asterisk, "1000"), 1);
    portal.create_user("First", "first@example.com");
    let applied = portal.apply("suite");
    assert_eq!(applied["registrations_evicted"][0]["contact"].as_str(), Some("sip:old@127.0.0.1:9"), "{applied}");
    assert_eq!((registrations(&asterisk, "1000"), registrations(&asterisk, "2000")), (0, 1), "ours alone is evicted");
}

#[test]
fn an_interrupted_quarantine_is_finished_by_the_next_apply() {
    let (asterisk, portal) = host();
    let (number, secret) = account(&portal.create_user("Owner", "owner@example.com"));
    portal.apply("suite");
    let _phone = Phones::register(&asterisk, &[(&number, &secret)], Called::Answer);
    // The endpoint is on disk but not routed: as an apply leaves it that was killed while the number was in quarantine.
    let routing = std::fs::read_to_string(asterisk.routing_file()).expect("the routing");
    std::fs::write(asterisk.routing_file(), routing.split("exten").next().expect("the head"))
        .expect("write the routing");
    let applied = portal.apply("suite");
    assert_eq!(applied["registrations_evicted"][0]["extension"].as_u64(), number.parse().ok(), "{applied}");
    assert_eq!(std::fs::read_to_string(asterisk.routing_file()).expect("the routing"), routing);
}

#[test]
fn a_secret_that_asterisk_refuses_to_take_keeps_its_number_in_quarantine() {
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
    assert!(answer.status == 500 && details.contains(&format!("old secrets in force: {number}")), "{}", answer.text);
    assert_eq!(call(&asterisk, (&caller.0, &caller.1), &number), 404, "in quarantine");
    assert_eq!(register(&asterisk, (&number, &old_secret)), 200, "the old secret is in force still");
    assert_eq!(call(&asterisk, (&caller.0, &caller.1), &number), 404, "but rings nobody");
    assert_eq!(old_phone.requests("INVITE", &number), rung);

    asterisk.edit_config("pjsip.conf", |text| text.replace(TWO_OF_ONE_NAME, ""));
    portal.apply("suite");
    assert_eq!((registrations(&asterisk, &number), register(&asterisk, (&number, &new_secret))), (0, 200));
}
