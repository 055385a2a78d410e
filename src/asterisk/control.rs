//! Asterisk's control socket, `asterisk.ctl`: runs commands and reads what they print, without starting a process.
//!
//! The portal does what a remote console does (`main/asterisk.c`): it connects, sends each command with a NUL byte behind it
//! and shuts down the sending half. Then it reads the greeting `host/pid/version`, a newline, and what the commands print, in
//! turn, to the end. Asterisk sends no exit status; what it prints is all there is.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use tokio::time::{Instant, sleep, timeout};
use tokio::try_join;
use tracing::info;

use super::command::{Command, lines_to_add};
use crate::host::rights::closed_above;
use crate::problem::{Problem, Result, bail, ensure, problem};

/// Takes the place of a command in errors about the greeting, which Asterisk sends before any command.
const GREETING: &str = "(its greeting)";

/// The most that is read of what Asterisk prints on one connection: a listing of some 100,000 registrations.
const MAX_ANSWER_MIB: u64 = 64;

/// The most that an error quotes of what Asterisk printed.
pub(super) const MAX_QUOTED_CHARS: usize = 200;

/// How often a truncated listing is read.
const READINGS: usize = 10;

/// Between two readings of a truncated listing.
const LISTING_PAUSE: Duration = Duration::from_millis(10);

/// Before the next attempt, if two other connections wait to be accepted (Asterisk's queue is then full), or if the socket is new.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// What to do if the socket, but no folder above it, is closed to the portal's user.
const SOCKET_IS_CLOSED: &str = "in asterisk.conf, section [files], set astctlpermissions = 0660 and astctlgroup to a group of that user, and restart Asterisk";

/// Asterisk makes its socket, looks up its group, and only then gives it that group and its mode. It may refuse us that long, but
/// not for half the time of a command: then the refusal is reported.
const SOCKET_OPENS_WITHIN: Duration = Duration::from_secs(5);

/// A value in lines of the form `name : value`.
pub(super) fn value<'t>(answers: &'t str, name: &str) -> Option<&'t str> {
    let named = |line: &'t str| line.split_once(':').filter(|(found, _)| found.trim() == name);
    Some(answers.lines().find_map(named)?.1.trim())
}

/// Which Asterisk answers: equal in all answers of one that runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// New at each start of Asterisk.
    uuid: String,
    /// The folder that it reads its configuration from.
    pub config_dir: String,
}

impl Identity {
    /// Reads what [`Command::SETTINGS`] prints; `None` if that is not complete.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |name| value(text, name).map(str::to_owned);
        Some(Self { uuid: value("PBX UUID")?, config_dir: value("Configuration directory")? })
    }
}

/// The Asterisk at the other end of the control socket.
#[derive(Debug)]
pub struct Server {
    /// As in its greeting: `22.10.1~dfsg`, `certified-22.8-cert1`, or `GIT-22-0a1b2c3` if it was built from its repository.
    pub version: String,
    pub uid: u32,
    pub groups: Vec<u32>,
}

impl Server {
    /// The release line, such as 22; `None` if the version has none.
    pub fn release(&self) -> Option<u32> {
        self.version.split(['.', '-', '~', '+', '/']).find(|part| !["GIT", "certified"].contains(part))?.parse().ok()
    }
}

/// The control socket of one Asterisk.
#[derive(Debug, Clone)]
pub struct Control {
    socket: PathBuf,
    answers_within: Duration,
}

/// The error of an answer that cannot be parsed. Quotes its beginning, but never of auths, which show secrets.
pub(super) fn unexpected(command: &str, answer: &str) -> Problem {
    let printed = answer.trim().replace('\0', "");
    let found = match printed.as_str() {
        "" => "it is empty",
        _ if command.contains("show auth") => "it is incomplete",
        printed => printed,
    };
    problem!(
        "Asterisk gave an unexpected answer to '{command}': {found:.MAX_QUOTED_CHARS$}",
        "look at Asterisk's own log (messages.log)"
    )
}

/// Fails if Asterisk refused to run a command: it is not permitted, or Asterisk is shutting down.
pub(super) fn ensure_not_refused(answer: &str) -> Result<()> {
    for line in answer.lines() {
        if let Some(rest) = line.strip_prefix("You don't have permissions to run '") {
            // Asterisk cuts the command at 64 bytes.
            let command = rest.strip_suffix("' command").unwrap_or(rest);
            let lines = lines_to_add();
            bail!(
                "Asterisk does not let the portal's user run '{command:.MAX_QUOTED_CHARS$}' (cli_permissions.conf)",
                "add these lines to it: {lines}; then run 'cli reload permissions' in Asterisk"
            );
        }
        ensure!(
            !(line.starts_with("Command '") && line.ends_with("' cannot be run during shutdown")),
            "Asterisk is shutting down and runs no commands",
            "wait until its calls have ended and it is running again, or keep it running with 'core abort shutdown'"
        );
    }
    Ok(())
}

