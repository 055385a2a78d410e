//! `asterisk -rx '… reload'`, as an administrator would type it.
//!
//! The exit status says only that Asterisk answered, and "reloaded successfully" only that it tried: whether the new files
//! are in force must be proven afterwards. Three other answers matter.
//!
//! - "already in progress": Asterisk dropped the request, or one module's part of it. "cannot reload a module yet": Asterisk
//!   is starting, and only queued it. Both are sent again until the bound of a command is over.
//! - An answer that is not a reload's: the server has no `cli_aliases.conf` ("No such command" for `pjsip reload`), or one that
//!   gives the command another meaning. Then `module reload` is sent, which is no alias.
//! - Asterisk does not permit the command, or is shutting down.
//!
//! The program may be a wrapper, whose exit status is its own: what Asterisk printed decides first.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, copy, sink};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tokio::try_join;
use tracing::info;
use utoipa::ToSchema;

use super::control::{self, Control, IDENTITY, Identity, MAX_QUOTED_CHARS};
use super::permissions;

/// Between two attempts to send a reload.
const RETRY: Duration = Duration::from_millis(100);

/// A reload.
pub struct Reload {
    /// Each does it; the first that Asterisk takes for a reload is enough.
    commands: &'static [&'static str],
    /// The answer of a reload has one of these.
    answers: &'static [&'static str],
}

/// Reloads the endpoints. The first is an alias for the second (`cli_aliases.conf` of Asterisk 22).
pub const PJSIP: &Reload = &Reload {
    commands: &[
        "pjsip reload",
        "module reload res_pjsip.so res_pjsip_authenticator_digest.so res_pjsip_endpoint_identifier_ip.so res_pjsip_mwi.so res_pjsip_notify.so res_pjsip_outbound_publish.so res_pjsip_publish_asterisk.so res_pjsip_outbound_registration.so",
    ],
    answers: &["odule 'res_pjsip.so'"],
};

/// Makes Asterisk read the endpoints, auths and AORs alone: the first module that [`PJSIP`] reloads.
pub const OBJECTS: &Reload = &Reload { commands: &["module reload res_pjsip.so"], answers: PJSIP.answers };

/// No module has this name, so nothing is reloaded, and Asterisk only says whether another reload is running. It also says from then
/// on that its last reload was just now, so only an apply sends it.
const RELOAD_OF_NOTHING: &str = "module reload res_pjsip.so.none";

/// Reloads the routing.
pub const DIALPLAN: &Reload = &Reload {
    commands: &["dialplan reload", "module reload pbx_config.so"],
    answers: &["Dialplan reloaded.", "odule 'pbx_config.so'"],
};

/// The most that is kept of what a command prints on each of its two outputs, for an answer and an audit row. A reload of Asterisk
/// prints less than 1 KiB.
const MAX_PRINTED_BYTES: u64 = 16 * 1024;

/// Whether Asterisk dropped a reload, or a part of it, because another is running or because it is starting.
fn was_dropped(output: &str) -> bool {
    output.contains("already in progress") || output.contains("cannot reload a module yet")
}

/// How a command went.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CommandResult {
    /// As an administrator would type it.
    #[schema(example = "asterisk -rx 'pjsip reload'")]
    pub command: String,
    /// `null` if the command took too long and was killed, or could not be started.
    #[schema(required, example = 0)]
    pub exit_code: Option<i32>,
    /// What it printed; at most the first 16 KiB.
    #[schema(example = "Module 'res_pjsip.so' reloaded successfully.\n")]
    pub stdout: String,
    /// Its error messages; at most the first 16 KiB.
    #[schema(example = "")]
    pub stderr: String,
}

/// The process group of a command. Drop kills it: the program may be a wrapper with children.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Fails if all of it has just ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The program that sends commands to Asterisk.
#[derive(Debug, Clone)]
pub struct AsteriskCommand {
    pub program: PathBuf,
    pub bound: Duration,
}

