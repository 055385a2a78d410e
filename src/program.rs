//! `pbx-portal`: arguments, settings, logging; start and stop.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::error::ErrorKind::{InvalidUtf8, InvalidValue, ValueValidation};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::api::guard::Guard;
use crate::api::{self, Portal, server};
use crate::apply::Applier;
use crate::apply::preview::preview;
use crate::preflight::check::{Report, check};
use crate::preflight::probes::Host;
use crate::settings::{Command, LogFormat, Secrets, Settings};
use crate::storage::{Inspection, Storage, StorageError};

/// The exit status for an invalid setting or argument. For any other failure it is 1.
const INVALID: u8 = 2;

/// How long a start waits for a database that is not available yet.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a stop waits for requests. By then each request that was being sent has arrived or is given up, so none begins an
/// apply later. A stop waits for an apply however long it takes.
const STOP_PATIENCE: Duration = server::SEND_PATIENCE.saturating_mul(2).saturating_add(Duration::from_secs(1));

/// Runs the program, with the arguments and the environment of the process.
#[must_use]
pub fn run() -> ExitCode {
    start().unwrap_or_else(|error| end(1, format_args!("{error:#}")))
}

/// Ends with one line.
fn end(status: u8, why: impl Display) -> ExitCode {
    eprintln!("pbx-portal: {why}");
    ExitCode::from(status)
}

fn start() -> Result<ExitCode> {
    // Other users cannot read any file that this process makes, unless it says otherwise.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    keep_memory_private().context("core dumps can't be turned off")?;
    if let Err(problem) = read_dotenv() {
        return Ok(end(INVALID, format_args!(".env can't be used: {problem}")));
    }
    let command = match Command::read(std::env::args_os()) {
        Ok(command) => command,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            return Ok(match error.kind() {
                // The value of a setting. An unknown flag is another kind of error.
                InvalidUtf8 | InvalidValue | ValueValidation => refuse_setting(&one_line(&error)),
                _ => end(INVALID, one_line(&error)),
            });
        }
    };
    let settings = match &command {
        Command::Openapi => {
            print!("{}", api::openapi_document());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Serve(settings) | Command::Migrate(settings) | Command::Check { settings, .. } => settings.as_ref(),
    };
    let secrets = match Secrets::from_environment(settings) {
        Ok(secrets) => secrets,
        Err(error) => return Ok(refuse_setting(&error.to_string())),
    };
    start_log(settings);
    // One thread: applies and SQLite, which block, have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no event loop can be started")?.block_on(async {
        let storage = Storage::new(&secrets.database);
        if let Command::Check { json, .. } = command {
            let host = Host::new(settings);
            let mut findings = check(settings, &secrets, &storage, &host).await;
            preview(&host, &storage, &mut findings).await;
            return Ok(report(&Report::new(secrets.database.to_string(), findings), json));
        }
        let found = migrate(&storage).await?;
        if let Some(advice) = found.advice {
            warn!(connection = found.server, advice, "the database is connected");
        } else {
            info!(connection = found.server, "the database is connected");
        }
        if matches!(command, Command::Migrate(_)) {
            println!("The database's tables are up to date.");
        } else {
            serve(settings, secrets, storage).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Refuses an invalid setting, of which `check` makes a report.
fn refuse_setting(problem: &str) -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|command| command != "check") {
        return end(INVALID, problem);
    }
    report(&Report::of_settings(problem), arguments.any(|argument| argument == "--json"))
}

/// Prints what `check` found; exit status 1 if something failed.
fn report(report: &Report, json: bool) -> ExitCode {
    if json {
        println!("{}", serde_json::to_string_pretty(report).expect("a report of plain values"));
    } else {
        print!("{report}");
    }
    if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Keeps secrets out of core dumps. The limit stops dumps to files, the children's too. A kernel that pipes dumps to a program
/// ignores the limit, but not the other call, which also hides the environment in /proc from other processes of this user.
fn keep_memory_private() -> rustix::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// What is wrong with the arguments or the environment, without clap's advice below it.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let (text, _) = text.split_once("\n\nUsage:").unwrap_or((&text, ""));
    let (text, _) = text.split_once("\n\nFor more information").unwrap_or((text, ""));
    text.trim_start_matches("error: ").replace(char::is_control, " ").trim_end().to_owned()
}

