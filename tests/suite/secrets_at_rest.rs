//! Secrets on the disk, in memory, and in what the database's driver says: for nobody else, at no moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::fixtures::{SetWhenDropped, id, script};
use crate::steps::{ALL_BUT_PROGRAMS, CONNECTS_AGAIN, FILES};
use support::inotify::Observer;
use support::lab::{self, Folder, Ports};
use support::portal::{Settings, portal_command, run};
use support::postgres::Options;
use support::process::{Process, Signal, command_as, run_within};
use support::{Asterisk, Portal, Postgres, secs, strace, wait_until};

/// Every mode in which each file of these folders was ever seen, until `done`.
fn watch(folders: &[PathBuf], done: &AtomicBool) -> BTreeMap<PathBuf, BTreeSet<u32>> {
    let mut seen: BTreeMap<PathBuf, BTreeSet<u32>> = BTreeMap::new();
    while !done.load(Ordering::Relaxed) {
        for folder in folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                // A file that is gone by now was seen another time.
                if let Ok(found) = entry.metadata() {
                    seen.entry(entry.path()).or_default().insert(found.mode() & 0o777);
                }
            }
        }
        // Temporary files live as long as they are flushed.
        thread::sleep(Duration::from_micros(200));
    }
    seen
}

#[test]
fn no_file_is_ever_open_to_others_whatever_the_umask() {
    let asterisk = Asterisk::start();
    let folder = Folder::new("data-to-be-made");
    let lab::User(owner) = lab::PORTAL;
    lab::make_dir(folder.path(), owner, owner, 0o755);
    let data = folder.path().join("data");
    let portal = Portal::prepare(&Settings::of(&asterisk).with("PORTAL_DATA_DIR", data.display()));
    let [endpoints, routing] = [asterisk.endpoints_file(), asterisk.routing_file()];
    let beside = |file: &Path| file.parent().expect("a folder").to_owned();
    let folders = [data.clone(), beside(&endpoints), beside(&routing)];

    let done = AtomicBool::new(false);
    let observer = Observer::of(&asterisk.etc());
    let seen = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&folders, &done));
        let watched = SetWhenDropped(&done);
        portal.boot_through(&["sh", "-c", "umask 000; exec \"$@\"", "sh"]);
        for round in 0..10 {
            for index in 0..20 {
                portal.create_user("Alice", &format!("alice{round}.{index}@example.com"));
            }
            // The numbers of those that are deleted change hands: they are taken away first.
            portal.apply("suite");
            portal.delete_user(id(&portal.users()[0]));
        }
        drop(watched);
        watching.join().expect("a watcher")
    });

    assert_eq!(fs::metadata(&data).expect("the data folder").mode() & 0o777, 0o700);
    for (path, modes) in &seen {
        let allowed = if path.starts_with(&data) { 0o600 } else { 0o640 };
        let open: Vec<_> = modes.iter().filter(|mode| *mode & !allowed != 0).map(|mode| format!("{mode:o}")).collect();
        assert!(open.is_empty(), "{}: {open:?}", path.display());
    }
    let written = observer.written();
    let names: BTreeSet<_> = seen.keys().chain(&written).filter_map(|path| path.file_name()?.to_str()).collect();
    for name in [
        "portal.db",
        "portal.db-journal",
        ".pbx-portal.lock",
        "generated_endpoints.conf",
        ".generated_endpoints.conf.final.tmp",
        "generated_routing.conf",
        ".generated_routing.conf.final.tmp",
    ] {
        assert!(names.contains(name), "{name} was not seen, only {names:?}");
    }
    // With which mode each is made, before another is set: too short a moment to be seen from outside.
    portal.create_user("Bob", "bob@example.com");
    let traced = [&ALL_BUT_PROGRAMS[..], &["-e", "trace=openat"]].concat();
    let (_, opened) = strace::under(portal.pid(), &traced, || portal.apply("suite"));
    let created: Vec<_> = opened.iter().filter(|call| call.text.contains("O_CREAT")).collect();
    let temporary = created.iter().filter(|call| call.text.contains(".tmp\"")).count();
    assert_eq!(temporary, FILES, "{created:#?}");
    for call in created {
        let mode = call.text.rsplit_once(") = ").and_then(|(arguments, _)| arguments.rsplit(", ").next());
        let mode = mode.and_then(|mode| u32::from_str_radix(mode, 8).ok()).expect("a mode");
        assert_eq!(mode & !0o660, 0, "{}", call.text);
    }
    for file in [&endpoints, &routing] {
        assert_eq!(fs::metadata(file).expect("a generated file").mode() & 0o777, 0o640);
    }
    let lock = beside(&endpoints).join(".pbx-portal.lock");
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).expect("open the lock file to others");
    portal.apply("suite");
    assert_eq!(fs::metadata(&lock).expect("the lock file").mode() & 0o777, 0o600, "who can open it can hold it");
}

