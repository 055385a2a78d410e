//! A SIP phone in a thread of this process, over UDP: it registers, calls, and is busy when it is called. A test may let it do
//! something else when it is called, and change each of its requests.
//!
//! SIPp needs a process, and so a tenth of a second, for what this does in a few milliseconds.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::sip::{Challenge, Dialog, EMPTY, Request, SDP, TAG, answer, header, md5, status};

/// SIP's own first retransmission over UDP.
const RESEND: Duration = Duration::from_millis(500);
/// How often a request is sent before the phone gives up.
const ATTEMPTS: usize = 10;

/// What a phone answers to a call.
#[derive(Clone, Default)]
pub enum Reply {
    /// 486.
    #[default]
    Busy,
    /// This status, with this value of `Contact`.
    Redirect(&'static str, String),
    /// 200; the call goes on, without audio.
    Answer,
}

/// A phone that stays until it is dropped. It answers OPTIONS, NOTIFY and BYE with 200, and calls with its [`Reply`].
pub struct Phone {
    pub number: String,
    pub secret: String,
    server: SocketAddr,
    own: SocketAddr,
    /// No other phone has it, not even one that had the same port: Asterisk tells requests apart by their branch alone.
    serial: usize,
    line: Arc<Line>,
    listener: Option<JoinHandle<()>>,
    transfers: Mutex<Receiver<u16>>,
    requests: Mutex<Requests>,
    dialogs: AtomicUsize,
    accepted: AtomicUsize,
    refused: AtomicUsize,
    last_accepted: Mutex<Option<Instant>>,
}

/// What the listener shares with the phone.
struct Line {
    socket: UdpSocket,
    unplugged: AtomicBool,
    rings: AtomicUsize,
    pings: AtomicUsize,
    reply: Mutex<Reply>,
    /// The INVITE of the last call to it.
    called: Mutex<String>,
}

/// The requests of a phone, one at a time.
struct Requests {
    answers: Receiver<String>,
    sent: u32,
    challenge: Option<Challenge>,
}

impl Phone {
    pub fn new(server: impl Into<SocketAddr>, number: &str, secret: &str) -> Self {
        Self::new_at(SocketAddr::from(([127, 0, 0, 1], 0)), server, number, secret)
    }

    /// A phone at this address.
    pub fn new_at(own: SocketAddr, server: impl Into<SocketAddr>, number: &str, secret: &str) -> Self {
        static SERIAL: AtomicUsize = AtomicUsize::new(0);
        let socket = UdpSocket::bind(own).expect("a port for a phone");
        let own = socket.local_addr().expect("the phone's port");
        let line = Arc::new(Line {
            socket,
            unplugged: AtomicBool::new(false),
            rings: AtomicUsize::new(0),
            pings: AtomicUsize::new(0),
            reply: Mutex::default(),
            called: Mutex::default(),
        });
        let ((heard, answers), (notified, transfers)) = (channel(), channel());
        let listener = thread::spawn({
            let line = line.clone();
            move || line.listen(&heard, &notified)
        });
        Self {
            number: number.to_owned(),
            secret: secret.to_owned(),
            server: server.into(),
            own,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            line,
            listener: Some(listener),
            transfers: Mutex::new(transfers),
            requests: Mutex::new(Requests { answers, sent: 0, challenge: None }),
            dialogs: AtomicUsize::new(1),
            accepted: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            last_accepted: Mutex::new(None),
        }
    }

    /// Registers for five minutes; gives the final status, or nothing if Asterisk does not answer.
    pub fn register(&self) -> Option<u16> {
        self.register_at(&format!("<sip:{}@{}>", self.number, self.own))
    }

    /// Like [`Phone::register`], with other values of `Contact`.
    pub fn register_at(&self, contacts: &str) -> Option<u16> {
        let mut request = self.prepare("REGISTER", &self.number);
        request.uri = format!("sip:{}", self.server);
        request.headers = format!("Contact: {contacts}\r\nExpires: 300\r\n");
        let status = self.send(&request);
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
        self.send(&self.prepare("INVITE", number))
    }

