//! A server with a portal, its users as a test knows them, and every phone that ever had a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::Folder;
use crate::portal::Settings;
use crate::postgres::program;
use crate::process::{Process, run_within};
use crate::{Asterisk, Phone, Portal, secs};

/// The callers: each keeps its number, and calls every other number.
const CALLERS: usize = 2;

/// After this, Asterisk has committed what it wrote, or rolled it back.
const COMMIT: Duration = Duration::from_millis(2500);

/// An older registration may expire.
const EXPIRES: Duration = Duration::from_secs(250);

/// The owner of a number.
#[derive(Clone)]
pub struct Owner {
    pub id: String,
    pub secret: String,
}

/// What the database holds, by number.
pub type Owners = BTreeMap<String, Owner>;

pub struct World {
    pub asterisk: Asterisk,
    pub portal: Portal,
    /// PostgreSQL's URL; otherwise the database is the portal's own SQLite file.
    url: Option<String>,
    folder: Folder,
    pub owners: Owners,
    created: usize,
    /// What the last backup holds.
    pub backup: Option<Owners>,
    callers: Vec<Phone>,
    phones: Vec<Phone>,
    /// Processes that read Asterisk's database.
    readers: Vec<Process>,
    /// When each began, and when it ends.
    reads: Vec<(Instant, Instant)>,
    /// The secret of each number that was last seen in force.
    last_secrets: Mutex<BTreeMap<String, String>>,
    pub calls: AtomicUsize,
    pub rings: AtomicUsize,
}

impl World {
    pub fn new(url: Option<String>) -> Self {
        let asterisk = Asterisk::start();
        let settings = Settings::of(&asterisk);
        let portal = Portal::start(&match &url {
            Some(url) => settings.with("DATABASE_URL", url),
            None => settings,
        });
        let folder = Folder::new("history");
        let mut world = Self {
            asterisk,
            portal,
            url,
            folder,
            owners: Owners::new(),
            created: 0,
            backup: None,
            callers: Vec::new(),
            phones: Vec::new(),
            readers: Vec::new(),
            reads: Vec::new(),
            last_secrets: Mutex::default(),
            calls: AtomicUsize::new(0),
            rings: AtomicUsize::new(0),
        };
        for _ in 0..CALLERS {
            world.create();
        }
        world.callers.append(&mut world.phones);
        world
    }

    pub fn create(&mut self) {
        self.created += 1;
        let user = self.portal.create_user("Somebody", &format!("user{}@example.com", self.created));
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let [number, secret] = ["number", "secret"].map(|field| text(&user["extension"][field]));
        self.phones.push(Phone::new(&self.asterisk, &number, &secret));
        let former = self.owners.insert(number, Owner { id: text(&user["id"]), secret });
        assert!(former.is_none(), "two users have the number of {user}");
    }

    pub fn delete(&mut self, number: &str) {
        let owner = self.owners.remove(number).expect("a number with an owner");
        self.portal.delete_user(&owner.id);
    }

    /// The numbers of all users but the callers.
    pub fn owned(&self) -> Vec<String> {
        let callers: Vec<_> = self.callers.iter().map(|caller| &caller.number).collect();
        self.owners.keys().filter(|number| !callers.contains(number)).cloned().collect()
    }

    /// Every number that ever had a phone.
    pub fn numbers(&self) -> BTreeSet<&str> {
        self.phones.iter().map(|phone| phone.number.as_str()).collect()
    }

    /// The numbers that the next apply gives to another user.
    pub fn changing(&self) -> BTreeSet<String> {
        let secrets = self.secrets();
        let changing = |number: &&str| {
            let owner = self.owners.get(*number);
            owner.is_some_and(|owner| secrets.get(*number) != Some(&owner.secret))
        };
        self.numbers().into_iter().filter(changing).map(str::to_owned).collect()
    }

    /// The phones that can register as these numbers, or will when they are applied.
    pub fn restless(&self, numbers: &BTreeSet<String>) -> Vec<&Phone> {
        let secrets = self.secrets();
        let can = |phone: &&Phone| {
            let owner = self.owners.get(&phone.number).map(|owner| &owner.secret);
            numbers.contains(&phone.number) && [owner, secrets.get(&*phone.number)].contains(&Some(&phone.secret))
        };
        self.phones.iter().filter(can).collect()
    }

