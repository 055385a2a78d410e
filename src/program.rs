//! `pbx-portal`: arguments, settings, logging; start and stop.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};
use clap::ValueEnum as _;
use clap::error::ErrorKind::{InvalidUtf8, InvalidValue, ValueValidation};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::api::guard::Guard;
use crate::api::{self, Portal, server};
use crate::apply::Applier;
use crate::apply::preview::preview;
use crate::pbx::Pbx;
use crate::preflight::check::{Report, check, token_rule};
use crate::preflight::finding::Found;
use crate::settings::{Command, Dotenv, LogFormat, Secrets, Settings, own_names};
use crate::storage::{Inspection, Storage, StorageError};

/// The exit status for an invalid setting or argument. For any other failure it is 1.
const INVALID_STATUS: u8 = 2;

/// How long a start waits for a database that is not available yet.
const DATABASE_WITHIN: Duration = Duration::from_secs(30);

/// How long a stop waits for requests. By then each request that was being sent has arrived or is given up, so none begins an
/// apply later. A stop waits for an apply however long it takes.
const STOPPED_WITHIN: Duration = server::SENT_WITHIN.saturating_mul(2).saturating_add(Duration::from_secs(1));

/// An invalid setting or argument.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Invalid(String);

/// Runs the program, with the arguments and the environment of the process. A failure ends it with one line.
#[must_use]
pub fn run() -> ExitCode {
    try_run().unwrap_or_else(|failure| {
        if asked_format(&Dotenv::read().unwrap_or_default()) == LogFormat::Json {
            start_log(LogFormat::Json, LevelFilter::ERROR);
            error!("{failure:#}");
        } else {
            eprintln!("pbx-portal: {failure:#}");
        }
        ExitCode::from(if failure.is::<Invalid>() { INVALID_STATUS } else { 1 })
    })
}

/// The log's format, also if another setting turns out to be invalid.
fn asked_format(dotenv: &Dotenv) -> LogFormat {
    let arguments: Vec<_> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let in_one = arguments.iter().find_map(|argument| argument.strip_prefix("--log-format="));
    let in_two = arguments.windows(2).find(|pair| pair[0] == "--log-format").map(|pair| pair[1].as_str());
    let variable = std::env::var("LOG_FORMAT").ok();
    let asked = in_one.or(in_two).or(variable.as_deref()).or(dotenv.get("LOG_FORMAT")).unwrap_or_default();
    LogFormat::from_str(asked, true).unwrap_or(LogFormat::Text)
}

fn try_run() -> Result<ExitCode> {
    // Other users cannot read any file that this process makes, unless it says otherwise.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    keep_memory_private().context("core dumps can't be turned off")?;
    let (dotenv, unusable) = match Dotenv::read() {
        Ok(dotenv) => (dotenv, None),
        Err(problem) => (Dotenv::default(), Some(anyhow!(".env can't be used: {problem}"))),
    };
    let command = match Command::read(std::env::args_os(), &dotenv) {
        Ok(command) => command,
        Err(error) if !error.use_stderr() => error.exit(),
        // The value of a setting. An unknown flag is another kind of error.
        Err(error) if [InvalidUtf8, InvalidValue, ValueValidation].contains(&error.kind()) => {
            return refuse_setting(&anyhow!(one_line(&error)));
        }
        Err(error) => return Err(Invalid(one_line(&error)).into()),
    };
    let settings = match &command {
        Command::Openapi => {
            print!("{}", api::openapi_document());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Serve(settings) | Command::Migrate(settings) | Command::Check { settings, .. } => settings.as_ref(),
    };
    if let Some(unusable) = unusable {
        return refuse_setting(&unusable);
    }
    let secrets = match Secrets::read(settings, &dotenv) {
        Ok(secrets) => secrets,
        Err(problem) => return refuse_setting(&problem.into()),
    };
    start_log(settings.log_format, settings.log_level);
    let runtime = Runtime::new().context("no event loop can be started")?;
    runtime.block_on(run_command(&command, settings, secrets, &dotenv))
}

async fn run_command(command: &Command, settings: &Settings, secrets: Secrets, dotenv: &Dotenv) -> Result<ExitCode> {
    let storage = Storage::new(&secrets.database);
    if let Command::Check { json, .. } = command {
        let pbx = Pbx::new(settings);
        let mut findings = check(settings, &secrets, dotenv, &storage, &pbx).await;
        preview(&pbx, &storage, &mut findings).await;
        return Ok(print_report(&Report::new(secrets.database.to_string(), findings), *json));
    }
    // A setting that is ignored may be the reason why the database can't be used.
    warn_of(settings, &secrets, dotenv);
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
}

/// Ends the program for an invalid setting. The command 'check' reports it; any other fails.
fn refuse_setting(invalid: &Error) -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|command| command != "check") {
        return Err(Invalid(invalid.to_string()).into());
    }
    Ok(print_report(&Report::of_settings(invalid), arguments.any(|argument| argument == "--json")))
}

