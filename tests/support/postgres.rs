//! A real PostgreSQL: one throw-away cluster for the whole test process, or one for a single test that breaks it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock};

use rustix::process::{Pid, kill_process};

use super::lab::{Folder, Ports, SmallDisk, User, make_dir, write_file};
use super::network::Wire;
use super::process::{Process, Signal, command_as, run_within};
use super::{secs, wait_until};

/// How a cluster differs from the default.
#[derive(Default)]
pub struct Options {
    /// More lines of `postgresql.conf`; the last value of a setting counts.
    pub conf: String,
    /// Lines before those of `pg_hba.conf`; the first match counts.
    pub hba: String,
    /// TLS, with a certificate for 127.0.0.1 and localhost from the authority in [`Postgres::ca_file`].
    pub tls: bool,
    /// At the other end of a [`Wire`], which ends with it.
    pub remote: bool,
}

/// A running cluster. Drop ends it, or the watchdog.
pub struct Postgres {
    folder: Folder,
    port: Ports,
    process: Mutex<Option<Process>>,
    remote: bool,
    wire: OnceLock<Wire>,
}

impl Postgres {
    /// The URL of a fresh database in the cluster that all tests of this process share.
    pub fn database() -> String {
        static SHARED: LazyLock<Postgres> =
            LazyLock::new(|| Postgres::start(&Options { conf: "fsync = off\n".into(), ..Options::default() }));
        SHARED.new_database()
    }

    /// Starts a cluster for one test.
    pub fn start(options: &Options) -> Self {
        let cluster = Self {
            folder: Folder::new("postgres"),
            port: Ports::one(),
            process: Mutex::new(None),
            remote: options.remote,
            wire: OnceLock::new(),
        };
        cluster.create(options);
        cluster.boot();
        if options.remote {
            let pid = cluster.process().as_ref().map(Process::pid).expect("PostgreSQL is running");
            cluster.wire.set(Wire::to(pid)).expect("the first wire");
        }
        cluster.admin("CREATE ROLE portal LOGIN PASSWORD 'portal'");
        cluster
    }

