//! A random history of a server, from a seed: users come and go, applies succeed or are killed, Asterisk and the portal die and
//! restart, the database comes back from a backup, others read Asterisk's own database, and all phones that ever had a secret
//! register and are called. Nothing here knows how an apply works, only what it promises:
//!
//! - A phone that rings has the secret in force, or the last one until its endpoint is gone.
//! - A phone registers if its secret is in force, and otherwise not.
//! - On a healthy server an apply answers 200. Then Asterisk serves exactly the database, and the phones of users who stayed are
//!   still registered.

mod world;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};

use super::{Answer, SetWhenDropped, secs};
use world::World;

/// How many users come and go.
const USERS: usize = 6;

/// An apply on a healthy server answers within this, even if the machine is busy.
const BOUND: Duration = secs(30);

/// How many steps a failure shows.
const LAST_STEPS: usize = 12;

/// A step. Times are in milliseconds.
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
    /// An apply, while so many phones hammer, of former and new owners of the numbers that it hands over.
    Apply {
        hammering: usize,
        then: Fate,
    },
    /// Calls for some time.
    Calls(u64),
    /// Asterisk is killed or restarted.
    Asterisk {
        killed: bool,
    },
    Portal {
        killed: bool,
    },
    Reload(&'static str),
    /// Somebody reads Asterisk's database, while history goes on.
    Reader {
        after: u64,
        hold: u64,
        times: u32,
        pause: u64,
    },
}

/// What decides which steps are likely next.
enum Kind {
    Change,
    Apply,
    Register,
    Other,
}

