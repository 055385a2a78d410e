//! Settings: from the command line, the environment, or `./.env`, in this order. A setting that makes no sense stops the
//! start with one line that names it.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

use crate::domain::Name;

/// Users in a database become SIP extensions that Asterisk is proven to serve.
#[derive(Debug, Parser)]
#[command(name = "pbx-portal", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the command line; without a command it is `serve`.
    ///
    /// # Errors
    /// What clap says of it, help and version included.
    pub fn read(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<_> = arguments.collect();
        let about_itself = ["-h", "--help", "-V", "--version"];
        if arguments.get(1).is_none_or(|first| {
            first.to_string_lossy().starts_with('-') && !about_itself.iter().any(|flag| first == flag)
        }) {
            arguments.insert(arguments.len().min(1), "serve".into());
        }
        Self::from_arg_matches(&Self::definition().try_get_matches_from(arguments)?)
    }

    /// The command line's definition; its help texts show all settings, the secrets among them.
    #[must_use]
    pub fn definition() -> clap::Command {
        let table = |title: &str, rows: [(&str, &str); 3], width| {
            let rows = rows.map(|(left, right)| format!("\n  {left:<width$}  {right}"));
            format!("\n\n{title}:{}", rows.concat())
        };
        let help = environment() + &table("Examples", EXAMPLES, 41) + &table("Exit status", EXIT_STATUS, 1);
        Self::command().after_help(help.clone()).mut_subcommand("serve", |serve| serve.after_help(help))
    }
}

/// The two settings that are not flags: name, default, meaning.
const SECRETS: [(&str, &str, &str); 2] = [
    (
        "DATABASE_URL",
        "sqlite:// in the data directory",
        "postgres://… or sqlite://…; secret: environment or ./.env only",
    ),
    ("PORTAL_API_TOKEN", "none", "If set, requests need 'Authorization: Bearer …'; secret: environment or ./.env only"),
];

/// Commands as an administrator types them, with what they do.
pub const EXAMPLES: [(&str, &str); 3] = [
    ("pbx-portal check", "Show what is missing on this host"),
    ("pbx-portal serve --listen 127.0.0.1:9000", "Serve on another port"),
    ("LOG_FORMAT=json pbx-portal", "Serve, with log lines for a collector"),
];

/// The exit statuses, with what they mean.
pub const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "Success"),
    ("1", "The service could not start, or 'check' found a problem"),
    ("2", "A setting or an argument is invalid"),
];

/// A setting as the help text and the manual page show it.
#[derive(Debug)]
pub struct Documented {
    /// Of the environment variable.
    pub name: String,
    /// What it is for.
    pub meaning: String,
    /// In words, if it depends on the system.
    pub default: String,
}

/// All settings, from the flags' own definitions.
#[must_use]
pub fn documented() -> Vec<Documented> {
    let flags = Settings::augment_args(clap::Command::new("serve"));
    let flags = flags.get_arguments().filter_map(|flag| {
        let name = flag.get_env()?.to_string_lossy().into_owned();
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        let (meaning, in_words) = help.split_once(" [default: ").unwrap_or((&help, ""));
        let value = flag.get_default_values().first().filter(|_| !flag.is_hide_default_value_set());
        let default = value.map_or(in_words.trim_end_matches(']').into(), |value| value.to_string_lossy());
        Some(Documented { name, meaning: meaning.to_owned(), default: default.into_owned() })
    });
    let secrets = SECRETS.map(|(name, default, meaning)| Documented {
        name: name.to_owned(),
        meaning: meaning.to_owned(),
        default: default.to_owned(),
    });
    secrets.into_iter().chain(flags).collect()
}

/// The order in which settings count.
pub const PRECEDENCE: &str = "A flag comes before the environment, and the environment before ./.env.";

