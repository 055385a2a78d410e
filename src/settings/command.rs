//! The command line: the program's commands, and the flag of each setting.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::domain::Name;

/// Creates SIP extensions in Asterisk from the users in a database, and proves that Asterisk serves them.
#[derive(Parser)]
#[command(name = "pbx-portal", version)]
pub enum Command {
    /// Serve the API (the default)
    Serve(Box<Settings>),
    /// Make or upgrade the database's tables, then end
    Migrate(Box<Settings>),
    /// Check this host, and show what the next apply would change; changes nothing
    Check {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
        /// The settings of serve
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Print the API's OpenAPI document
    Openapi,
}

/// All settings but the two secrets, which are never taken from a command line. Clap makes the name of the variable, which help and
/// errors use for the flag's value, from the field's name unless the attribute has another.
#[derive(Args)]
pub struct Settings {
    /// Where the default database lies; made with mode 0700
    #[arg(long, env = "PORTAL_DATA_DIR", value_name = "PORTAL_DATA_DIR", default_value = "/var/lib/pbx-portal")]
    pub data_dir: PathBuf,
    /// Where the API listens
    #[arg(long, env = "PORTAL_LISTEN", value_name = "PORTAL_LISTEN", default_value = "127.0.0.1:8000", value_parser = socket_address)]
    pub listen: SocketAddr,
    /// Allow listening beyond loopback without a token
    #[arg(
        long,
        env = "PORTAL_ALLOW_UNAUTHENTICATED",
        value_name = "PORTAL_ALLOW_UNAUTHENTICATED",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true"
    )]
    pub allow_unauthenticated: bool,
    /// This Asterisk host's name in the audit log [default: the system's host name]
    #[arg(long, env = "PORTAL_HOST", value_name = "PORTAL_HOST", value_parser = host_name, default_value_t = system_host_name(), hide_default_value = true)]
    pub host: String,
    /// Asterisk's configuration folder
    #[arg(long, env, default_value = "/etc/asterisk")]
    pub asterisk_config_dir: PathBuf,
    /// Where Asterisk's control socket asterisk.ctl lies
    #[arg(long, env, default_value = "/var/run/asterisk")]
    pub asterisk_run_dir: PathBuf,
    /// The command run as asterisk -rx '…'
    #[arg(long, env, default_value = "asterisk")]
    pub asterisk_bin: PathBuf,
    /// Time limit for one Asterisk command, in seconds (1 to 3600)
    #[arg(long, env, default_value = "30", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub asterisk_timeout_secs: u64,
    /// Log level
    #[arg(long, env, default_value = "info", ignore_case = true, value_parser = log_level())]
    pub log_level: LevelFilter,
    /// How log lines look
    #[arg(long, env, default_value = "text", ignore_case = true)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one object a line.
    Json,
}

fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "it takes an IP address and a port, as in 127.0.0.1:8000 or [::1]:8000")
}

fn host_name(text: &str) -> Result<String, &'static str> {
    Name::parse(text).map(|name| name.as_str().to_owned())
}

pub(super) fn system_host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn log_level() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["error", "warn", "info", "debug", "trace"]).try_map(|level| level.parse())
}