impl AsteriskCommand {
    /// Makes Asterisk read its files again. `last` receives the result of the last attempt, also if it failed. Afterwards the reload
    /// has ended; Asterisk may have refused what it read.
    pub async fn reload(&self, reload: &Reload, last: &mut Option<CommandResult>) -> Result<()> {
        let started = Instant::now();
        let mut commands = reload.commands.iter();
        let mut command = *commands.next().expect("a reload has a command");
        loop {
            let output = self.run(command, last).await?;
            if was_dropped(&output) {
                self.ensure_in_time(started)?;
                info!(command = self.typed(command), "Asterisk dropped the reload; it is retried");
                sleep(RETRY).await;
            } else if reload.answers.iter().any(|answer| output.contains(answer)) {
                return Ok(());
            } else {
                let (typed, output) = (self.typed(command), output.trim());
                command = commands.next().with_context(|| {
                    format!(
                        "{typed} reloaded nothing, but printed '{output:.200}'; if cli_aliases.conf has a line for this command, remove it and run 'module reload res_clialiases.so' in Asterisk, then apply again"
                    )
                })?;
            }
        }
    }

    /// Waits until no reload is running: what that has read may come into force later. Fails if `module reload res_pjsip.so` is not
    /// permitted.
    pub async fn wait_until_none_runs(&self, control: &Control) -> Result<()> {
        let started = Instant::now();
        while was_dropped(&control.ask(&[RELOAD_OF_NOTHING]).await?) {
            self.ensure_in_time(started)?;
            sleep(RETRY).await;
        }
        Ok(())
    }

    fn ensure_in_time(&self, started: Instant) -> Result<()> {
        ensure!(
            started.elapsed() < self.bound,
            "Asterisk has been busy with other reloads for {} s; find out who reloads it all the time, then apply again",
            self.bound.as_secs()
        );
        Ok(())
    }

    /// The identity of the Asterisk that this program reaches.
    pub async fn identity(&self) -> Result<Identity> {
        let output = self.run(IDENTITY, &mut None).await?;
        Identity::parse(&output).with_context(|| {
            let (command, output) = (self.typed(IDENTITY), output.trim());
            format!(
                "{command} did not print Asterisk's settings, but '{output:.MAX_QUOTED_CHARS$}'; set ASTERISK_BIN to Asterisk's program"
            )
        })
    }

    /// How an administrator would type a command.
    fn typed(&self, command: &str) -> String {
        format!("{} -rx '{command}'", self.program.display())
    }

    /// Runs `program -rx command` in a process group of its own, and kills the whole group if it takes too long. Returns what it
    /// printed.
    async fn run(&self, command: &str, last: &mut Option<CommandResult>) -> Result<String> {
        assert!(permissions::is_listed(command), "it is in the list of permissions: {command}");
        let typed = self.typed(command);
        let not_started = |error| anyhow!("cannot start {typed}: {error}; set ASTERISK_BIN to Asterisk's program");
        let result = last.insert(CommandResult { command: typed.clone(), ..CommandResult::default() });
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
        let timed_out = |_| {
            anyhow!(
                "{typed} did not end within {} s (ASTERISK_TIMEOUT_SECS) and was killed: Asterisk hangs; restart it, then apply again",
                self.bound.as_secs()
            )
        };
        let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let ended = async { try_join!(printed(stdout), printed(stderr), child.wait()) };
        let (stdout, stderr, status) = timeout(self.bound, ended).await.map_err(timed_out)?.map_err(not_started)?;
        group.0 = None;
        result.stdout = stdout;
        result.stderr = stderr;
        result.exit_code = status.code();
        let output = format!("{}{}", result.stdout, result.stderr);
        control::ensure_not_refused(&output)?;
        ensure!(
            status.success() || was_dropped(&output) || output.contains("No such command"),
            "{typed} ended with {status}: {:.MAX_QUOTED_CHARS$}; look whether Asterisk runs (systemctl status asterisk), the portal's user may use its control socket, and ASTERISK_BIN is Asterisk's program",
            output.trim()
        );
        Ok(output)
    }
}

/// What a program prints, up to a bound. It may print more, which is dropped.
async fn printed(mut pipe: impl AsyncRead + Unpin) -> io::Result<String> {
    let mut kept = Vec::new();
    (&mut pipe).take(MAX_PRINTED_BYTES).read_to_end(&mut kept).await?;
    copy(&mut pipe, &mut sink()).await?;
    // No database stores a NUL in a text.
    Ok(String::from_utf8_lossy(&kept).replace('\0', ""))
}