/// The help's list of all settings.
fn environment() -> String {
    let lines = documented()
        .into_iter()
        .map(|Documented { name, meaning, default }| format!("  {name:<28}  {meaning} [default: {default}]"));
    let head = ["Environment:".to_owned(), format!("  {PRECEDENCE}")];
    head.into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API (the default)
    Serve(Box<Settings>),
    /// Make or upgrade the database's tables, then end
    Migrate(Box<Settings>),
    /// Look at everything that an apply needs, and at what the next one would change; changes nothing
    Check {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
        /// The same as of serve
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Print the API's OpenAPI document
    Openapi,
}

/// Everything an administrator can set, but for the two secrets: those never stand on a command line.
#[derive(Debug, Args)]
pub struct Settings {
    /// Where the default database lies; made with mode 0700
    #[arg(long, env = "PORTAL_DATA_DIR", value_name = "PORTAL_DATA_DIR", default_value = "/var/lib/pbx-portal")]
    pub data_dir: PathBuf,
    /// Where the API listens
    #[arg(long, env = "PORTAL_LISTEN", value_name = "PORTAL_LISTEN", default_value = "127.0.0.1:8000", value_parser = address)]
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
    #[arg(long, env = "ASTERISK_CONFIG_DIR", value_name = "ASTERISK_CONFIG_DIR", default_value = "/etc/asterisk")]
    pub asterisk_config_dir: PathBuf,
    /// Where Asterisk's control socket asterisk.ctl lies
    #[arg(long, env = "ASTERISK_RUN_DIR", value_name = "ASTERISK_RUN_DIR", default_value = "/var/run/asterisk")]
    pub asterisk_run_dir: PathBuf,
    /// The command run as asterisk -rx '…'
    #[arg(long, env = "ASTERISK_BIN", value_name = "ASTERISK_BIN", default_value = "asterisk")]
    pub asterisk_bin: PathBuf,
    /// Bound for one Asterisk command, in seconds, 1 to 3600
    #[arg(long, env = "ASTERISK_TIMEOUT_SECS", value_name = "ASTERISK_TIMEOUT_SECS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub asterisk_timeout_secs: u64,
    /// The least important lines that are logged
    #[arg(long, env = "LOG_LEVEL", value_name = "LOG_LEVEL", default_value = "info", ignore_case = true)]
    pub log_level: LogLevel,
    /// How log lines look
    #[arg(long, env = "LOG_FORMAT", value_name = "LOG_FORMAT", default_value = "text", ignore_case = true)]
    pub log_format: LogFormat,
}

impl Settings {
    /// The bound for one Asterisk command.
    #[must_use]
    pub fn asterisk_timeout(&self) -> Duration {
        Duration::from_secs(self.asterisk_timeout_secs)
    }

    /// Looks at what only makes sense together.
    ///
    /// # Errors
    /// Without a token, an address beyond loopback, unless that is allowed.
    pub fn check(&self, secrets: &Secrets) -> Result<(), SettingError> {
        if secrets.api_token.is_none() && !self.listen.ip().is_loopback() && !self.allow_unauthenticated {
            return Err(SettingError(format!(
                "PORTAL_LISTEN {} is open to other machines and PORTAL_API_TOKEN is not set: anybody there could read every SIP secret; set PORTAL_API_TOKEN, listen on 127.0.0.1, or say PORTAL_ALLOW_UNAUTHENTICATED=true",
                self.listen
            )));
        }
        Ok(())
    }
}

/// The least important lines that are logged.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one object a line.
    Json,
}

/// A setting that makes no sense: names it, and says what it takes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingError(String);

/// What is taken from the environment or `./.env` alone.
pub struct Secrets {
    /// `DATABASE_URL`.
    pub database: DatabaseUrl,
    /// `PORTAL_API_TOKEN`.
    pub api_token: Option<ApiToken>,
}

impl Secrets {
    /// Reads the two secrets from the environment.
    ///
    /// # Errors
    /// [`SettingError`], without the value.
    pub fn from_environment(settings: &Settings) -> Result<Self, SettingError> {
        let variable = |name: &str| match std::env::var(name) {
            Ok(value) if value.is_empty() => {
                Err(SettingError(format!("{name} is set but empty: give it a value, or remove it")))
            }
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(SettingError(format!("{name} is not valid UTF-8"))),
        };
        let database = match variable("DATABASE_URL")? {
            Some(url) => DatabaseUrl::parse(&url)?,
            None => DatabaseUrl::Sqlite(settings.data_dir.join("portal.db")),
        };
        Ok(Self { database, api_token: variable("PORTAL_API_TOKEN")?.map(ApiToken::parse).transpose()? })
    }
}

/// What a client must know. `Debug` does not show it.
#[derive(Clone)]
pub struct ApiToken(String);

impl ApiToken {
    fn parse(token: String) -> Result<Self, SettingError> {
        if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(token))
        } else {
            Err(SettingError(
                "PORTAL_API_TOKEN must be printable ASCII without spaces: make one with 'openssl rand -hex 32'"
                    .to_owned(),
            ))
        }
    }

    /// The shortest token that nobody guesses.
    pub const LONG_ENOUGH: usize = 16;

    /// Whether it might be guessed.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.len() < Self::LONG_ENOUGH
    }

    /// Compares in a time that does not tell how much of `presented` is right.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.as_bytes(), presented).into()
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(…)")
    }
}

