//! `make soak`: twenty minutes of everything, at a steady rate: users come and go, are listed and applied, phones register,
//! short calls are made, and two people talk from the first minute to the last. Beside it, random histories run on servers of
//! their own. Writes `docs/performance/soak.md` with its plots. It fails when memory or handles drift, anything is refused or
//! dropped, or a history breaks a promise.

#![expect(clippy::cast_precision_loss, reason = "counts are small")]

mod histories;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use histories::Histories;
use serde_json::Value;
use support::figures::{self, Usage, median, percentile, timed};
use support::plot::{self, Line};
use support::portal::Settings;
use support::sipp::{self, Called, Phones};
use support::{Asterisk, Baresip, Portal, secs, wait_until};

/// Users who stay.
const STAYING: usize = 300;
/// Of those, phones that are called; the others register.
const CALLED: usize = 8;
/// Users who come and go.
const GUESTS: usize = 50;
/// When everything that is made once has been made.
const WARM: Duration = secs(120);
/// Between two looks at what the processes hold.
const SAMPLE: Duration = secs(10);
/// What memory may grow by from the first half of the time to the second.
const DRIFT: f64 = 1.05;

const TONES: [u32; 2] = [440, 700];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Create,
    Delete,
    List,
    Apply,
    Registration,
    Call,
}

/// What is done, how often, and how its line is named.
const KINDS: [(Kind, Duration, &str); 6] = [
    (Kind::Create, Duration::from_millis(500), "create"),
    (Kind::Delete, Duration::from_millis(500), "delete"),
    (Kind::List, secs(1), "list"),
    (Kind::Apply, secs(5), "apply"),
    (Kind::Registration, secs(1), "registration"),
    (Kind::Call, secs(1), "call"),
];

struct Sample {
    minutes: f64,
    portal: Usage,
    asterisk: Usage,
}

/// Something that was done.
struct Done {
    minutes: f64,
    kind: Kind,
    /// Milliseconds.
    took: f64,
}

/// A figure of a sample.
type Of = fn(&Sample) -> f64;

fn main() {
    let minutes = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let length = secs(minutes * 60);
    assert!(length >= WARM * 4, "SOAK_MINUTES={minutes} is too short to tell a drift");
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk));
    let users: Vec<_> =
        (0..STAYING).map(|index| portal.create_user("Staying", &format!("staying{index}@example.com"))).collect();
    portal.apply("soak");
    let accounts: Vec<_> = users.iter().map(account).collect();
    let accounts: Vec<_> = accounts.iter().map(|(number, secret)| (number.as_str(), secret.as_str())).collect();

    let talking = [Baresip::start(&asterisk, accounts[0], TONES[0]), Baresip::start(&asterisk, accounts[1], TONES[1])];
    talking[0].dial(accounts[1].0).expect("an answer");
    let all_hear = || talking[0].hears(TONES[1]) && talking[1].hears(TONES[0]);
    wait_until(secs(20), "both hear each other", all_hear);
    let called = &accounts[2..2 + CALLED];
    let mut phones = Phones::register(&asterisk, called, Called::Answer);

    let (done, failed, taken) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let guests = Mutex::new(VecDeque::new());
    let started = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    let histories = thread::scope(|scope| {
        let histories = scope.spawn(|| Histories::until(&done));
        for (kind, every, name) in KINDS {
            let (done, failed, taken, guests, portal, asterisk, accounts) =
                (&done, &failed, &taken, &guests, &portal, &asterisk, &accounts);
            scope.spawn(move || {
                for index in 0.. {
                    thread::sleep((every * index).saturating_sub(started.elapsed()));
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut outcome = Ok(true);
                    let index = index as usize;
                    let minutes = started.elapsed().as_secs_f64() / 60.0;
                    let took = timed(|| outcome = once(kind, index, portal, asterisk, accounts, guests));
                    match outcome {
                        Ok(true) => taken.lock().expect("nobody panicked").push(Done { minutes, kind, took }),
                        Ok(false) => {}
                        Err(why) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            eprintln!("{name} {index}: {why}");
                        }
                    }
                }
            });
        }
        let mut registered = Instant::now();
        while started.elapsed() < length {
            thread::sleep(SAMPLE);
            // A registration lasts five minutes. The new phones have taken over when the old ones are unplugged.
            if registered.elapsed() > secs(150) {
                let new = Phones::register(&asterisk, called, Called::Answer);
                thread::sleep(secs(2));
                drop(std::mem::replace(&mut phones, new));
                registered = Instant::now();
            }
            samples.push(Sample {
                minutes: started.elapsed().as_secs_f64() / 60.0,
                portal: Usage::of(portal.pid()),
                asterisk: Usage::of(asterisk.pid()),
            });
        }
        done.store(true, Ordering::Relaxed);
        histories.join().expect("histories fail in threads of their own")
    });
    drop(phones);
    let calls = || asterisk.rx("core show channels count").lines().any(|line| line == "1 active call");
    let talk_goes_on = (0..20).any(|_| {
        thread::sleep(secs(1));
        calls() && all_hear()
    });
    let taken = taken.into_inner().expect("nobody panicked");
    let well = report(&samples, &taken, failed.into_inner(), talk_goes_on, &histories);
    assert!(portal.stop().success(), "the portal stops in order");
    if !well {
        eprintln!("something drifted, was refused or dropped, or broke a promise: see docs/performance/soak.md");
        std::process::exit(1);
    }
}

