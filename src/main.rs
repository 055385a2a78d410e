//! `pbx-portal`: arguments, settings, logging, run.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use pbx_control_portal::api::guard::Guard;
use pbx_control_portal::api::{self, Portal, server};
use pbx_control_portal::apply::Applier;
use pbx_control_portal::apply::preview::preview;
use pbx_control_portal::preflight::check::{Report, check};
use pbx_control_portal::preflight::probes::Host;
use pbx_control_portal::settings::{Cli, Command, LogFormat, Secrets, Settings};
use pbx_control_portal::storage::{MigrationError, Storage};
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

/// How long a start waits for a database that is not available yet.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a stop waits for requests. By then each request that was being sent has arrived or is given up, so none begins an
/// apply later. A stop waits for an apply however long it takes.
const STOP_PATIENCE: Duration =
    server::HEAD_PATIENCE.saturating_add(server::BODY_PATIENCE).saturating_add(Duration::from_secs(1));

fn main() -> ExitCode {
    // Other users cannot read any file that this process makes, unless it says otherwise.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    if let Err(error) = keep_memory_private() {
        return fail(&format!("core dumps can't be turned off: {error}"));
    }
    if let Err(problem) = read_dotenv() {
        return refuse(&format!(".env can't be used: {problem}"));
    }
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        // The value of a setting is invalid. An unknown flag is another kind of error.
        Err(error) if asks("check") && error.kind() == ErrorKind::ValueValidation => {
            return report(&Report::of_settings(&one_line(&error)), asks("--json"));
        }
        Err(error) => return refuse(&one_line(&error)),
    };
    let command = cli.command;
    let settings = match &command {
        Command::Openapi => {
            print!("{}", api::openapi_document());
            return ExitCode::SUCCESS;
        }
        Command::Serve(settings) | Command::Migrate(settings) | Command::Check { settings, .. } => settings.as_ref(),
    };
    let secrets = match Secrets::from_environment(settings) {
        Ok(secrets) => secrets,
        Err(error) => {
            return match command {
                Command::Check { json, .. } => report(&Report::of_settings(&error.to_string()), json),
                _ => refuse(&error.to_string()),
            };
        }
    };
    start_log(settings);
    // One thread: applies and SQLite, which block, have threads of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no event loop can be started: {error}")),
    };
    runtime.block_on(async {
        let storage = Storage::new(&secrets.database);
        if let Command::Check { json, .. } = command {
            return report(&checked(settings, &secrets, &storage).await, json);
        }
        if let Err(error) = migrate(&storage).await {
            return fail(&error.to_string());
        }
        if let Some(wire) = storage.wire().await {
            if let Some(advice) = wire.advice {
                warn!(connection = wire.found, advice, "the database is connected");
            } else {
                info!(connection = wire.found, "the database is connected");
            }
        }
        if matches!(command, Command::Migrate(_)) {
            println!("The database's tables are up to date.");
            return ExitCode::SUCCESS;
        }
        match self::serve(settings, secrets, storage).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        }
    })
}

/// Whether the command line contains this word.
fn asks(word: &str) -> bool {
    std::env::args_os().any(|argument| argument == word)
}

/// Whether an apply has what it needs, and what the next one would do.
async fn checked(settings: &Settings, secrets: &Secrets, storage: &Storage) -> Report {
    let host = Host::new(settings);
    let mut findings = check(settings, secrets, storage, &host).await;
    preview(&host, storage, &mut findings).await;
    Report::new(secrets.database.to_string(), findings)
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

/// An invalid setting: one line, exit status 2.
fn refuse(why: &str) -> ExitCode {
    eprintln!("pbx-portal: {why}");
    ExitCode::from(2)
}

/// What is wrong with the arguments or the environment, without clap's advice below it.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let end = ["\n\nUsage:", "\n\nFor more information"]
        .iter()
        .filter_map(|advice| text.find(advice))
        .min()
        .unwrap_or(text.len());
    text[..end].trim_start_matches("error: ").replace(char::is_control, " ").trim_end().to_owned()
}

/// Any other reason not to start: one line, exit status 1.
fn fail(why: &str) -> ExitCode {
    eprintln!("pbx-portal: {why}");
    ExitCode::FAILURE
}

/// Reads `./.env` if it exists. One that cannot be read or parsed is an error, and so is another user's: it could name any program
/// as `ASTERISK_BIN`.
fn read_dotenv() -> Result<(), String> {
    let mut file = match File::open("./.env") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let owner = file.metadata().map_err(|error| error.to_string())?.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(format!("it belongs to the user {owner}; only root's and the portal's own is read"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    // Outside single quotes, a variable replaces a $: half of a password would silently be lost.
    let expands = |line: &str| {
        line.split_once('=').is_some_and(|(_, value)| value.contains('$') && !value.trim_start().starts_with('\''))
    };
    if let Some(index) = text.lines().position(|line| !line.trim_start().starts_with('#') && expands(line)) {
        return Err(format!("line {} has a $: put its value in single quotes", index + 1));
    }
    dotenvy::from_read(text.as_bytes()).map_err(|error| dotenv_problem(&error))
}

/// What is wrong with `.env`, without showing a line of it: it may hold a secret.
fn dotenv_problem(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::Io(error) => error.to_string(),
        dotenvy::Error::LineParse(_, at) => {
            format!("a line does not have the form NAME=value (at character {at} of it)")
        }
        _ => "it is invalid".to_owned(),
    }
}

fn start_log(settings: &Settings) {
    // Libraries log only what is wrong.
    let level = settings.log_level;
    let libraries = level.min(LevelFilter::WARN);
    let targets = Targets::new()
        .with_target("pbx_control_portal", level)
        .with_target("pbx_portal", level)
        .with_default(libraries);
    let registry = tracing_subscriber::registry().with(targets);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_target(false)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
}

/// Migrates. Retries for a while, and logs it, if the database is unavailable.
async fn migrate(storage: &Storage) -> Result<(), MigrationError> {
    let started = tokio::time::Instant::now();
    loop {
        match storage.migrate().await {
            Err(MigrationError::Unavailable(reason)) if started.elapsed() < DATABASE_PATIENCE => {
                warn!(reason, "the database can't be used yet; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            migrated => return migrated,
        }
    }
}

async fn serve(settings: &Settings, secrets: Secrets, storage: Storage) -> Result<(), String> {
    let signals = |kind| signal(kind).map_err(|error| format!("signals can't be handled: {error}"));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| format!("PORTAL_LISTEN {} can't be listened on: {error}", settings.listen))?;
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
