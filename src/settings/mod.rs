//! Settings: from the command line, the environment or `./.env`, in this order. If a setting is invalid, the program prints one
//! line that names it, and ends.

mod database_url;
mod dotenv;
pub mod help;

use std::env::VarError;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, FromArgMatches as _, Parser, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::domain::Name;
use crate::problem::{Problem, Result, bail, ensure, problem};
pub use database_url::DatabaseUrl;
pub(crate) use database_url::address;
pub use dotenv::Dotenv;

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

impl Command {
    /// Reads the command line and the environment; without a command it is `serve`. An error may be the help or the version.
    pub fn read(arguments: impl Iterator<Item = OsString>, dotenv: &Dotenv) -> Result<Self, clap::Error> {
        let mut arguments: Vec<_> = arguments.collect();
        let about_itself = ["-h", "--help", "-V", "--version"].map(OsString::from);
        let is_flag = |first: &OsString| first.to_string_lossy().starts_with('-') && !about_itself.contains(first);
        if arguments.get(1).is_none_or(is_flag) {
            arguments.insert(arguments.len().min(1), "serve".into());
        }
        Self::from_arg_matches(&with_defaults(help::definition(), dotenv).try_get_matches_from(arguments)?)
    }
}

/// Makes what the file sets the default of its flag: the command line and the environment come before it.
fn with_defaults(command: clap::Command, dotenv: &Dotenv) -> clap::Command {
    let value = |flag: &clap::Arg| Some(dotenv.get(flag.get_env()?.to_str()?)?.to_owned());
    let command = command.mut_args(|flag| match value(&flag) {
        Some(value) => flag.default_value(value),
        None => flag,
    });
    command.mut_subcommands(|command| with_defaults(command, dotenv))
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

/// The settings that only the environment or `./.env` can set.
pub struct Secrets {
    pub database: DatabaseUrl,
    pub api_token: Option<ApiToken>,
}

impl Secrets {
    /// Reads the two secrets. An error does not show the value of the setting that is invalid. No token, but an address beyond
    /// loopback is an error too, unless `settings` allow it.
    pub fn read(settings: &Settings, dotenv: &Dotenv) -> Result<Self> {
        let variable = |name: &str| -> Result<Option<String>> {
            let value = match std::env::var(name) {
                Ok(value) => Some(value),
                Err(VarError::NotPresent) => dotenv.get(name).map(str::to_owned),
                Err(VarError::NotUnicode(_)) => bail!("{name} is not valid UTF-8", "write it in UTF-8"),
            };
            ensure!(value.as_deref() != Some(""), "{name} is set but empty", "give it a value, or remove it");
            Ok(value)
        };
        let database = match variable("DATABASE_URL")? {
            Some(url) => DatabaseUrl::parse(&url)
                .map_err(|Problem { what, remedy }| problem!("DATABASE_URL is invalid: {what}", "{remedy}"))?,
            None => DatabaseUrl::Sqlite(settings.data_dir.join("portal.db")),
        };
        let api_token = variable("PORTAL_API_TOKEN")?.map(ApiToken::parse).transpose()?;
        let listen = settings.listen;
        ensure!(
            api_token.is_some() || listen.ip().is_loopback() || settings.allow_unauthenticated,
            "PORTAL_LISTEN {listen} is open to other machines and PORTAL_API_TOKEN is not set: anybody there could read every SIP secret",
            "set PORTAL_API_TOKEN, listen on 127.0.0.1, or say PORTAL_ALLOW_UNAUTHENTICATED=true"
        );
        let long_enough = ApiToken::LONG_ENOUGH;
        ensure!(
            listen.ip().is_loopback() || !api_token.as_ref().is_some_and(ApiToken::is_short),
            "PORTAL_LISTEN {listen} is open to other machines and PORTAL_API_TOKEN has fewer than {long_enough} bytes, which can be guessed",
            "make a new one with 'openssl rand -hex 32', or listen on 127.0.0.1"
        );
        Ok(Self { database, api_token })
    }
}

/// The token that a client must send.
#[derive(Clone)]
pub struct ApiToken(String);

impl ApiToken {
    fn parse(token: String) -> Result<Self> {
        ensure!(
            token.bytes().all(|byte| byte.is_ascii_graphic()),
            "PORTAL_API_TOKEN must be printable ASCII without spaces",
            "make one with 'openssl rand -hex 32'"
        );
        Ok(Self(token))
    }

    /// The length from which nobody can guess a token, in bytes.
    pub const LONG_ENOUGH: usize = 16;

    /// Whether somebody might guess it.
    pub fn is_short(&self) -> bool {
        self.0.len() < Self::LONG_ENOUGH
    }

    /// Compares in constant time, so that the time does not tell how much of `presented` is right.
    pub fn matches(&self, presented: &[u8]) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.as_bytes(), presented).into()
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "it takes an IP address and a port, as in 127.0.0.1:8000 or [::1]:8000")
}

fn host_name(text: &str) -> Result<String, &'static str> {
    Name::parse(text).map(|name| name.as_str().to_owned())
}

fn system_host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The names by which a request may call this host: its system's name with and without the domain, and `PORTAL_HOST`.
pub fn own_names(settings: &Settings) -> Vec<String> {
    let name = system_host_name();
    let short = name.split('.').next().unwrap_or_default().to_owned();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    // As `hostname --fqdn` finds it: the first name of the first line that has the system's. An address begins each line.
    let full = hosts.lines().find_map(|line| {
        let names: Vec<_> = line.split('#').next()?.split_whitespace().skip(1).collect();
        names.contains(&name.as_str()).then(|| names[0].to_owned())
    });
    [name, short, settings.host.clone()].into_iter().chain(full).collect()
}

fn log_level() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["error", "warn", "info", "debug", "trace"]).try_map(|level| level.parse())
}

/// Whether a host name or address means this machine.
pub(crate) fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
