//! Asterisk's manager interface.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::lab::Ports;
use super::{Asterisk, secs, wait_until};

/// A client of Asterisk's manager interface, to which Asterisk sends every event, call detail record and channel event.
pub struct Manager {
    stream: TcpStream,
}

impl Manager {
    pub fn connect(asterisk: &Asterisk) -> (Self, Ports) {
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
        let mut manager = Self { stream };
        wait_until(secs(20), "Asterisk is booted", || manager.events().contains("FullyBooted"));
        (manager, port)
    }

    /// The names of the events since the last time, once there are no more.
    pub fn events(&mut self) -> BTreeSet<String> {
        let mut read = Vec::new();
        while self.read(&mut read) {}
        String::from_utf8_lossy(&read)
            .lines()
            .filter_map(|line| line.strip_prefix("Event: "))
            .map(str::to_owned)
            .collect()
    }

    /// The lines of what Asterisk answers to an action.
    pub fn ask(&mut self, action: &str) -> Vec<String> {
        self.stream.write_all(format!("{action}\r\n\r\n").as_bytes()).expect("ask");
        let (mut read, mut text) = (Vec::new(), String::new());
        wait_until(secs(20), "Asterisk answers", || {
            self.read(&mut read);
            text = String::from_utf8_lossy(&read).into_owned();
            text.split_once("Response: ").is_some_and(|(_, answer)| answer.contains("\r\n\r\n"))
        });
        let (_, answer) = text.split_once("Response: ").expect("an answer");
        answer.split("\r\n").take_while(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Waits for more of what Asterisk sends. Says whether there was any.
    fn read(&mut self, read: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 8192];
        let Ok(length @ 1..) = self.stream.read(&mut buffer) else { return false };
        read.extend_from_slice(&buffer[..length]);
        true
    }
}
