//! Asterisk's configuration syntax: what a file and all that it includes say, as Asterisk would read them.
//!
//! After `main/config.c` of Asterisk 22: `;` starts a comment unless escaped, `;--` and `--;` enclose one that may nest;
//! `[name](!)` is a template, `[name](base,…)` takes after others, `[name](+…)` adds to a section that is there;
//! `#include` and `#tryinclude` take a glob pattern relative to the configuration folder, at most ten deep; the lines of an
//! included file belong to the section that includes it until a section of its own begins, and the including section
//! goes on after the include (seen on 22.10). `#exec` is not followed: what a program prints can't be known without running it.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::rights;

/// `MAX_INCLUDE_LEVEL` of `main/config.c`.
const MAX_INCLUDE_DEPTH: usize = 10;

/// How a name with `*` in it is taken.
const AS_THE_SHELL: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// A file could not be read, so what Asterisk would make of it is unknown.
#[derive(Debug, thiserror::Error)]
#[error("{} can't be read: {error}; {}", path.display(), self.advice())]
pub struct Unreadable {
    /// Which file.
    pub path: PathBuf,
    /// What the kernel said.
    pub error: io::Error,
}

impl Unreadable {
    fn advice(&self) -> String {
        match self.error.kind() {
            io::ErrorKind::NotFound => {
                "it is missing: make it, or set ASTERISK_CONFIG_DIR to Asterisk's own folder, then apply again".to_owned()
            }
            io::ErrorKind::PermissionDenied => rights::closed_above(&self.path).unwrap_or_else(|| {
                "it is part of Asterisk's configuration: make it readable for the portal's user (by its group, say: chgrp asterisk and chmod g+r)".to_owned()
            }),
            io::ErrorKind::InvalidInput => "put a file in its place, or remove the line that includes it".to_owned(),
            _ => rights::advice(&self.error).to_owned(),
        }
    }
}

/// A configuration file with everything that it includes.
#[derive(Debug, Default)]
pub struct Config {
    /// In the order in which they stand; several may have one name.
    pub sections: Vec<Section>,
    /// Every file that was read, the first one first.
    pub files: Vec<Arc<Path>>,
    /// Every line that includes others.
    pub includes: Vec<Include>,
}

/// Asterisk's two files that include ours, each read once.
#[derive(Debug)]
pub struct MainFiles {
    pjsip: Result<Config, Unreadable>,
    extensions: Result<Config, Unreadable>,
}

impl MainFiles {
    /// Reads both under `config_dir`, Asterisk's configuration folder.
    #[must_use]
    pub fn read(config_dir: &Path) -> Self {
        let read = |name| Config::read(config_dir, &config_dir.join(name));
        Self { pjsip: read("pjsip.conf"), extensions: read("extensions.conf") }
    }

    /// `pjsip.conf`.
    ///
    /// # Errors
    /// Which file of it can't be read.
    pub fn pjsip(&self) -> Result<&Config, &Unreadable> {
        self.pjsip.as_ref()
    }

    /// `extensions.conf`.
    ///
    /// # Errors
    /// Which file of it can't be read.
    pub fn extensions(&self) -> Result<&Config, &Unreadable> {
        self.extensions.as_ref()
    }
}

/// An `#include` or `#tryinclude`.
#[derive(Debug)]
pub struct Include {
    /// Where it stands.
    pub place: Place,
    /// `#tryinclude`: Asterisk goes on if it finds no file.
    pub tries: bool,
    /// What it names, as it is written.
    pub written: String,
    patterns: Vec<glob::Pattern>,
    found: Vec<PathBuf>,
}

impl Include {
    /// Whether it includes `path`, or will as soon as there is such a file.
    #[must_use]
    pub fn includes(&self, path: &Path) -> bool {
        let is =
            |found: &PathBuf| matches!((fs::canonicalize(found), fs::canonicalize(path)), (Ok(a), Ok(b)) if a == b);
        self.patterns.iter().any(|pattern| pattern.matches_path_with(path, AS_THE_SHELL)) || self.found.iter().any(is)
    }