/// Gives whether there was something to do.
fn once(
    kind: Kind,
    index: usize,
    portal: &Portal,
    asterisk: &Asterisk,
    accounts: &[(&str, &str)],
    guests: &Mutex<VecDeque<Value>>,
) -> Result<bool, String> {
    let expect = |answer: support::Answer, status| {
        if answer.status == status { Ok(answer.json) } else { Err(format!("{}: {}", answer.status, answer.text)) }
    };
    let ask = |method, path: &str, body: Option<&Value>| {
        portal.try_request(method, path, body).map_err(|error| error.to_string())
    };
    match kind {
        Kind::Create => {
            let body = serde_json::json!({"name": "Guest", "email": format!("guest{index}@example.com")});
            let user = expect(ask("POST", "/users", Some(&body))?, 201)?;
            guests.lock().expect("nobody panicked").push_back(user);
        }
        Kind::Delete => {
            let left = {
                let mut guests = guests.lock().expect("nobody panicked");
                if guests.len() > GUESTS { guests.pop_front() } else { None }
            };
            let Some(user) = left else { return Ok(false) };
            expect(ask("DELETE", &format!("/users/{}", user["id"].as_str().expect("an id")), None)?, 200)?;
        }
        Kind::List => _ = expect(ask("GET", "/users", None)?, 200)?,
        Kind::Apply => {
            _ = expect(ask("POST", "/apply", Some(&serde_json::json!({"triggered_by": "soak"})))?, 200)?;
        }
        Kind::Registration => {
            let others = &accounts[2 + CALLED..];
            let status = challenged(|| sipp::register(asterisk, others[index % others.len()]));
            if status != 200 {
                return Err(format!("REGISTER: {status}"));
            }
        }
        Kind::Call => {
            let status = challenged(|| sipp::call(asterisk, accounts[0], accounts[2 + index % CALLED].0));
            if status != 200 {
                return Err(format!("INVITE: {status}"));
            }
        }
    }
    Ok(true)
}

/// A reload between Asterisk's challenge and the phone's answer makes Asterisk challenge again. Phones answer that at once; SIPp's
/// scenarios end, and are begun anew.
fn challenged(request: impl Fn() -> u16) -> u16 {
    match request() {
        401 => request(),
        status => status,
    }
}

fn account(user: &Value) -> (String, String) {
    let extension = &user["extension"];
    (extension["number"].to_string(), extension["secret"].as_str().expect("a secret").to_owned())
}