    /// The phone of a number's owner.
    pub fn phone(&self, number: &str) -> Option<&Phone> {
        let owner = self.owners.get(number)?;
        self.phones.iter().find(|phone| phone.secret == owner.secret)
    }

    /// The secret of a number that is in force.
    fn secret(&self, number: &str) -> Option<String> {
        let auth = self.asterisk.rx(&format!("pjsip show auth {number}"));
        let password = auth.lines().find_map(|line| line.trim_start().strip_prefix("password "));
        password.and_then(|value| Some(value.split_once(": ")?.1.trim().to_owned()))
    }

    /// The secret of a number that is in force, or was last in force if the number still has an endpoint. A reload may remove the auth
    /// before the endpoint: in between, the phone of the last owner still rings, and nobody else has the number.
    fn last_secret(&self, number: &str) -> Option<String> {
        let in_force = self.secret(number);
        let has_endpoint =
            || !self.asterisk.rx(&format!("pjsip show endpoint {number}")).contains("Unable to find object");
        let mut last = self.last_secrets.lock().expect("nobody panicked");
        if let Some(secret) = in_force {
            last.insert(number.to_owned(), secret);
        } else if !has_endpoint() {
            last.remove(number);
        }
        last.get(number).cloned()
    }

    /// The secrets in force of all numbers.
    fn secrets(&self) -> BTreeMap<&str, String> {
        let secret = |number| Some((number, self.secret(number)?));
        self.numbers().into_iter().filter_map(secret).collect()
    }

    /// Calls every number once.
    pub fn call_all(&self) {
        call_each(|caller| {
            for number in self.numbers_of(caller) {
                self.call(caller, number);
            }
        });
    }

    /// Calls without pause until it is done: numbers that are about to change hands, and others now and then.
    pub fn call_until(&self, done: &AtomicBool, often: &BTreeSet<String>) {
        call_each(|caller| {
            let numbers = self.numbers_of(caller);
            let of_often: Vec<_> = numbers.iter().filter(|number| often.contains(**number)).copied().collect();
            for turn in 0.. {
                let from = if turn % 4 == 0 || of_often.is_empty() { &numbers } else { &of_often };
                if done.load(Ordering::Relaxed) || from.is_empty() {
                    break;
                }
                self.call(caller, from[turn % from.len()]);
            }
        });
    }

