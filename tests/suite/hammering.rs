//! The old owner's phone registers some fifty times a second and its number is called without pause, before, during and after
//! the apply that gives the number to somebody else, or that is killed while it does.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::{SetWhenDropped, account, evicted, host, id, registrations};
use crate::support::process::run_within;
use crate::support::sipp::{Caller, HAMMERING_AT_ONCE, Phones, call};
use crate::support::{Asterisk, Portal, secs, strace, wait_until};

/// Each user makes the reloads, and so the time in which something could go wrong, longer; without any, it is shortest.
const OTHER_USERS: usize = 200;

/// A number that gets another owner again and again.
struct Scene {
    asterisk: Asterisk,
    portal: Portal,
    caller: (String, String),
    owner: Value,
    number: String,
}

impl Scene {
    fn new(other_users: usize) -> Self {
        let (asterisk, portal) = host();
        let caller = account(&portal.create_user("Caller", "caller@example.com"));
        let owner = portal.create_user("Owner", "owner@example.com");
        for index in 0..other_users {
            portal.create_user("Other", &format!("other{index}@example.com"));
        }
        portal.apply("suite");
        let number = account(&owner).0;
        Self { asterisk, portal, caller, owner, number }
    }

    /// The owner's phone hammers, somebody calls it without pause, and the number gets another owner.
    fn change_hands(&mut self) -> (Phones, Caller) {
        let (number, secret) = account(&self.owner);
        let phone = Phones::hammer(&self.asterisk, (&number, &secret));
        let caller = Caller::start(&self.asterisk, (&self.caller.0, &self.caller.1), &number);
        wait_until(secs(20), "the owner's phone rings", || phone.requests("INVITE", &number) >= 3);
        self.portal.delete_user(id(&self.owner));
        self.owner = self.portal.create_user("Next", &format!("{secret}@example.com"));
        assert_eq!(account(&self.owner).0, number);
        (phone, caller)
    }

    /// From the first call that is refused on, none is answered and none rings the phone; the last gets this status.
    #[track_caller]
    fn silent(&self, phone: &Phones, caller: &Caller, status: u16) {
        caller.wait_for_calls(10);
        // One call at a time: what rang the phone has ended when the next call is refused.
        let calls = caller.calls();
        let refused = calls.iter().position(|(_, status)| [404, 480].contains(status)).expect("a refused call");
        let arrivals = phone.arrivals("INVITE", &self.number);
        assert!(arrivals.iter().all(|at| *at < calls[refused].0), "after {:?} it rings: {arrivals:?}", calls[refused]);
        // The first REGISTER that is refused for good (somebody's reload may refuse one by its challenge alone) shows that the
        // endpoints are reloaded: the calls that rang were before.
        let registrations = phone.registrations();
        let for_good = registrations.iter().rposition(|(_, status)| *status == 200).map_or(0, |last| last + 1);
        if let Some((new, _)) = registrations[for_good..].first() {
            assert!(arrivals.iter().all(|at| at < new), "{new}: {arrivals:?}");
        }
        // A challenge from before a reload is stale after it (401); a phone that is not SIPp answers the new one.
        let later: Vec<_> = calls[refused..].iter().map(|(_, status)| *status).collect();
        assert!(later.iter().all(|status| [401, 404, 480].contains(status)), "{later:?}");
        assert_eq!(later.last(), Some(&status), "{later:?}");
    }

    /// Applies, and the old phone is out; gives the answer.
    #[track_caller]
    fn apply(&self, phone: &Phones, caller: &Caller) -> Value {
        let applied = self.portal.apply("suite");
        self.is_out(phone, caller);
        applied
    }

    /// After an apply.
    #[track_caller]
    fn is_out(&self, phone: &Phones, caller: &Caller) {
        let rung = phone.requests("INVITE", &self.number);
        refused(phone);
        assert_eq!(registrations(&self.asterisk, &self.number), 0);
        self.silent(phone, caller, 480);
        assert_eq!(phone.requests("INVITE", &self.number), rung, "no call after the apply rings it");
    }
}