    /// Calls a number, whose phone must answer.
    pub fn talk(&self, number: &str) -> Dialog {
        let request = self.prepare("INVITE", number);
        let answer = self.final_answer(&request).expect("an answer");
        assert_eq!(status(&answer), Some(200), "{answer}");
        let value = |name| header(&answer, name).expect("a header").to_owned();
        let target = value("Contact").trim_matches(['<', '>']).to_owned();
        Dialog { target, from: request.from, to: value("To"), call_id: request.call_id }
    }

    /// The last call to it, which it answered.
    pub fn answered(&self) -> Dialog {
        let invite = self.last_call();
        let value = |name| header(&invite, name).expect("a header").to_owned();
        let target = value("Contact").trim_matches(['<', '>']).to_owned();
        Dialog { target, from: value("To") + TAG, to: value("From"), call_id: value("Call-ID") }
    }

    /// Subscribes to the hint of a number for an hour; gives the final status, or nothing if Asterisk does not answer.
    pub fn subscribe(&self, number: &str) -> Option<u16> {
        let mut request = self.prepare("SUBSCRIBE", number);
        request.add("Event: dialog\r\nAccept: application/dialog-info+xml\r\nExpires: 3600");
        self.send(&request)
    }

    /// Transfers the other phone of a call (REFER) to this value of `Refer-To`; gives the status of the transfer, or of the request
    /// if Asterisk refuses it.
    pub fn transfer(&self, dialog: &Dialog, refer_to: &str) -> Option<u16> {
        let mut request = self.within(dialog, "REFER");
        request.add(&format!("Refer-To: {refer_to}"));
        match self.send(&request) {
            Some(202) => lock(&self.transfers).recv_timeout(RESEND * 20).ok(),
            refused => refused,
        }
    }

    /// Ends a call, which the other phone may have ended before.
    pub fn hang_up(&self, dialog: &Dialog) {
        self.send(&self.within(dialog, "BYE"));
    }

    /// What it answers to calls from now on.
    pub fn set_reply(&self, reply: Reply) {
        *lock(&self.line.reply) = reply;
    }

