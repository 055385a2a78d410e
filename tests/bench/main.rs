//! `make bench`: how close the service stands to its floors. An apply is measured against Asterisk's own two reloads, a list
//! against the database's own query and against memory, a create against the database's own commit. Each figure has its baseline beside it, in
//! turn with it, in the same run; databases flush to the disk. Writes `docs/performance.md` and its plots, and fails where
//! something is not reached.

#![expect(clippy::cast_precision_loss, reason = "counts are small")]

mod database;
mod document;
#[allow(dead_code)] // the soak uses all of it
mod figures;
mod http;
mod memory;
mod plot;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use database::Database;
use document::{Document, Part, Size};
use figures::{Usage, median, milliseconds, timed};
use http::Client;
use memory::Server;
use pbx_control_portal::asterisk::control::Control;
use pbx_control_portal::asterisk::in_force;
use pbx_control_portal::domain::{Email, ExtensionNumber, Name, Secret};
use pbx_control_portal::settings::DatabaseUrl;
use pbx_control_portal::storage::Storage;
use support::portal::Settings;
use support::postgres::Options;
use support::{Asterisk, Portal, Postgres, secs};
use tokio::runtime::Builder;
use tokio::try_join;

const ROUNDS: usize = 25;
/// Of applies: one and the same takes more or less by a quarter.
const APPLIES: usize = 45;
const USERS: usize = 1000;
const SIZES: [usize; 5] = [1, 100, 250, 500, USERS];
const QUERIES: usize = 100;
/// Of a list that is read anew.
const CHANGES: usize = 5;
const LISTING_CLIENTS: usize = 16;
const CREATING_CLIENTS: [usize; 3] = [1, 16, 64];
/// A multiple of each number of clients, so that each has as many to do.
const CREATES: usize = 448;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [memory::ARGUMENT, file] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return memory::serve(file);
    }
    let mut document = Document::begin();
    for cluster in [None, Some(Postgres::start(&Options::default()))] {
        // An Asterisk of its own, because it grows older with each apply.
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
    if !document.end() {
        eprintln!("something is not reached: see docs/performance.md");
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
                list_at_once(self.portal.address());
            }
            Usage::of(self.portal.pid()).memory
        };
        let (before, after) = (memory_after_more(), memory_after_more());
        let figure = format!("{after:.1} MiB; before the last applies and lists {before:.1}");
        self.row(
            "resident memory after all of it",
            &figure,
            "< 40 MiB, level",
            after < 40.0 && after < before * 1.1 + 1.0,
        );
        self.starts();
    }

    fn row(&mut self, what: &str, figure: &str, reach: &str, reached: bool) {
        self.document.row(self.database.name(), what, figure, reach, reached);
    }

    fn creates(&mut self) {
        for clients in CREATING_CLIENTS {
            let count = if clients == 1 { CREATES / 4 } else { CREATES };
            let (mut ours, mut bare) = (Vec::new(), Vec::new());
            let (mut exchanges, mut stored, mut refused) = (Vec::new(), Vec::new(), Vec::new());
            let mut client = Client::connect(self.portal.address());
            for _ in 0..ROUNDS / 3 {
                if clients == 1 {
                    self.database.delete_all();
                    stored.push(count as f64 / store(&self.database, count) * 1000.0);
                }
                exchanges.push(timed(|| (0..QUERIES).for_each(|_| client.nothing())) / QUERIES as f64);
                self.database.delete_all();
                ours.push(count as f64 / timed(|| create(&self.portal, clients, count)) * 1000.0);
                if clients == 1 {
                    refused.push(timed(|| (0..count).for_each(|index| client.create_again(index))) / count as f64);
                }
                self.database.delete_all();
                bare.push(self.database.creates(clients, count));
            }
            self.database.delete_all();
            let what =
                format!("creates by {clients} client{} / the bare transaction", if clients == 1 { "" } else { "s" });
            let (reached, text) = ratio(&ours, &bare, "/s");
            self.row(&what, &text, "≥ 0.8 ×", reached >= 0.8);
            if clients == 1 {
                // What the row above can't get over: a client's next request waits for its answer.
                let both = bare.iter().zip(&exchanges).map(|(rate, exchange)| 1000.0 / (1000.0 / rate + exchange));
                let with_exchange: Vec<_> = both.collect();
                let (_, text) = ratio(&with_exchange, &bare, "/s");
                self.row("the most that it could be: the bare transaction and an HTTP exchange that does nothing / the bare transaction", &text, "", true);
                let (_, text) = ratio(&ours, &with_exchange, "/s");
                self.row("creates by 1 client / that", &text, "", true);
                let (_, text) = ratio(&stored, &bare, "/s");
                self.row("creates without HTTP, one after another / the bare transaction", &text, "", true);
                let whole = median(&ours.iter().map(|rate| 1000.0 / rate).collect::<Vec<_>>());
                let figure = format!("{:.3} ms of {whole:.3} ms", median(&refused));
                self.row(
                    "a create by 1 client that is refused, its address being in use: all but the commit",
                    &figure,
                    "",
                    true,
                );
            }
            self.document.creates(self.database.name(), clients, median(&ours), median(&bare));
        }
    }

    fn applies(&mut self) {
        let mut there = 0;
        let mut unchanged = None;
        for size in SIZES {
            create_numbered(&self.portal, there..size);
            there = size;
            self.portal.apply("bench");
            let what = (size == USERS).then_some(("apply of 1000 unchanged / the two bare reloads", 1.5));
            let own = self.apply_rounds(what, "unchanged", size, |_| {}, str::to_owned);
            self.document.size(self.database.name(), own);
            unchanged = Some(own);
        }
        let sizes = self.document.sizes(self.database.name());
        let own = |users| sizes.iter().find(|size| size.users == users).map_or([f64::NAN; 3], |size| size.own);
        let ([low, few, high], [least, many, most]) = (own(100), own(USERS));
        // A share that is proportional is above and below 10 times as often: what tells is whether it is above beyond the spread.
        let [from, growth, to] = [least / high, many / few, most / low];
        let figure = format!("**{growth:.1} ×** ({from:.1} to {to:.1}) for 10 × the users: {few:.1} ms, {many:.1} ms");
        let what = "growth of our own share from 100 to 1000 users (by the quarters of the rounds at both)";
        self.row(what, &figure, "from ≤ 10 ×", from <= 10.0);

        let all = |database: &Database| database.new_secrets("true");
        let all_new = self.apply_rounds(
            Some(("apply of 1000, all secrets new / reloads of equally new files", 1.6)),
            "all secrets new",
            USERS,
            all,
            |text| with_new_secrets(text, usize::MAX),
        );
        let one = |database: &Database| database.new_secrets("number = 1000");
        let one_changed = self.apply_rounds(
            Some(("apply of 1000, one user changed / reloads of equally new files", 1.5)),
            "one changed",
            USERS,
            one,
            |text| with_new_secrets(text, 1),
        );
        self.portal.apply("bench");
        let [before, after] = self.questions();
        // Quarantine reloads the routing once more. What else there is of it runs beside the reload of the endpoints.
        for (scene, size, quarantine) in [
            ("unchanged", unchanged.expect("sizes"), 0.0),
            ("all secrets new", all_new, all_new.dialplan),
            ("one user changed", one_changed, one_changed.dialplan),
        ] {
            let limit = before + quarantine + size.pjsip + after;
            let figure = format!("**{:.2} ×**: {limit:.1} ms, {:.1} ms", limit / size.bare, size.bare);
            let what = format!(
                "Asterisk's part of an apply of 1000, {scene}, measured by itself: the questions before,{} the reload of the endpoints, the questions after / the two bare reloads",
                if quarantine > 0.0 { " the quarantine," } else { "" }
            );
            self.row(&what, &figure, "", true);
        }
    }

    /// What each question of an apply of 1000 costs by itself, with nothing beside it; gives what those before the reloads, and
    /// those after them, take when they are asked at once, as an apply does.
    fn questions(&mut self) -> [f64; 2] {
        let control = Control::new(&self.asterisk.run_dir(), secs(30));
        let numbers: Vec<_> = (1000..2000).map(|number| ExtensionNumber::try_from(number).expect("a number")).collect();
        let caller_ids =
            (0..).zip(&numbers).map(|(index, number)| (*number, format!("\"User {index}\" <{number}>"))).collect();
        let expected = numbers.iter().copied().collect();
        let runtime = Builder::new_current_thread().enable_all().build().expect("an event loop");
        let each = |ask: &dyn Fn()| median(&(0..ROUNDS).map(|_| timed(ask)).collect::<Vec<_>>());
        let questions: [(&str, f64); 5] = [
            ("modules", each(&|| _ = runtime.block_on(in_force::missing_modules(&control)).expect("an answer"))),
            ("dialplan", each(&|| _ = runtime.block_on(in_force::dialplan(&control)).expect("an answer"))),
            (
                "endpoints, auths and AORs",
                each(&|| _ = runtime.block_on(in_force::objects(&control, &expected)).expect("an answer")),
            ),
            (
                "1000 secrets",
                each(&|| {
                    _ = runtime.block_on(in_force::secrets(&control, numbers.iter().copied())).expect("an answer");
                }),
            ),
            (
                "1000 caller IDs",
                each(&|| {
                    let others =
                        runtime.block_on(in_force::other_caller_ids(&control, &caller_ids)).expect("an answer");
                    assert!(others.is_empty(), "{others:?}");
                }),
            ),
        ];
        let secrets = || in_force::secrets(&control, numbers.iter().copied());
        let before = each(&|| {
            let questions =
                async { try_join!(in_force::missing_modules(&control), in_force::dialplan(&control), secrets()) };
            _ = runtime.block_on(questions).expect("answers");
        });
        let after = each(&|| {
            let listed = async {
                in_force::objects(&control, &expected).await?;
                in_force::other_caller_ids(&control, &caller_ids).await
            };
            _ = runtime.block_on(async { try_join!(listed, secrets()) }).expect("answers");
        });
        let together = [("all before the reloads, at once", before), ("all after them, at once", after)];
        let parts = questions.into_iter().chain(together);
        let parts = parts.map(|(name, took)| Part { name: name.to_owned(), milliseconds: took });
        self.document.parts(self.database.name(), "questions alone", parts.collect());
        [before, after]
    }

    /// Applies and bare reloads in turn, each after a change of its own.
    fn apply_rounds(
        &mut self,
        what: Option<(&str, f64)>,
        scene: &str,
        users: usize,
        change: impl Fn(&Database),
        edit: impl Fn(&str) -> String,
    ) -> Size {
        let (mut applies, mut pjsip, mut dialplan) = (Vec::new(), Vec::new(), Vec::new());
        // Whatever the bare reloads of another scene left.
        self.portal.apply("bench");
        let logged = self.portal.log().len();
        for _ in 0..APPLIES {
            change(&self.database);
            applies.push(timed(|| _ = self.portal.apply("bench")));
            // Asterisk skips files that it has read already, so it is given them anew, as an apply gives them.
            for file in [self.asterisk.endpoints_file(), self.asterisk.routing_file()] {
                let text = fs::read_to_string(&file).expect("a generated file");
                fs::write(&file, edit(&text)).expect("write it again");
            }
            pjsip.push(timed(|| self.reload("pjsip reload")));
            dialplan.push(timed(|| self.reload("dialplan reload")));
        }
        let bare: Vec<_> = pjsip.iter().zip(&dialplan).map(|(pjsip, dialplan)| pjsip + dialplan).collect();
        if let Some((what, limit)) = what {
            let (ratio, text) = ratio(&applies, &bare, " ms");
            self.row(what, &text, &format!("≤ {limit} ×"), ratio <= limit);
            let parts = steps(&self.portal.log()[logged..], median(&applies));
            self.document.parts(self.database.name(), scene, parts);
            let reloads = [("pjsip reload", median(&pjsip)), ("dialplan reload", median(&dialplan))];
            let reloads = reloads.map(|(name, took)| Part { name: name.to_owned(), milliseconds: took });
            self.document.parts(self.database.name(), &format!("{scene}: bare"), reloads.into());
        }
        // Of each round by itself: the difference of two medians would be that of different moments.
        let own: Vec<_> = applies.iter().zip(&bare).map(|(apply, bare)| apply - bare).collect();
        let own = [25, 50, 75].map(|percent| figures::percentile(&own, percent));
        let [apply, bare, pjsip, dialplan] = [applies, bare, pjsip, dialplan].map(|figures| median(&figures));
        Size { users, apply, bare, pjsip, dialplan, own }
    }

    fn reload(&self, command: &str) {
        let status = Command::new(self.asterisk.bin()).args(["-rx", command]).stdout(Stdio::null()).status();
        assert!(status.expect("run asterisk -rx").success());
    }

    fn lists(&mut self) {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        let mut client = Client::connect(self.portal.address());
        let body = client.list().to_vec();
        for _ in 0..ROUNDS {
            let all = timed(|| (0..QUERIES).for_each(|_| _ = client.list()));
            ours.push(all / QUERIES as f64);
            bare.push(self.database.list(QUERIES));
        }
        let (one, text) = ratio(&ours, &bare, " ms");
        let what = "GET /users of 1000 on one connection, nothing changed meanwhile / the bare query";
        self.row(what, &text, "≤ 1.3 ×", one <= 1.3);
        let (mut anew, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let each = (0..CHANGES).map(|_| {
                self.database.new_secrets("number = 1000");
                timed(|| _ = client.list())
            });
            anew.push(each.sum::<f64>() / CHANGES as f64);
            bare.push(self.database.list(QUERIES));
        }
        // The first list after a change is read anew, and its 250 kB are written anew.
        let (_, text) = ratio(&anew, &bare, " ms");
        self.row("the same, each right after a change / the bare query", &text, "", true);

        let file = self.portal.work_dir().join("list.json");
        fs::write(&file, body).expect("write the answer");
        let server = Server::start(&file);
        let (mut ours, mut ready, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS / 2 {
            ours.push(list_at_once(self.portal.address()));
            ready.push(list_at_once(server.address()));
            bare.push(self.database.lists_at_once(LISTING_CLIENTS, QUERIES / 4));
        }
        let (at_once, text) = ratio(&ours, &ready, "/s");
        let what = format!("{LISTING_CLIENTS} connections listing 1000 / the same bytes from memory");
        self.row(&what, &text, "≥ 0.5 ×", at_once >= 0.5);
        // For comparison: while nothing changes, the query is not made.
        let (_, text) = ratio(&ours, &bare, "/s");
        let what = format!("{LISTING_CLIENTS} connections listing 1000 / the bare query by as many");
        self.row(&what, &text, "", true);
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

/// Lists a second.
fn list_at_once(address: std::net::SocketAddr) -> f64 {
    let took = timed(|| {
        std::thread::scope(|scope| {
            for _ in 0..LISTING_CLIENTS {
                scope.spawn(|| {
                    let mut client = Client::connect(address);
                    (0..QUERIES / 4).for_each(|_| _ = client.list());
                });
            }
        });
    });
    (LISTING_CLIENTS * (QUERIES / 4)) as f64 / took * 1000.0
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

/// A file of endpoints in which so many passwords are others; any other file as it is.
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

/// Milliseconds of so many creates by the service's storage alone.
fn store(database: &Database, count: usize) -> f64 {
    let runtime = Builder::new_current_thread().enable_all().build().expect("an event loop");
    let _runtime = runtime.enter();
    let storage = Storage::new(&DatabaseUrl::parse(&database.url()).expect("a URL")).expect("threads");
    let create = |index: usize| {
        let name = Name::parse(&format!("User {index}")).expect("a name");
        let email = Email::parse(&format!("user{index}@example.com")).expect("an address");
        runtime.block_on(storage.create_user(name, email, Secret::generate())).expect("a user");
    };
    // Connected.
    create(count);
    timed(|| (0..count).for_each(create))
}

fn create_numbered(portal: &Portal, numbers: std::ops::Range<usize>) {
    let mut client = Client::connect(portal.address());
    numbers.for_each(|index| client.create(index));
}