    /// Whether there is no file that it names.
    #[must_use]
    pub fn finds_nothing(&self) -> bool {
        self.found.is_empty()
    }
}

/// `[name](…)` and the lines below it.
#[derive(Debug)]
pub struct Section {
    /// Between the brackets.
    pub name: String,
    /// Where its head stands.
    pub place: Place,
    /// `(!)`: gives nothing but its lines to others.
    pub template: bool,
    /// `(+…)`: adds to a section that stands elsewhere.
    pub addition: bool,
    /// The sections it takes after.
    pub bases: Vec<String>,
    /// Its lines.
    pub entries: Vec<Entry>,
}

/// `key = value` or `key => value`, of a thousand users some ten thousand: each is but a part of its file's text.
#[derive(Debug)]
pub struct Entry {
    text: Arc<str>,
    key: Range<usize>,
    value: Range<usize>,
    /// Where it stands.
    pub place: Place,
}

/// A line of a file, told as `file:line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl Place {
    /// Whether it is in one of `files`, which [`Config::included`] of the same configuration gave: they are told apart by identity, not
    /// by name.
    #[must_use]
    pub fn is_in(&self, files: &[Arc<Path>]) -> bool {
        files.iter().any(|file| Arc::ptr_eq(file, &self.file))
    }
}

impl Config {
    /// Reads `file` and what it includes; relative names are relative to `config_dir`.
    ///
    /// # Errors
    /// [`Unreadable`] for any file that is there and can't be read, and for `file` itself if it is absent.
    pub fn read(config_dir: &Path, file: &Path) -> Result<Self, Unreadable> {
        let mut config = Self::default();
        config.read_file(config_dir, file, None, 0)?;
        Ok(config)
    }

    /// The same, where an absent `file` says nothing.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read_if_there(config_dir: &Path, file: &Path) -> Result<Self, Unreadable> {
        match Self::read(config_dir, file) {
            Err(Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            read => read,
        }
    }

    /// Under which names `path` was read, whatever links lead to it: none if it is not included.
    #[must_use]
    pub fn included(&self, path: &Path) -> Vec<Arc<Path>> {
        let Ok(wanted) = fs::canonicalize(path) else { return Vec::new() };
        self.files.iter().filter(|file| fs::canonicalize(file).is_ok_and(|file| file == wanted)).cloned().collect()
    }

    /// The values of `key` in a section, those of the sections that it takes after included.
    #[must_use]
    pub fn values<'a>(&'a self, section: &'a Section, key: &str) -> Vec<&'a str> {
        self.entries(section).into_iter().filter(|entry| entry.has_key(key)).map(Entry::value).collect()
    }

    /// The lines of a section, then those of the sections that it takes after.
    #[must_use]
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

    /// `section` is the index of the section whose lines come next.
    fn read_file(
        &mut self,
        config_dir: &Path,
        path: &Path,
        mut section: Option<usize>,
        depth: usize,
    ) -> Result<(), Unreadable> {
        let bytes = read_regular(path).map_err(|error| Unreadable { path: path.to_owned(), error })?;
        let text = String::from_utf8(bytes).unwrap_or_else(|raw| String::from_utf8_lossy(raw.as_bytes()).into_owned());
        let text: Arc<str> = text.into();
        let file: Arc<Path> = path.into();
        self.files.push(file.clone());
        let mut comment_depth = 0;
        for (index, line) in text.trim_start_matches('\u{feff}').split('\n').enumerate() {
            let line = without_comments(line, &mut comment_depth);
            let place = Place { file: file.clone(), line: index + 1 };
            match line.trim().as_bytes() {
                [] => {}
                [b'[', ..] => {
                    if let Some(parsed) = Section::parse(line.trim(), place) {
                        section = Some(self.sections.len());
                        self.sections.push(parsed);
                    }
                }
                [b'#', ..] => self.include(config_dir, line.trim(), place, section, depth)?,
                _ => {
                    if let Some(section) = section {
                        self.sections[section].entries.extend(Entry::parse(line, &text, place));
                    }
                }
            }
        }
        Ok(())
    }

