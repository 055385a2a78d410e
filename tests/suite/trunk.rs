//! The inbound trunk of docs/operations.md: its calls go through the portal's dialplan.

use crate::fixtures::{account, host, id};
use support::Phone;

const PJSIP: &str = "
[trunk]
type=endpoint
context=from-trunk
disallow=all
allow=ulaw
auth=trunk
[trunk]
type=auth
auth_type=userpass
username=trunk
password=trunk
";

/// The `ini` block below this heading.
pub fn example(heading: &str) -> String {
    let operations = include_str!("../../docs/operations.md");
    let (_, section) = operations.split_once(&format!("## {heading}\n")).expect("the heading");
    let (_, block) = section.split_once("```ini\n").expect("a block");
    block.split_once("```").expect("its end").0.to_owned()
}

#[test]
fn its_calls_reach_the_owner_of_a_number_and_nobody_else() {
    let (asterisk, portal) = host();
    let trunk = example("Calls from a trunk, a queue or a ring group");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}{PJSIP}"));
    asterisk.edit_config("extensions.conf", |text| format!("{text}\n{trunk}"));
    let user = portal.create_user("Alice", "alice@example.com");
    let (number, secret) = account(&user);
    portal.apply("suite");
    let phone = Phone::new(&asterisk, &number, &secret);
    assert_eq!(phone.register(), Some(200));

    let trunk = Phone::new(&asterisk, "trunk", "trunk");
    for dialled in [number.clone(), format!("4930123{number}")] {
        assert_eq!(trunk.call(&dialled), Some(486), "the phone is busy");
        assert_eq!(phone.take_rings(), 1);
    }
    assert_eq!(trunk.call("49301231999"), Some(404), "nobody has it");

    portal.delete_user(id(&user));
    portal.create_user("Next", "next@example.com");
    portal.apply("suite");
    assert_eq!((trunk.call(&format!("4930123{number}")), phone.take_rings()), (Some(480), 0), "a new owner");
}