    pub fn call_for(&self, time: Duration) {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.call_until(&done, &BTreeSet::new()));
            thread::sleep(time);
            done.store(true, Ordering::Relaxed);
        });
    }

    /// The numbers that this caller calls. No two callers call one number at once, because nobody could tell which call rings a phone.
    fn numbers_of(&self, caller: usize) -> Vec<&str> {
        self.numbers().into_iter().skip(caller).step_by(CALLERS).collect()
    }

    /// A phone that rings must have the secret that was last in force when the call began, or when it ended.
    fn call(&self, caller: usize, number: &str) {
        let before = self.last_secret(number);
        let status = self.callers[caller].call(number);
        let after = self.last_secret(number);
        self.calls.fetch_add(1, Ordering::Relaxed);
        for phone in self.phones.iter().filter(|phone| phone.number == number && phone.take_rings() > 0) {
            self.rings.fetch_add(1, Ordering::Relaxed);
            assert!(
                [&before, &after].contains(&&Some(phone.secret.clone())),
                "A FORMER OWNER'S PHONE RINGS: {number} was called, {status:?}, and the phone of {} rang; \
                 last in force was {before:?}, then {after:?}",
                phone.secret
            );
        }
    }

    /// Every phone that ever had a secret tries to register: it can if its secret is in force, and not otherwise.
    pub fn register_all(&self) {
        let secrets = self.secrets();
        for phone in &self.phones {
            let expected = if secrets.get(&*phone.number) == Some(&phone.secret) { 200 } else { 401 };
            assert_eq!(phone.register(), Some(expected), "REGISTER of {} with {}", phone.number, phone.secret);
        }
    }

    /// The numbers whose registration an apply must leave alone: their owner has the secret in force, and the phone is registered so
    /// firmly that no reader of Asterisk's database can undo it.
    pub fn staying(&self) -> BTreeSet<String> {
        let (registered, secrets) = (self.registered(), self.secrets());
        let stays = |number: &&str| {
            let owned = self.owners.get(*number).map(|owner| &owner.secret) == secrets.get(*number);
            let firm = self.phone(number).and_then(Phone::last_accepted).is_some_and(|accepted| {
                let overlaps = |(begin, end): &(Instant, Instant)| *begin < accepted + COMMIT && *end > accepted;
                accepted.elapsed() < EXPIRES && !self.reads.iter().any(overlaps)
            });
            owned && firm && registered.contains(*number)
        };
        self.numbers().into_iter().filter(stays).map(str::to_owned).collect()
    }

    /// The numbers that have a registration.
    pub fn registered(&self) -> BTreeSet<String> {
        let rows = self.asterisk.contacts();
        rows.iter().filter_map(|(key, _)| Some(key.split_once(';')?.0.to_owned())).collect()
    }

    /// Asterisk serves the users of the database, each with the right secret, and nobody else.
    pub fn serves_the_database(&self) {
        let expected: Vec<_> = self.owners.keys().cloned().collect();
        assert_eq!(self.asterisk.endpoints(), expected, "the endpoints in force");
        let routing = self.asterisk.routing();
        assert!(routing.keys().eq(&expected), "the extensions in force: {routing:?}");
        for (number, owner) in &self.owners {
            assert_eq!(self.secret(number).as_ref(), Some(&owner.secret), "the secret of {number} in force");
            let dial = format!("Dial(PJSIP/{number},25,i)");
            assert!(routing[number].contains(&dial), "{number} is not called:\n{routing:?}");
        }
    }

    /// Another process holds a read transaction on Asterisk's database, again and again.
    pub fn read(&mut self, after: Duration, hold: Duration, times: u32, pause: Duration) {
        let script = "sleep $3; for turn in $(seq $2); do
            sqlite3 \"$1\" 'BEGIN; SELECT count(*) FROM astdb;' \".shell sleep $4\"; sleep $5
        done";
        let database = self.asterisk.etc().with_file_name("db").join("astdb.sqlite3");
        let mut command = Command::new("sh");
        command.args(["-c", script, "reader"]).arg(database).arg(times.to_string());
        command.args([after, hold, pause].map(|time| time.as_secs_f64().to_string()));
        self.readers.push(Process::start(&mut command, &self.folder.path().join("readers")));
        let now = Instant::now();
        self.reads.push((now, now + after + (hold + pause) * times + secs(1)));
    }

    pub fn back_up(&mut self) {
        match &self.url {
            Some(url) => run(Command::new(program("pg_dump"))
                .args(["--clean", "--if-exists", "--file"])
                .arg(self.dump())
                .arg(url)),
            None => self.sqlite("backup"),
        }
        self.backup = Some(self.owners.clone());
    }

    /// Restores the database from the last backup, if there is one.
    pub fn restore(&mut self) {
        let Some(owners) = self.backup.clone() else { return };
        self.portal.stop();
        match &self.url {
            Some(url) => run(Command::new(program("psql"))
                .args(["--quiet", "--set=ON_ERROR_STOP=1", "--file"])
                .arg(self.dump())
                .arg(url)),
            None => self.sqlite("restore"),
        }
        self.portal.boot();
        self.owners = owners;
        assert_eq!(self.portal.users().len(), self.owners.len(), "the users of the backup");
    }

    fn sqlite(&self, what: &str) {
        let command = format!(".{what} {}", self.dump().display());
        run(Command::new("sqlite3").arg(self.portal.data_dir().join("portal.db")).arg(command));
    }

    fn dump(&self) -> std::path::PathBuf {
        self.folder.path().join("dump")
    }
}

/// All callers at once.
fn call_each(calls: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let calls = &calls;
            scope.spawn(move || calls(caller));
        }
    });
}

fn run(command: &mut Command) {
    let output = run_within(secs(30), command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
