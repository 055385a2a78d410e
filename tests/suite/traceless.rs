//! Nothing that the portal asks leaves a trace in Asterisk: no event, no call detail record, no channel event, no memory.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use regex::Regex;

use crate::fixtures::host;
use crate::support::lab::Ports;
use crate::support::{Asterisk, secs, wait_until};

/// A client of Asterisk's manager interface, to which Asterisk sends every event, call detail record and channel event.
struct Manager {
    stream: TcpStream,
    read: String,
}

impl Manager {
    fn connect(asterisk: &Asterisk) -> (Self, Ports) {
        let port = Ports::one();
        let address = port.address();
        let manager = format!(
            "[general]\nenabled=yes\nbindaddr={}\nport={}\n[watcher]\nsecret=watcher\nread=all\nwrite=all\n",
            address.ip(),
            address.port()
        );
        let files = [
            ("manager.conf", manager.as_str()),
            ("cel.conf", "[general]\nenable=yes\napps=all\nevents=ALL\n[manager]\nenabled=yes\n"),
            ("cdr.conf", "[general]\nenable=yes\nunanswered=yes\ncongestion=yes\n"),
            ("cdr_manager.conf", "[general]\nenabled=yes\n"),
        ];
        for (name, text) in files {
            asterisk.write_config(name, text);
        }
        asterisk.restart();
        let mut stream = TcpStream::connect(address).expect("the manager interface");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
        stream.write_all(b"Action: Login\r\nUsername: watcher\r\nSecret: watcher\r\n\r\n").expect("log in");
        let mut manager = Self { stream, read: String::new() };
        wait_until(secs(20), "Asterisk is booted", || manager.events().contains("FullyBooted"));
        (manager, port)
    }

    /// The names of the events since the last time, once there are no more.
    fn events(&mut self) -> BTreeSet<String> {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = self.stream.read(&mut buffer) {
            self.read.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        let events = std::mem::take(&mut self.read);
        events.lines().filter_map(|line| line.strip_prefix("Event: ")).map(str::to_owned).collect()
    }
}

fn topics(asterisk: &Asterisk) -> usize {
    let shown = asterisk.rx("stasis show topics");
    let count = Regex::new("([0-9]+) Total topics").expect("a regex");
    count.captures(&shown).unwrap_or_else(|| panic!("{shown}"))[1].parse().expect("a count")
}

#[test]
fn neither_an_apply_nor_a_check_leaves_one() {
    let (asterisk, portal) = host();
    for index in 0..30 {
        portal.create_user("User", &format!("user{index}@example.com"));
    }
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