/// Reads `./.env` if it exists. One that cannot be read or parsed is an error, and so is another user's: it could name any program
/// as `ASTERISK_BIN`. No error shows a line of it, which may hold a secret.
fn read_dotenv() -> Result<()> {
    let file = match File::open("./.env") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let owner = file.metadata()?.uid();
    ensure!(
        owner == 0 || owner == geteuid().as_raw(),
        "it belongs to the user {owner}; only root's and the portal's own is read"
    );
    let text = io::read_to_string(file)?;
    ensure!(!text.contains('\0'), "it contains a NUL character");
    // Outside single quotes, a variable replaces a $: half of a password would silently be lost.
    let expands = |line: &str| {
        line.split_once('=').is_some_and(|(_, value)| value.contains('$') && !value.trim_start().starts_with('\''))
    };
    if let Some(index) = text.lines().position(|line| !line.trim_start().starts_with('#') && expands(line)) {
        bail!("line {} has a $: put its value in single quotes", index + 1);
    }
    dotenvy::from_read(text.as_bytes()).map_err(|error| match error {
        dotenvy::Error::LineParse(_, at) => anyhow!("a line is not of the form NAME=value (at its character {at})"),
        _ => anyhow!("it is invalid"),
    })
}

fn start_log(settings: &Settings) {
    // Libraries log only what is wrong.
    let level = settings.log_level;
    let libraries = level.min(LevelFilter::WARN);
    let targets = Targets::new().with_target("pbx_control_portal", level).with_default(libraries);
    let registry = tracing_subscriber::registry().with(targets);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_target(false)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
}

/// Migrates. Retries for a while, and logs it, if the database is unavailable.
async fn migrate(storage: &Storage) -> Result<Inspection> {
    let started = tokio::time::Instant::now();
    loop {
        match storage.migrate().await {
            Err(StorageError::Unavailable { reason, .. }) if started.elapsed() < DATABASE_PATIENCE => {
                warn!(reason, "the database can't be used yet; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            failed @ Err(StorageError::Unavailable { .. }) => return failed.context("the database can't be reached"),
            migrated => return Ok(migrated?),
        }
    }
}

async fn serve(settings: &Settings, secrets: Secrets, storage: Storage) -> Result<()> {
    let signals = |kind| signal(kind).context("signals can't be handled");
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.with_context(|| format!("PORTAL_LISTEN {} can't be listened on", settings.listen))?;
    let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
    let applier = Applier::new(settings, storage.clone(), tasks.clone(), stopping.clone());
    let guard = match secrets.api_token {
        Some(token) => Guard::Token(token),
        None => Guard::Open { loopback: settings.listen.ip().is_loopback() },
    };
    let router = api::router(Portal { storage, applier }, guard);
    info!(address = %settings.listen, version = env!("CARGO_PKG_VERSION"), "serving; the documentation is at /docs");
    tell_service_manager(NotifyState::Ready);
    tokio::spawn(feed_watchdog());

    let mut server = tokio::spawn(server::serve(listener, router, stopping.clone()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping; an apply that runs goes on to its end");
    tell_service_manager(NotifyState::Stopping);
    stopping.cancel();
    // Requests that are being sent may still begin an apply, so they come first; then every apply ends, and is answered.
    let drained = tokio::time::timeout(STOP_PATIENCE, &mut server).await.is_ok();
    tasks.close();
    tasks.wait().await;
    if !drained && tokio::time::timeout(Duration::from_secs(1), server).await.is_err() {
        warn!("some clients did not take their answers");
    }
    Ok(())
}

/// Tells systemd twice in each `WatchdogSec=` that the event loop lives. If it hangs, systemd restarts the service.
async fn feed_watchdog() {
    let Some(bound) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((bound / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        tell_service_manager(NotifyState::Watchdog);
    }
}

/// Tells systemd the state of the service, if systemd started it.
fn tell_service_manager(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd cannot be notified");
    }
}
