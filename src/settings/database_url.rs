//! `DATABASE_URL`.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::str::FromStr as _;

use anyhow::{Context as _, Result, anyhow, ensure};
use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

/// Which database, and how to reach it.
#[derive(Clone)]
pub enum DatabaseUrl {
    Postgres(Box<PgConnectOptions>),
    Sqlite(PathBuf),
}

/// Without the password.
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
    /// Parses `postgres://…`, or `sqlite://` and a percent-encoded path. No error shows the URL: it holds a password.
    pub fn parse(url: &str) -> Result<Self> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Self::parse_postgres(url);
        }
        let path = url.strip_prefix("sqlite://").context("it must begin with postgres:// or sqlite://")?;
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        // mode=rwc means what the service does anyway.
        ensure!(["", "mode=rwc"].contains(&query), "a sqlite:// URL takes no parameters but mode=rwc");
        let path = percent_decode_str(path).collect::<Vec<_>>();
        // These have a special meaning in SQLite: they name no file.
        let special = path.is_empty() || path.starts_with(b":") || path.starts_with(b"file:");
        ensure!(!special, "a sqlite:// URL names a file, as in sqlite:///var/lib/pbx-portal/portal.db");
        Ok(Self::Sqlite(PathBuf::from(OsString::from_vec(path))))
    }

    fn parse_postgres(url: &str) -> Result<Self> {
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        for (name, value) in query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
            // Do not show a part of the password: it may have an unescaped ?.
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && !query.contains('@');
            let shown = if is_name { name } else { "after the ?" };
            ensure!(is_known(name), "the parameter {shown} is not known (sslmode and sslrootcert are)");
            ensure!(!(["host", "hostaddr", "port"].contains(&name) && value.contains(',')), ONE_ADDRESS);
        }
        let authority = address.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
        ensure!(!authority.rsplit('@').next().unwrap_or_default().contains(','), ONE_ADDRESS);
        let options = PgConnectOptions::from_str(url).map_err(|error| match error {
            sqlx::Error::Configuration(why) => anyhow!("{why}"),
            _ => anyhow!("it takes the form postgres://user:password@host:5432/database"),
        })?;
        // A URL has brackets around an IPv6 address; a resolver wants none.
        let host = options.get_host().trim_matches(['[', ']']).to_owned();
        // Without a host, sqlx takes the folder of a local socket for one.
        let is_socket = options.get_socket().is_none() && host.starts_with('/');
        Ok(Self::Postgres(Box::new(if is_socket { options.socket(&host) } else { options.host(&host) })))
    }
}

/// Whether sqlx knows a parameter of a `postgres://` URL. It ignores others, such as a misspelt `sslmode`.
fn is_known(parameter: &str) -> bool {
    match parameter {
        "application_name" | "sslmode" | "ssl-mode" | "sslrootcert" | "ssl-root-cert" | "ssl-ca" | "sslcert"
        | "ssl-cert" | "sslkey" | "ssl-key" | "host" | "hostaddr" | "port" | "dbname" | "user" | "password" => true,
        _ => parameter.starts_with("options"),
    }
}

const ONE_ADDRESS: &str = "it takes one address; for several servers put HAProxy in front, see \"More than one database machine\" in docs/operations.md";
