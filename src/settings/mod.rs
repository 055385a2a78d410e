//! Settings: from the command line, the environment or `./.env`, in this order. If a setting is invalid, the program prints one
//! line that names it, and ends.

mod command;
mod database_url;
mod dotenv;
pub mod help;

use std::env::VarError;
use std::ffi::OsString;
use std::net::IpAddr;

use clap::FromArgMatches as _;

use crate::problem::{Problem, Result, bail, ensure, problem};
use command::system_host_name;
pub use command::{Command, LogFormat, Settings};
pub use database_url::DatabaseUrl;
pub(crate) use database_url::address;
pub use dotenv::Dotenv;

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

    pub fn is_short(&self) -> bool {
        self.0.len() < Self::LONG_ENOUGH
    }

    /// Compares in constant time, so that the time does not tell how much of `presented` is right.
    pub fn matches(&self, presented: &[u8]) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.as_bytes(), presented).into()
    }
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

/// Whether a host name or address means this machine.
pub(crate) fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
