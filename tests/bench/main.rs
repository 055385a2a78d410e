//! `make bench`: how close the service stands to its floors. An apply is measured against Asterisk's own two reloads, a list
//! against the database's own query, a create against the database's own transaction. Each figure and its baseline take turns in the
//! same run; databases flush to the disk. Writes `docs/performance.md` and its plots, and fails if a limit is not kept.

#![expect(clippy::cast_precision_loss, reason = "counts are small")]

mod database;
mod document;
mod http;

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use database::Database;
use document::{Document, Part, Size};
use http::Client;
use support::figures::{self, Usage, median, milliseconds, timed};
use support::portal::Settings;
use support::postgres::Options;
use support::{Asterisk, Portal, Postgres};

const ROUNDS: usize = 25;
const USERS: usize = 1000;
/// The numbers of users of which one is replaced, with the limits of that apply if nobody is registered, and if the former phone is.
/// Taking the number away costs a reload of one module, and some small questions.
const REPLACED: [(usize, f64, f64); 2] = [(100, 3.6, 3.7), (USERS, 3.5, 3.5)];
/// The numbers of users, with the limit of an apply that changes nothing. Beside the proof, it asks who had which number before, and
/// what keeps phones out.
const SIZES: [(usize, Option<f64>); 5] = [(1, None), (100, Some(2.7)), (250, None), (500, None), (USERS, Some(2.5))];
const QUERIES: usize = 100;
const CREATING_CLIENTS: [usize; 3] = [1, 16, 64];
/// A multiple of each number of clients, so that each has as many to do.
const CREATES: usize = 448;
/// Each of these takes some seconds.
const ROUNDS_BESIDE_OTHERS: usize = 9;
/// Endpoints that somebody else has on the same Asterisk.
const OTHERS: usize = 10_000;
const MANY_APPLIES: usize = 1000;

fn main() {
    let mut document = Document::begin();
    for cluster in [None, Some(Postgres::start(&Options::default()))] {
        // An Asterisk of its own, because each one becomes slower with its applies.
        let asterisk = Asterisk::start();
        let settings = Settings::of(&asterisk).with("LOG_FORMAT", "json");
        let url = cluster.as_ref().map(Postgres::new_database);
        let portal = Portal::start(&match &url {
            Some(url) => settings.with("DATABASE_URL", url),
            None => settings,
        });
        let database = url.map_or_else(|| Database::Sqlite(portal.data_dir().join("portal.db")), Database::Postgres);
        Bench { asterisk, portal, database, document: &mut document }.all();
    }
    beside_others(&mut document);
    many_applies(&mut document);
    if !document.end() {
        eprintln!("a limit is not kept: see docs/performance.md");
        std::process::exit(1);
    }
}

struct Bench<'d> {
    asterisk: Asterisk,
    portal: Portal,
    database: Database,
    document: &'d mut Document,
}

