//! Nothing that the portal asks leaves a trace in Asterisk: no event, no call detail record, no channel event, no memory.

use std::fs;

use regex::Regex;

use crate::fixtures::{crowd, host};
use support::Asterisk;
use support::manager::Manager;

fn topics(asterisk: &Asterisk) -> usize {
    let shown = asterisk.rx("stasis show topics");
    let count = Regex::new("([0-9]+) Total topics").expect("a regex");
    count.captures(&shown).unwrap_or_else(|| panic!("{shown}"))[1].parse().expect("a count")
}

#[test]
fn neither_an_apply_nor_a_check_leaves_a_trace_in_asterisk() {
    let (asterisk, portal) = host();
    crowd(&portal, 30);
    let (mut manager, _port) = Manager::connect(&asterisk);
    portal.apply("suite");
    manager.events();

    // What Asterisk's own reloads of files that are written anew cause.
    for file in [asterisk.endpoints_file(), asterisk.routing_file()] {
        let text = fs::read_to_string(&file).expect("a generated file");
        fs::write(&file, text).expect("write it again");
    }
    asterisk.rx("pjsip reload");
    asterisk.rx("dialplan reload");
    let bare = manager.events();
    let before = topics(&asterisk);
    for _ in 0..10 {
        portal.apply("suite");
        let checked = portal.run(&["check"]);
        assert!(checked.status.success(), "{checked:?}");
    }
    let caused: Vec<_> = manager.events().difference(&bare).cloned().collect();
    assert_eq!((caused, topics(&asterisk)), (Vec::new(), before), "beside {bare:?}");

    // The watcher would see it.
    asterisk.rx("dialplan eval function PJSIP_ENDPOINT(1000,callerid)");
    let seen = manager.events();
    assert!(["Newchannel", "Hangup", "CEL"].iter().all(|event| seen.contains(*event)), "{seen:?}");
    assert!(topics(&asterisk) > before);
}