/// Logs what an administrator should look at before the service is used.
fn warn_of(settings: &Settings, secrets: &Secrets, dotenv: &Dotenv) {
    for warning in dotenv.warnings() {
        warn!("{warning}");
    }
    if let Found::Warning(warning) = token_rule(settings, secrets) {
        warn!("{warning}");
    }
    if geteuid().is_root() {
        warn!(
            "the service runs as root, so any user who can write to its two folders can become root; run it as a user of its own, such as the package's pbx-portal"
        );
    }
}

/// Prints what `check` found; exit status 1 if something failed.
fn print_report(report: &Report, json: bool) -> ExitCode {
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

/// Starts the log, unless it has been started. A panic is a line of it, too.
fn start_log(format: LogFormat, level: LevelFilter) {
    // Libraries log only what is wrong.
    let libraries = level.min(LevelFilter::WARN);
    let targets = Targets::new().with_target("pbx_control_portal", level).with_default(libraries);
    let registry = tracing_subscriber::registry().with(targets);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_target(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        error!(place, "panicked: {}", panic.payload_as_str().unwrap_or_default());
    }));
}

/// Migrates. Retries for a while, and logs it, if the database is unavailable.
async fn migrate(storage: &Storage) -> Result<Inspection> {
    let started = tokio::time::Instant::now();
    loop {
        match storage.migrate().await {
            Err(StorageError::Unavailable { problem, .. }) if started.elapsed() < DATABASE_WITHIN => {
                warn!(reason = problem.what, remedy = problem.remedy, "the database can't be used yet; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            failed @ Err(StorageError::Unavailable { .. }) => return failed.context("the database can't be reached"),
            migrated => return Ok(migrated?),
        }
    }
}

async fn serve(settings: &Settings, secrets: Secrets, storage: Storage) -> Result<()> {
    let mut signals = catch_signals().context("signals can't be handled")?;
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.with_context(|| format!("PORTAL_LISTEN {} can't be listened on", settings.listen))?;
    let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
    let applier = Applier::new(settings, storage.clone(), tasks.clone(), stopping.clone());
    let guard = match secrets.api_token {
        Some(token) => Guard::Token(token),
        None => Guard::Open { own_names: own_names(settings).into(), proxied: settings.allow_unauthenticated },
    };
    let router = api::router(Portal { storage, applier }, guard);
    info!(address = %settings.listen, version = env!("CARGO_PKG_VERSION"), "serving; the documentation is at /docs");
    tell_service_manager(NotifyState::Ready);
    tokio::spawn(feed_watchdog());

    let mut serving = tokio::spawn(server::serve(listener, router, stopping.clone()));
    let signal = signals.recv().await.expect("SIGTERM is always caught");
    info!(signal, "stopping; an apply that runs goes on to its end");
    tell_service_manager(NotifyState::Stopping);
    stopping.cancel();
    // Requests that are being sent may still begin an apply, so they come first; then every apply ends, and is answered.
    let drained = tokio::time::timeout(STOPPED_WITHIN, &mut serving).await.is_ok();
    tasks.close();
    tasks.wait().await;
    if !drained && tokio::time::timeout(Duration::from_secs(1), serving).await.is_err() {
        warn!("some clients did not take their answers");
    }
    Ok(())
}

/// Catches the signals that end the service from now on, except those that are ignored, as `nohup` does it. Returns where the name of
/// one arrives.
fn catch_signals() -> io::Result<Receiver<&'static str>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let is_ignored = |kind: SignalKind| (ignored.unwrap_or_default() >> (kind.as_raw_value() - 1)) & 1 == 1;
    let (caught, signals) = channel(1);
    // The last three would end the process in the middle of an apply.
    for (name, kind) in [
        ("SIGTERM", SignalKind::terminate()),
        ("SIGINT", SignalKind::interrupt()),
        ("SIGHUP", SignalKind::hangup()),
        ("SIGQUIT", SignalKind::quit()),
        ("SIGUSR1", SignalKind::user_defined1()),
        ("SIGUSR2", SignalKind::user_defined2()),
    ] {
        if name != "SIGTERM" && is_ignored(kind) {
            continue;
        }
        let mut signal = signal(kind)?;
        let caught = caught.clone();
        tokio::spawn(async move {
            signal.recv().await;
            // Only the first one counts.
            let _ = caught.try_send(name);
        });
    }
    Ok(signals)
}

/// Tells systemd twice in each `WatchdogSec=` that the event loop lives. If it hangs, systemd restarts the service.
async fn feed_watchdog() {
    let Some(bound) = sd_notify::watchdog_enabled() else { return };
    // An interval of nothing would panic.
    let mut ticks = tokio::time::interval((bound / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        tell_service_manager(NotifyState::Watchdog);
    }
}

/// Tells systemd the state of the service, if systemd started it.
fn tell_service_manager(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd can't be notified");
    }
}
