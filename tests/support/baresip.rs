//! A soft phone with audio, by baresip: it registers, answers calls, sends a tone and records what it receives.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lab::{Folder, Ports};
use super::process::Process;
use super::{Asterisk, secs, wait_until};

/// A registered phone. Dropping it unplugs it.
pub struct Baresip {
    folder: Folder,
    ports: Ports,
    _process: Process,
}

impl Baresip {
    /// Starts a phone that sends a tone of this frequency in hertz, and waits until it is registered.
    pub fn start(asterisk: &Asterisk, (number, secret): (&str, &str), tone: u32) -> Self {
        let (folder, ports) = (Folder::new("baresip"), Ports::block());
        let file = |name: &str| folder.path().join(name);
        fs::write(file("config"), config(&folder, &ports, tone)).expect("write baresip's config");
        let account = format!("<sip:{number}@{}>;auth_pass={secret};answermode=auto;regint=200\n", asterisk.sip());
        fs::write(file("accounts"), account).expect("write baresip's accounts");
        let mut command = Command::new("baresip");
        command.arg("-f").arg(folder.path()).current_dir(folder.path());
        let mut process = Process::start(&mut command, &file("log"));
        wait_until(secs(10), &format!("phone {number} is registered"), || {
            let log = fs::read_to_string(file("log")).unwrap_or_default();
            assert!(process.ended().is_none(), "baresip ended:\n{log}");
            log.contains("200 OK (")
        });
        Self { folder, ports, _process: process }
    }

    /// Dials and waits until the other side answers. Gives a refusal as an error, such as `404 Not Found`.
    pub fn dial(&self, to: &str) -> Result<(), String> {
        let mut control = Control::connect(self);
        control.send("dial", to);
        let event = control.event(&["CALL_ESTABLISHED", "CALL_CLOSED"]);
        match event["type"].as_str() {
            Some("CALL_ESTABLISHED") => Ok(()),
            _ => Err(event["param"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// Hangs up.
    pub fn hang_up(&self) {
        let mut control = Control::connect(self);
        control.send("hangup", "");
        control.event(&["CALL_CLOSED"]);
    }

    /// Whether it hears this tone right now: of the last half second that it recorded, most of the power is at this
    /// frequency.
    pub fn hears(&self, tone: u32) -> bool {
        let newest = fs::read_dir(self.folder.path())
            .expect("list the recordings")
            .map(|entry| entry.expect("list the recordings").path())
            .filter(|path| path.to_string_lossy().ends_with("-dec.wav"))
            .max();
        let Some(recording) = newest else { return false };
        let modified = fs::metadata(&recording).and_then(|file| file.modified());
        let grows = modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < secs(1)));
        grows && share_of_power(&last_half_second(&recording), tone) > 0.5
    }

    /// What baresip printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// baresip listens for TLS on the port after that of SIP.
fn config(folder: &Folder, ports: &Ports, tone: u32) -> String {
    let port = ports.number();
    format!(
        "sip_listen 127.0.0.1:{port}
ctrl_tcp_listen 127.0.0.1:{control}
net_interface 127.0.0.1
rtp_ports {rtp_first}-{rtp_last}
audio_source ausine,{tone}
audio_player aubridge,nowhere
audio_alert aubridge,nowhere
ausrc_srate 48000
ausrc_channels 2
auplay_srate 48000
auplay_channels 1
snd_path {folder}
module_path {modules}
module g711.so
module ausine.so
module aubridge.so
module sndfile.so
module_tmp uuid.so
module_app account.so
module_app menu.so
module_app ctrl_tcp.so
",
        control = control_port(ports),
        rtp_first = port + 10,
        rtp_last = port + 30,
        folder = folder.path().display(),
        modules = modules().display(),
    )
}

fn control_port(ports: &Ports) -> u16 {
    ports.number() + 2
}

fn modules() -> PathBuf {
    let path = PathBuf::from("/usr/lib/baresip/modules");
    assert!(path.is_dir(), "no {}: run `make setup`", path.display());
    path
}

/// A connection to baresip's `ctrl_tcp`: JSON in netstrings, commands one way, answers and events the other.
struct Control {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Control {
    fn connect(phone: &Baresip) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, control_port(&phone.ports)))
            .unwrap_or_else(|error| panic!("connect to baresip: {error}\n{}", phone.log()));
        let timeout = Some(Duration::from_millis(100));
        stream.set_read_timeout(timeout).expect("set a timeout");
        Self { stream, received: Vec::new() }
    }

    fn send(&mut self, command: &str, params: &str) {
        let message = json!({"command": command, "params": params}).to_string();
        write!(self.stream, "{}:{message},", message.len()).expect("write to baresip");
    }

    /// Waits for an event of one of these types: as long as an unanswered call rings, and a little.
    fn event(&mut self, types: &[&str]) -> Value {
        let started = Instant::now();
        loop {
            while let Some(message) = self.next_message() {
                if message["type"].as_str().is_some_and(|kind| types.contains(&kind)) {
                    return message;
                }
            }
            assert!(started.elapsed() < secs(40), "no {types:?} from baresip");
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("baresip closed its control connection"),
                Ok(length) => self.received.extend(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("read from baresip: {error}"),
            }
        }
    }

    fn next_message(&mut self) -> Option<Value> {
        let colon = self.received.iter().position(|byte| *byte == b':')?;
        let digits = std::str::from_utf8(&self.received[..colon]).ok()?;
        let start = colon + 1;
        let end = start + digits.parse::<usize>().expect("a netstring's length");
        let message = serde_json::from_slice(self.received.get(start..end)?).expect("baresip speaks JSON");
        self.received.get(end)?; // the comma is part of it
        self.received.drain(..=end);
        Some(message)
    }
}

/// The samples at the end of a recording: 16 bit, mono, 8000 a second.
fn last_half_second(recording: &PathBuf) -> Vec<f64> {
    let bytes = fs::read(recording).unwrap_or_default();
    let data = bytes.get(44..).unwrap_or_default(); // after the header
    let samples: Vec<_> =
        data.chunks_exact(2).map(|sample| f64::from(i16::from_le_bytes([sample[0], sample[1]]))).collect();
    samples[samples.len().saturating_sub(4000)..].to_vec()
}

/// How much of the signal's power lies at one frequency, 0 to 1 (Goertzel's algorithm). Half a second is needed.
#[expect(clippy::cast_precision_loss, reason = "a few thousand samples")]
fn share_of_power(samples: &[f64], frequency: u32) -> f64 {
    let total: f64 = samples.iter().map(|sample| sample * sample).sum();
    if samples.len() < 4000 || total == 0.0 {
        return 0.0;
    }
    let step = 2.0 * (std::f64::consts::TAU * f64::from(frequency) / 8000.0).cos();
    let (mut last, mut before) = (0.0, 0.0);
    for sample in samples {
        (last, before) = (sample + step * last - before, last);
    }
    let power = last * last + before * before - step * last * before;
    2.0 * power / (total * samples.len() as f64)
}