/// What happens to an apply.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Nothing,
    /// This long after the request.
    PortalKilled(u64),
    AsteriskKilled(u64),
    Reload(u64, &'static str),
    /// This long after the answer.
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

/// A history, with what it prints if it fails.
pub struct History {
    name: String,
    world: World,
    random: Rng,
    began: Instant,
    count: usize,
    steps: Vec<String>,
    /// Prints each step.
    pub aloud: bool,
    kind: Kind,
    applies: usize,
    /// Another process may disturb the next apply again and again.
    readers_return: bool,
}

/// How many histories ended because Asterisk crashed by itself, as when a hang-up meets its issue 1985: then nothing was promised.
pub static ASTERISK_CRASHED: AtomicUsize = AtomicUsize::new(0);

impl Drop for History {
    fn drop(&mut self) {
        if thread::panicking() {
            if self.world.asterisk.crashed() {
                ASTERISK_CRASHED.fetch_add(1, Ordering::Relaxed);
                eprintln!("\nAsterisk crashed by itself");
            }
            let last = &self.steps[self.steps.len().saturating_sub(LAST_STEPS)..];
            eprintln!("\n{}, failed after {} steps; the last:\n{}", self.name, self.count, last.join("\n"));
            let World { portal, asterisk, .. } = &self.world;
            // Asterisk's database, and who could not register; a start alone logs hundreds of lines.
            let of_interest = |line: &&str| ["db.c", "registrar"].iter().any(|module| line.contains(module));
            for (what, log) in [("the portal", portal.log()), ("Asterisk", asterisk.log())] {
                let lines: Vec<_> = log.lines().filter(|line| what == "the portal" || of_interest(line)).collect();
                eprintln!("\nlast lines of {what}:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
    }
}

impl Kind {
    fn of(step: &Step) -> Self {
        match step {
            Step::HandOver(_) | Step::Create | Step::Delete(_) | Step::Restore => Self::Change,
            Step::Apply { .. } => Self::Apply,
            Step::Register => Self::Register,
            _ => Self::Other,
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
        Self {
            name,
            world,
            random,
            began: Instant::now(),
            count: 0,
            steps: Vec::new(),
            aloud: false,
            kind: Kind::Other,
            applies: 0,
            readers_return: false,
        }
    }

    /// Like [`History::new`], from a seed that nobody chose.
    pub fn of_any_seed(url: Option<String>) -> Self {
        Self::new(fastrand::u64(..), url)
    }

    /// Runs this many more steps.
    pub fn go(&mut self, steps: usize) {
        for _ in 0..steps {
            let step = self.next();
            self.tell(&format!("{:6.1} s {step:?}", self.began.elapsed().as_secs_f64()));
            self.count += 1;
            self.kind = Kind::of(&step);
            self.run(step);
            self.world.call_all();
        }
    }

    fn tell(&mut self, line: &str) {
        if self.aloud {
            eprintln!("{line}");
        }
        self.steps.push(line.to_owned());
    }

    pub fn told(&self) -> Told {
        let World { calls, rings, .. } = &self.world;
        let [calls, rings] = [calls, rings].map(|count| count.load(Ordering::Relaxed));
        Told { steps: self.count, applies: self.applies, calls, rings }
    }

    /// Chooses the next step: changes are mostly applied, and an apply is mostly followed by something that could undo it.
    fn next(&mut self) -> Step {
        let owned = self.world.owned();
        let create = if owned.len() < USERS { 15 } else { 2 };
        // The weight of each kind of step.
        let weights = match self.kind {
            Kind::Apply => [20, 3, create, 2, 2, 35, 5, 20, 3, 2, 3, 3],
            Kind::Change => [4, 3, create, 2, 2, 4, 60, 0, 2, 5, 4, 20],
            Kind::Register => [25, 4, create, 4, 2, 0, 5, 50, 4, 2, 2, 4],
            Kind::Other => [50, 8, create, 6, 6, 10, 12, 0, 2, 3, 3, 10],
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
            8 => Step::Asterisk { killed: random.bool() },
            9 => Step::Portal { killed: random.bool() },
            10 => Step::Reload(RELOADS[random.usize(..RELOADS.len())]),
            11 => Self::reader(random),
            _ => Step::Apply { hammering: random.usize(..3), then: Self::fate(random) },
        }
    }

    fn reader(random: &mut Rng) -> Step {
        let after = random.u64(..1500);
        if random.bool() {
            Step::Reader { after, hold: random.u64(300..3000), times: 1, pause: 0 }
        } else {
            Step::Reader { after, hold: random.u64(50..400), times: random.u32(2..10), pause: 300 }
        }
    }

    /// An apply takes some hundredths of a second, or some seconds if another process reads Asterisk's database.
    fn soon(random: &mut Rng) -> u64 {
        random.u64(..2000) >> random.u32(..6)
    }

    fn fate(random: &mut Rng) -> Fate {
        match random.u32(..100) {
            0..30 => Fate::Nothing,
            30..55 => Fate::PortalKilled(Self::soon(random)),
            55..60 => Fate::AsteriskKilled(Self::soon(random)),
            60..70 => Fate::Reload(Self::soon(random), RELOADS[random.usize(..RELOADS.len())]),
            _ => Fate::AnsweredThenAsteriskKilled(Self::soon(random)),
        }
    }

    fn run(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::HandOver(numbers) => {
                for number in &numbers {
                    world.delete(number);
                }
                for _ in &numbers {
                    world.create();
                }
            }
            Step::Delete(number) => world.delete(&number),
            Step::Create => world.create(),
            Step::BackUp => world.back_up(),
            Step::Restore => world.restore(),
            Step::Register => world.register_all(),
            Step::Apply { hammering, then } => self.apply(hammering, then),
            Step::Calls(time) => world.call_for(Duration::from_millis(time)),
            Step::Asterisk { killed: true } => self.asterisk_is_killed(),
            Step::Asterisk { killed: false } => world.asterisk.restart(),
            Step::Portal { killed } => {
                if killed {
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

    fn asterisk_is_killed(&mut self) {
        self.world.asterisk.kill();
        self.world.asterisk.boot();
    }

    fn apply(&mut self, hammering: usize, then: Fate) {
        self.applies += 1;
        let staying = self.world.staying();
        let began = Instant::now();
        let random = self.random.fork();
        let answer = self.apply_amid_calls(random, hammering, then);
        let outcome = answer.as_ref().map_or("no answer".to_owned(), |answer| match &answer.json["error_details"] {
            Value::String(details) => format!("{}, {details}", answer.status),
            _ => format!("{}, evicted {}", answer.status, evicted(&answer.json)),
        });
        self.tell(&format!("         {outcome}, {:.1} s", began.elapsed().as_secs_f64()));
        match then {
            Fate::PortalKilled(_) => self.world.portal.boot(),
            Fate::AsteriskKilled(_) | Fate::AnsweredThenAsteriskKilled(_) => self.asterisk_is_killed(),
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

    /// Gives the answer, if there is one. A killed process is still down afterwards.
    fn apply_amid_calls(&self, mut random: Rng, hammering: usize, then: Fate) -> Option<Answer> {
        let World { asterisk, portal, .. } = &self.world;
        let changing = self.world.changing();
        let mut restless = self.world.restless(&changing);
        random.shuffle(&mut restless);
        let wait = |after| thread::sleep(Duration::from_millis(after));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let _done = SetWhenDropped(&done);
            for phone in restless.into_iter().take(hammering) {
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

/// The numbers whose phones an apply evicted.
fn evicted(applied: &Value) -> String {
    let registrations = applied["registrations_evicted"].as_array().into_iter().flatten();
    let numbers: Vec<_> = registrations.map(|registration| registration["extension"].to_string()).collect();
    numbers.join(" ")
}
