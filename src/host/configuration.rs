//! Asterisk's configuration syntax: what a file and everything that it includes say, as Asterisk would read them.
//!
//! After `main/config.c` of Asterisk 22: `;` starts a comment unless escaped, `;--` and `--;` enclose one that may nest;
//! `[name](!)` is a template, `[name](base,…)` inherits from others, `[name](+…)` adds to an existing section;
//! `#include` and `#tryinclude` take a glob pattern relative to the configuration folder, at most ten deep. The lines of an
//! included file belong to the including section until a section of their own begins, and the including section goes on
//! after the include (seen on 22.10). `#exec` is not followed: only running its program would tell what it prints.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Error, Result, anyhow};

use super::includes::Include;
use super::rights;

/// `MAX_INCLUDE_LEVEL` of `main/config.c`.
const MAX_INCLUDE_DEPTH: usize = 10;

/// The error of a file that cannot be read, so that nobody knows what Asterisk would make of it.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => {
            "it is missing: make it, or set ASTERISK_CONFIG_DIR to Asterisk's own folder, then apply again".to_owned()
        }
        io::ErrorKind::PermissionDenied => rights::closed_above(path).unwrap_or_else(|| {
            "it is part of Asterisk's configuration: make it readable for the portal's user (by its group, say: chgrp asterisk and chmod g+r)".to_owned()
        }),
        io::ErrorKind::InvalidInput => "put a file in its place, or remove the line that includes it".to_owned(),
        _ => rights::advice(error).to_owned(),
    };
    anyhow!("cannot read {}: {error}; {advice}", path.display())
}

/// A configuration file with everything that it includes.
#[derive(Debug, Default)]
pub struct Config {
    /// In the order of the file; several may have one name.
    pub sections: Vec<Section>,
    /// Every file that was read, the main one first.
    pub files: Vec<Arc<Path>>,
    pub includes: Vec<Include>,
}

/// Asterisk's two files that include ours.
#[derive(Debug, Default)]
pub struct MainFiles {
    pub pjsip: Config,
    pub extensions: Config,
}

impl MainFiles {
    /// Reads both in `config_dir`, Asterisk's configuration folder.
    pub fn read(config_dir: &Path) -> Result<Self> {
        let read = |name| Config::read(config_dir, &config_dir.join(name));
        Ok(Self { pjsip: read("pjsip.conf")?, extensions: read("extensions.conf")? })
    }
}

/// `[name](…)` and the lines below it.
#[derive(Debug)]
pub struct Section {
    pub name: String,
    pub place: Place,
    /// `(!)`: exists only for others to inherit from.
    pub template: bool,
    /// `(+…)`: adds to an existing section.
    pub addition: bool,
    pub bases: Vec<String>,
    pub entries: Vec<Entry>,
}

/// `key = value` or `key => value`.
#[derive(Debug)]
pub struct Entry {
    /// As written, without the `+` of `+=`.
    pub key: String,
    pub value: String,
    pub place: Place,
}

/// A line of a file, shown as `file:line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl Config {
    /// Reads `file` and what it includes; relative names are relative to `config_dir`.
    pub fn read(config_dir: &Path, file: &Path) -> Result<Self> {
        let mut config = Self::default();
        config.read_file(config_dir, file, None, 0)?;
        Ok(config)
    }

    /// Like [`Config::read`], but an absent `file` is an empty one.
    pub fn read_if_there(config_dir: &Path, file: &Path) -> Result<Self> {
        match fs::metadata(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            _ => Self::read(config_dir, file),
        }
    }

    /// The names under which `path` was read, links included; none if it is not included.
    pub fn included(&self, path: &Path) -> Vec<Arc<Path>> {
        let Ok(wanted) = fs::canonicalize(path) else { return Vec::new() };
        self.files.iter().filter(|file| fs::canonicalize(file).is_ok_and(|file| file == wanted)).cloned().collect()
    }

    /// The values of `key` in a section, those that it inherits included.
    pub fn values<'a>(&'a self, section: &'a Section, key: &str) -> Vec<&'a str> {
        let entries = self.entries(section).into_iter().filter(|entry| entry.has_key(key));
        entries.map(|entry| entry.value.as_str()).collect()
    }

    /// The lines of a section, then those that it inherits.
    pub fn entries<'a>(&'a self, section: &'a Section) -> Vec<&'a Entry> {
        let mut entries: Vec<_> = section.entries.iter().collect();
        for base in &section.bases {
            // Only a section above can be a base, so this ends.
            let above = self.sections.iter().take_while(|s| !std::ptr::eq(*s, section));
            if let Some(base) = above.filter(|s| s.name == *base && !s.addition).last() {
                entries.extend(self.entries(base));
            }
        }
        entries
    }

    /// `section` is the index of the section that the next lines belong to.
    fn read_file(&mut self, config_dir: &Path, path: &Path, mut section: Option<usize>, depth: usize) -> Result<()> {
        let bytes = read_regular(path).map_err(|error| unreadable(path, &error))?;
        let text = String::from_utf8_lossy(&bytes);
        let file: Arc<Path> = path.into();
        self.files.push(file.clone());
        let mut comment_depth = 0;
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = without_comments(line, &mut comment_depth);
            let line = line.trim();
            let place = Place { file: file.clone(), line: index + 1 };
            if line.starts_with('[') {
                if let Some(parsed) = Section::parse(line, place) {
                    section = Some(self.sections.len());
                    self.sections.push(parsed);
                }
            } else if line.starts_with('#') {
                if depth < MAX_INCLUDE_DEPTH
                    && let Some(include) = Include::parse(line, place, config_dir)?
                {
                    let found = include.found.clone();
                    self.includes.push(include);
                    for path in found {
                        self.read_file(config_dir, &path, section, depth + 1)?;
                    }
                }
            } else if let Some(section) = section {
                self.sections[section].entries.extend(Entry::parse(line, place));
            }
        }
        Ok(())
    }
}