#[test]
fn no_memory_is_dumped_or_shown() {
    let portal = Portal::prepare(&Settings::default().with("PORTAL_API_TOKEN", "hunter2"));
    portal.boot_through(&["sh", "-c", "ulimit -S -c $(ulimit -H -c); exec \"$@\"", "sh"]);
    let of_it = |file: &str| PathBuf::from(format!("/proc/{}/{file}", portal.pid()));
    let limits = fs::read_to_string(of_it("limits")).expect("its limits");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
    // What the kernel does not dump, it gives to root: not even the portal's own user reads its environment.
    assert_eq!(fs::metadata(of_it("environ")).expect("its environment").uid(), 0);
    let mut other = command_as(lab::PORTAL, &[], "cat");
    let output = run_within(secs(10), other.arg(of_it("environ")));
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert_eq!(portal.request("GET", "/users", None).status, 200);
}

#[test]
fn the_asterisk_command_gets_no_secret_in_its_environment() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("environment"));
    let wrapper = script(&asterisk, &folder, "env >>\"$here/environment\"\nexec \"$asterisk\" \"$@\"\n");
    let cluster = Postgres::start(&Options::default());
    let settings = Settings::of(&asterisk)
        .with("ASTERISK_BIN", wrapper.display())
        .with("DATABASE_URL", cluster.new_database().replace("portal:portal@", "portal@"))
        .with("PGPASSWORD", "portal")
        .with("PORTAL_API_TOKEN", "a-token-of-sixteen-bytes");
    let portal = Portal::start(&settings);
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");

    let environment = fs::read_to_string(folder.path().join("environment")).expect("the environment of the commands");
    assert!(environment.contains("PATH="), "{environment}");
    for secret in ["DATABASE_URL", "PGPASSWORD", "PORTAL_API_TOKEN", "of-sixteen-bytes"] {
        assert!(!environment.contains(secret), "{secret}: {environment}");
    }
}

#[test]
fn what_the_database_driver_says_holds_no_password() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database().replace("portal:portal@", "portal:hunter2@");
    let loud = |url: &str| Settings::default().with("LOG_LEVEL", "trace").with("DATABASE_URL", url);

    // What ends a start.
    for (url, says) in [
        (url.clone(), "password authentication failed"),
        (url.replace("portal:", "nobody:"), "password authentication failed"),
        (format!("{url}?sslmode=require"), "TLS"),
        (format!("{url}?sslmode=disable&password=hunter2too"), "password authentication failed"),
    ] {
        let output = run(&["serve"], &loud(&url));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{url}: {stderr}");
        assert!(stderr.contains(says) && !stderr.contains("hunter2"), "{url}: {stderr}");
    }

    // What is waited for: a host that can't be reached, a socket that is not there yet.
    let folder = Folder::new("unreachable");
    let nobody = Ports::one();
    let host = loud(&format!("postgres://portal:hunter2@{}/portal", nobody.address()));
    let socket = loud("postgres:///portal?user=portal&password=hunter2").with("PGHOST", folder.path().display());
    for unreachable in [host, socket] {
        let log = folder.path().join("log");
        let mut starting = Process::start(portal_command(&unreachable, folder.path()).arg("serve"), &log);
        let said = || fs::read_to_string(&log).expect("its log");
        wait_until(secs(20), "it waits for the database", || said().contains(CONNECTS_AGAIN));
        starting.end(Signal::TERM, secs(10));
        assert!(!said().contains("hunter2"), "{}", said());
        fs::remove_file(&log).expect("the next one has a log of its own");
    }

    // What happens later.
    cluster.admin("ALTER ROLE portal PASSWORD 'hunter2'");
    let portal = Portal::start(&loud(&url));
    portal.create_user("Alice", "alice@example.com");
    cluster.admin("ALTER ROLE portal PASSWORD 'another'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'portal'");
    let bob = json!({"name": "Bob", "email": "bob@example.com"});
    for (method, path, body) in [("GET", "/users", None), ("POST", "/users", Some(&bob))] {
        let answer = portal.request(method, path, body);
        assert_eq!(answer.json["error"], "Database unavailable", "{}", answer.text);
        assert!(!answer.text.contains("hunter2"), "{}", answer.text);
    }
    wait_until(secs(10), "the log says why", || portal.log().contains("password authentication failed"));
    assert!(!portal.log().contains("hunter2"), "{}", portal.log());
}
