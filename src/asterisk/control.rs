//! Asterisk's control socket, `asterisk.ctl`: commands and what they print, without starting a process.
//!
//! It is what a remote console does (`main/asterisk.c`): connect, send each command with a NUL byte behind it, and shut
//! down the sending half; read the greeting `host/pid/version` and a newline, then what the commands print, in turn, to the
//! end. The exit status of a command is never told: what it printed is all there is. A line of more than 511 bytes is never
//! answered (a buffer of 512 bytes), and so is refused here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tokio::try_join;
use tracing::info;

/// How errors tell the line that Asterisk sends first.
const GREETING: &str = "(its greeting)";

/// The longest command that is sent, in bytes.
pub const MAX_COMMAND_BYTES: usize = 499;

/// How often a listing that lost lines is read.
const READINGS: usize = 10;

/// Room for an answer to begin with, in bytes: most fit.
const ROOM: usize = 64 * 1024;

/// Asterisk lets two connections wait to be accepted; whoever comes then is told to try again.
const QUEUE_RETRY: Duration = Duration::from_millis(1);

/// The Asterisk at the other end of the control socket.
#[derive(Debug)]
pub struct Server {
    /// As it tells it: `22.10.1~dfsg`, or `GIT-22-0a1b2c3` where it was built from its repository.
    pub version: String,
    /// The user it runs as.
    pub uid: u32,
    /// All of its groups.
    pub groups: Vec<u32>,
}

impl Server {
    /// The release line: 22 of all versions above; `None` where the version does not begin with one.
    #[must_use]
    pub fn release(&self) -> Option<u32> {
        let version = ["GIT-", "certified/", "certified-"]
            .iter()
            .find_map(|prefix| self.version.strip_prefix(prefix))
            .unwrap_or(&self.version);
        version.split(['.', '-', '~', '+']).next()?.parse().ok()
    }
}

/// The control socket of one Asterisk.
#[derive(Debug, Clone)]
pub struct Control {
    socket: PathBuf,
    bound: Duration,
}

/// Why Asterisk gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("Asterisk is not running: nothing answers on {} ({error}); start it (systemctl start asterisk), or set ASTERISK_RUN_DIR", socket.display())]
    Down {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Somebody listens, but not for this user.
    #[error(
        "Asterisk's control socket {} refuses the portal's user ({error}); in asterisk.conf, section [files], set astctlpermissions = 0660 and astctlgroup to a group of that user, and restart Asterisk",
        socket.display()
    )]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// There may be somebody, but no connection comes about.
    #[error("Asterisk's control socket {} can't be reached: {error}; {}", socket.display(), unreachable_advice(error))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The connection broke.
    #[error("Asterisk broke off while it was asked '{command}' ({error}); it may be restarting: apply again")]
    Broken {
        /// What was asked.
        command: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// No answer within the bound.
    #[error("Asterisk did not answer '{command}' within {} s: it hangs, or the machine is overloaded; look at 'core show locks', restart it, then apply again", bound.as_secs())]
    Hung {
        /// What was asked.
        command: String,
        /// How long was waited.
        bound: Duration,
    },
    /// It keeps registrations that it was told to drop.
    #[error("Asterisk keeps old registrations of {numbers} that it was told to drop; restart it, then apply again")]
    Kept {
        /// Of which extensions.
        numbers: String,
    },
    /// It answered, but not what such a command answers.
    #[error(
        "Asterisk's answer to '{command}' is not understood: {answer}; look at Asterisk's own log (messages.log), then apply again"
    )]
    Unexpected {
        /// What was asked.
        command: String,
        /// Its beginning.
        answer: String,
    },
}

impl ControlError {
    /// An answer that is none, told by its beginning.
    pub(super) fn unexpected(command: &str, answer: &str) -> Self {
        let mut beginning: String = answer.trim().chars().filter(|c| *c != '\0').take(200).collect();
        if beginning.is_empty() {
            beginning.push_str("it is empty");
        }
        Self::Unexpected { command: command.to_owned(), answer: beginning }
    }

    /// The same without an answer that has something of an auth in it, and so may have its secret.
    pub(super) fn without_secrets(self) -> Self {
        match self {
            Self::Unexpected { command, answer } if answer.contains("Auth") || answer.contains("password") => {
                Self::Unexpected { command, answer: "it is not whole".to_owned() }
            }
            other => other,
        }
    }
}

impl Control {
    /// The control socket in `run_dir`; a command is given `bound`.
    #[must_use]
    pub fn new(run_dir: &Path, bound: Duration) -> Self {
        Self { socket: run_dir.join("asterisk.ctl"), bound }
    }

    /// What Asterisk prints for `command`.
    ///
    /// # Errors
    /// [`ControlError`].
    ///
    /// # Panics
    /// If the command could not fit Asterisk's buffer, or is more than one: a mistake of the caller.
    pub async fn ask(&self, command: &str) -> Result<String, ControlError> {
        self.ask_all(&[command]).await
    }