/// The phone goes on and is refused each time.
#[track_caller]
fn refused(phone: &Phones) {
    let tried = phone.registrations().len();
    wait_until(secs(20), "the old phone goes on", || phone.registrations().len() >= tried + 50);
    let later = phone.registrations().split_off(tried + HAMMERING_AT_ONCE);
    assert!(later.iter().all(|(_, status)| *status == 401), "{later:?}");
}

#[test]
fn the_old_phone_never_rings_for_the_new_owner() {
    for other_users in [OTHER_USERS, 0] {
        let mut scene = Scene::new(other_users);
        for _ in 0..5 {
            let (phone, caller) = scene.change_hands();
            let evicted = &scene.apply(&phone, &caller)["registrations_evicted"];
            assert!(evicted.to_string().contains(&scene.number), "{evicted}");
        }
    }
}

#[test]
fn nor_while_an_administrator_reloads_again_and_again() {
    let mut scene = Scene::new(OTHER_USERS);
    for pause in [0, 20, 50, 80, 110] {
        let (phone, caller) = scene.change_hands();
        let done = AtomicBool::new(false);
        thread::scope(|threads| {
            let applied = SetWhenDropped(&done);
            threads.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    scene.asterisk.rx("pjsip reload");
                    thread::sleep(Duration::from_millis(100));
                }
            });
            // Somewhere in the middle of one.
            thread::sleep(Duration::from_millis(300 + pause));
            scene.portal.apply("suite");
            drop(applied);
        });
        scene.is_out(&phone, &caller);
    }
}

#[test]
fn nor_after_a_crash_and_an_administrators_own_reload() {
    let mut scene = Scene::new(OTHER_USERS);
    // Where the apply is killed, and whether the new secret is on disk and in force then.
    for (point, on_disk, in_force) in [
        ("rename:signal=KILL:when=2", false, false),
        ("fsync:signal=KILL:when=5", true, false),
        ("rename:signal=KILL:when=3", true, true),
    ] {
        let (phone, caller) = scene.change_hands();
        let (call, inject) = (point.split(':').next().unwrap_or_default(), format!("inject={point}"));
        let arguments = ["-f", "-e", &format!("trace={call}"), "-e", &inject];
        let body = json!({"triggered_by": "killed"});
        let apply = || scene.portal.try_request("POST", "/apply", Some(&body)).is_err();
        assert!(strace::under(scene.portal.pid(), &arguments, apply).0, "{point}: no answer");
        let secret = account(&scene.owner).1;
        let endpoints = std::fs::read_to_string(scene.asterisk.endpoints_file()).expect("the endpoints");
        let auth = scene.asterisk.rx(&format!("pjsip show auth {}", scene.number));
        assert_eq!((endpoints.contains(&secret), auth.contains(&secret)), (on_disk, in_force), "{point}");
        scene.silent(&phone, &caller, 404);

        for reload in ["dialplan reload", "pjsip reload"] {
            scene.asterisk.rx(reload);
            scene.silent(&phone, &caller, 404);
        }
        if on_disk {
            refused(&phone);
        }
        scene.portal.kill();
        scene.portal.boot();
        scene.apply(&phone, &caller);
    }
}

/// A phone that sends REGISTER after REGISTER, each as soon as the last is answered, and reuses the nonce that it has.
struct Flood {
    number: String,
    secret: String,
    /// How many were accepted, and refused.
    accepted: AtomicUsize,
    refused: AtomicUsize,
    done: AtomicBool,
}

impl Flood {
    fn of(user: &Value) -> Self {
        let (number, secret) = account(user);
        Self {
            number,
            secret,
            accepted: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            done: AtomicBool::new(false),
        }
    }

