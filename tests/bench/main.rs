//! `make bench`: how close the service stands to its floors. Each figure is shown beside its baseline of the same run,
//! interleaved with it, as medians; databases flush to the disk. It fails where a limit is passed.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use support::portal::Settings;
use support::postgres::Options;
use support::{Asterisk, Portal, Postgres, postgres};

const ROUNDS: usize = 15;
const QUERIES: usize = 200;
const CLIENTS: usize = 32;
const USERS: usize = 1000;

/// What a list is, for the databases' own tools.
const LIST: &str = "SELECT users.id, users.tenant_id, users.name, users.email, users.created_at, extensions.number, extensions.secret FROM extensions JOIN users ON users.id = extensions.user_id ORDER BY extensions.number;";

fn main() {
    let mut table = Table { passed: true };
    println!("| what | figure | limit | |\n|---|---|---|---|");
    on(&mut table, "SQLite", None);
    on(&mut table, "PostgreSQL", Some(Postgres::start(&Options::default())));
    if !table.passed {
        eprintln!("a limit was passed");
        std::process::exit(1);
    }
}

fn on(table: &mut Table, name: &str, cluster: Option<Postgres>) {
    let asterisk = Asterisk::start();
    let url = cluster.as_ref().map(Postgres::new_database);
    let settings = match &url {
        Some(url) => Settings::of(&asterisk).with("DATABASE_URL", url),
        None => Settings::of(&asterisk),
    };
    let portal = Portal::start(&settings);

    let started = Instant::now();
    let failures = create_all(portal.address());
    let rate = USERS as f64 / started.elapsed().as_secs_f64();
    table.row(
        &format!("{name}: {USERS} creates by {CLIENTS} clients"),
        &format!("{rate:.0}/s, {failures} failed"),
        "≥ 500/s, none",
        rate >= 500.0 && failures == 0,
    );

    portal.apply("bench");
    let (mut applies, mut reloads) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        applies.push(timed(|| _ = portal.apply("bench")));
        // Asterisk skips files that it has read already, so it is given the same bytes anew, as an apply gives them.
        for file in [asterisk.endpoints_file(), asterisk.routing_file()] {
            let bytes = fs::read(&file).expect("a generated file");
            fs::write(&file, bytes).expect("write it again");
        }
        reloads.push(timed(|| {
            for command in ["pjsip reload", "dialplan reload"] {
                let status = Command::new(asterisk.bin()).args(["-rx", command]).stdout(Stdio::null()).status();
                assert!(status.expect("run asterisk -rx").success());
            }
        }));
    }
    table.ratio(&format!("{name}: apply of {USERS} unchanged / the two bare reloads"), &mut applies, &mut reloads, 2.0);

    let (mut lists, mut queries) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        lists.push(list(portal.address()));
        queries.push(match &url {
            Some(url) => pgbench(url),
            None => sqlite3(&portal),
        });
    }
    table.ratio(&format!("{name}: GET /users of {USERS} / the bare query"), &mut lists, &mut queries, 2.0);

    let status = fs::read_to_string(format!("/proc/{}/status", portal.pid())).expect("the process's status");
    let resident: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
        .expect("VmRSS");
    table.row(
        &format!("{name}: resident memory after it"),
        &format!("{:.1} MiB", resident / 1024.0),
        "< 40 MiB",
        resident < 40.0 * 1024.0,
    );

    let mut starts: Vec<_> = (0..ROUNDS)
        .map(|_| {
            portal.stop();
            let started = Instant::now();
            portal.boot();
            started.elapsed()
        })
        .collect();
    let start = median(&mut starts);
    table.row(
        &format!("{name}: start to first answer"),
        &format!("{:.0} ms", milliseconds(start)),
        "< 200 ms",
        start < Duration::from_millis(200),
    );
}

struct Table {
    passed: bool,
}

impl Table {
    fn row(&mut self, what: &str, figure: &str, limit: &str, within: bool) {
        println!("| {what} | {figure} | {limit} | {} |", if within { "ok" } else { "PASSED" });
        self.passed &= within;
    }

