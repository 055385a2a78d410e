//! `DATABASE_URL`.

use std::env::var;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::str::FromStr as _;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;

use crate::account::user_name;
use crate::problem::{Result, bail, ensure, problem};

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
                let user = options.get_username();
                let database = options.get_database().unwrap_or(user);
                write!(f, "postgres://{user}@{}/{database}", address(options))
            }
            Self::Sqlite(file) => write!(f, "sqlite://{}", file.display()),
        }
    }
}

/// Host and port of a PostgreSQL server, or the folder of its local socket and the port.
pub(crate) fn address(options: &PgConnectOptions) -> String {
    let host = match (options.get_socket(), options.get_host()) {
        (Some(socket), _) => socket.display().to_string(),
        (None, address) if address.contains(':') => format!("[{address}]"),
        (None, name) => name.to_owned(),
    };
    format!("{host}:{}", options.get_port())
}

impl DatabaseUrl {
    /// Parses `postgres://…`, or `sqlite://` and a percent-encoded path. No error shows the URL: it holds a password.
    pub fn parse(url: &str) -> Result<Self> {
        check_characters(url)?;
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        match scheme.to_ascii_lowercase().as_str() {
            "postgres" | "postgresql" => Self::parse_postgres(url, rest),
            "sqlite" => Self::parse_sqlite(rest),
            _ => bail!("it does not say which database", "begin it with postgres:// or sqlite://"),
        }
    }

    fn parse_sqlite(rest: &str) -> Result<Self> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // mode=rwc means what the service does anyway.
        ensure!(
            ["", "mode=rwc"].contains(&query),
            "a sqlite:// URL takes no parameters but mode=rwc",
            "remove the others"
        );
        let path = percent_decode_str(path).collect::<Vec<_>>();
        check_characters(&String::from_utf8_lossy(&path))?;
        // A folder is no file, and the others have a special meaning in SQLite.
        let special = path.is_empty() || path.ends_with(b"/") || path.starts_with(b":") || path.starts_with(b"file:");
        ensure!(
            !special,
            "a sqlite:// URL names a file, and this one does not",
            "write it as in sqlite:///var/lib/pbx-portal/portal.db"
        );
        Ok(Self::Sqlite(PathBuf::from(OsString::from_vec(path))))
    }

    fn parse_postgres(url: &str, rest: &str) -> Result<Self> {
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        // Such a character in a password ends the authority, so the rest of the password is here.
        ensure!(!tail.contains('#') && !path.contains('@'), "a part of it ends too early", "{ENCODE}");
        let parameters = query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")));
        let parameters: Vec<_> = parameters.collect();
        check_parameters(&parameters, query.contains('@'))?;
        let (credentials, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let is_address = |(name, _): &&(&str, &str)| ["host", "hostaddr", "port"].contains(name);
        let mut addresses = parameters.iter().filter(is_address).map(|(_, value)| *value).chain([host]);
        ensure!(
            !addresses.any(|address| address.contains(',')),
            "it takes one address",
            "for several servers put HAProxy in front, see \"More than one database machine\" in docs/operations.md"
        );
        let has = |wanted: &str| parameters.iter().any(|(name, _)| *name == wanted);
        let mut url = url.to_owned();
        if authority.ends_with('@') && has("host") {
            // libpq takes it so; sqlx does not.
            url = url.replacen(authority, &format!("{authority}localhost"), 1);
        }
        if ["", ":"].contains(&credentials) && var("PGUSER").is_err() && !has("user") {
            let user = utf8_percent_encode(&user_name(), NON_ALPHANUMERIC).to_string();
            url = format!("{url}{}user={user}", if tail.contains('?') { '&' } else { '?' });
        }
        let is_cut = rest.contains('@') && !authority.contains('@');
        let remedy = if is_cut { ENCODE } else { "write it as in postgres://user:password@host:5432/database" };
        let options = PgConnectOptions::from_str(&url).map_err(|error| match error {
            sqlx::Error::Configuration(why) => problem!("{why}", "{remedy}"),
            _ => problem!("it can't be read", "{remedy}"),
        })?;
        // A URL has brackets around an IPv6 address; a resolver wants none.
        let host = options.get_host().trim_matches(['[', ']']).to_owned();
        // Without a host, sqlx takes the folder of a local socket for one.
        let is_socket = options.get_socket().is_none() && host.starts_with('/');
        Ok(Self::Postgres(Box::new(if is_socket { options.socket(&host) } else { options.host(&host) })))
    }
}

/// Refuses what nobody means to write: a blank at an end, a line end.
fn check_characters(text: &str) -> Result<()> {
    let stray = text.trim() != text || text.contains(char::is_control);
    ensure!(!stray, "it has a blank at an end, or a line end or another control character", "remove it");
    Ok(())
}

/// Refuses parameters of a `postgres://` URL that sqlx does not know and would ignore. The error shows none of them if one may be a
/// part of a password.
fn check_parameters(parameters: &[(&str, &str)], may_be_password: bool) -> Result<()> {
    let is_known =
        |name: &str| KNOWN.split(", ").chain(ALIASES).any(|known| known == name) || name.starts_with("options[");
    let unknown: Vec<_> = parameters.iter().map(|(name, _)| *name).filter(|name| !is_known(name)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    let is_name = |name: &&str| !name.is_empty() && name.bytes().all(is_plain);
    ensure!(!may_be_password && unknown.iter().all(is_name), "a part of it ends too early", "{ENCODE}");
    let unknown = unknown.join(", ");
    bail!(
        "it has parameters that the service does not know: {unknown}",
        "remove those for time limits, keepalives, poolers or the choice of a server, which it does not need; replace those that protect the connection, as channel_binding by sslmode=verify-full; it knows {KNOWN}"
    )
}

/// The parameters that sqlx knows.
const KNOWN: &str =
    "sslmode, sslrootcert, sslcert, sslkey, host, hostaddr, port, dbname, user, password, application_name, options";

/// Other names that sqlx has for some of them.
const ALIASES: [&str; 5] = ["ssl-mode", "ssl-root-cert", "ssl-ca", "ssl-cert", "ssl-key"];

const ENCODE: &str =
    "a #, /, ? or @ in the password or in another part must be percent-encoded, as %23, %2F, %3F or %40";