impl Bench<'_> {
    fn all(&mut self) {
        self.creates();
        self.applies();
        self.lists();
        let memory_after_more = || {
            for _ in 0..5 {
                self.portal.apply("bench");
                let mut client = Client::connect(self.portal.address());
                (0..QUERIES).for_each(|_| _ = client.list());
            }
            Usage::of(self.portal.pid()).memory
        };
        let (before, after) = (memory_after_more(), memory_after_more());
        let figure = format!("{after:.1} MiB; before the last applies and lists {before:.1}");
        let level = after < 40.0 && after < before * 1.1 + 1.0;
        self.row("resident memory after all of it", &figure, "< 40 MiB, level", level);
        self.starts();
    }

    fn row(&mut self, what: &str, figure: &str, limit: &str, kept: bool) {
        self.document.row(self.database.name(), what, figure, limit, kept);
    }

    fn creates(&mut self) {
        for clients in CREATING_CLIENTS {
            let count = if clients == 1 { CREATES / 4 } else { CREATES };
            let (mut ours, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS / 3 {
                self.database.delete_all();
                ours.push(count as f64 / timed(|| create(&self.portal, clients, count)) * 1000.0);
                self.database.delete_all();
                bare.push(self.database.creates(clients, count));
            }
            self.database.delete_all();
            let plural = if clients == 1 { "" } else { "s" };
            let (reached, text) = ratio(&ours, &bare, "/s");
            let what = format!("creates by {clients} client{plural} / the bare transaction");
            self.row(&what, &text, "≥ 0.5 ×, none refused", reached >= 0.5);
            self.document.creates(self.database.name(), clients, median(&ours), median(&bare));
        }
    }

    fn applies(&mut self) {
        let mut there = 0;
        for (size, limit) in SIZES {
            create_numbered(&self.portal, there..size);
            there = size;
            let limit = limit.map(|limit| (format!("apply of {size} unchanged / the two bare reloads"), limit));
            let unchanged = self.apply_rounds(limit, "unchanged", size, |_| {}, str::to_owned);
            self.document.size(self.database.name(), unchanged);
            for (_, nobody, old_phone) in REPLACED.into_iter().filter(|(users, ..)| *users == size) {
                self.replaced(size, nobody, old_phone);
            }
        }
        let limit = Some(("apply of 1000, all secrets new / the two bare reloads".to_owned(), 3.3));
        let all = |bench: &Self| bench.database.new_secrets("true");
        self.apply_rounds(limit, "all secrets new", USERS, all, |text| with_new_secrets(text, usize::MAX));
    }

    /// One number changes hands: nobody is registered, then its former phone is.
    fn replaced(&mut self, users: usize, nobody: f64, old_phone: f64) {
        let one_new = |text: &str| with_new_secrets(text, 1);
        let limit = (format!("apply of {users}, one user replaced, nobody registered / the two bare reloads"), nobody);
        let replace = |bench: &Self| bench.database.new_secrets("number = 1000");
        self.apply_rounds(Some(limit), "one replaced", users, replace, one_new);
        let limit = (
            format!("apply of {users}, one user replaced, the old phone registered / the two bare reloads"),
            old_phone,
        );
        let registered = |bench: &Self| {
            let contact = r#"{\"uri\":\"sip:old@127.0.0.1:9\",\"expiration_time\":\"4102444800\"}"#;
            bench.asterisk.rx(&format!(r#"database put registrar/contact 1000;@{:032x} "{contact}""#, 0));
            bench.database.new_secrets("number = 1000");
        };
        self.apply_rounds(Some(limit), "one replaced, the old phone registered", users, registered, one_new);
        let left = self.asterisk.rx("database show registrar/contact");
        assert!(left.starts_with("0 results found."), "each old phone is evicted: {left}");
    }

    /// Applies and bare reloads in turn, each after a change of its own.
    fn apply_rounds(
        &mut self,
        limit: Option<(String, f64)>,
        scene: &str,
        users: usize,
        change: impl Fn(&Self),
        edit: impl Fn(&str) -> String,
    ) -> Size {
        // Whatever the bare reloads of another scene left.
        self.portal.apply("bench");
        let logged = self.portal.log().len();
        let rounds = Rounds::of(&self.asterisk, ROUNDS, &edit, || {
            change(self);
            timed(|| _ = self.portal.apply("bench"))
        });
        if let Some((what, limit)) = limit {
            let (ratio, text) = rounds.ratio();
            self.row(&what, &text, &format!("≤ {limit:.1} ×"), ratio <= limit);
            if users == USERS {
                let parts = steps(&self.portal.log()[logged..], median(&rounds.applies));
                self.document.parts(self.database.name(), scene, parts);
            }
        }
        Size { users, apply: median(&rounds.applies), bare: median(&rounds.bare) }
    }

    fn lists(&mut self) {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        let mut client = Client::connect(self.portal.address());
        for _ in 0..ROUNDS {
            let all = timed(|| (0..QUERIES).for_each(|_| _ = client.list()));
            ours.push(all / QUERIES as f64);
            bare.push(self.database.list(QUERIES));
        }
        let limit = match self.database {
            Database::Sqlite(_) => 3.5,
            Database::Postgres(_) => 2.0,
        };
        let (one, text) = ratio(&ours, &bare, " ms");
        let what = "GET /users of 1000 on one connection / the bare query";
        self.row(what, &text, &format!("≤ {limit:.1} ×"), one <= limit);
    }

    fn starts(&mut self) {
        let start = |_| {
            self.portal.stop();
            let started = Instant::now();
            self.portal.boot();
            milliseconds(started.elapsed())
        };
        let starts: Vec<_> = (0..ROUNDS).map(start).collect();
        let figure = format!("{:.0} ms", median(&starts));
        self.row("start to first answer", &figure, "< 200 ms", median(&starts) < 200.0);
    }
}

/// Milliseconds of applies, and of the bare reloads of their rounds.
struct Rounds {
    applies: Vec<f64>,
    bare: Vec<f64>,
}

impl Rounds {
    /// `apply` gives the time of an apply; `edit` changes a generated file for the bare reloads as much as the apply did.
    fn of(asterisk: &Asterisk, count: usize, edit: impl Fn(&str) -> String, mut apply: impl FnMut() -> f64) -> Self {
        let mut rounds = Self { applies: Vec::new(), bare: Vec::new() };
        for _ in 0..count {
            rounds.applies.push(apply());
            // Asterisk skips files that it has read already, so it gets them anew, as from an apply.
            for file in [asterisk.endpoints_file(), asterisk.routing_file()] {
                let text = fs::read_to_string(&file).expect("a generated file");
                fs::write(&file, edit(&text)).expect("write it again");
            }
            let reloads =
                || ["pjsip reload", "dialplan reload"].into_iter().for_each(|command| reload(asterisk, command));
            rounds.bare.push(timed(reloads));
        }
        rounds
    }

    fn ratio(&self) -> (f64, String) {
        ratio(&self.applies, &self.bare, " ms")
    }
}

fn reload(asterisk: &Asterisk, command: &str) {
    let status = Command::new(asterisk.bin()).args(["-rx", command]).stdout(Stdio::null()).status();
    assert!(status.expect("run asterisk -rx").success());
}

/// A hundred users on a server with thousands of endpoints of somebody else.
fn beside_others(document: &mut Document) {
    let asterisk = Asterisk::start();
    let mut others = String::new();
    for index in 0..OTHERS {
        write!(
            others,
            "[other{index}]\ntype=endpoint\nauth=other{index}\naors=other{index}\n[other{index}]\ntype=auth\nauth_type=userpass\nusername=other{index}\npassword=x\n[other{index}]\ntype=aor\nmax_contacts=1\n"
        )
        .expect("text");
    }
    asterisk.write_config("others.conf", &others);
    asterisk.edit_config("pjsip.conf", |text| format!("{text}\n#include others.conf\n"));
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_TIMEOUT_SECS", 120));
    create_numbered(&portal, 0..100);
    portal.apply("bench");
    let rounds = Rounds::of(&asterisk, ROUNDS_BESIDE_OTHERS, str::to_owned, || timed(|| _ = portal.apply("bench")));
    let (ratio, text) = rounds.ratio();
    let what = format!("apply of 100 unchanged beside {OTHERS} endpoints of others / the two bare reloads");
    document.row("both", &what, &text, "≤ 1.1 ×", ratio <= 1.1);
}

/// What many applies leave behind in Asterisk.
fn many_applies(document: &mut Document) {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk));
    create_numbered(&portal, 0..10);
    let applies = |count| (0..count).for_each(|_| _ = portal.apply("bench"));
    applies(100);
    let left = || (Usage::of(asterisk.pid()).memory, topics(&asterisk));
    let (memory, topics) = left();
    applies(MANY_APPLIES);
    let (memory_after, topics_after) = left();
    let figure = format!("{memory:.1} MiB and {topics} topics before, {memory_after:.1} MiB and {topics_after} after");
    let level = topics_after == topics && memory_after < memory * 1.05 + 1.0;
    document.row("both", &format!("Asterisk's memory over {MANY_APPLIES} applies"), &figure, "level", level);
}

