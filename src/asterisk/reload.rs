//! `asterisk -rx '… reload'`, as an administrator would type it.
//!
//! The exit status says only that Asterisk answered, and "reloaded successfully" only that it tried: whether the new files
//! are in force must be proven afterwards. Three other answers matter.
//!
//! - "already in progress": Asterisk dropped the request, or one module's part of it. "cannot reload a module yet": Asterisk
//!   is starting, and only queued it. Both are sent again, as long as a command may take.
//! - An answer that is not a reload's: the server has no `cli_aliases.conf` ("No such command" for `pjsip reload`), or one that
//!   gives the command another meaning. Then `module reload` is sent, which is no alias.
//! - Asterisk does not permit the command, or is shutting down: the error says so.
//!
//! The program may be a wrapper, whose exit status is its own: what Asterisk printed decides first.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, copy, sink};
use tokio::process;
use tokio::time::{Instant, sleep, timeout};
use tokio::try_join;
use tracing::info;
use utoipa::ToSchema;

use super::control::{Identity, MAX_QUOTED_CHARS, ensure_not_refused};
use super::{Command, Control};
use crate::problem::{Result, bail, ensure, problem};

/// Between two attempts to reload.
const RELOAD_PAUSE: Duration = Duration::from_millis(100);

pub struct Reload {
    /// Each does it; the first that Asterisk takes for a reload is enough.
    commands: &'static [Command],
    /// The answer of a reload has one of these.
    answers: &'static [&'static str],
}

/// Reloads all of PJSIP. Its first module reads the endpoints.
pub const PJSIP: &Reload =
    &Reload { commands: &[Command::RELOAD_PJSIP, Command::RELOAD_PJSIP_MODULES], answers: OBJECTS.answers };

/// Reloads the endpoints, auths and AORs, and nothing else. Asterisk writes both `Module` and `The module`.
pub const OBJECTS: &Reload = &Reload { commands: &[Command::RELOAD_OBJECTS], answers: &["odule 'res_pjsip.so'"] };

pub const DIALPLAN: &Reload = &Reload {
    commands: &[Command::RELOAD_DIALPLAN, Command::RELOAD_DIALPLAN_MODULE],
    answers: &["Dialplan reloaded.", "odule 'pbx_config.so'"],
};

/// The most that is kept of what a command prints on each of its two outputs, for an answer and an audit row. A reload of Asterisk
/// prints less than 1 KiB.
const MAX_PRINTED_BYTES: u64 = 16 * 1024;

