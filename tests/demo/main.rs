//! `make demo`: the main job before your eyes, on real parts, in a few seconds: create users, apply, phones register and
//! call with audio, a freed number is refused. Every line is printed after it was seen to be so.
//!
//! `make run` (argument `run`): the same Asterisk and portal, to play with until Ctrl-C.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};
use support::lab::{self, User};
use support::portal::Settings;
use support::{Asterisk, Baresip, Portal, asterisk, secs, wait_until};
use tokio::signal::unix::{SignalKind, signal};

/// What each phone sends, in hertz.
const ALICES_TONE: u32 = 440;
const BOBS_TONE: u32 = 700;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("run") => run(),
        // `cargo test some_name` gives its filter to every target.
        Some(filter) if !filter.starts_with('-') && filter != "demo" => {}
        _ => demo(),
    }
}

fn demo() {
    step("A real Asterisk");
    let asterisk = Asterisk::start();
    let version = asterisk.rx("core show version");
    println!("  {}", version.split(" built by").next().unwrap_or_default());
    println!("  SIP on {}, UDP and TCP, with the portal's two include lines and no endpoint yet", asterisk.sip());

    step("The portal, on its embedded SQLite");
    let portal = Portal::start(&Settings::of(&asterisk));
    println!("  http://{}", portal.address());

    step("Two users; each answer carries an extension and its secret");
    let alice =
        request(&portal, "POST", "/users", Some(&json!({"name": "Alice Ångström", "email": "alice@example.org"})));
    let bob = request(&portal, "POST", "/users", Some(&json!({"name": "Bob", "email": "bob@example.org"})));
    let (alices_number, alices_secret) = account(&alice);
    let (bobs_number, bobs_secret) = account(&bob);
    assert_eq!([&alices_number, &bobs_number], ["1000", "1001"], "the lowest free numbers");

    step("Apply: now, and not before, Asterisk serves them");
    assert!(!asterisk.rx("pjsip show endpoints").contains("1000"), "creating a user touches nothing");
    request(&portal, "POST", "/apply", Some(&json!({"triggered_by": "demo"})));
    assert!(asterisk.rx("pjsip show endpoints").contains("1000/1000"), "Asterisk lists Alice's endpoint");

    step("Two SIP phones (baresip) register with these secrets");
    let alices_phone = Baresip::start(&asterisk, (&alices_number, alices_secret), ALICES_TONE);
    let bobs_phone = Baresip::start(&asterisk, (&bobs_number, bobs_secret), BOBS_TONE);
    let contacts = asterisk.rx("pjsip show contacts");
    assert!(contacts.contains("1000/sip:") && contacts.contains("1001/sip:"), "both are registered:\n{contacts}");
    println!("  1000 and 1001 are registered");

    step("1000 calls 1001, each sends a tone");
    alices_phone.dial("1001").expect("Bob's phone answers");
    wait_until(secs(10), "Alice hears Bob", || alices_phone.hears(BOBS_TONE));
    println!("  1000 hears {BOBS_TONE} Hz from 1001");
    wait_until(secs(10), "Bob hears Alice", || bobs_phone.hears(ALICES_TONE));
    println!("  1001 hears {ALICES_TONE} Hz from 1000");
    alices_phone.hang_up();

    step("Bob leaves");
    let id = bob["id"].as_str().expect("a user has an id");
    request(&portal, "DELETE", &format!("/users/{id}"), None);
    request(&portal, "POST", "/apply", Some(&json!({"triggered_by": "demo"})));
    let refusal = alices_phone.dial("1001").expect_err("nobody answers at a freed number");
    assert!(refusal.starts_with("404"), "a freed number is unknown, not: {refusal}");
    println!("  1000 calls 1001: {refusal}");

    drop((alices_phone, bobs_phone));
    assert!(portal.stop().success(), "the portal stops in order");
    asterisk.stop();
    println!("\nEverything worked, and everything is ended. To go on by yourself: make run");
}