    fn include(
        &mut self,
        config_dir: &Path,
        directive: &str,
        place: Place,
        section: Option<usize>,
        depth: usize,
    ) -> Result<(), Unreadable> {
        let (keyword, argument) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
        let tries = keyword.eq_ignore_ascii_case("#tryinclude");
        if !(tries || keyword.eq_ignore_ascii_case("#include")) || depth >= MAX_INCLUDE_DEPTH {
            return Ok(());
        }
        let written = argument.trim().trim_matches(['"', '<', '>']).to_owned();
        let (mut patterns, mut found) = (Vec::new(), Vec::new());
        for pattern in alternatives(&written) {
            let pattern = if pattern.starts_with('/') {
                pattern
            } else {
                format!("{}/{pattern}", glob::Pattern::escape(&config_dir.to_string_lossy()))
            };
            let (Ok(paths), Ok(parsed)) = (glob::glob_with(&pattern, AS_THE_SHELL), glob::Pattern::new(&pattern))
            else {
                return Ok(());
            };
            found.extend(files_among(&pattern, paths)?);
            patterns.push(parsed);
        }
        self.includes.push(Include { place, tries, written, patterns, found: found.clone() });
        for path in found {
            self.read_file(config_dir, &path, section, depth + 1)?;
        }
        Ok(())
    }
}

impl Section {
    fn parse(line: &str, place: Place) -> Option<Self> {
        let (name, rest) = line.strip_prefix('[')?.split_once(']')?;
        let options = rest.trim().strip_prefix('(').and_then(|o| o.split_once(')')).map_or("", |(o, _)| o);
        let mut section = Self {
            name: name.to_owned(),
            place,
            template: false,
            addition: false,
            bases: Vec::new(),
            entries: Vec::new(),
        };
        for option in options.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            match option.as_bytes()[0] {
                b'!' => section.template = true,
                b'+' => section.addition = true,
                _ => section.bases.push(option.to_owned()),
            }
        }
        Some(section)
    }
}

impl Entry {
    /// `line` is a part of `text` if it is borrowed; an owned one, from which something was cut, becomes a text of its own.
    fn parse(line: Cow<str>, text: &Arc<str>, place: Place) -> Option<Self> {
        let own: Arc<str>;
        let (text, line) = match line {
            Cow::Borrowed(line) => (text, line),
            Cow::Owned(line) => {
                own = line.into();
                (&own, &*own)
            }
        };
        let (key, value) = line.split_once('=')?;
        let key = key.trim().trim_end_matches('+').trim_end();
        let value = value.strip_prefix('>').unwrap_or(value).trim();
        let range = |part: &str| {
            let start = part.as_ptr().addr() - text.as_ptr().addr();
            start..start + part.len()
        };
        let (key, value) = (range(key), range(value));
        Some(Self { text: text.clone(), key, value, place })
    }

    /// As it is written, without the `+` of `+=`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.text[self.key.clone()]
    }

    /// Whether this is its key, whose case Asterisk does not mind.
    #[must_use]
    pub fn has_key(&self, key: &str) -> bool {
        self.key().eq_ignore_ascii_case(key)
    }

    /// Without white space around it.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.text[self.value.clone()]
    }
}

/// Reads a file, and nothing that an apply could wait for without end: no pipe, no device.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("an open flag fits");
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `a{b,c}` is `ab` and `ac`.
fn alternatives(pattern: &str) -> Vec<String> {
    let close = pattern.find('}');
    let Some((open, close)) = close.and_then(|close| Some((pattern[..close].rfind('{')?, close))) else {
        return vec![pattern.to_owned()];
    };
    let mut all = Vec::new();
    for between in pattern[open + 1..close].split(',') {
        for one in alternatives(&format!("{}{between}{}", &pattern[..open], &pattern[close + 1..])) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    all
}

/// What a pattern finds and Asterisk reads: it skips folders, and links to nothing.
fn files_among(pattern: &str, paths: glob::Paths) -> Result<Vec<PathBuf>, Unreadable> {
    let found = paths.collect::<Result<Vec<_>, _>>();
    let mut found = found.map_err(|error| Unreadable { path: error.path().to_owned(), error: error.into() })?;
    found.retain(|path| match fs::metadata(path) {
        Ok(found) => found.is_file(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    });
    // Nothing is found in a folder that is closed either.
    let has_wildcard = |part: &Component| part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let named: PathBuf = Path::new(pattern).components().take_while(|part| !has_wildcard(part)).collect();
    match fs::metadata(&named) {
        Err(error) if found.is_empty() && error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Unreadable { path: named, error })
        }
        _ => Ok(found),
    }
}