impl Control {
    /// The control socket in `run_dir`; `answers_within` is how long Asterisk may take for what one connection asks.
    pub fn new(run_dir: &Path, answers_within: Duration) -> Self {
        Self { socket: run_dir.join("asterisk.ctl"), answers_within }
    }

    /// Runs commands on one connection and returns what Asterisk prints, in turn. Errors name the first command.
    pub async fn ask(&self, commands: &[Command]) -> Result<String> {
        let (.., answer) = self.exchange(commands).await?;
        // Asterisk refuses all commands or none; only `permitted` sends several of which it may refuse some.
        ensure_not_refused(answer.lines().next().unwrap_or_default())?;
        Ok(answer)
    }

    /// Runs commands that list something; `parse` gets what Asterisk prints as one text. Asterisk drops lines if the reader is slow:
    /// `parse` returns `None` for such a truncated listing, which is then retried, a few times.
    pub async fn listing<T>(&self, commands: &[Command], parse: impl Fn(&str) -> Option<T>) -> Result<T> {
        let command = commands[0].line();
        let mut answer = String::new();
        for _ in 0..READINGS {
            answer = self.ask(commands).await?;
            if let Some(parsed) = parse(&answer) {
                return Ok(parsed);
            }
            info!(command, "the listing is truncated; it is retried");
            sleep(LISTING_PAUSE).await;
        }
        Err(unexpected(command, &answer))
    }

    /// The identity of the Asterisk that answers on this socket.
    pub async fn identity(&self) -> Result<Identity> {
        self.listing(&[Command::SETTINGS], Identity::parse).await
    }

    /// Fails if Asterisk does not let this user run all that the portal needs. Changes nothing.
    pub async fn permitted(&self) -> Result<()> {
        ensure_not_refused(&self.ask(Command::HARMLESS).await?)
    }

    /// The server that answers. Its greeting has the version; the kernel knows its user and groups.
    pub async fn server(&self) -> Result<Server> {
        let (peer, greeting, _) = self.exchange(&[]).await?;
        let version = greeting.splitn(3, '/').nth(2).ok_or_else(|| unexpected(GREETING, &greeting))?.to_owned();
        let status = |pid| fs::read_to_string(format!("/proc/{pid}/status")).ok();
        let status = peer.pid().and_then(status).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        let groups = groups.split_whitespace().filter_map(|group| group.parse().ok()).chain([peer.gid()]).collect();
        Ok(Server { version, uid: peer.uid(), groups })
    }

    /// Connects, sends commands and reads to the end. Returns who is at the other end, its greeting, and what it prints then.
    async fn exchange(&self, commands: &[Command]) -> Result<(UCred, String, String)> {
        let command = commands.first().map_or(GREETING, Command::line);
        let lines: String = commands.iter().flat_map(|command| [command.line(), "\0"]).collect();
        let broken = |error: io::Error| {
            problem!("Asterisk closed the connection during '{command}' ({error})", "it may be restarting: apply again")
        };
        let exchange = async {
            let mut stream = self.connect().await?;
            let peer = stream.peer_cred().map_err(broken)?;
            let (mut from, mut to) = stream.split();
            let mut read = Vec::new();
            let send = async {
                to.write_all(lines.as_bytes()).await?;
                to.shutdown().await
            };
            // Reads while it sends: Asterisk drops what it cannot write within 100 ms.
            let mut from = (&mut from).take(MAX_ANSWER_MIB << 20);
            try_join!(send, from.read_to_end(&mut read)).map_err(broken)?;
            ensure!(
                from.limit() > 0,
                "Asterisk printed more than {MAX_ANSWER_MIB} MiB in answer to '{command}'",
                "find out in Asterisk's console what fills it"
            );
            // Not all of it may be UTF-8: a phone chooses its User-Agent.
            let read = String::from_utf8_lossy(&read);
            let ended = || broken(io::ErrorKind::UnexpectedEof.into());
            let (greeting, answer) = read.split_once('\n').ok_or_else(ended)?;
            Ok((peer, greeting.chars().take(MAX_QUOTED_CHARS).collect(), answer.to_owned()))
        };
        timeout(self.answers_within, exchange).await.unwrap_or_else(|_| {
            let seconds = self.answers_within.as_secs();
            bail!(
                "Asterisk did not answer '{command}' within {seconds} s: it hangs, or the machine is overloaded",
                "look at 'core show locks', then restart it"
            )
        })
    }

