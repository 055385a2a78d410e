//! `asterisk -rx '… reload'`, as an administrator would type it.
//!
//! Its exit status says only that Asterisk answered, and "reloaded successfully" only that it was tried: it tells the earliest
//! moment at which looking makes sense, never what came of it, which is proven afterwards. Two other answers matter. "already in
//! progress" means that the request, or one module's part of it, was dropped: it is sent again until the bound of a command is
//! over, and so is one that an Asterisk that is starting only queues ("cannot reload a module yet"). "No such command" for `pjsip
//! reload` means that the server has no `cli_aliases.conf`: the alias's own expansion is sent instead.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;
use utoipa::ToSchema;

/// What `pjsip reload` prints once the endpoints are read, long before its end: modules that only look through them follow.
const ENDPOINTS_READ: &str = "Module 'res_pjsip.so' reloaded successfully";

/// What is reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The endpoints.
    Pjsip,
    /// The routing.
    Dialplan,
}

impl Reload {
    fn commands(self) -> &'static [&'static str] {
        match self {
            // The second is what the first is an alias of (cli_aliases.conf of Asterisk 22).
            Self::Pjsip => &[
                "pjsip reload",
                "module reload res_pjsip.so res_pjsip_authenticator_digest.so res_pjsip_endpoint_identifier_ip.so res_pjsip_mwi.so res_pjsip_notify.so res_pjsip_outbound_publish.so res_pjsip_publish_asterisk.so res_pjsip_outbound_registration.so",
            ],
            Self::Dialplan => &["dialplan reload"],
        }
    }
}

/// How a command went.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CommandResult {
    /// As it could be typed.
    #[schema(example = "asterisk -rx 'pjsip reload'")]
    pub command: String,
    /// `null` for a command that was ended because its time was over, or could not be started.
    #[schema(required, example = 0)]
    pub exit_code: Option<i32>,
    /// What it printed.
    #[schema(example = "Module 'res_pjsip.so' reloaded successfully.\n")]
    pub stdout: String,
    /// What it complained of.
    #[schema(example = "")]
    pub stderr: String,
}

/// Why a reload was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The command can't be started.
    #[error("{command} can't be started: {error}; set ASTERISK_BIN to Asterisk's program")]
    NotStarted {
        /// As it could be typed.
        command: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// Its time was over.
    #[error("{command} did not end within {} s (ASTERISK_TIMEOUT_SECS) and was killed: Asterisk hangs; restart it, then apply again", bound.as_secs())]
    TimedOut {
        /// As it could be typed.
        command: String,
        /// Its bound.
        bound: Duration,
    },
    /// It ended with another exit status than 0.
    #[error(
        "{command} ended with {status}: {output}; is Asterisk running (systemctl status asterisk), and may the portal's user use its control socket?"
    )]
    Failed {
        /// As it could be typed.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// Asterisk kept dropping it.
    #[error("{command}: Asterisk is busy with another reload for {} s already; find out who reloads it all the time, then apply again", bound.as_secs())]
    Dropped {
        /// As it could be typed.
        command: String,
        /// How long it was tried.
        bound: Duration,
    },
    /// Asterisk does not know the command.
    #[error("{command}: Asterisk does not know it: {output}; are its modules loaded (modules.conf)?")]
    Unknown {
        /// As it could be typed.
        command: String,
        /// What it said.
        output: String,
    },
}

/// The process group of a command, killed when dropped: the program may be a wrapper with children.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended just now: then there is nothing to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The program that carries commands to Asterisk.
#[derive(Debug, Clone)]
pub struct AsteriskCommand {
    /// `asterisk`, or a path.
    pub program: PathBuf,
    /// For one command.
    pub bound: Duration,
}

impl AsteriskCommand {
    /// Makes Asterisk read its files again. `last` keeps how the last attempt went, whatever comes of it. `once_read` is told as
    /// soon as Asterisk says that it has read the endpoints, at the latest when all is done; it is dropped if that never comes.
    ///
    /// # Errors
    /// [`ReloadError`].
    ///
    /// # Panics
    /// Never: each reload has a command.
    pub async fn reload(
        &self,
        what: Reload,
        last: &mut Option<CommandResult>,
        once_read: Option<watch::Sender<bool>>,
    ) -> Result<(), ReloadError> {
        let tell = || _ = once_read.as_ref().map(|once_read| once_read.send_replace(true));
        let started = Instant::now();
        let mut commands = what.commands().iter().peekable();
        let mut command = *commands.next().expect("a reload has a command");
        loop {
            let look = |output: &str| {
                if output.contains(ENDPOINTS_READ) {
                    tell();
                }
            };
            let result = self.run(command, last, look).await?;
            let output = format!("{}{}", result.stdout, result.stderr);
            let typed = result.command.clone();
            if output.contains("already in progress") || output.contains("cannot reload a module yet") {
                if started.elapsed() >= self.bound {
                    return Err(ReloadError::Dropped { command: typed, bound: self.bound });
                }
                info!(command = typed, "Asterisk dropped the reload; it is sent again");
                sleep(Duration::from_millis(100)).await;
            } else if output.contains("No such command") {
                let unknown = ReloadError::Unknown { command: typed, output: output.trim().to_owned() };
                command = commands.next().ok_or(unknown)?;
            } else {
                tell();
                return Ok(());
            }
        }
    }

    /// Runs `program -rx command` in a process group of its own, which is killed, whole, when the time is over or the apply is
    /// given up. `look` sees what it has printed so far, whenever that is more.
    async fn run<'r>(
        &self,
        command: &str,
        last: &'r mut Option<CommandResult>,
        mut look: impl FnMut(&str),
    ) -> Result<&'r CommandResult, ReloadError> {
        let typed = format!("{} -rx '{command}'", self.program.display());
        let result = last.insert(CommandResult {
            command: typed.clone(),
            exit_code: None,
            stdout: String::new(),
            stderr: String::new(),
        });
        let not_started = |error| ReloadError::NotStarted { command: typed.clone(), error };
        let mut child = Command::new(&self.program)
            .args(["-rx", command])
            .env_remove("DATABASE_URL")
            .env_remove("PORTAL_API_TOKEN")
            .env_remove("PGPASSWORD")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(not_started)?;
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
        let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let finished = timeout(self.bound, async {
            let read_out = async {
                while out.read_buf(&mut stdout).await? > 0 {
                    look(&String::from_utf8_lossy(&stdout));
                }
                Ok(())
            };
            let ((), _, status) = tokio::try_join!(read_out, err.read_to_end(&mut stderr), child.wait())?;
            Ok(status)
        })
        .await;
        if finished.is_ok() {
            group.0 = None;
        } else {
            drop(group);
            // One that can't be killed (sudo's, say) is not waited for: it is reaped when it ends.
            let _ = timeout(Duration::from_secs(1), child.wait()).await;
        }
        // No database keeps a NUL in a text.
        result.stdout = String::from_utf8_lossy(&stdout).replace('\0', "");
        result.stderr = String::from_utf8_lossy(&stderr).replace('\0', "");
        let status = finished
            .map_err(|_| ReloadError::TimedOut { command: typed.clone(), bound: self.bound })?
            .map_err(not_started)?;
        result.exit_code = status.code();
        if status.success() {
            Ok(result)
        } else {
            let output = format!("{}{}", result.stdout, result.stderr).trim().to_owned();
            Err(ReloadError::Failed { command: typed, status: status.to_string(), output })
        }
    }
}