    /// The median of the rounds' own ratios, so that a machine that slows down meanwhile slows both.
    fn ratio(&mut self, what: &str, ours: &mut [Duration], baseline: &mut [Duration], limit: f64) {
        let mut ratios: Vec<_> = ours
            .iter()
            .zip(baseline.iter())
            .map(|(ours, baseline)| ours.as_secs_f64() / baseline.as_secs_f64())
            .collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[ratios.len() / 2];
        let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
        let figure = format!(
            "{ratio:.2} × ({low:.2} to {high:.2}): {:.2} ms / {:.2} ms",
            milliseconds(median(ours)),
            milliseconds(median(baseline))
        );
        self.row(what, &figure, &format!("≤ {limit} ×"), ratio <= limit);
    }
}

fn median(durations: &mut [Duration]) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// Creates all users over kept connections; gives how many failed.
fn create_all(address: SocketAddr) -> usize {
    let (next, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = TcpStream::connect(address).expect("connect");
                connection.set_nodelay(true).expect("no delay");
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= USERS {
                        break;
                    }
                    let body = json!({"name": format!("User {index}"), "email": format!("user{index}@example.com")}).to_string();
                    let request = format!(
                        "POST /users HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if !answer(&mut connection, &request).0.starts_with("HTTP/1.1 201") {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failures.into_inner()
}

/// One list over a kept connection, the mean of many.
fn list(address: SocketAddr) -> Duration {
    let mut connection = TcpStream::connect(address).expect("connect");
    connection.set_nodelay(true).expect("no delay");
    let request = format!("GET /users HTTP/1.1\r\nhost: {address}\r\n\r\n");
    answer(&mut connection, &request);
    let all = timed(|| {
        for _ in 0..QUERIES {
            let (head, length) = answer(&mut connection, &request);
            assert!(head.starts_with("HTTP/1.1 200") && length > USERS * 200, "{head}");
        }
    });
    all / u32::try_from(QUERIES).expect("a count")
}

/// Sends a request; gives the answer's head and its body's length.
fn answer(connection: &mut TcpStream, request: &str) -> (String, usize) {
    connection.write_all(request.as_bytes()).expect("send");
    let mut buffer = vec![0; 512 * 1024];
    let mut filled = 0;
    loop {
        let read = connection.read(&mut buffer[filled..]).expect("an answer");
        assert!(read > 0, "the connection ended");
        filled += read;
        let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let length: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).expect("a length");
        if filled >= end + 4 + length {
            return (head, length);
        }
    }
}

/// The bare query by `pgbench` on one open connection: its own mean latency.
fn pgbench(url: &str) -> Duration {
    let script = std::env::temp_dir().join(format!("pbx-portal-list-{}.sql", std::process::id()));
    fs::write(&script, LIST).expect("write the script");
    let mut command = Command::new(postgres::program("pgbench"));
    let output = command
        .args(["-n", "-M", "prepared", "-t", &QUERIES.to_string(), "-f"])
        .arg(&script)
        .arg(url)
        .output()
        .expect("run pgbench");
    let _ = fs::remove_file(&script);
    let text = String::from_utf8_lossy(&output.stdout);
    let latency =
        text.lines().find_map(|line| line.strip_prefix("latency average = ")?.strip_suffix(" ms")?.parse::<f64>().ok());
    Duration::from_secs_f64(
        latency.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))) / 1000.0,
    )
}

/// The bare query by one `sqlite3` process that repeats it, from the first answer to the last.
fn sqlite3(portal: &Portal) -> Duration {
    let mut command = Command::new("sqlite3");
    let mut process = command
        .arg(portal.data_dir().join("portal.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run sqlite3");
    let mut input = process.stdin.take().expect("its input");
    let mut output = process.stdout.take().expect("its output");
    let mut ask = |times: usize| {
        input.write_all(format!("{}SELECT 'done';\n", format!("{LIST}\n").repeat(times)).as_bytes()).expect("ask");
        input.flush().expect("ask");
        let (mut buffer, mut tail) = (vec![0; 512 * 1024], Vec::new());
        while !tail.ends_with(b"done\n") {
            let read = output.read(&mut buffer).expect("an answer");
            assert!(read > 0, "sqlite3 ended");
            tail = buffer[read.saturating_sub(5)..read].to_vec();
        }
    };
    ask(1);
    let all = timed(|| ask(QUERIES));
    drop(ask);
    drop(input);
    process.wait().expect("its end");
    all / u32::try_from(QUERIES).expect("a count")
}
