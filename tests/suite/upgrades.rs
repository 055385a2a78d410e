//! From the former release to this one: the files that Asterisk serves, and what the package says.

use std::fs;

use crate::fixtures::{account, evicted, host, registered};
use support::sipp::{Called, Phones, call};

/// What the former release's files lack.
const NEW: [&str; 2] = ["send_diversion=no\n", ",i)"];

#[test]
fn phones_stay_registered_over_the_first_apply_of_a_new_release() {
    let (asterisk, portal) = host();
    let users = ["Alice", "Bob"].map(|name| account(&portal.create_user(name, &format!("{name}@example.com"))));
    portal.apply("suite");
    for (file, [new, former]) in
        [asterisk.endpoints_file(), asterisk.routing_file()].iter().zip([[NEW[0], ""], [NEW[1], ")"]])
    {
        let text = fs::read_to_string(file).expect("a generated file");
        assert_eq!(text.matches(new).count(), users.len(), "{text}");
        fs::write(file, text.replace(new, former)).expect("write the former release's file");
    }
    asterisk.rx("pjsip reload");
    asterisk.rx("dialplan reload");
    let in_force = || {
        let routing = asterisk.rx("dialplan show synergy-internal");
        users.each_ref().map(|(number, _)| {
            let endpoint = asterisk.rx(&format!("pjsip show endpoint {number}"));
            let diverts = endpoint.lines().any(|line| line.starts_with(" send_diversion ") && line.ends_with(": true"));
            (diverts, routing.contains(&format!("Dial(PJSIP/{number},25,i)")))
        })
    };
    assert_eq!(in_force(), [(true, false); 2], "the former release's");

    let [alice, bob] = users.each_ref().map(|(number, secret)| (number.as_str(), secret.as_str()));
    let phones = Phones::register(&asterisk, &[alice, bob], Called::Answer);
    let before = registered(&asterisk);
    assert_eq!(before.len(), 2);
    assert_eq!(evicted(&portal.apply("suite")), [] as [String; 0]);
    assert_eq!(in_force(), [(false, true); 2]);
    assert_eq!(registered(&asterisk), before);
    assert_eq!((call(&asterisk, alice, bob.0), phones.requests("INVITE", bob.0)), (200, 1));
}

/// `apt-listchanges` shows the news of versions that are newer than the installed one, so its version must be one of the changelog.
#[test]
fn the_package_is_of_this_version_and_warns_of_what_it_refuses() {
    let version = concat!("(", env!("CARGO_PKG_VERSION"), "-1)");
    let changelog = include_str!("../../packaging/changelog");
    assert_eq!(changelog.split(' ').nth(1), Some(version));
    let news = include_str!("../../packaging/NEWS");
    let entries = news.lines().filter(|line| line.starts_with("pbx-portal ("));
    assert!(entries.into_iter().all(|entry| changelog.contains(entry)), "{news}");

    let upgrade = include_str!("../../CHANGELOG.md").split("\n## ").nth(1).expect("the newest version");
    assert!(upgrade.starts_with(concat!("[", env!("CARGO_PKG_VERSION"), "]")), "{upgrade}");
    for text in [news, changelog] {
        for refused in ["PORTAL_API_TOKEN", "16 bytes", "proxy", "cli_permissions.conf", "others may"] {
            assert!(text.contains(refused), "{refused}: {text}");
        }
    }
}
