//! Clients that are slow, silent, greedy or odd: the portal serves the others meanwhile, stays small, and gets rid of them.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixtures::{SetWhenDropped, sqlite, without_asterisk};
use crate::steps::{NO_HANDLE, STOPPING};
use support::portal::{Settings, raw_post};
use support::process::{Signal, command_as, run_within};
use support::{Asterisk, Portal, lab, secs, wait_until};

/// How long the portal waits for a first request's head, for a body, and until an answer is taken: src/api/server.rs.
const HEAD_PATIENCE: Duration = secs(5);
const ANSWER_PATIENCE: Duration = secs(20);

/// More than the slowest client is waited for, on a machine that is busy.
const PATIENCE: Duration = secs(60);

const GET_USERS: &str = "GET /users HTTP/1.1\r\nhost: localhost\r\n\r\n";
const GET_NOTHING: &str = "GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn connect(portal: &Portal) -> TcpStream {
    let stream = TcpStream::connect(portal.address()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// Sends this; the connection may end meanwhile.
fn sent(portal: &Portal, request: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = connect(portal);
    let _ = stream.write_all(request.as_ref());
    stream
}

/// What comes until the end of the connection, which is waited for. What was not read in time by the portal resets it.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error} after {} bytes", bytes.len()),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// The statuses of all answers in a text.
fn statuses(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

/// One answer: its head, and its body by its length.
fn answer(stream: &mut TcpStream) -> (String, Value) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    (head, serde_json::from_slice(&body).expect("JSON"))
}

/// The portal's file handles that are not its database's, which the first read and the first write open.
pub fn handles(portal: &Portal) -> usize {
    let folder = format!("/proc/{}/fd", portal.pid());
    let links = fs::read_dir(folder).expect("list").flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter(|link| !link.starts_with(portal.data_dir())).count()
}

/// A thousand users, as fast as SQL goes.
fn fill(portal: &Portal) {
    sqlite(
        portal,
        "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1999) \
         INSERT INTO users SELECT printf('%08d-0000-4000-8000-000000000000', i), 'a0000000-0000-0000-0000-000000000000', 'User ' || i, i || '@example.com', '2026-01-01T00:00:00Z' FROM n; \
         INSERT INTO extensions SELECT id, CAST(id AS INTEGER), id, 'hd34nxkwr7pam9yet6cjf3wdkp4nh7', created_at FROM users",
    );
}

#[test]
fn hundreds_of_slow_clients_hold_up_nobody_and_are_gone_in_time() {
    let _one_at_a_time = lab::measuring();
    let portal = Portal::start(&Settings::default());
    fill(&portal);
    assert_eq!(portal.users().len(), 1000);
    let before = handles(&portal);

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let (mut slowest, mut served) = (Duration::ZERO, 0);
            while !done.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(portal.request("GET", "/nothing", None).status, 404);
                assert_eq!(portal.users().len(), 1000);
                slowest = slowest.max(asked.elapsed());
                served += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            (slowest, served)
        });

        let attacked = SetWhenDropped(&done);
        let head = "POST /users HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
        let many = |count: usize, request: &str| (0..count).map(|_| sent(&portal, request)).collect::<Vec<_>>();
        let mut heads = many(100, "GET /users HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
        let mut bodies = many(80, &format!("{head}content-length: 16000\r\n\r\n"));
        let mut chunks = many(20, &format!("{head}transfer-encoding: chunked\r\n\r\n"));
        let mut silent = many(50, "");
        let mut asked_once = many(50, GET_NOTHING);
        let mut cut_off = many(50, &format!("{head}content-length: 16000\r\n\r\n{{"));
        for stream in &cut_off {
            stream.shutdown(Shutdown::Write).expect("half-close");
        }
        // A pipeline fills what the kernel buffers for a client that reads nothing; then the portal has to wait for it.
        let takers = many(20, &GET_USERS.repeat(40));
        wait_until(PATIENCE, "they are there all at once", || handles(&portal) > before + 300);

        let began = Instant::now();
        while handles(&portal) > before + 2 {
            assert!(began.elapsed() < PATIENCE, "{} handles are left, {before} before", handles(&portal));
            for stream in heads.iter_mut().chain(&mut bodies) {
                let _ = stream.write_all(b" ");
            }
            for stream in &mut chunks {
                let _ = stream.write_all(b"1\r\n \r\n");
            }
            std::thread::sleep(secs(1)); // a byte a second
        }
        assert!(began.elapsed() > HEAD_PATIENCE, "nobody was sent away at once");
        drop(attacked);
        let (slowest, served) = honest.join().expect("an honest client is served");
        assert!(slowest < secs(15) && served > 0, "{served} rounds, the slowest in {slowest:?}");

        for stream in heads.iter_mut().chain(&mut silent) {
            assert_eq!(rest(stream), "", "no request, no answer");
        }
        for stream in bodies.iter_mut().chain(&mut chunks).chain(&mut cut_off) {
            let text = rest(stream);
            assert!(statuses(&text) == [400] && text.contains("must arrive completely, within 5 seconds"), "{text:?}");
        }
        for stream in &mut asked_once {
            assert_eq!(statuses(&rest(stream)), [404]);
        }
        drop(takers);
    });
    wait_until(secs(10), "every handle is given back", || handles(&portal) <= before);
    let peak = portal.peak_memory();
    assert!(peak < 80, "{peak} MiB");
}