    /// Whether Asterisk has just made the socket.
    fn is_new(&self) -> bool {
        let made = fs::metadata(&self.socket).and_then(|found| found.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age < SOCKET_OPENS_WITHIN))
    }

    /// Another socket in the same folder that somebody listens on: `astctl` of asterisk.conf gives Asterisk's any name.
    async fn other_socket(&self) -> Option<String> {
        for entry in fs::read_dir(self.socket.parent()?).ok()?.flatten() {
            let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
            // It may refuse this user.
            let listens = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            if is_socket && UnixStream::connect(entry.path()).await.map_or_else(listens, |_| true) {
                return Some(entry.path().display().to_string());
            }
        }
        None
    }

    async fn connect(&self) -> Result<UnixStream> {
        let socket = self.socket.display();
        let until = Instant::now() + SOCKET_OPENS_WITHIN.min(self.answers_within / 2);
        loop {
            let error = match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => sleep(CONNECT_PAUSE).await,
                Some(Errno::ACCESS) if self.is_new() && Instant::now() < until => sleep(CONNECT_PAUSE).await,
                Some(Errno::ACCESS | Errno::PERM) => {
                    let remedy = closed_above(&self.socket).unwrap_or_else(|| SOCKET_IS_CLOSED.to_owned());
                    bail!("Asterisk's control socket {socket} refuses the portal's user ({error})", "{remedy}");
                }
                Some(Errno::NOENT | Errno::CONNREFUSED) => match self.other_socket().await {
                    Some(other) => bail!(
                        "nothing answers on Asterisk's control socket {socket} ({error}), but something does on {other}",
                        "if asterisk.conf, section [files], has a line astctl, remove it and restart Asterisk; otherwise start Asterisk (systemctl start asterisk)"
                    ),
                    None => bail!(
                        "Asterisk is not running: nothing answers on {socket} ({error})",
                        "start it (systemctl start asterisk), or set ASTERISK_RUN_DIR"
                    ),
                },
                Some(Errno::MFILE | Errno::NFILE) => bail!(
                    "Asterisk's control socket {socket} can't be reached: {error}",
                    "no file handle is left: raise the portal's limit (LimitNOFILE= of its unit) or the system's (sysctl fs.file-max), then restart the portal"
                ),
                _ => bail!(
                    "Asterisk's control socket {socket} can't be reached: {error}",
                    "set ASTERISK_RUN_DIR to the folder of Asterisk's asterisk.ctl"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_read_from_what_asterisk_prints() {
        let uuid = "  PBX UUID:                    298a98e9-58be-46b4-8180-cc9809e5a8cb\n";
        let config_dir = "  Configuration directory:     /etc/asterisk\n";
        let identity = Identity::parse(&[uuid, config_dir].concat()).expect("a complete answer");
        assert_eq!((identity.uuid.len(), identity.config_dir.as_str()), (36, "/etc/asterisk"));
        assert_eq!((Identity::parse(uuid), Identity::parse(config_dir)), (None, None));
    }

    #[test]
    fn an_answer_that_asterisk_refuses_is_an_error_of_its_own() {
        let refused = |answer| ensure_not_refused(answer).map_or_else(|error| error.to_string(), |()| "run".to_owned());
        let denied = refused(include_str!("../../tests/recordings/not-permitted.txt"));
        assert!(denied.starts_with("Asterisk does not let the portal's user run 'core waitfullybooted' ("), "{denied}");
        let shutting_down = refused(include_str!("../../tests/recordings/shutting-down.txt"));
        assert!(shutting_down.starts_with("Asterisk is shutting down"), "{shutting_down}");
        assert_eq!(refused(include_str!("../../tests/recordings/booted.txt")), "run");
    }

    #[test]
    fn an_error_quotes_no_secret() {
        let auth = include_str!("../../tests/recordings/auth.txt");
        let error = unexpected("pjsip show auth 1000", auth).to_string();
        assert!(!error.contains("SECRET") && error.contains("it is incomplete"), "{error}");
    }

    #[test]
    fn the_release_line_is_read_from_any_form_of_version() {
        let release = |version: &str| Server { version: version.to_owned(), uid: 0, groups: Vec::new() }.release();
        for (version, line) in [
            ("22.10.1~dfsg+~cs6.17.60671434-1", Some(22)),
            ("16.28.0~dfsg-0+deb11u4", Some(16)),
            ("20.9.0", Some(20)),
            ("GIT-22-0a1b2c3", Some(22)),
            ("certified/18.9-cert1", Some(18)),
            ("certified-22.8-cert1", Some(22)),
            ("GIT-master-0a1b2c3", None),
            ("UNKNOWN__and_probably_unsupported", None),
        ] {
            assert_eq!(release(version), line, "{version}");
        }
    }
}