    fn run(&self, server: SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.connect(server).expect("a server");
        socket.set_read_timeout(Some(secs(1))).expect("a time-out");
        let (own, number) = (socket.local_addr().expect("a port"), &self.number);
        let (mut credentials, mut buffer) = (String::new(), [0; 4096]);
        for count in 1.. {
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            let register = format!(
                "REGISTER sip:{server} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{count}\r\nMax-Forwards: 70\r\n\
                 From: <sip:{number}@{server}>;tag=flood\r\nTo: <sip:{number}@{server}>\r\nCall-ID: flood-{own}\r\n\
                 CSeq: {count} REGISTER\r\nContact: <sip:{number}@{own}>\r\nExpires: 300\r\n{credentials}Content-Length: 0\r\n\r\n"
            );
            socket.send(register.as_bytes()).expect("send");
            let (cseq, mut answer) = (format!("CSeq: {count} REGISTER"), String::new());
            // What else comes is OPTIONS, or late.
            while !answer.starts_with("SIP/2.0 ") || !answer.contains(&cseq) {
                let Ok(length) = socket.recv(&mut buffer) else { break };
                answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            }
            if answer.starts_with("SIP/2.0 200 ") {
                self.accepted.fetch_add(1, Ordering::Relaxed);
            } else if answer.starts_with("SIP/2.0 401 ") {
                self.refused.fetch_add(1, Ordering::Relaxed);
                credentials = self.credentials(server, &answer);
            }
        }
    }

    /// Of RFC 2617 without `qop`, which stays the same from request to request.
    fn credentials(&self, server: SocketAddr, challenge: &str) -> String {
        let field = |name: &str| challenge.split(&format!("{name}=\"")).nth(1)?.split('"').next();
        let [realm, nonce, opaque] = ["realm", "nonce", "opaque"].map(|name| field(name).unwrap_or_default());
        let (number, uri) = (&self.number, format!("sip:{server}"));
        let secret = md5(&format!("{number}:{realm}:{}", self.secret));
        let response = md5(&format!("{secret}:{nonce}:{}", md5(&format!("REGISTER:{uri}"))));
        format!(
            "Authorization: Digest username=\"{number}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", \
             response=\"{response}\", opaque=\"{opaque}\", algorithm=MD5\r\n"
        )
    }
}

fn md5(text: &str) -> String {
    let output = run_within(secs(10), Command::new("sh").args(["-c", "printf %s \"$1\" | md5sum", "md5", text]));
    String::from_utf8_lossy(&output.stdout)[..32].to_owned()
}

#[test]
fn nor_does_one_that_registers_as_fast_as_it_can_hold_up_the_apply() {
    let scene = Scene::new(OTHER_USERS);
    let flood = Flood::of(&scene.owner);
    thread::scope(|scope| {
        scope.spawn(|| flood.run((&scene.asterisk).into()));
        let done = SetWhenDropped(&flood.done);
        let tried = || flood.accepted.load(Ordering::Relaxed) + flood.refused.load(Ordering::Relaxed);
        wait_until(secs(20), "it registers again and again", || flood.accepted.load(Ordering::Relaxed) > 500);
        scene.portal.delete_user(id(&scene.owner));
        let next = scene.portal.create_user("Next", "next@example.com");
        assert_eq!(account(&next).0, scene.number);
        let before = flood.accepted.load(Ordering::Relaxed);
        let applied = scene.portal.apply("suite");
        assert!(flood.accepted.load(Ordering::Relaxed) > before + 5, "it went on through the quarantine");
        let (accepted, count) = (flood.accepted.load(Ordering::Relaxed), tried());
        assert!(evicted(&applied).contains(&scene.number), "{applied}");
        wait_until(secs(20), "it goes on", || tried() > count + 50);
        assert_eq!(flood.accepted.load(Ordering::Relaxed), accepted, "it is refused");
        assert_eq!(registrations(&scene.asterisk, &scene.number), 0);
        let caller = (scene.caller.0.as_str(), scene.caller.1.as_str());
        assert_eq!(call(&scene.asterisk, caller, &scene.number), 480);
        drop(done);
    });
}