/// Writes the page; gives whether all is well.
fn report(samples: &[Sample], done: &[Done], failed: usize, talk_goes_on: bool, histories: &Histories) -> bool {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance");
    fs::create_dir_all(&folder).expect("make the folder");
    let line = |name: &str, value: &dyn Fn(&Sample) -> f64| Line {
        name: name.to_owned(),
        points: samples.iter().map(|sample| (sample.minutes, value(sample))).collect(),
    };
    let memory = [line("portal", &|sample| sample.portal.memory), line("Asterisk", &|sample| sample.asterisk.memory)];
    let write = |name: &str, svg: String| fs::write(folder.join(name), svg).expect("write a plot");
    write("soak-memory.svg", plot::lines("Resident memory", "minutes", "MiB", &memory));
    let handles = [
        line("portal", &|sample| sample.portal.handles as f64),
        line("Asterisk", &|sample| sample.asterisk.handles as f64),
    ];
    write("soak-handles.svg", plot::lines("Open file handles", "minutes", "handles", &handles));
    let between = |kind: Kind, from: f64, to: f64| -> Vec<f64> {
        let own = done.iter().filter(|done| done.kind == kind && done.minutes >= from && done.minutes < to);
        own.map(|done| done.took).collect()
    };
    let end = samples.last().map_or(0.0, |sample| sample.minutes);
    let whole_minutes = || (0..).take_while(|minute| f64::from(*minute) < end - 0.5);
    let latencies: Vec<_> = KINDS
        .iter()
        .filter(|(kind, ..)| !matches!(kind, Kind::Registration | Kind::Call))
        .flat_map(|(kind, _, name)| {
            [(50, "median"), (99, "99th percentile")].map(|(percent, what)| {
                let minute = |minute: u32| {
                    let minute = f64::from(minute);
                    (minute + 0.5, percentile(&between(*kind, minute, minute + 1.0), percent))
                };
                Line { name: format!("{name}, {what}"), points: whole_minutes().map(minute).collect() }
            })
        })
        .collect();
    write(
        "soak-latency.svg",
        plot::lines("Latency of the API, minute by minute", "minutes", "milliseconds", &latencies),
    );

    let warm: Vec<_> = samples.iter().filter(|sample| sample.minutes * 60.0 > WARM.as_secs_f64()).collect();
    let (first, second) = warm.split_at(warm.len() / 2);
    let mut page = format!(
        "# Soak\n\nWritten by `make soak`; nothing here is typed by hand.\n\n{:.0} minutes on {}; load of the machine at the end {}. {STAYING} users stay, \
         {GUESTS} come and go; two phones talk from the first minute to the last.\n\n| what | how often |\n|---|---|\n",
        end,
        figures::machine(),
        figures::load()
    );
    for (_, every, name) in KINDS {
        writeln!(page, "| {name} | every {} ms |", every.as_millis()).expect("text");
    }
    page += "\n| what | first half | second half | |\n|---|---|---|---|\n";
    let mut well = failed == 0 && talk_goes_on && histories.failed == 0;
    let held: [(&str, Of); 4] = [
        ("portal: resident memory, MiB", |sample| sample.portal.memory),
        ("portal: file handles", |sample| sample.portal.handles as f64),
        ("Asterisk: resident memory, MiB", |sample| sample.asterisk.memory),
        ("Asterisk: file handles", |sample| sample.asterisk.handles as f64),
    ];
    for (name, of) in held {
        let half = |samples: &[&Sample]| median(&samples.iter().map(|sample| of(sample)).collect::<Vec<_>>());
        let (before, after) = (half(first), half(second));
        let level = after <= before * DRIFT + 1.0;
        well &= level;
        writeln!(page, "| {name} | {before:.1} | {after:.1} | {} |", if level { "level" } else { "**drifts**" })
            .expect("text");
    }
    let (began, middle) = (WARM.as_secs_f64() / 60.0, second.first().map_or(0.0, |sample| sample.minutes));
    for (kind, _, name) in KINDS {
        let half = |from, to| {
            let took = between(kind, from, to);
            format!("{:.1} / {:.1}", median(&took), percentile(&took, 99))
        };
        writeln!(page, "| {name}: median / 99th percentile, ms | {} | {} | |", half(began, middle), half(middle, end))
            .expect("text");
    }
    writeln!(
        page,
        "\nRefused or failed: {failed}. The long call {}. {}\n\nThe halves are those of the time after a warm-up of {} seconds; a figure is level if it grows by no more than {:.0} % and one unit. \
         A registration and a call are a process of SIPp each, and their latencies are that process's.\n\n\
         ![Resident memory](soak-memory.svg)\n\n![Open file handles](soak-handles.svg)\n\n![Latency](soak-latency.svg)",
        if talk_goes_on { "goes on, and both hear each other" } else { "was **dropped**" },
        histories.sentence(),
        WARM.as_secs(),
        (DRIFT - 1.0) * 100.0
    )
    .expect("text");
    fs::write(folder.join("soak.md"), page).expect("write the page");
    well
}
