//! `./.env`: whose file is trusted, and which lines are clear. (A shell wants quotes around some more characters,
//! such as `&`.)

use std::collections::BTreeMap;
use std::fs::{File, canonicalize};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Result, anyhow, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::help::is_setting;
use crate::account::user_name;
use crate::problem::{Problem, problem};

/// The settings in `./.env`.
#[derive(Debug, Default)]
pub struct Dotenv {
    values: BTreeMap<String, String>,
    /// What an administrator should look at.
    warnings: Vec<Problem>,
}

impl Dotenv {
    /// Reads `./.env`, if it exists. Refuses a file that somebody else can write: it could name any program as `ASTERISK_BIN`. No
    /// error shows a value, which may be a secret.
    pub fn read() -> Result<Self> {
        // The open of a FIFO would wait for somebody who writes to it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = match rustix::fs::open("./.env", flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(Self::default()),
            Err(error) => bail!("user {} can't read it: {error}; run the program as the service's user", user_name()),
        };
        let found = file.metadata()?;
        let path = canonicalize("./.env").unwrap_or_else(|_| "./.env".into());
        let path = path.display();
        ensure!(found.is_file(), "{path} is not a regular file; put the settings into one");
        ensure!(
            found.uid() == 0 || found.uid() == geteuid().as_raw(),
            "it belongs to the user {}; only root's and the portal's own is read",
            found.uid()
        );
        ensure!(found.mode() & 0o022 == 0, "others than its owner may write it; run: chmod go-w {path}");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut dotenv = Self::parse(&bytes)?;
        if found.mode() & 0o004 != 0 {
            dotenv.warnings.push(problem!("every user of this machine may read {path}", "run: chmod o-r {path}"));
        }
        Ok(dotenv)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut dotenv = Self::default();
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
            let Ok(line) = str::from_utf8(line.trim_ascii()) else { bail!("line {number} is not UTF-8") };
            ensure!(!line.contains('\0'), "line {number} contains a NUL character");
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = assignment(line) else { bail!("line {number} is not of the form NAME=value") };
            let value = plain(value).map_err(|problem| anyhow!("line {number} {problem}"))?;
            if !is_setting(name) {
                let is_ours = name.starts_with("PORTAL_");
                ensure!(!is_ours, "line {number}: there is no setting {name}; correct or remove it");
                dotenv.warnings.push(problem!(
                    ".env sets {name} (line {number}), which is no setting of the service and is ignored",
                    "remove the line (for PostgreSQL, write what it says into DATABASE_URL)"
                ));
            }
            let earlier = dotenv.values.insert(name.to_owned(), value.to_owned());
            ensure!(earlier.is_none(), "line {number} sets {name} a second time; remove one of the two lines");
        }
        Ok(dotenv)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// What an administrator should look at, in the file and in the environment.
    pub fn warnings(&self) -> Vec<Problem> {
        let is_ours = |name: &String| name.starts_with("PORTAL_") || name.starts_with("ASTERISK_");
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let unknown = names.filter(|name| is_ours(name) && !is_setting(name));
        let warn = |name| problem!("the environment sets {name}, which is no setting", "correct or remove it");
        self.warnings.iter().cloned().chain(unknown.map(warn)).collect()
    }
}

/// Splits a line into the name and the value, with its quotes.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    let name = name.trim_ascii();
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (!name.is_empty() && is_name(name)).then_some((name, value.trim_ascii()))
}

/// Takes a value out of its quotes. Refuses one that readers of such files take differently: they agree if it is in single
/// quotes, in double quotes, or of characters that mean nothing else. The error never shows the value.
fn plain(value: &str) -> Result<&str, &'static str> {
    let quote = value.chars().next().filter(|first| ['\'', '"'].contains(first));
    let inside = match quote {
        Some(quote) => value[1..].strip_suffix(quote).ok_or(
            "has a value that does not end with the quote that it begins with: close it on that line, with nothing behind it",
        )?,
        None => value,
    };
    let is_special = |c: &char| match quote {
        Some('\'') => *c == '\'',
        Some(_) => "\"$`\\".contains(*c),
        None => "'\"$`\\".contains(*c) || c.is_whitespace(),
    };
    match inside.chars().find(is_special).or(value.starts_with('#').then_some('#')) {
        None => Ok(inside),
        Some('$') => Err("has a $: put its value in single quotes"),
        Some('\'' | '"' | '`' | '\\') => Err(
            "has a quote or a \\ in its value: put the value in single quotes, or in double quotes if it has a single one",
        ),
        Some(_) => Err("has a blank or a # in its value: put the value in single quotes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a line sets, or the error.
    fn read(line: &str) -> Result<String, String> {
        let dotenv = Dotenv::parse(format!("# a comment\n{line}").as_bytes()).map_err(|error| error.to_string())?;
        Ok(dotenv.get("PORTAL_HOST").expect("it is set").to_owned())
    }

    #[test]
    fn a_value_is_read_as_it_stands() {
        for (line, value) in [
            ("PORTAL_HOST=p#x", "p#x"),
            (" export PORTAL_HOST = a?b&c=d\r", "a?b&c=d"),
            ("PORTAL_HOST='p #x $y \\ \"z\" ä'", "p #x $y \\ \"z\" ä"),
            ("PORTAL_HOST=\"it's # fine\"", "it's # fine"),
            ("PORTAL_HOST=", ""),
            ("PORTAL_HOST=''", ""),
        ] {
            assert_eq!(read(line).as_deref(), Ok(value), "{line}");
        }
    }

    #[test]
    fn what_readers_take_differently_is_refused_with_its_line() {
        for (line, says) in [
            ("PORTAL_HOST=p #x", "line 2 has a blank"),
            ("PORTAL_HOST=# a comment", "line 2 has a blank or a #"),
            ("PORTAL_HOST=#x", "line 2 has a blank or a #"),
            ("PORTAL_HOST=a\u{a0}b", "line 2 has a blank"),
            ("PORTAL_HOST=say\"hi\"", "line 2 has a quote"),
            ("PORTAL_HOST=a\\b", "line 2 has a quote or a \\"),
            ("PORTAL_HOST=\"a\\nb\"", "line 2 has a quote or a \\"),
            ("PORTAL_HOST=\"a$b\"", "line 2 has a $"),
            ("PORTAL_HOST=a$b", "line 2 has a $"),
            ("PORTAL_HOST='a'b'", "line 2 has a quote"),
            ("PORTAL_HOST='a' # b", "line 2 has a value that does not end with the quote"),
            ("PORTAL_HOST='a\nPORTAL_API_TOKEN=b'", "line 2 has a value that does not end with the quote"),
            ("PORTAL_HOST='", "line 2 has a value that does not end with the quote"),
            ("PORTAL_HOST", "line 2 is not of the form"),
            ("PORTAL HOST=a", "line 2 is not of the form"),
            ("PORTAL_HOST=a\nPORTAL_HOST=a", "line 3 sets PORTAL_HOST a second time"),
            ("PORTAL_API_TOKN=a", "line 2: there is no setting PORTAL_API_TOKN"),
            ("PORTAL_HOST=a\0b", "line 2 contains a NUL"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(says), "{line}: {error}");
        }
        assert_eq!(Dotenv::parse(b"\nA=\xff").expect_err("latin1").to_string(), "line 2 is not UTF-8");
    }
}