/// Whether a reload must be sent again: another is running, or Asterisk is starting.
fn must_be_repeated(output: &str) -> bool {
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
pub struct AsteriskProgram {
    /// `ASTERISK_BIN`.
    pub path: PathBuf,
    pub ends_within: Duration,
}

impl AsteriskProgram {
    /// Makes Asterisk read its files again. `last` receives the result of the last attempt, also if it failed. Afterwards the reload
    /// has ended; Asterisk may have refused what it read.
    pub async fn reload(&self, reload: &Reload, last: &mut Option<CommandResult>) -> Result<()> {
        let started = Instant::now();
        let mut failure = String::new();
        for command in reload.commands {
            let output = loop {
                let output = self.run(command, last).await?;
                if !must_be_repeated(&output) {
                    break output;
                }
                self.ensure_in_time(started)?;
                info!(command = self.typed(command), "Asterisk dropped the reload; it is retried");
                sleep(RELOAD_PAUSE).await;
            };
            if reload.answers.iter().any(|answer| output.contains(answer)) {
                return Ok(());
            }
            failure =
                format!("{} reloaded nothing, but printed '{:.MAX_QUOTED_CHARS$}'", self.typed(command), output.trim());
        }
        bail!(
            "{failure}",
            "if cli_aliases.conf has a line for this command, remove it and run 'module reload res_clialiases.so' in Asterisk"
        )
    }

    /// Waits until no reload is running, which may put an older file in force later. Fails if `module reload res_pjsip.so` is not
    /// permitted.
    pub async fn wait_until_none_runs(&self, control: &Control) -> Result<()> {
        let started = Instant::now();
        while must_be_repeated(&control.ask(&[Command::RELOAD_NOTHING]).await?) {
            self.ensure_in_time(started)?;
            sleep(RELOAD_PAUSE).await;
        }
        Ok(())
    }

    fn ensure_in_time(&self, started: Instant) -> Result<()> {
        let seconds = self.ends_within.as_secs();
        ensure!(
            started.elapsed() < self.ends_within,
            "Asterisk has been busy with other reloads for {seconds} s",
            "find out who reloads it all the time; if nobody does, a reload hangs: look at 'core show locks', and restart Asterisk"
        );
        Ok(())
    }

    /// The identity of the Asterisk that this program reaches.
    pub async fn identity(&self) -> Result<Identity> {
        let output = self.run(&Command::SETTINGS, &mut None).await?;
        Identity::parse(&output).ok_or_else(|| {
            let command = self.typed(&Command::SETTINGS);
            let output = output.trim();
            problem!(
                "{command} did not print Asterisk's settings, but '{output:.MAX_QUOTED_CHARS$}'",
                "set ASTERISK_BIN to Asterisk's program"
            )
        })
    }

    /// How an administrator would type a command.
    fn typed(&self, command: &Command) -> String {
        format!("{} -rx '{}'", self.path.display(), command.line())
    }

    /// Runs `program -rx command` in a process group of its own, and kills that group if it takes too long. Returns what it
    /// printed.
    async fn run(&self, command: &Command, last: &mut Option<CommandResult>) -> Result<String> {
        let typed = self.typed(command);
        let failed =
            |error: io::Error| problem!("cannot start {typed}: {error}", "set ASTERISK_BIN to Asterisk's program");
        let result = last.insert(CommandResult { command: typed.clone(), ..CommandResult::default() });
        let mut child = process::Command::new(&self.path)
            .args(["-rx", command.line()])
            .env_remove("DATABASE_URL")
            .env_remove("PORTAL_API_TOKEN")
            .env_remove("PGPASSWORD")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
        let seconds = self.ends_within.as_secs();
        let timed_out = |_| {
            problem!(
                "{typed} did not end within {seconds} s (ASTERISK_TIMEOUT_SECS) and was killed: Asterisk hangs",
                "restart Asterisk"
            )
        };
        let stdout = child.stdout.take().expect("a pipe");
        let stderr = child.stderr.take().expect("a pipe");
        let ended = async { try_join!(printed(stdout), printed(stderr), child.wait()) };
        let (stdout, stderr, status) = timeout(self.ends_within, ended).await.map_err(timed_out)?.map_err(failed)?;
        group.0 = None;
        result.stdout = stdout;
        result.stderr = stderr;
        result.exit_code = status.code();
        let output = format!("{}{}", result.stdout, result.stderr);
        ensure_not_refused(&output)?;
        let message = output.trim();
        ensure!(
            status.success() || must_be_repeated(&output) || output.contains("No such command"),
            "{typed} ended with {status}: {message:.MAX_QUOTED_CHARS$}",
            "look whether Asterisk runs (systemctl status asterisk), the portal's user may use its control socket, and ASTERISK_BIN is Asterisk's program"
        );
        Ok(output)
    }
}

/// What a program prints, up to [`MAX_PRINTED_BYTES`]. It may print more, which is dropped.
async fn printed(mut pipe: impl AsyncRead + Unpin) -> io::Result<String> {
    let mut kept = Vec::new();
    (&mut pipe).take(MAX_PRINTED_BYTES).read_to_end(&mut kept).await?;
    copy(&mut pipe, &mut sink()).await?;
    // No database stores a NUL in a text.
    Ok(String::from_utf8_lossy(&kept).replace('\0', ""))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixListener;
    use tokio::select;

    use super::*;

    /// A real reload also holds up the questions before this one, so this is a fake: it is busy twice.
    #[tokio::test]
    async fn a_reload_that_runs_is_waited_for() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).expect("make a folder");
        let listener = UnixListener::bind(folder.join("asterisk.ctl")).expect("listen");
        let mut asked = 0;
        let asterisk = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                stream.read_to_end(&mut Vec::new()).await.expect("commands");
                asked += 1;
                let says = if asked < 3 { "A module reload request is already in progress" } else { "No such module" };
                stream.write_all(format!("fake/1/22\n{says}\n").as_bytes()).await.expect("an answer");
            }
        };
        let ends_within = Duration::from_secs(20);
        let program = AsteriskProgram { path: PathBuf::new(), ends_within };
        let control = Control::new(&folder, ends_within);
        select! {
            ended = program.wait_until_none_runs(&control) => ended.expect("a reload that ends"),
            () = asterisk => {}
        }
        assert_eq!(asked, 3);
        std::fs::remove_dir_all(&folder).expect("remove the folder");
    }
}
