//! Proxies in front of a PostgreSQL: PgBouncer, which lends connections, and HAProxy, which selects a server.

use std::fs;
use std::process::Command;

use super::asterisk::command_from_unstable;
use super::lab::{Folder, Ports, write_file};
use super::postgres::{Postgres, postgres_user};
use super::process::{Process, command_as};
use super::{secs, wait_until};

/// Which PgBouncer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian unstable's tracks prepared statements.
    Tracking,
    /// Debian 12's does not.
    Untracked,
}

/// A running PgBouncer. Drop ends it.
pub struct PgBouncer {
    folder: Folder,
    port: Ports,
    _process: Process,
}

impl PgBouncer {
    /// Starts one in front of a cluster, with further lines of its configuration, and waits until it answers.
    pub fn start(release: Release, cluster: &Postgres, database: &str, lines: &str) -> Self {
        let (folder, port) = (Folder::new("pgbouncer"), Ports::one());
        let at = |name: &str| folder.path().join(name);
        write_file(&at("users"), postgres_user(), 0o600, "\"portal\" \"portal\"\n");
        let server = cluster.port();
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\n{lines}",
            port.number(),
            at("users").display(),
        );
        write_file(&at("pgbouncer.ini"), postgres_user(), 0o600, &configuration);
        let mut command = match release {
            Release::Tracking => command_from_unstable(postgres_user(), "usr/sbin/pgbouncer"),
            Release::Untracked => command_as(postgres_user(), &[], "/usr/sbin/pgbouncer"),
        };
        let process = Process::start(command.arg(at("pgbouncer.ini")), &at("log"));
        let pgbouncer = Self { folder, port, _process: process };
        wait_until(secs(20), "PgBouncer answers", || {
            let mut ready = Command::new("psql");
            ready.args(["--no-psqlrc", "--quiet", "--command=SELECT 1"]).arg(pgbouncer.url(database));
            ready.output().is_ok_and(|output| output.status.success()) || {
                assert!(!pgbouncer.log().contains("FATAL"), "{}", pgbouncer.log());
                false
            }
        });
        pgbouncer
    }

    /// The URL of a database of the cluster, through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://portal:portal@127.0.0.1:{}/{database}", self.port.number())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// A running HAProxy. Drop ends it.
pub struct HaProxy {
    port: Ports,
    _folder: Folder,
    _process: Process,
}

impl HaProxy {
    /// Starts one with the configuration of `docs/operations.md`, in front of these two clusters.
    pub fn start(first: &Postgres, second: &Postgres) -> Self {
        let document = include_str!("../../docs/operations.md");
        let (_, configuration) = document.split_once("```haproxy\n").expect("a configuration");
        let (configuration, _) = configuration.split_once("```").expect("its end");
        let (folder, port) = (Folder::new("haproxy"), Ports::one());
        let mut configuration = configuration.to_owned();
        for (shown, here) in [
            ("127.0.0.1:5000", port.address().to_string()),
            ("192.0.2.11:5432", format!("127.0.0.1:{}", first.port())),
            ("192.0.2.12:5432", format!("127.0.0.1:{}", second.port())),
        ] {
            assert!(configuration.contains(shown), "{shown} in {configuration}");
            configuration = configuration.replace(shown, &here);
        }
        let file = folder.path().join("haproxy.cfg");
        write_file(&file, postgres_user(), 0o600, &configuration);
        let mut command = command_as(postgres_user(), &[], "/usr/sbin/haproxy");
        // It ends if it cannot go back to the folder that it was started in, such as root's home.
        command.arg("-db").arg("-f").arg(&file).current_dir(folder.path());
        let process = Process::start(&mut command, &folder.path().join("log"));
        Self { port, _folder: folder, _process: process }
    }

    /// The URL of a database, through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://portal:portal@127.0.0.1:{}/{database}", self.port.number())
    }
}

/// The name of the database that a URL names.
pub fn database_of(url: &str) -> &str {
    url.rsplit('/').next().expect("a database")
}
