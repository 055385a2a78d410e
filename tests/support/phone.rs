//! A SIP phone in a thread of this process, over UDP: it registers, calls, and is busy when it is called.
//!
//! SIPp needs a process, and so a tenth of a second, for what this does in a few milliseconds.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use md5::{Digest as _, Md5};

/// SIP's own first retransmission over UDP.
const RESEND: Duration = Duration::from_millis(500);
/// How often a request is sent before the phone gives up.
const ATTEMPTS: usize = 10;

/// A phone that stays until it is dropped. It answers OPTIONS and NOTIFY with 200 and is busy (486) for whoever calls it.
pub struct Phone {
    pub number: String,
    pub secret: String,
    server: SocketAddr,
    own: SocketAddr,
    line: Arc<Line>,
    listener: Option<JoinHandle<()>>,
    requests: Mutex<Requests>,
    accepted: AtomicUsize,
    refused: AtomicUsize,
    last_accepted: Mutex<Option<Instant>>,
}

/// What the listener shares with the phone.
struct Line {
    socket: UdpSocket,
    unplugged: AtomicBool,
    rings: AtomicUsize,
}

/// The requests of a phone, one at a time.
struct Requests {
    answers: Receiver<String>,
    sent: u32,
    challenge: Option<Challenge>,
}

/// A challenge of Asterisk; a phone may answer it again for some seconds.
struct Challenge {
    realm: String,
    nonce: String,
    opaque: String,
}

impl Phone {
    pub fn new(server: impl Into<SocketAddr>, number: &str, secret: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port for a phone");
        let own = socket.local_addr().expect("the phone's port");
        let line = Arc::new(Line { socket, unplugged: AtomicBool::new(false), rings: AtomicUsize::new(0) });
        let (heard, answers) = channel();
        let listener = thread::spawn({
            let line = line.clone();
            move || line.listen(&heard)
        });
        Self {
            number: number.to_owned(),
            secret: secret.to_owned(),
            server: server.into(),
            own,
            line,
            listener: Some(listener),
            requests: Mutex::new(Requests { answers, sent: 0, challenge: None }),
            accepted: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            last_accepted: Mutex::new(None),
        }
    }

    /// Registers for five minutes; gives the final status, or nothing if Asterisk does not answer.
    pub fn register(&self) -> Option<u16> {
        let contact = format!("Contact: <sip:{}@{}>\r\nExpires: 300\r\n", self.number, self.own);
        let status = self.request("REGISTER", &format!("sip:{}", self.server), &self.number, &contact);
        match status {
            Some(200) => {
                *lock(&self.last_accepted) = Some(Instant::now());
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) => _ = self.refused.fetch_add(1, Ordering::Relaxed),
            None => {}
        }
        status
    }