/// Which database, and how to reach it.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// `postgres://…`.
    Postgres(Box<PgConnectOptions>),
    /// `sqlite://…`: the file.
    Sqlite(PathBuf),
}

/// The parameters of a `postgres://` URL that are understood: a misspelt `sslmode` must not go unnoticed.
const POSTGRES_PARAMETERS: [&str; 16] = [
    "application_name",
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
];

/// Which database, without what lets one in.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(options) => {
                let host = match (options.get_socket(), options.get_host()) {
                    (Some(socket), _) => socket.display().to_string(),
                    (None, address) if address.contains(':') => format!("[{address}]"),
                    (None, name) => name.to_owned(),
                };
                let database = options.get_database().unwrap_or_else(|| options.get_username());
                write!(f, "postgres://{}@{host}:{}/{database}", options.get_username(), options.get_port())
            }
            Self::Sqlite(file) => write!(f, "sqlite://{}", file.display()),
        }
    }
}

impl DatabaseUrl {
    /// Takes `postgres://…`, or `sqlite://` and a path, percent-encoded.
    ///
    /// # Errors
    /// [`SettingError`], without the URL: it holds a password.
    pub fn parse(url: &str) -> Result<Self, SettingError> {
        let invalid = |why: &dyn fmt::Display| SettingError(format!("DATABASE_URL makes no sense: {why}"));
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Self::parse_postgres(url).map_err(|why| invalid(&why))
        } else if let Some(path) = url.strip_prefix("sqlite://") {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            // That the file is made goes without saying here.
            if !["", "mode=rwc"].contains(&query) {
                return Err(invalid(&"a sqlite:// URL takes no parameters but mode=rwc"));
            }
            let path = percent_decode_str(path).collect::<Vec<_>>();
            // To SQLite, these are none.
            if path.is_empty() || path.starts_with(b":") || path.starts_with(b"file:") {
                return Err(invalid(&"a sqlite:// URL names a file, as in sqlite:///var/lib/pbx-portal/portal.db"));
            }
            Ok(Self::Sqlite(PathBuf::from(OsString::from_vec(path))))
        } else {
            Err(invalid(&"it must begin with postgres:// or sqlite://"))
        }
    }
}

impl DatabaseUrl {
    fn parse_postgres(url: &str) -> Result<Self, String> {
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        for (name, value) in query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
            if !POSTGRES_PARAMETERS.contains(&name) && !name.starts_with("options") {
                // With an unescaped ? in the password, this is a part of it.
                let is_name =
                    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && !query.contains('@');
                let name = if is_name { name } else { "after the ?" };
                return Err(format!("the parameter {name} is not known (sslmode and sslrootcert are)"));
            }
            if ["host", "hostaddr", "port"].contains(&name) && value.contains(',') {
                return Err(ONE_ADDRESS.to_owned());
            }
        }
        let authority = address.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
        if authority.rsplit('@').next().is_some_and(|hosts| hosts.contains(',')) {
            return Err(ONE_ADDRESS.to_owned());
        }
        let options = PgConnectOptions::from_str(url).map_err(|error| match error {
            sqlx::Error::Configuration(why) => why.to_string(),
            _ => "it takes the form postgres://user:password@host:5432/database".to_owned(),
        })?;
        // A URL writes an IPv6 address in brackets, a resolver takes it without.
        let host = options.get_host().to_owned();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Ok(Self::Postgres(Box::new(match bare {
            Some(bare) => options.host(bare),
            None => options,
        })))
    }
}

const ONE_ADDRESS: &str = "it takes one address; for several servers put HAProxy in front, see \"More than one database machine\" in docs/operations.md";

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "it takes an IP address and a port, as in 127.0.0.1:8000 or [::1]:8000")
}

fn host_name(text: &str) -> Result<String, crate::domain::Invalid> {
    Name::parse(text).map(|name| name.as_str().to_owned())
}

fn system_host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl LogLevel {
    /// The same for the log itself.
    #[must_use]
    pub fn filter(self) -> tracing::level_filters::LevelFilter {
        use tracing::level_filters::LevelFilter;
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown_by_debug() {
        let token = ApiToken::parse("hunter2".to_owned()).expect("a token");
        assert!(token.matches(b"hunter2") && !token.matches(b"hunter") && !token.matches(b""));
        let guard = crate::api::guard::Guard::Token(token);
        assert!(!format!("{guard:?}").contains("hunter2"), "{guard:?}");
    }
}
