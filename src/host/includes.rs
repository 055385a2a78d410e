//! `#include` and `#tryinclude`: which files a pattern finds, as Asterisk does it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::lines::{Place, strip};
use super::rights::unreadable;
use crate::problem::{Result, bail};

/// How Asterisk reads `*` in a name.
const AS_THE_SHELL: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// How many alternatives braces may make, those on the way counted. Asterisk has no limit, but twenty pairs of two take hours.
const MAX_ALTERNATIVES: usize = 1000;

/// An `#include` or `#tryinclude`.
#[derive(Debug)]
pub struct Include {
    pub place: Place,
    /// `#tryinclude`: Asterisk goes on if it finds no file.
    pub tries: bool,
    /// The name or pattern, as written.
    pub written: String,
    patterns: Vec<glob::Pattern>,
    pub found: Vec<PathBuf>,
}

impl Include {
    /// Reads a line that begins with `#`; `None` if it includes nothing or its pattern is invalid. Fails if a folder is closed.
    pub(super) fn parse(directive: &str, place: Place, config_dir: &Path) -> Result<Option<Self>> {
        // Asterisk ends the keyword at any byte that is no visible ASCII.
        let end = directive.find(|c: char| !c.is_ascii_graphic()).unwrap_or(directive.len());
        let (keyword, argument) = directive.split_at(end);
        let tries = keyword.eq_ignore_ascii_case("#tryinclude");
        let argument = strip(argument);
        if argument.is_empty() || !tries && !keyword.eq_ignore_ascii_case("#include") {
            return Ok(None);
        }
        let quoted = |open, close| argument.strip_prefix(open)?.strip_suffix(close);
        let written = quoted('"', '"').or_else(|| quoted('<', '>')).unwrap_or(argument).to_owned();
        let config_dir = PathBuf::from(glob::Pattern::escape(&config_dir.to_string_lossy()));
        let mut patterns = Vec::new();
        let mut found = Vec::new();
        // The shell's `[^a]` and `**`, in the words of the crate.
        let Some(alternatives) = alternatives(&written.replace("[^", "[!").replace("**", "*")) else {
            bail!("{place}: the pattern stands for too many names", "write fewer {{…}} into it");
        };
        for pattern in alternatives {
            // `join` takes an absolute one as it is.
            let pattern = config_dir.join(pattern).to_string_lossy().into_owned();
            let (Ok(paths), Ok(parsed)) = (glob::glob_with(&pattern, AS_THE_SHELL), glob::Pattern::new(&pattern))
            else {
                return Ok(None);
            };
            found.extend(files_among(&pattern, paths)?);
            patterns.push(parsed);
        }
        Ok(Some(Self { place, tries, written, patterns, found }))
    }

    /// Whether it finds `path`, or will as soon as that file exists.
    pub fn finds(&self, path: &Path) -> bool {
        let same = |f: &PathBuf| matches!((fs::canonicalize(f), fs::canonicalize(path)), (Ok(a), Ok(b)) if a == b);
        self.patterns.iter().any(|pattern| pattern.matches_path_with(path, AS_THE_SHELL)) || self.found.iter().any(same)
    }
}

/// `a{b,c}` is `ab` and `ac`. Returns `None` if there are too many.
fn alternatives(pattern: &str) -> Option<Vec<String>> {
    let mut open = vec![pattern.to_owned()];
    let mut all = Vec::new();
    // Each takes a step, also if it is the same as another.
    for _ in 0..MAX_ALTERNATIVES {
        let Some(pattern) = open.pop() else { return Some(all) };
        let end = pattern.find('}');
        if let Some((begin, end)) = end.and_then(|end| Some((pattern[..end].rfind('{')?, end))) {
            let (before, after) = (&pattern[..begin], &pattern[end + 1..]);
            // The first comes to the end, from where it is taken next.
            open.extend(pattern[begin + 1..end].rsplit(',').map(|one| format!("{before}{one}{after}")));
        } else if !all.contains(&pattern) {
            all.push(pattern);
        }
    }
    None
}

/// The files that a pattern finds. Asterisk skips folders and broken links. A pipe or a device is no configuration file.
fn files_among(pattern: &str, paths: glob::Paths) -> Result<Vec<PathBuf>> {
    let found: Result<Vec<_>, _> = paths.collect();
    let mut found = found.map_err(|error| unreadable(error.path(), error.error()))?;
    found.retain(|path| path.is_file() || path.try_exists().is_err());
    // In a closed folder a pattern finds nothing either, but Asterisk may see files there.
    let has_wildcard = |part: &Component| part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let named: PathBuf = Path::new(pattern).components().take_while(|part| !has_wildcard(part)).collect();
    match fs::metadata(&named) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(unreadable(&named, &error)),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_alternatives() {
        let alternatives_of = |pattern| alternatives(pattern).expect("a few");
        assert_eq!(alternatives_of("a.conf"), ["a.conf"]);
        assert_eq!(alternatives_of("{a,b*}/{c,d}"), ["a/c", "a/d", "b*/c", "b*/d"]);
        assert_eq!(alternatives_of("a{,{b,c}}"), ["a", "ab", "ac"]);
        assert_eq!(alternatives_of("}a{b"), ["}a{b"]);
        let two_long_ones = format!("{{{0}}}{{{0}}}", "a,".repeat(999));
        for too_many in ["{a,b}".repeat(100), "{a,a}".repeat(100), "{}".repeat(4000), two_long_ones] {
            assert_eq!(alternatives(&too_many), None, "{too_many}");
        }
    }
}
