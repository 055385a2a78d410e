//! Lines of Asterisk's configuration files: where they stand, and what of them is no comment (`;` and `;-- --;`).

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A line of a file, shown as `file:line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A line for which Asterisk does not read others.
#[derive(Debug)]
pub struct Fault {
    pub place: Place,
    /// What the line does wrong: "has no closing ]".
    pub why: &'static str,
    pub remedy: &'static str,
}

/// Without what Asterisk takes for blanks.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(|c| c <= ' ')
}

/// Which enclosing comments are open.
#[derive(Default)]
pub(super) struct Comments {
    /// How many are open. Less than zero after a `--;` too many.
    depth: i32,
    /// The line that made `depth` another one than zero.
    since: Option<Place>,
}

impl Comments {
    fn count(&mut self, by: i32, place: &Place) {
        if self.depth == 0 {
            self.since = Some(place.clone());
        }
        self.depth += by;
    }

    /// The line behind which Asterisk skips the rest, if there is one.
    pub(super) fn unbalanced(self) -> Option<Fault> {
        let (why, remedy) = match self.depth {
            0 => return None,
            1.. => ("begins a comment that never ends", "write --; where it ends"),
            _ => ("ends a comment that never began", "remove the --;"),
        };
        Some(Fault { place: self.since?, why, remedy })
    }

    /// The part of a line that is no comment.
    pub(super) fn remove_from(&mut self, line: &str, place: &Place) -> String {
        let mut kept = String::new();
        let mut rest = line;
        let mut skips = self.depth != 0;
        while let Some((before, after)) = rest.split_once(';') {
            rest = after;
            if !skips {
                kept.push_str(before.strip_suffix('\\').unwrap_or(before));
            }
            let escaped = before.ends_with('\\');
            if !escaped && after.starts_with("--") && !after.starts_with("---") {
                self.count(1, place);
                (skips, rest) = (true, &after[2..]);
            } else if !escaped && before.ends_with("--") {
                self.count(-1, place);
                if self.depth == 0 {
                    skips = false;
                    continue;
                }
            } else if !escaped && self.depth == 0 {
                return kept;
            }
            if !skips {
                kept.push(';');
            }
        }
        if !skips {
            kept.push_str(rest);
        }
        kept
    }
}