    /// A standby of this cluster, which the primary waits for at each commit from now on.
    #[must_use]
    pub fn synchronous_standby(&self) -> Self {
        let standby = Self {
            folder: Folder::new("standby"),
            port: Ports::one(),
            process: Mutex::new(None),
            remote: false,
            wire: OnceLock::new(),
        };
        let User(postgres) = postgres_user();
        for dir in [standby.data(), standby.sockets()] {
            make_dir(&dir, postgres, postgres, 0o700);
        }
        let mut backup = command_as(postgres_user(), &[], program("pg_basebackup"));
        backup.arg("-h").arg(self.sockets()).args(["-p", &self.port.number().to_string(), "-U", "postgres"]);
        backup.args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(standby.data()).current_dir(standby.folder.path());
        run("pg_basebackup", &mut backup);
        let conf = standby.data().join("postgresql.auto.conf");
        let former = fs::read_to_string(&conf).expect("what the backup has");
        let sockets = standby.sockets().display().to_string();
        let text = format!("{former}port = {}\nunix_socket_directories = '{sockets}'\n", standby.port.number());
        write_file(&conf, postgres_user(), 0o600, &text);
        standby.boot();
        self.admin("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.admin("SELECT pg_reload_conf()");
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        wait_until(secs(20), "the standby is synchronous", || self.admin(synchronous) == "1");
        standby
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The URL of a fresh database, which belongs to the portal's role.
    pub fn new_database(&self) -> String {
        self.make_database("")
    }

    /// Like [`Postgres::new_database`], with its tables on a disk of its own, which belongs to [`postgres_user`].
    pub fn new_database_on(&self, disk: &SmallDisk) -> String {
        self.admin(&format!("CREATE TABLESPACE disk LOCATION '{}'", disk.path().display()));
        self.make_database("TABLESPACE disk")
    }

    fn make_database(&self, place: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("portal{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.admin(&format!("CREATE DATABASE {name} OWNER portal {place}"));
        let host = self.wire.get().map_or(Ipv4Addr::LOCALHOST, Wire::far_end);
        format!("postgres://portal:portal@{host}:{}/{name}", self.port.number())
    }

    /// The wire to it, if it has one.
    pub fn wire(&self) -> &Wire {
        self.wire.get().expect("a remote cluster")
    }

    /// What it printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs SQL as the superuser.
    pub fn admin(&self, sql: &str) -> String {
        self.admin_in("postgres", sql)
    }

    /// Runs SQL as the superuser in a database, whose name is encoded as in a URL.
    pub fn admin_in(&self, database: &str, sql: &str) -> String {
        let sockets = self.sockets();
        let url = format!("postgres://postgres@/{database}?host={}&port={}", sockets.display(), self.port.number());
        psql(&url, sql)
    }

    /// The certificate authority of a cluster with TLS, for `sslrootcert`.
    pub fn ca_file(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// A file of [`Postgres::certify`].
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Stops it by a fast shutdown: it does not wait for its clients.
    pub fn stop(&self) {
        self.end(Signal::INT);
    }

    /// Kills it by SIGKILL; the next boot recovers.
    pub fn kill(&self) {
        self.end(Signal::QUIT);
    }

    pub fn restart(&self) {
        self.stop();
        self.boot();
    }

    /// Sends a signal to the server and all its sessions: `Signal::STOP` makes them hang, `Signal::CONT` continues them.
    pub fn signal(&self, signal: Signal) {
        let mut guard = self.process();
        let process = guard.as_mut().expect("PostgreSQL is running");
        let pid = process.pid();
        process.signal(signal);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("list the sessions");
        for child in children.split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw).expect("a process id");
            let _ = kill_process(child, signal); // it may have ended just now
        }
    }

    /// Starts it again after [`Postgres::stop`] or [`Postgres::kill`], and waits until it answers.
    pub fn boot(&self) {
        let log = self.folder.path().join("log");
        let mut command = command_as(postgres_user(), &[], program("postgres"));
        if self.remote {
            let as_postgres = command;
            command = Command::new("unshare");
            command.arg("--net").arg(as_postgres.get_program()).args(as_postgres.get_args());
            command.env_clear().envs(as_postgres.get_envs().filter_map(|(name, value)| Some((name, value?))));
        }
        command.arg("-D").arg(self.data()).current_dir(self.folder.path());
        *self.process() = Some(Process::start(&mut command, &log));
        wait_until(secs(30), "PostgreSQL accepts connections", || {
            if let Some(status) = self.process().as_mut().and_then(Process::ended) {
                panic!("PostgreSQL ended, {status}:\n{}", self.log());
            }
            let mut ready = Command::new(program("pg_isready"));
            ready.args(["-q", "-U", "postgres", "-p", &self.port.number().to_string(), "-h"]).arg(self.sockets());
            run_within(secs(5), &mut ready).status.success()
        });
    }

    fn create(&self, options: &Options) {
        let User(postgres) = postgres_user();
        for dir in [self.data(), self.sockets()] {
            make_dir(&dir, postgres, postgres, 0o700);
        }
        let mut initdb = command_as(postgres_user(), &[], program("initdb"));
        initdb
            .args(["--no-sync", "--username=postgres", "--auth-local=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
            .arg("--pgdata")
            .arg(self.data())
            .current_dir(self.folder.path());
        run("initdb", &mut initdb);

        let mut conf = format!(
            "listen_addresses = '127.0.0.1, ::1'\nport = {}\nunix_socket_directories = '{}'\n",
            self.port.number(),
            self.sockets().display()
        );
        if options.remote {
            conf += "listen_addresses = '*'\n";
        }
        if options.tls {
            self.make_certificates();
            conf += "ssl = on\n";
        }
        conf += &options.conf;
        write_file(&self.data().join("postgresql.auto.conf"), postgres_user(), 0o600, &conf);
        let hba = format!(
            "{}local all,replication postgres trust\nhost all all 0.0.0.0/0 scram-sha-256\nhost all all ::0/0 scram-sha-256\n",
            options.hba
        );
        write_file(&self.data().join("pg_hba.conf"), postgres_user(), 0o600, &hba);
    }

    /// An authority, and a certificate of it for the server.
    fn make_certificates(&self) {
        self.certify(&format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/CN=lab authority' -keyout ca.key -out ca.pem\n{}",
            Self::certificate("IP:127.0.0.1,DNS:localhost", 30)
        ));
    }

    /// A script for [`Postgres::certify`]: a certificate of the cluster's authority.
    pub fn certificate(names: &str, days: i32) -> String {
        format!(
            "openssl req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
            printf 'subjectAltName={names}\nbasicConstraints=CA:FALSE\n' >server.ext
            openssl x509 -req -in server.csr -days {days} -CA ca.pem -CAkey ca.key -CAcreateserial -extfile server.ext -out server.crt"
        )
    }

    /// Runs a script that makes `server.key` and `server.crt`, and puts them where PostgreSQL looks for them.
    pub fn certify(&self, script: &str) {
        let script =
            format!("{script}\nchown postgres server.key\nchmod 600 server.key\ncp -p server.key server.crt data/");
        let mut command = Command::new("sh");
        command.args(["-ec", &script]).current_dir(self.folder.path());
        run("make the certificates", &mut command);
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of its local socket.
    pub fn sockets(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn end(&self, signal: Signal) {
        if let Some(mut process) = self.process().take() {
            process.end(signal, secs(20));
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("no test panics while it holds this")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // If it hangs, it cannot end itself. An immediate shutdown frees its shared memory, SIGKILL does not.
        if self.process().is_some() {
            self.signal(Signal::CONT);
        }
        self.kill();
    }
}

/// Runs SQL over a URL and gives its rows, fields separated by `|`.
pub fn psql(url: &str, sql: &str) -> String {
    let mut command = Command::new(program("psql"));
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
    command.arg(format!("--command={sql}")).arg(url);
    run(sql, &mut command).trim_end().to_owned()
}

fn run(what: &str, command: &mut Command) -> String {
    let output = run_within(secs(60), command);
    assert!(output.status.success(), "{what}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("PostgreSQL speaks UTF-8")
}

/// A program of the newest PostgreSQL that is installed; Debian keeps them out of the PATH.
pub fn program(name: &str) -> PathBuf {
    let versions = Path::new("/usr/lib/postgresql");
    fs::read_dir(versions)
        .expect("PostgreSQL is installed: run `make setup`")
        .map(|entry| entry.expect("list the versions of PostgreSQL").path().join("bin").join(name))
        .filter(|program| program.exists())
        .max()
        .unwrap_or_else(|| panic!("no {name} under {}: run `make setup`", versions.display()))
}

/// The user that Debian's package makes. A PostgreSQL server refuses to run as root, or as a user without a name.
pub fn postgres_user() -> User {
    let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let line = passwd.lines().find_map(|line| line.strip_prefix("postgres:"));
    let number = line.and_then(|line| line.split(':').nth(1)?.parse().ok());
    User(number.expect("the user postgres is in /etc/passwd: run `make setup`"))
}