    /// What Asterisk prints for all of `commands`, in turn. None waits for the answer to another, so a thousand cost little more
    /// than Asterisk's own work; all together are given the bound of one.
    ///
    /// # Errors
    /// [`ControlError`].
    ///
    /// # Panics
    /// As [`Control::ask`] does.
    pub async fn ask_all(&self, commands: &[impl AsRef<str>]) -> Result<String, ControlError> {
        if commands.is_empty() {
            return Ok(String::new());
        }
        let asked = told(commands);
        let mut lines = Vec::new();
        for command in commands.iter().map(AsRef::as_ref) {
            assert!(
                command.len() <= MAX_COMMAND_BYTES && !command.contains(['\0', '\n']),
                "a command that fits: {command}"
            );
            lines.extend_from_slice(command.as_bytes());
            lines.push(0);
        }
        let hung = |_| ControlError::Hung { command: asked.clone(), bound: self.bound };
        timeout(self.bound, self.exchange(&asked, &lines)).await.map_err(hung)?
    }

    /// A listing, which `parse` takes only if it is whole: to a reader that stalls, Asterisk drops lines in the middle. Such a
    /// one is read again, a few times.
    ///
    /// # Errors
    /// [`ControlError`]; `Unexpected` if it never was whole.
    pub async fn listing<T>(&self, command: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, ControlError> {
        self.listings(&[command], parse).await
    }

    /// The same of several commands, whose answers `parse` is given as one.
    ///
    /// # Errors
    /// [`ControlError`]; `Unexpected` if it never was whole.
    pub async fn listings<T>(
        &self,
        commands: &[impl AsRef<str>],
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ControlError> {
        let mut answer = String::new();
        for _ in 0..READINGS {
            answer = self.ask_all(commands).await?;
            if let Some(parsed) = parse(&answer) {
                return Ok(parsed);
            }
            info!(command = told(commands), "the listing lost lines; it is read again");
        }
        Err(ControlError::unexpected(&told(commands), &answer))
    }

    /// Who answers: its version by its greeting, its user and the groups it belongs to by the kernel.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn server(&self) -> Result<Server, ControlError> {
        let hung = |_| ControlError::Hung { command: GREETING.to_owned(), bound: self.bound };
        timeout(self.bound, self.meet()).await.map_err(hung)?
    }

    async fn meet(&self) -> Result<Server, ControlError> {
        let broken = |error| ControlError::Broken { command: GREETING.to_owned(), error };
        let mut stream = BufReader::new(self.connect().await?);
        let mut greeting = String::new();
        stream.read_line(&mut greeting).await.map_err(broken)?;
        let Some(version) = greeting.trim_end().splitn(3, '/').nth(2) else {
            return Err(ControlError::unexpected(GREETING, &greeting));
        };
        let peer = stream.get_ref().peer_cred().map_err(broken)?;
        let status =
            peer.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        let groups = groups.split_whitespace().filter_map(|group| group.parse().ok()).chain([peer.gid()]).collect();
        Ok(Server { version: version.to_owned(), uid: peer.uid(), groups })
    }

    async fn exchange(&self, asked: &str, lines: &[u8]) -> Result<String, ControlError> {
        let broken = |error| ControlError::Broken { command: asked.to_owned(), error };
        let mut stream = self.connect().await?;
        let (mut from, mut to) = stream.split();
        let mut answer = Vec::with_capacity(ROOM);
        let send = async {
            to.write_all(lines).await?;
            to.shutdown().await
        };
        // Both at once: Asterisk drops what it can't get rid of within 100 ms.
        try_join!(send, from.read_to_end(&mut answer)).map_err(broken)?;
        let greeting = answer.iter().position(|byte| *byte == b'\n');
        answer.drain(..=greeting.ok_or_else(|| broken(io::ErrorKind::UnexpectedEof.into()))?);
        // A phone's User-Agent can be anything.
        Ok(String::from_utf8(answer).unwrap_or_else(|raw| String::from_utf8_lossy(raw.as_bytes()).into_owned()))
    }

    async fn connect(&self) -> Result<UnixStream, ControlError> {
        loop {
            let error = match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let socket = self.socket.clone();
            match error.kind() {
                io::ErrorKind::WouldBlock => sleep(QUEUE_RETRY).await,
                io::ErrorKind::PermissionDenied => return Err(ControlError::Refused { socket, error }),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    return Err(ControlError::Down { socket, error });
                }
                _ => return Err(ControlError::Unreachable { socket, error }),
            }
        }
    }
}

fn unreachable_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE) => {
            "the portal has no file handle left: raise its limit (LimitNOFILE= of its unit), then restart it"
        }
        _ => "set ASTERISK_RUN_DIR to the folder of Asterisk's asterisk.ctl, then apply again",
    }
}

/// Commands as an error tells them: the first and the last of many.
fn told(commands: &[impl AsRef<str>]) -> String {
    match commands {
        [] => String::new(),
        [one] => shortened(one.as_ref()),
        [first, .., last] => format!("{} … {}", shortened(first.as_ref()), shortened(last.as_ref())),
    }
}

/// A batch of expressions would fill the screen.
fn shortened(command: &str) -> String {
    match command.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &command[..end]),
        None => command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_commands_the_first_and_the_last_are_told() {
        assert_eq!(told(&["a"; 0]), "");
        assert_eq!(told(&["a"]), "a");
        assert_eq!(told(&["a", "b", "c"]), "a … c");
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
