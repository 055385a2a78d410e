//! A network that can lose every packet: a wire to the network namespace of a process, which ends with that process.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use super::process::run_within;
use super::secs;

/// A wire between this machine and a process that was started by `unshare --net`.
#[derive(Debug)]
pub struct Wire {
    pid: u32,
}

impl Wire {
    /// Creates it, with an address at both ends.
    pub fn to(pid: u32) -> Self {
        let wire = Self { pid };
        let (near, far) = wire.ends();
        let name = wire.name();
        run(&["ip", "link", "add", &name, "type", "veth", "peer", "name", "wire", "netns", &pid.to_string()]);
        run(&["ip", "address", "add", &format!("{near}/30"), "dev", &name]);
        run(&["ip", "link", "set", &name, "up"]);
        wire.run_there(&["address", "add", &format!("{far}/30"), "dev", "wire"]);
        wire.run_there(&["link", "set", "wire", "up"]);
        wire
    }

    /// The address of the process.
    pub fn far_end(&self) -> Ipv4Addr {
        self.ends().1
    }

    /// From now on all packets are lost, in silence: no answer and no refusal.
    pub fn cut(&self) {
        self.run_there(&["route", "add", "blackhole", &self.ends().0.to_string()]);
    }

    pub fn mend(&self) {
        self.run_there(&["route", "delete", "blackhole", &self.ends().0.to_string()]);
    }

    /// Running processes have different ids, so their wires have different names.
    fn ends(&self) -> (Ipv4Addr, Ipv4Addr) {
        let [.., high, low] = (self.pid << 2).to_be_bytes();
        (Ipv4Addr::new(10, 213, high, low + 1), Ipv4Addr::new(10, 213, high, low + 2))
    }

    fn name(&self) -> String {
        format!("pbxlab{}", self.pid)
    }

    fn run_there(&self, arguments: &[&str]) {
        let namespace = format!("--net=/proc/{}/ns/net", self.pid);
        run(&[["nsenter", &namespace, "ip"].as_slice(), arguments].concat());
    }
}

impl Drop for Wire {
    /// A namespace may live minutes longer than its process, while it retransmits packets.
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.name()]).stderr(Stdio::null()).status();
    }
}

fn run(command: &[&str]) {
    let output = run_within(secs(10), Command::new(command[0]).args(&command[1..]));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