impl Section {
    fn parse(line: &str, place: Place) -> Option<Self> {
        let (name, rest) = line.strip_prefix('[')?.split_once(']')?;
        let options = rest.trim().strip_prefix('(').and_then(|o| o.split_once(')')).map_or("", |(o, _)| o);
        let options = || options.split(',').map(str::trim).filter(|option| !option.is_empty());
        let (template, addition) = (options().any(|o| o.starts_with('!')), options().any(|o| o.starts_with('+')));
        let bases = options().filter(|option| !option.starts_with(['!', '+'])).map(str::to_owned).collect();
        Some(Self { name: name.to_owned(), place, template, addition, bases, entries: Vec::new() })
    }
}

impl Entry {
    fn parse(line: &str, place: Place) -> Option<Self> {
        let (key, value) = line.split_once('=')?;
        let key = key.trim().trim_end_matches('+').trim_end();
        let value = value.strip_prefix('>').unwrap_or(value).trim();
        Some(Self { key: key.to_owned(), value: value.to_owned(), place })
    }

    /// Whether this is its key; Asterisk ignores the case.
    pub fn has_key(&self, key: &str) -> bool {
        self.key.eq_ignore_ascii_case(key)
    }
}

/// Reads a regular file. A pipe or a device could make an apply wait for ever.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    fs::read(path)
}

/// The part of a line that is no comment. `depth` counts the enclosing comments that are open; they span lines.
fn without_comments(line: &str, depth: &mut usize) -> String {
    let mut kept = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(';') {
        let (before, from) = rest.split_at(at);
        if *depth == 0 && before.ends_with('\\') {
            kept.push_str(&before[..before.len() - 1]);
            kept.push(';');
            rest = &from[1..];
        } else if from.starts_with(";--") && !from.starts_with(";---") {
            if *depth == 0 {
                kept.push_str(before);
            }
            *depth += 1;
            rest = &from[3..];
        } else if *depth > 0 {
            if before.ends_with("--") {
                *depth -= 1;
            }
            rest = &from[1..];
        } else {
            kept.push_str(before);
            return kept;
        }
    }
    if *depth == 0 {
        kept.push_str(rest);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: usize) -> Place {
        Place { file: Path::new("x.conf").into(), line }
    }

    fn kept(text: &str) -> Vec<String> {
        let mut depth = 0;
        text.lines().map(|line| without_comments(line, &mut depth).trim().to_owned()).collect()
    }

    #[test]
    fn comments_are_removed_as_asterisk_does_it() {
        assert_eq!(kept("a=1 ; x\n;b=2\nc=\\;3;4"), ["a=1", "", "c=;3"]);
        assert_eq!(kept("a ;-- b\nc=1\nd --; e\nf"), ["a", "", "e", "f"]);
        assert_eq!(kept(";-- a ;-- b --; c --; d"), ["d"]);
        assert_eq!(kept(";--- a\nb"), ["", "b"]);
    }

    #[test]
    fn sections_and_entries_are_read() {
        let head = Section::parse("[1000](!,base, other)", place(1)).expect("a section");
        assert_eq!((head.name.as_str(), head.template, head.addition), ("1000", true, false));
        assert_eq!(head.bases, ["base", "other"]);
        assert!(Section::parse("[1000](+type=endpoint)", place(1)).expect("a section").addition);
        for (line, value) in [("Exten => 1000,1,Set(a=b)", "1000,1,Set(a=b)"), ("Exten+ = 1000", "1000")] {
            let entry = Entry::parse(line, place(1)).expect("an entry");
            assert_eq!((entry.key.as_str(), entry.value.as_str(), entry.has_key("exten")), ("Exten", value, true));
        }
    }

    #[test]
    fn sections_inherit_values_of_templates() {
        let mut config = Config::default();
        for (index, text) in ["[base](!)", "[1000](base)"].into_iter().enumerate() {
            config.sections.extend(Section::parse(text, place(index)));
        }
        config.sections[0].entries.extend(Entry::parse("type=endpoint", place(9)));
        assert_eq!(config.values(&config.sections[1], "type"), ["endpoint"]);
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "[;\\-\\\\\\[\\](!+=>,a é#]{0,40}") {
            let mut depth = 0;
            let line = without_comments(&line, &mut depth);
            let _ = (Section::parse(line.trim(), place(1)), Entry::parse(&line, place(1)));
        }
    }
}