#[test]
fn a_connection_beyond_512_waits_for_a_place() {
    let _one_at_a_time = lab::measuring();
    let portal = Portal::start(&without_asterisk());
    let before = handles(&portal);
    let burst: Vec<_> = (0..600).map(|_| connect(&portal)).collect();
    // The connection of the start may not be closed yet.
    let places = before + 511..=before + 512;
    wait_until(PATIENCE, "every place is taken", || places.contains(&handles(&portal)));
    let most = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        handles(&portal)
    });
    assert!(most.max().is_some_and(|most| places.contains(&most)));
    drop(burst);
    assert_eq!(portal.users().len(), 0);
}

#[test]
fn a_portal_with_few_file_handles_serves_in_turn_and_recovers_from_having_none() {
    let _one_at_a_time = lab::measuring();
    let asterisk = Asterisk::start();
    let portal = Portal::prepare(&Settings::of(&asterisk));
    portal.boot_through(&["prlimit", "--nofile=64:64"]);
    portal.create_user("Alice", "alice@example.com");

    // More than there are places for: they wait in the kernel's queue, and the portal keeps the handles it needs itself.
    let before = handles(&portal);
    let burst: Vec<_> = (0..100).map(|_| connect(&portal)).collect();
    wait_until(PATIENCE, "every place is taken, and no more", || (before + 7..=before + 8).contains(&handles(&portal)));
    drop(burst);
    portal.apply("after the burst");
    assert!(!portal.log().contains(NO_HANDLE), "{}", portal.log());

    // Clients that keep all places by asking again and again, each as soon as it may.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let served = SetWhenDropped(&done);
        for _ in 0..16 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let mut hoarder = connect(&portal);
                    while !done.load(Ordering::Relaxed)
                        && hoarder.write_all(GET_NOTHING.as_bytes()).is_ok()
                        && hoarder.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0)
                    {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
            });
        }
        let began = Instant::now();
        while began.elapsed() < secs(3) {
            assert_eq!(portal.users().len(), 1);
        }
        drop(served);
    });

    // Not one handle left: neither the end of the service, nor a loop that does nothing else.
    let limit = |handles: &str| {
        let pid = portal.pid().to_string();
        let mut prlimit = command_as(lab::PORTAL, &[], "prlimit");
        let run = run_within(secs(10), prlimit.args(["--pid", &pid, &format!("--nofile={handles}:64")]));
        assert!(run.status.success(), "{run:?}");
    };
    limit("4");
    let waiting = sent(&portal, GET_USERS);
    wait_until(PATIENCE, "a connection can't be accepted", || portal.log().contains(NO_HANDLE));
    let (from, began) = (processor_time(&portal), Instant::now());
    std::thread::sleep(secs(3)); // what it takes of the processors meanwhile is the question
    let (busy, lasted) = (processor_time(&portal).saturating_sub(from), began.elapsed());
    assert!(busy < lasted / 4, "{busy:?} of {lasted:?}");
    limit("64");
    assert_eq!(answer(&mut { waiting }).1["users"].as_array().map(Vec::len), Some(1));
    portal.apply("after all that");
    let errors = portal.log().matches(NO_HANDLE).count();
    assert!(errors < 20, "{errors} lines");
}

