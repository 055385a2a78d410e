//! An Asterisk behind NAT, with the transport that the README shows.

use std::fs;
use std::path::Path;

use crate::fixtures::account;
use crate::table::between;
use support::portal::Settings;
use support::sipp::{Called, Link, Phones, call};
use support::{Asterisk, Portal, asterisk};

/// The lines of a transport in a document, without the signs that make them comments.
fn transport(document: &str, before: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).expect(document);
    let block = between(&text[text.find(before).expect(before)..], "```ini\n", "```\n");
    block
        .lines()
        .map(|line| line.trim().trim_start_matches(';').to_owned() + "\n")
        .filter(|l| l.contains(['=', '[']))
        .collect()
}

#[test]
fn a_phone_outside_is_told_the_public_address_and_one_inside_is_not() {
    let asterisk = Asterisk::start_with(&asterisk::Options { without_transport: true, ..asterisk::Options::default() });
    let portal = Portal::start(&Settings::of(&asterisk));
    let accounts = ["alice", "bob"].map(|name| account(&portal.create_user(name, &format!("{name}@example.com"))));
    let [calling, called] = accounts.each_ref().map(|(number, secret)| (number.as_str(), secret.as_str()));

    let in_readme = transport("README.md", "if your\n   `pjsip.conf` has none yet, add one, such as:");
    let bound = in_readme.replace("bind = 0.0.0.0", &format!("bind = {}", asterisk.sip()));
    let public = "203.0.113.1";
    asterisk.edit_config("pjsip.conf", |text| format!("{bound}{text}"));
    asterisk.edit_config("pjsip.conf", |text| text.replace("192.168.0.0/16", "127.0.0.1/32"));
    asterisk.restart();
    portal.apply("suite");
    for (phone, address) in [("127.0.0.2", public), ("127.0.0.1", "127.0.0.1")] {
        let link = Link::UdpFrom(phone.parse().expect("an address"));
        let phone = Phones::register_over(link, &asterisk, &[called], Called::Busy);
        assert_eq!(call(&asterisk, calling, called.0), 486);
        assert_eq!(phone.invited_from(), [format!("{address} {address}")]);
    }
    let section = transport("docs/operations.md", "and restart Asterisk when no call is\nup:");
    assert!(section.lines().count() == 3 && section.lines().all(|line| in_readme.contains(line)), "{section}");
}