    /// The INVITE of the last call to it.
    pub fn last_call(&self) -> String {
        lock(&self.line.called).clone()
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.own
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

    /// How many OPTIONS it has had.
    pub fn pings(&self) -> usize {
        self.line.pings.load(Ordering::Relaxed)
    }

    /// A request to a name on the server, in no dialog.
    pub fn prepare(&self, method: &'static str, name: &str) -> Request {
        let Self { number, server, own, serial, .. } = self;
        // All registrations of a phone share an identifier; each call and each subscription has its own.
        let dialog = if method == "REGISTER" { 0 } else { self.dialogs.fetch_add(1, Ordering::Relaxed) };
        Request {
            method,
            uri: format!("sip:{name}@{server}"),
            from: format!("<sip:{number}@{server}>;tag={dialog}"),
            to: format!("<sip:{name}@{server}>"),
            call_id: format!("{dialog}-{serial}-{own}"),
            headers: format!("Contact: <sip:{number}@{own}>\r\n"),
            body: match method {
                "INVITE" => ("application/sdp", SDP),
                "MESSAGE" => ("text/plain", "Hello"),
                _ => ("", ""),
            },
        }
    }

    /// A request in a dialog.
    pub fn within(&self, dialog: &Dialog, method: &'static str) -> Request {
        let Dialog { target, from, to, call_id } = dialog;
        let [uri, from, to, call_id] = [target, from, to, call_id].map(Clone::clone);
        let headers = format!("Contact: <sip:{}@{}>\r\n", self.number, self.own);
        Request { method, uri, from, to, call_id, headers, body: ("", "") }
    }

    /// Sends a request, and gives the status of the final answer, or nothing if Asterisk does not answer.
    pub fn send(&self, request: &Request) -> Option<u16> {
        status(&self.final_answer(request)?)
    }

    /// Sends a request, with the proof of its secret as soon as that is asked for. A reload of Asterisk between the question and the
    /// proof makes the question stale, so it is asked anew.
    fn final_answer(&self, request: &Request) -> Option<String> {
        let mut requests = lock(&self.requests);
        for times_asked in 0.. {
            let proof = requests.challenge.as_ref().map(|challenge| self.proof(challenge, request));
            let answer = self.transaction(&mut requests, request, &proof.unwrap_or_default())?;
            let again = times_asked == 0 || (answer.contains("stale=true") && times_asked < ATTEMPTS);
            if status(&answer) != Some(401) || !again {
                return Some(answer);
            }
            requests.challenge = Some(Challenge::of(&answer));
        }
        unreachable!("the last answer is returned")
    }

    /// Sends one request, again if needed, and gives its final answer.
    fn transaction(&self, requests: &mut Requests, request: &Request, proof: &str) -> Option<String> {
        requests.sent += 1;
        let (own, serial, count) = (self.own, self.serial, requests.sent);
        let Request { method, uri, from, to, call_id, headers, body: (kind, body) } = request;
        let message = |method: &str, to: &str, headers: &str, body: &str| {
            let length = body.len();
            format!(
                "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{serial}-{count};rport\r\nMax-Forwards: 70\r\n\
                 From: {from}\r\nTo: {to}\r\nCall-ID: {call_id}\r\nCSeq: {count} {method}\r\n{headers}\
                 Content-Length: {length}\r\n\r\n{body}"
            )
        };
        let kind = if body.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        let sent = message(method, to, &[headers, &kind, proof].concat(), body);
        let cseq = format!("{count} {method}");
        for _ in 0..ATTEMPTS {
            self.line.send(&sent, self.server);
            let answer = requests.final_answer(&cseq);
            if let Some(answer) = answer {
                if *method == "INVITE" {
                    let ack = message("ACK", header(&answer, "To").unwrap_or_default(), "", "");
                    self.line.send(&ack, self.server);
                }
                return Some(answer);
            }
        }
        None
    }

    /// By RFC 2617 without `qop`.
    fn proof(&self, Challenge { realm, nonce, opaque }: &Challenge, Request { method, uri, .. }: &Request) -> String {
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

    fn listen(&self, heard: &Sender<String>, notified: &Sender<u16>) {
        let mut buffer = [0; 8192];
        while !self.unplugged.load(Ordering::Relaxed) {
            let (length, from) = self.socket.recv_from(&mut buffer).expect("receive a datagram");
            let message = String::from_utf8_lossy(&buffer[..length]);
            let answer = |status, more: &str| self.send(&answer(&message, status, more), from);
            match message.split(' ').next() {
                Some("SIP/2.0") => _ = heard.send(message.into_owned()),
                // Within a call, Asterisk may ask again for what the phone answered already.
                Some("INVITE") if header(&message, "To").is_some_and(|to| to.contains(";tag=")) => {
                    answer("488 Not Acceptable Here", EMPTY);
                }
                Some("INVITE") => {
                    let former = std::mem::replace(&mut *lock(&self.called), message.to_string());
                    // On a busy machine, Asterisk sends it again.
                    self.rings.fetch_add(usize::from(former != message), Ordering::Relaxed);
                    let own = self.socket.local_addr().expect("the phone's port");
                    match lock(&self.reply).clone() {
                        Reply::Busy => answer("486 Busy Here", EMPTY),
                        Reply::Redirect(status, contact) => answer(status, &format!("Contact: {contact}\r\n{EMPTY}")),
                        Reply::Answer => {
                            let length = SDP.len();
                            let session =
                                format!("Content-Type: application/sdp\r\nContent-Length: {length}\r\n\r\n{SDP}");
                            answer("200 OK", &format!("Contact: <sip:phone@{own}>\r\n{session}"));
                        }
                    }
                }
                Some("NOTIFY") => {
                    answer("200 OK", EMPTY);
                    // How a transfer ended.
                    let transfer = message.split_once("\r\n\r\n").and_then(|(_, body)| status(body));
                    if let Some(ended) = transfer.filter(|status| *status >= 200) {
                        _ = notified.send(ended);
                    }
                }
                Some("OPTIONS") => {
                    self.pings.fetch_add(1, Ordering::Relaxed);
                    answer("200 OK", EMPTY);
                }
                Some("BYE" | "CANCEL") => answer("200 OK", EMPTY),
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

/// Locks it, even if another thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
