//! A random history of a server, from a seed: users come and go, applies succeed or are killed, Asterisk and the portal die and
//! restart, the database comes back from a backup, others read Asterisk's own database, and all phones that ever had a secret
//! register and are called. Nothing here knows how an apply works, only what it promises:
//!
//! - A phone that rings has the secret in force.
//! - A phone registers if its secret is in force, and otherwise not.
//! - On a healthy server an apply answers 200. Then Asterisk serves exactly the database, and the phones of those who stayed are
//!   registered still.

mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;

use super::process::Signal;
use super::{Answer, SetWhenDropped, secs, wait_until};
use world::World;

/// How many users come and go.
const USERS: usize = 6;

/// Within this an apply on a healthy server answers, even if the machine is busy.
const BOUND: Duration = secs(30);

/// How many steps a failure shows.
const LAST_STEPS: usize = 12;

/// Something that happens. Times are in milliseconds.
#[derive(Debug)]
enum Step {
    /// Some numbers get another owner.
    HandOver(Vec<String>),
    Delete(String),
    Create,
    BackUp,
    Restore,
    /// All phones try to register.
    Register,
    /// An apply, while so many phones of former owners hammer.
    Apply { hammering: usize, then: Fate },
    /// Calls for some time.
    Calls(u64),
    /// Asterisk dies or is restarted, while others call.
    Asterisk { after: u64, how: Signal },
    Portal(Signal),
    Reload(&'static str),
    /// Somebody reads Asterisk's database, while history goes on.
    Reader { after: u64, hold: u64, times: u32, pause: u64 },
}

/// What happens to an apply.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Nothing,
    /// So long after the request.
    PortalKilled(u64),
    AsteriskKilled(u64),
    Reload(u64, &'static str),
    /// So long after the answer.
    AnsweredThenAsteriskKilled(u64),
}

const RELOADS: [&str; 3] = ["pjsip reload", "dialplan reload", "module reload"];

/// What a history did.
#[derive(Debug, Default)]
pub struct Told {
    pub steps: usize,
    pub applies: usize,
    pub calls: usize,
    pub rings: usize,
}

/// A history, and what it tells if it fails.
pub struct History {
    name: String,
    world: World,
    random: Rng,
    began: Instant,
    steps: Vec<String>,
    applies: usize,
    /// Another process may disturb the next apply again and again.
    readers_return: bool,
}

impl Drop for History {
    fn drop(&mut self) {
        if thread::panicking() {
            let last = &self.steps[self.steps.len().saturating_sub(LAST_STEPS)..];
            eprintln!("\n{}, failed after {} steps; the last:\n{}", self.name, self.steps.len(), last.join("\n"));
            for (what, log) in [("the portal", self.world.portal.log()), ("Asterisk", self.world.asterisk.log())] {
                let lines: Vec<_> = log.lines().collect();
                eprintln!("\nlast lines of {what}:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
    }
}

impl History {
    /// A server with its first users, on SQLite or on the PostgreSQL of this URL.
    pub fn new(seed: u64, url: Option<String>) -> Self {
        let database = if url.is_some() { "PostgreSQL" } else { "SQLite" };
        let name = format!("random history on {database}, PBX_SEED={seed}");
        eprintln!("{name}");
        let mut world = World::new(url);
        for _ in 0..USERS {
            world.create();
        }
        world.portal.apply("history");
        world.register_all();
        let random = Rng::with_seed(seed);
        Self { name, world, random, began: Instant::now(), steps: Vec::new(), applies: 0, readers_return: false }
    }

    /// So many steps more.
    pub fn go(&mut self, steps: usize) {
        let mut after_an_apply = false;
        let mut to_apply = false;
        for _ in 0..steps {
            let step = self.next(after_an_apply, to_apply);
            after_an_apply = matches!(step, Step::Apply { .. });
            to_apply = matches!(step, Step::HandOver(_) | Step::Create | Step::Delete(_) | Step::Restore);
            self.steps.push(format!("{:6.1} s {step:?}", self.began.elapsed().as_secs_f64()));
            self.run(step);
            self.world.call_all();
        }
    }

    pub fn told(&self) -> Told {
        let World { calls, rings, .. } = &self.world;
        let [calls, rings] = [calls, rings].map(|count| count.load(Ordering::Relaxed));
        Told { steps: self.steps.len(), applies: self.applies, calls, rings }
    }

    /// What happens next: changes are mostly applied, and an apply is mostly followed by what could undo it.
    fn next(&mut self, after_an_apply: bool, to_apply: bool) -> Step {
        let owned = self.world.owned();
        // How often each happens, compared with the others.
        let weights = match (after_an_apply, to_apply) {
            (true, _) => [15, 2, 3, 2, 2, 25, 4, 30, 10, 2, 3, 2],
            (_, true) => [4, 3, 4, 2, 2, 4, 60, 0, 4, 5, 4, 15],
            _ => [50, 8, 8, 6, 6, 6, 12, 0, 2, 3, 3, 6],
        };
        let mut choice = self.random.u32(..weights.iter().sum::<u32>());
        let kind = weights.iter().position(|weight| {
            let here = choice < *weight;
            choice = choice.saturating_sub(*weight);
            here
        });
        let random = &mut self.random;
        match kind.expect("one of them") {
            0 if !owned.is_empty() => {
                let count = random.usize(1..=4);
                Step::HandOver(random.choose_multiple(owned, count))
            }
            1 if !owned.is_empty() => Step::Delete(owned[random.usize(..owned.len())].clone()),
            2 if owned.len() < 2 * USERS => Step::Create,
            3 => Step::BackUp,
            4 if self.world.backup.is_some() => Step::Restore,
            5 => Step::Register,
            7 => Step::Calls(random.u64(500..2500)),
            8 => Step::Asterisk { after: random.u64(..1000), how: if random.bool() { Signal::KILL } else { Signal::TERM } },
            9 => Step::Portal(if random.bool() { Signal::KILL } else { Signal::TERM }),
            10 => Step::Reload(RELOADS[random.usize(..RELOADS.len())]),
            11 => Self::reader(random),
            _ => Step::Apply { hammering: random.usize(..3), then: Self::fate(random) },
        }
    }

    fn reader(random: &mut Rng) -> Step {
        let after = random.u64(..1500);
        match random.bool() {
            true => Step::Reader { after, hold: random.u64(300..3000), times: 1, pause: 0 },
            false => Step::Reader { after, hold: random.u64(50..400), times: random.u32(2..10), pause: 300 },
        }
    }

    fn fate(random: &mut Rng) -> Fate {
        match random.u32(..100) {
            0..35 => Fate::Nothing,
            35..60 => Fate::PortalKilled(random.u64(..2500)),
            60..65 => Fate::AsteriskKilled(random.u64(..2000)),
            65..75 => Fate::Reload(random.u64(..1500), RELOADS[random.usize(..RELOADS.len())]),
            _ => Fate::AnsweredThenAsteriskKilled(random.u64(..1500)),
        }
    }

    fn run(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::HandOver(numbers) => {
                numbers.iter().for_each(|number| world.delete(number));
                numbers.iter().for_each(|_| world.create());
            }
            Step::Delete(number) => world.delete(&number),
            Step::Create => world.create(),
            Step::BackUp => world.back_up(),
            Step::Restore => world.restore(),
            Step::Register => world.register_all(),
            Step::Apply { hammering, then } => self.apply(hammering, then),
            Step::Calls(time) => world.call_for(Duration::from_millis(time)),
            Step::Asterisk { after, how } => {
                world.call_for(Duration::from_millis(after));
                self.asterisk_ends(how);
            }
            Step::Portal(how) => {
                if how == Signal::KILL {
                    world.portal.kill();
                } else {
                    world.portal.stop();
                }
                world.portal.boot();
            }
            Step::Reload(command) => drop(world.asterisk.rx(command)),
            Step::Reader { after, hold, times, pause } => {
                let [after, hold, pause] = [after, hold, pause].map(Duration::from_millis);
                world.read(after, hold, times, pause);
                self.readers_return |= times > 1;
            }
        }
    }

    fn asterisk_ends(&mut self, how: Signal) {
        if how == Signal::KILL {
            self.world.asterisk.kill();
        } else {
            self.world.asterisk.stop();
        }
        self.world.readers_end();
        self.world.asterisk.boot();
    }

    fn apply(&mut self, hammering: usize, then: Fate) {
        self.applies += 1;
        let staying = self.world.staying();
        let began = Instant::now();
        let answer = self.apply_amid_calls(hammering, then);
        let outcome = answer.as_ref().map_or("no answer".to_owned(), |answer| match &answer.json["error_details"] {
            serde_json::Value::String(details) => format!("{}, {details}", answer.status),
            _ => format!("{}, evicted {}", answer.status, answer.json["registrations_evicted"]),
        });
        let step = self.steps.last_mut().expect("this step");
        *step += &format!(" -> {outcome}, {:.1} s", began.elapsed().as_secs_f64());
        match then {
            Fate::PortalKilled(_) => self.world.portal.boot(),
            Fate::AsteriskKilled(_) | Fate::AnsweredThenAsteriskKilled(_) => self.asterisk_ends(Signal::KILL),
            Fate::Nothing | Fate::Reload(..) => {}
        }
        let readers_return = std::mem::take(&mut self.readers_return);
        match answer.map(|answer| answer.status) {
            Some(200) => {
                assert!(began.elapsed() < BOUND, "an apply takes {:?}", began.elapsed());
                self.world.serves_the_database();
                if !matches!(then, Fate::AsteriskKilled(_) | Fate::AnsweredThenAsteriskKilled(_)) {
                    let registered = self.world.registered();
                    let lost: Vec<_> = staying.difference(&registered).collect();
                    assert!(lost.is_empty(), "users who stay are not registered any more: {lost:?}");
                }
            }
            Some(500) if readers_return && outcome.contains("astdb.sqlite3") => {}
            _ if matches!(then, Fate::PortalKilled(_) | Fate::AsteriskKilled(_)) => {}
            _ => panic!("an apply on a healthy server fails: {outcome}"),
        }
    }

    /// Gives the answer, if there is one. Whoever was killed is down then.
    fn apply_amid_calls(&self, hammering: usize, then: Fate) -> Option<Answer> {
        let World { asterisk, portal, .. } = &self.world;
        let leaving = self.world.leaving();
        let changing: BTreeSet<_> = leaving.iter().map(|phone| phone.number.clone()).collect();
        let wait = |after| thread::sleep(Duration::from_millis(after));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let _done = SetWhenDropped(&done);
            for phone in leaving.into_iter().take(hammering) {
                let done = &done;
                scope.spawn(move || phone.hammer(done));
            }
            let calls = scope.spawn(|| self.world.call_until(&done, &changing));
            let body = json!({"triggered_by": "history"});
            let apply = scope.spawn(move || portal.try_request("POST", "/apply", Some(&body)));
            let stop_calls_and_kill_asterisk = || {
                done.store(true, Ordering::Relaxed);
                calls.join().expect("calls without a fault");
                asterisk.kill();
            };
            match then {
                Fate::Nothing | Fate::AnsweredThenAsteriskKilled(_) => {}
                Fate::PortalKilled(after) => {
                    wait(after);
                    portal.kill();
                }
                Fate::Reload(after, command) => {
                    wait(after);
                    asterisk.rx(command);
                }
                Fate::AsteriskKilled(after) => {
                    wait(after);
                    stop_calls_and_kill_asterisk();
                    return apply.join().expect("a request does not panic").ok();
                }
            }
            let answer = apply.join().expect("a request does not panic").ok();
            if let Fate::AnsweredThenAsteriskKilled(after) = then {
                wait(after);
                stop_calls_and_kill_asterisk();
            }
            answer
        })
    }
}