fn step(title: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    println!("\n{}. {title}", NEXT.fetch_add(1, Ordering::Relaxed));
}

/// Sends a request that must succeed; prints it as one would type it, and the answer.
fn request(portal: &Portal, method: &str, path: &str, body: Option<&Value>) -> Value {
    println!("  $ {}", curl(portal.address(), method, path, body));
    let answer = portal.request(method, path, body);
    assert!((200..300).contains(&answer.status), "{}: {}", answer.status, answer.text);
    println!("  {} {}", answer.status, shortened(answer.json.clone()));
    answer.json
}

fn curl(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> String {
    let data = body.map(|json| format!(" -H 'content-type: application/json' -d '{json}'"));
    format!("curl -X {method} http://{address}{path}{}", data.unwrap_or_default())
}

/// The answer for the eye: no whole secret, not Asterisk's words about its reloads.
fn shortened(mut json: Value) -> Value {
    if let Some(Value::String(secret)) = json.pointer_mut("/extension/secret") {
        secret.truncate(4);
        secret.push('…');
    }
    if let Some(answer) = json.as_object_mut() {
        answer.remove("reload_results");
    }
    json
}

/// The number and the secret of a user.
fn account(user: &Value) -> (String, &str) {
    let number = user["extension"]["number"].as_u64().expect("a new user has a number");
    let secret = user["extension"]["secret"].as_str().expect("a new user has a secret");
    (number.to_string(), secret)
}

/// Asterisk and the portal until Ctrl-C, on the ports that one expects where they are free. What they know is kept.
fn run() {
    let kept = lab::dir().join("run");
    fs::create_dir_all(&kept).expect("make the folder that keeps the data");
    let lock = File::create(kept.join("lock")).expect("open the lock of `make run`");
    if lock.try_lock().is_err() {
        eprintln!("`make run` is running already");
        std::process::exit(1);
    }

    let usual = |port: u16| lab::is_free((Ipv4Addr::LOCALHOST, port).into()).then_some(port);
    let asterisk = Asterisk::start_with(&asterisk::Options {
        keep_in: Some(kept.join("asterisk")),
        sip_port: usual(5060),
        ..asterisk::Options::default()
    });
    let portal = Portal::prepare(&settings(&asterisk, &kept, usual(8000)));

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for the signals");
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).expect("listen for Ctrl-C");
        let mut terminate = signal(SignalKind::terminate()).expect("listen for SIGTERM");
        portal.boot_attached();
        welcome(&asterisk, &portal);
        let portal_ended = async {
            while portal.ended().is_none() {
                tokio::time::sleep(secs(1)).await;
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = portal_ended => {}
        }
    });
    println!("\nending the portal and Asterisk; the data stays in {}", kept.display());
    portal.stop();
    asterisk.stop();
}

fn settings(asterisk: &Asterisk, kept: &Path, port: Option<u16>) -> Settings {
    let data = kept.join("portal");
    let User(owner) = lab::PORTAL;
    lab::make_dir(&data, owner, owner, 0o700);
    let settings = Settings::of(asterisk).with("PORTAL_DATA_DIR", data.display());
    match port {
        Some(port) => settings.with("PORTAL_LISTEN", format!("127.0.0.1:{port}")),
        None => settings,
    }
}

fn welcome(asterisk: &Asterisk, portal: &Portal) {
    let user = json!({"name": "Alice", "email": "alice@example.org"});
    let apply = json!({"triggered_by": "me"});
    println!("\nThe API and its documentation: http://{}/docs", portal.address());
    println!("  {}", curl(portal.address(), "POST", "/users", Some(&user)));
    println!("  {}", curl(portal.address(), "POST", "/apply", Some(&apply)));
    println!("SIP phones of this machine register at {}", asterisk.sip());
    println!("Asterisk's own command line: {} -rx 'pjsip show endpoints'", asterisk.bin().display());
    println!("Ctrl-C ends both.\n");
}