fn topics(asterisk: &Asterisk) -> usize {
    let shown = asterisk.rx("stasis show topics");
    let count = shown.lines().find_map(|line| line.trim().strip_suffix(" Total topics")?.parse().ok());
    count.unwrap_or_else(|| panic!("{shown}"))
}

/// The median of the rounds' own ratios, so that a machine that slows down meanwhile slows both; and all of it as text.
fn ratio(ours: &[f64], bare: &[f64], unit: &str) -> (f64, String) {
    let ratios: Vec<_> = ours.iter().zip(bare).map(|(ours, bare)| ours / bare).collect();
    let at = |percent| figures::percentile(&ratios, percent);
    let text = format!(
        "**{:.2} ×** ({:.2} to {:.2}): {:.1}{unit}, {:.1}{unit}",
        at(50),
        at(25),
        at(75),
        median(ours),
        median(bare)
    );
    (at(50), text)
}

/// Each step's median by the portal's log, and what is before and after them.
fn steps(log: &str, whole: f64) -> Vec<Part> {
    let mut steps: Vec<(String, Vec<f64>)> = Vec::new();
    for line in log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let (Some(name), Some(took)) = (line["step"].as_str(), line["milliseconds"].as_f64()) else { continue };
        match steps.iter_mut().find(|(step, _)| step == name) {
            Some((_, all)) => all.push(took),
            None => steps.push((name.to_owned(), vec![took])),
        }
    }
    let mut parts: Vec<_> = steps.into_iter().map(|(name, all)| Part { name, milliseconds: median(&all) }).collect();
    let known: f64 = parts.iter().map(|part| part.milliseconds).sum();
    parts.push(Part { name: "the rest: audit rows, HTTP".to_owned(), milliseconds: (whole - known).max(0.0) });
    parts
}

/// A file of endpoints in which so many passwords are new; any other file as it is.
fn with_new_secrets(text: &str, count: usize) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut left = count;
    let line = |line: &str| {
        if line.starts_with("password=") && left > 0 {
            left -= 1;
            format!("password={:030}\n", NEXT.fetch_add(1, Ordering::Relaxed))
        } else {
            format!("{line}\n")
        }
    };
    text.lines().map(line).collect()
}

fn create(portal: &Portal, clients: usize, count: usize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::connect(portal.address());
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    client.create(index);
                }
            });
        }
    });
}

fn create_numbered(portal: &Portal, numbers: std::ops::Range<usize>) {
    let mut client = Client::connect(portal.address());
    numbers.for_each(|index| client.create(index));
}
