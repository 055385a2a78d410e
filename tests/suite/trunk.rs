//! The inbound trunk of docs/operations.md: its calls go through the portal's dialplan.

use crate::scenes::Scene;
use support::asterisk::Options;
use support::{Asterisk, Phone};

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
fn a_trunks_calls_reach_the_owner_of_a_number_and_nobody_else() {
    let extensions = format!("\n{}", example("Calls from a trunk, a queue or a ring group"));
    let asterisk = Asterisk::start_with(&Options { pjsip: PJSIP.to_owned(), extensions, ..Options::default() });
    let mut scene = Scene::at(asterisk).begin();
    let phone = scene.phone();
    let trunk = Phone::new(&scene.asterisk, "trunk", "trunk");
    let dialled = format!("4930123{}", scene.number);
    for dialled in [&scene.number, &dialled] {
        assert_eq!((trunk.call(dialled), phone.take_rings()), (Some(486), 1), "the phone is busy");
    }
    assert_eq!(trunk.call("49301231999"), Some(404), "nobody has it");

    scene.hand_over();
    scene.portal.apply("suite");
    assert_eq!((trunk.call(&dialled), phone.take_rings()), (Some(480), 0), "a new owner");
}