/// What the portal took of the processors.
fn processor_time(portal: &Portal) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", portal.pid())).expect("read its status");
    let (_, fields) = stat.rsplit_once(") ").expect("after its name");
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn an_apply_may_take_long_and_its_answer_may_be_read_slowly() {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_TIMEOUT_SECS", 120));
    asterisk.signal(Signal::STOP);
    let mut half_closed = sent(&portal, raw_post("/apply", r#"{"triggered_by":"half-closed"}"#));
    half_closed.shutdown(Shutdown::Write).expect("half-close");
    let asked = Instant::now();

    // The kernel takes some 4 MB for a client that does not read yet; of one of these, the last answer is the first that it
    // does not. They are of another portal, because a thousand users are no matter of the apply.
    let full = Portal::start(&without_asterisk());
    fill(&full);
    let mut clients: Vec<_> = (14..=20).map(|count| sent(&full, GET_USERS.repeat(count))).collect();
    std::thread::sleep(HEAD_PATIENCE + secs(5)); // longer than anything else that a client sends may take
    for (client, count) in clients.iter_mut().zip(14..) {
        for _ in 0..count {
            assert_eq!(answer(client).1["users"].as_array().map(Vec::len), Some(1000), "of {count} answers");
        }
    }

    wait_until(PATIENCE, "an answer would have to be taken", || asked.elapsed() > ANSWER_PATIENCE + secs(5));
    asterisk.signal(Signal::CONT);
    let text = rest(&mut half_closed);
    assert!(statuses(&text) == [200] && text.contains("every value is proven"), "{text}");
}

#[test]
fn a_stop_answers_requests_that_are_being_sent_and_has_a_bound() {
    let portal = Portal::start(&Settings::default());
    let (head, end) = GET_NOTHING.split_at(20);
    let mut slow = sent(&portal, head);
    let mut never = sent(&portal, head);
    let mut idle = sent(&portal, GET_NOTHING);
    answer(&mut idle);
    portal.signal(Signal::TERM);
    wait_until(secs(10), "it stops", || portal.log().contains(STOPPING));
    slow.write_all(end.as_bytes()).expect("send");
    assert_eq!(statuses(&rest(&mut slow)), [404]);
    assert_eq!(rest(&mut idle) + &rest(&mut never), "");
    wait_until(PATIENCE, "the service ends", || portal.ended().is_some_and(|status| status.success()));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let portal = Portal::start(&Settings::default());
    let round = |index: usize| {
        let body = format!(r#"{{"name":"User {index}","email":"user{index}@example.com"}}"#);
        [raw_post("/users", &body).as_str(), GET_USERS, GET_NOTHING].concat()
    };
    let mut client = sent(&portal, (0..5).map(round).collect::<Vec<_>>().concat());
    for index in 0..5_usize {
        let (head, user) = answer(&mut client);
        assert!(head.starts_with("HTTP/1.1 201 "), "{head}");
        assert_eq!(user["name"], format!("User {index}"));
        let users = answer(&mut client).1;
        assert_eq!(users["users"].as_array().map(Vec::len), Some(index + 1));
        assert_eq!(users["users"][index], user);
        assert_eq!(answer(&mut client).1["error"], "Not found");
    }
}

#[test]
fn heads_and_bodies_have_a_maximum_size() {
    let portal = Portal::start(&Settings::default());
    let status = |request: String| statuses(&rest(&mut sent(&portal, request)));
    let get =
        |headers: &str| status(format!("GET /users HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"));
    assert_eq!(get(&format!("x-large: {}\r\n", "a".repeat(15 * 1024))), [200]);
    assert_eq!(get(&format!("x-large: {}\r\n", "a".repeat(17 * 1024))), [431]);
    let many = |count: usize| (0..count).map(|index| format!("x-{index}: y\r\n")).collect::<Vec<_>>().concat();
    assert_eq!(get(&many(98)), [200]);
    assert_eq!(get(&many(99)), [431]);
    assert_eq!(status(format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(20_000))), [431]);

    let limit = 16 * 1024;
    let padded = |email: &str, length: usize| {
        let body = format!(r#"{{"name":"Alice","email":"{email}"}}"#);
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    let head = "POST /users HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let whole = |length| status(format!("{head}content-length: {length}\r\n\r\n{}", padded("a@example.com", length)));
    assert_eq!(whole(limit + 1), [413]);
    assert_eq!(whole(limit), [201]);
    let chunked = |length| {
        let chunks = padded("b@example.com", length);
        let chunks = chunks
            .as_bytes()
            .chunks(1000)
            .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)));
        status(format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunks.collect::<String>()))
    };
    assert_eq!(chunked(limit + 1), [413]);
    assert_eq!(chunked(limit), [201]);

    // Asked before it is sent: only what will be taken is sent.
    let expecting =
        |length: usize| sent(&portal, format!("{head}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"));
    assert_eq!(statuses(&rest(&mut expecting(limit + 1))), [413]);
    let body = padded("c@example.com", 100);
    let mut client = expecting(body.len());
    let mut go_on = [0; 25];
    client.read_exact(&mut go_on).expect("an answer");
    assert_eq!(go_on, *b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(body.as_bytes()).expect("send");
    assert_eq!(statuses(&rest(&mut client)), [201]);
}

#[test]
fn odd_requests_get_a_clear_answer_and_no_second_one() {
    let portal = Portal::start(&Settings::default());
    let body = r#"{"name":"Alice","email":"alice@example.com"}"#;
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let post = "POST /users HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let length = body.len();
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let closing = |head: &str| format!("{head}\r\nconnection: close\r\n\r\n");
    for (name, request, expected) in [
        // Where does it end? Refused, or the connection ends with it.
        ("two lengths", format!("{post}content-length: {length}\r\ncontent-length: 5\r\n\r\n{body}"), 400),
        ("a list of lengths", format!("{post}content-length: {length}, {length}\r\n\r\n{body}"), 400),
        ("a signed length", format!("{post}content-length: +{length}\r\n\r\n{body}"), 400),
        (
            "length, then chunks",
            format!("{post}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{smuggled}"),
            201,
        ),
        (
            "chunks, then length",
            format!("{post}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n{chunks}{smuggled}"),
            409,
        ),
        ("another encoding", format!("{post}transfer-encoding: gzip\r\n\r\n{chunks}"), 400),
        ("chunked not last", format!("{post}transfer-encoding: chunked, identity\r\n\r\n{chunks}"), 400),
        ("a blank before the colon", format!("{post}content-length : {length}\r\n\r\n{body}"), 400),
        ("a folded header", format!("{post}x-folded: a\r\n b\r\ncontent-length: {length}\r\n\r\n{body}"), 400),
        ("a bad chunk", format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n{body}\r\n"), 400),
        // Who is asked for what?
        ("HTTP/1.0 without a host", "GET /users HTTP/1.0\r\n\r\n".to_owned(), 403),
        ("HTTP/1.0 with a host", "GET /users HTTP/1.0\r\nhost: localhost\r\n\r\n".to_owned(), 200),
        (
            "HTTP/1.0 with chunks",
            format!(
                "POST /users HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
            ),
            400,
        ),
        ("an absolute address", closing("GET http://localhost/users HTTP/1.1\r\nhost: localhost"), 200),
        ("another's address", closing("GET http://evil.example/users HTTP/1.1\r\nhost: localhost"), 403),
        ("two hosts", closing("GET /users HTTP/1.1\r\nhost: localhost\r\nhost: evil.example"), 403),
        ("a proxy's tunnel", closing("CONNECT localhost:22 HTTP/1.1\r\nhost: localhost:22"), 404),
        (
            "an upgrade",
            "GET /users HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
                .to_owned(),
            200,
        ),
        ("an unknown method", closing("BREW /users HTTP/1.1\r\nhost: localhost"), 405),
        ("no method", "G@T /users HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(), 400),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), 400),
    ] {
        let text = rest(&mut sent(&portal, &request));
        assert_eq!(statuses(&text), [expected], "{name}: {text}");
    }
    assert_eq!(rest(&mut sent(&portal, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")), "", "HTTP/2 is not spoken");
    assert!(!portal.log().contains("/smuggled"), "{}", portal.log());
    assert!(!portal.log().contains("panicked"), "{}", portal.log());
}