    /// Registers again and again, each time as soon as the last is answered.
    pub fn hammer(&self, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            self.register();
        }
    }

    /// Calls a number, whose phone must not answer; gives the final status, or nothing if Asterisk does not answer.
    pub fn call(&self, number: &str) -> Option<u16> {
        let contact = format!("Contact: <sip:{}@{}>\r\n", self.number, self.own);
        self.request("INVITE", &format!("sip:{number}@{}", self.server), number, &contact)
    }

    /// Subscribes to the hint of a number for an hour; gives the final status, or nothing if Asterisk does not answer.
    pub fn subscribe(&self, number: &str) -> Option<u16> {
        let headers = format!(
            "Contact: <sip:{}@{}>\r\nEvent: dialog\r\nAccept: application/dialog-info+xml\r\nExpires: 3600\r\n",
            self.number, self.own
        );
        self.request("SUBSCRIBE", &format!("sip:{number}@{}", self.server), number, &headers)
    }

    /// How many registrations were accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many registrations were refused.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// When the last registration was accepted.
    pub fn last_accepted(&self) -> Option<Instant> {
        *lock(&self.last_accepted)
    }

    /// How often it rang since the last call of this function.
    pub fn take_rings(&self) -> usize {
        self.line.rings.swap(0, Ordering::Relaxed)
    }

    /// Sends a request, with the proof of its secret as soon as that is asked for.
    fn request(&self, method: &str, uri: &str, to: &str, headers: &str) -> Option<u16> {
        let mut requests = lock(&self.requests);
        for proven in [false, true] {
            let proof = requests.challenge.as_ref().map(|challenge| self.proof(challenge, method, uri));
            let answer = self.transaction(&mut requests, method, uri, to, &[headers, &proof.unwrap_or_default()])?;
            let status = status(&answer);
            if status != Some(401) || proven {
                return status;
            }
            requests.challenge = Some(Challenge::of(&answer));
        }
        unreachable!("the second answer is returned")
    }

    /// Sends one request, again if needed, and gives its final answer.
    fn transaction(
        &self,
        requests: &mut Requests,
        method: &str,
        uri: &str,
        to: &str,
        headers: &[&str],
    ) -> Option<String> {
        requests.sent += 1;
        let (own, server, number, count) = (self.own, self.server, &self.number, requests.sent);
        let port = own.port(); // Asterisk tells requests apart by their branch alone
        // All registrations of a phone share an identifier; each call and each subscription has its own.
        let dialog = if method == "REGISTER" { 0 } else { count };
        let message = |method: &str, to: &str, headers: &str| {
            format!(
                "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{port}-{count};rport\r\nMax-Forwards: 70\r\n\
                 From: <sip:{number}@{server}>;tag={dialog}\r\nTo: {to}\r\nCall-ID: {dialog}-{own}\r\n\
                 CSeq: {count} {method}\r\n{headers}Content-Length: 0\r\n\r\n"
            )
        };
        let sent = message(method, &format!("<sip:{to}@{server}>"), &headers.concat());
        let cseq = format!("{count} {method}");
        for _ in 0..ATTEMPTS {
            self.line.send(&sent, server);
            let answer = requests.final_answer(&cseq);
            if let Some(answer) = answer {
                if method == "INVITE" {
                    self.line.send(&message("ACK", header(&answer, "To").unwrap_or_default(), ""), server);
                }
                return Some(answer);
            }
        }
        None
    }

    /// By RFC 2617 without `qop`.
    fn proof(&self, Challenge { realm, nonce, opaque }: &Challenge, method: &str, uri: &str) -> String {
        let (number, secret) = (&self.number, &self.secret);
        let (who, what) = (md5(&format!("{number}:{realm}:{secret}")), md5(&format!("{method}:{uri}")));
        format!(
            "Authorization: Digest username=\"{number}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", \
             response=\"{}\", opaque=\"{opaque}\", algorithm=MD5\r\n",
            md5(&format!("{who}:{nonce}:{what}"))
        )
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        self.line.unplugged.store(true, Ordering::Relaxed);
        self.line.send("", self.own);
        if let Some(listener) = self.listener.take() {
            listener.join().expect("a listener does not panic");
        }
    }
}

impl Line {
    fn send(&self, message: &str, to: SocketAddr) {
        self.socket.send_to(message.as_bytes(), to).expect("send a datagram over loopback");
    }

    fn listen(&self, heard: &Sender<String>) {
        let mut buffer = [0; 8192];
        while !self.unplugged.load(Ordering::Relaxed) {
            let (length, from) = self.socket.recv_from(&mut buffer).expect("receive a datagram");
            let message = String::from_utf8_lossy(&buffer[..length]);
            match message.split(' ').next() {
                Some("SIP/2.0") => _ = heard.send(message.into_owned()),
                Some("INVITE") => {
                    self.rings.fetch_add(1, Ordering::Relaxed);
                    self.send(&answer(&message, "486 Busy Here"), from);
                }
                Some("OPTIONS" | "NOTIFY") => self.send(&answer(&message, "200 OK"), from),
                _ => {}
            }
        }
    }
}

impl Requests {
    /// Waits for the final answer to a request, until it is time to send it again.
    fn final_answer(&self, cseq: &str) -> Option<String> {
        let resend = Instant::now() + RESEND;
        loop {
            match self.answers.recv_timeout(resend.saturating_duration_since(Instant::now())) {
                Ok(answer) if header(&answer, "CSeq") != Some(cseq) => {} // late
                Ok(answer) if status(&answer) < Some(200) => {}
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("a phone's listener ended"),
            }
        }
    }
}

impl Challenge {
    fn of(answer: &str) -> Self {
        let field = |name: &str| answer.split(&format!("{name}=\"")).nth(1)?.split('"').next();
        let [realm, nonce, opaque] =
            ["realm", "nonce", "opaque"].map(|name| field(name).unwrap_or_default().to_owned());
        Self { realm, nonce, opaque }
    }
}

/// The answer of a phone that is called.
fn answer(request: &str, status: &str) -> String {
    let mut answer = vec![format!("SIP/2.0 {status}")];
    for line in request.lines().take_while(|line| !line.is_empty()) {
        match line.split_once(':').map(|(name, _)| name) {
            Some("Via" | "From" | "Call-ID" | "CSeq") => answer.push(line.to_owned()),
            Some("To") => answer.push(format!("{line};tag=phone")),
            _ => {}
        }
    }
    answer.join("\r\n") + "\r\nContent-Length: 0\r\n\r\n"
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()
}

fn header<'m>(message: &'m str, name: &str) -> Option<&'m str> {
    message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn md5(text: &str) -> String {
    let digits: Vec<_> = Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

/// Locks it, even if another thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