/// The part of a line that is no comment; `depth` is how many enclosing comments are open, over lines.
fn without_comments<'l>(line: &'l str, depth: &mut usize) -> Cow<'l, str> {
    if *depth == 0 && !line.contains(';') {
        return line.into();
    }
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
            return kept.into();
        }
    }
    if *depth == 0 {
        kept.push_str(rest);
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Vec<String> {
        let mut depth = 0;
        text.lines().map(|line| without_comments(line, &mut depth).trim().to_owned()).collect()
    }

    #[test]
    fn comments_go_as_in_asterisk() {
        assert_eq!(kept("a=1 ; x\n;b=2\nc=\\;3;4"), ["a=1", "", "c=;3"]);
        assert_eq!(kept("a ;-- b\nc=1\nd --; e\nf"), ["a", "", "e", "f"]);
        assert_eq!(kept(";-- a ;-- b --; c --; d"), ["d"]);
        assert_eq!(kept(";--- a\nb"), ["", "b"]);
    }

    #[test]
    fn braces_are_alternatives() {
        assert_eq!(alternatives("a.conf"), ["a.conf"]);
        assert_eq!(alternatives("{a,b*}/{c,d}"), ["a/c", "a/d", "b*/c", "b*/d"]);
        assert_eq!(alternatives("a{,{b,c}}"), ["a", "ab", "ac"]);
        assert_eq!(alternatives("}a{b"), ["}a{b"]);
    }

    #[test]
    fn heads_and_entries_are_read() {
        let place = Place { file: Path::new("x.conf").into(), line: 1 };
        let head = Section::parse("[1000](!,base, other)", place.clone()).expect("a section");
        assert_eq!((head.name.as_str(), head.template, head.addition), ("1000", true, false));
        assert_eq!(head.bases, ["base", "other"]);
        assert!(Section::parse("[1000](+type=endpoint)", place.clone()).expect("a section").addition);
        let text: Arc<str> = "[a]\n Exten => 1000,1,Set(a=b) ".into();
        let own: Cow<str> = Cow::Owned("Exten+ = 1000".to_owned());
        for (line, value) in [(Cow::Borrowed(&text[4..]), "1000,1,Set(a=b)"), (own, "1000")] {
            let entry = Entry::parse(line, &text, place.clone()).expect("an entry");
            assert_eq!((entry.key(), entry.value(), entry.has_key("exten")), ("Exten", value, true));
        }
    }

    #[test]
    fn templates_give_their_values() {
        let place = |line| Place { file: Path::new("x.conf").into(), line };
        let mut config = Config::default();
        for (index, text) in ["[base](!)", "[1000](base)"].into_iter().enumerate() {
            config.sections.extend(Section::parse(text, place(index)));
        }
        let text: Arc<str> = "type=endpoint".into();
        config.sections[0].entries.extend(Entry::parse(Cow::Borrowed(&*text), &text, place(9)));
        assert_eq!(config.values(&config.sections[1], "type"), ["endpoint"]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(line in "[;\\-\\\\\\[\\](!+=>,a é#]{0,40}") {
            let mut depth = 0;
            let text: Arc<str> = line.into();
            let line = without_comments(&text, &mut depth);
            let place = Place { file: Path::new("x.conf").into(), line: 1 };
            let entry = Entry::parse(line.clone(), &text, place.clone());
            let _ = (Section::parse(line.trim(), place), entry.map(|entry| (entry.key().len(), entry.value().len())));
        }
    }
}
