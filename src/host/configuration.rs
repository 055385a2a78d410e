//! Asterisk's configuration syntax: what a file and everything that it includes say, as Asterisk would read them.
//!
//! After `main/config.c` of Asterisk 22, whose reading of many texts is kept in `tests/recordings/configuration`. `#exec` is not
//! followed, because only running its program would tell what it prints: so a section that is missing may be there. (Asterisk
//! ignores it too, unless `execincludes` is set; that is not looked at.)
//!
//! - `;` starts a comment unless escaped; `;--` and `--;` enclose one that may nest. A `--;` too many makes Asterisk skip all lines
//!   up to the next `;--`.
//! - `[name](!)` is a template, `[name](base,…)` copies the lines of others, `[name](+…)` adds to an existing section.
//! - `#include` and `#tryinclude` take a glob pattern relative to the configuration folder, at most ten deep. An included file
//!   begins in the section that was opened last, and the including section goes on after it.
//! - A line that Asterisk refuses ends the file, and those that the same line includes. If it is the main file, Asterisk refuses all of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::bytes::RegexBuilder;

use super::includes::Include;
use super::lines::{Comments, Fault, Place, strip};
use super::rights::unreadable;
use crate::problem::Result;

/// `MAX_INCLUDE_LEVEL` of `main/config.c`.
const MAX_INCLUDE_DEPTH: usize = 10;

/// Asterisk skips longer lines.
const MAX_LINE_BYTES: usize = 8190;

/// A configuration file with everything that it includes.
#[derive(Debug, Default)]
pub struct Config {
    /// In the order of the file; several may have one name.
    pub sections: Vec<Section>,
    pub additions: Vec<Addition>,
    /// Every file that was read, the main one first.
    pub files: Vec<Arc<Path>>,
    pub includes: Vec<Include>,
    /// The lines that Asterisk refuses.
    pub refused: Vec<Fault>,
    /// The lines behind which Asterisk skips the rest of the file, as for a comment that never ends.
    pub skipped: Vec<Fault>,
    /// The index of the section that was opened last.
    last: Option<usize>,
    /// Whether there is an `#exec`.
    has_exec: bool,
}

/// Asterisk's two files that include ours, and the one that says where PJSIP reads its objects.
#[derive(Debug, Default)]
pub struct MainFiles {
    pub pjsip: Config,
    pub extensions: Config,
    /// It need not exist.
    pub sorcery: Config,
}

impl MainFiles {
    /// Reads them in `config_dir`, Asterisk's configuration folder.
    pub fn read(config_dir: &Path) -> Result<Self> {
        Ok(Self {
            pjsip: Config::read(config_dir, Path::new("pjsip.conf"))?,
            extensions: Config::read(config_dir, Path::new("extensions.conf"))?,
            sorcery: Config::read_if_there(config_dir, Path::new("sorcery.conf"))?,
        })
    }

    pub fn all(&self) -> [&Config; 3] {
        [&self.pjsip, &self.extensions, &self.sorcery]
    }
}

/// `[name](…)` and its lines: first those that it inherits, at last those that are added to it.
#[derive(Debug)]
pub struct Section {
    pub name: String,
    pub place: Place,
    /// `(!)`: exists only for others to inherit from.
    pub template: bool,
    pub entries: Vec<Entry>,
}

/// `[name](+…)`, which adds to a section.
#[derive(Debug)]
pub struct Addition {
    pub name: String,
    /// The index of the section, if there is one.
    pub to: Option<usize>,
    pub place: Place,
}

/// `key = value` or `key => value`.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub value: String,
    pub place: Place,
}

impl Config {
    /// Reads `file` and what it includes. Relative names are relative to `config_dir`.
    pub fn read(config_dir: &Path, file: &Path) -> Result<Self> {
        let mut config = Self::default();
        config.read_files(config_dir, &[config_dir.join(file)], 0)?;
        Ok(config)
    }

    /// Like [`Config::read`], but an absent `file` is an empty one.
    pub fn read_if_there(config_dir: &Path, file: &Path) -> Result<Self> {
        if config_dir.join(file).try_exists().unwrap_or(true) {
            Self::read(config_dir, file)
        } else {
            Ok(Self::default())
        }
    }

    /// The names under which `path` was read, links among them; none if it was not.
    pub fn names_of(&self, path: &Path) -> Vec<Arc<Path>> {
        let Ok(wanted) = fs::canonicalize(path) else { return Vec::new() };
        self.files.iter().filter(|file| fs::canonicalize(file).is_ok_and(|file| file == wanted)).cloned().collect()
    }

    /// Reads what one line includes.
    fn read_files(&mut self, config_dir: &Path, paths: &[PathBuf], depth: usize) -> Result<()> {
        let mut section = self.last;
        let mut comments = Comments::default();
        for (index, path) in paths.iter().enumerate() {
            let bytes = read_regular(path).map_err(|error| unreadable(path, &error))?;
            let text = String::from_utf8_lossy(&bytes);
            let text = if index == 0 { text.strip_prefix('\u{feff}').unwrap_or(&text) } else { &text };
            let file: Arc<Path> = path.as_path().into();
            self.files.push(file.clone());
            for (index, line) in text.split('\n').enumerate().filter(|(_, line)| line.len() <= MAX_LINE_BYTES) {
                let place = Place { file: file.clone(), line: index + 1 };
                let line = comments.remove_from(line, &place);
                let line = strip(&line);
                if line.starts_with('#') {
                    self.read_directive(config_dir, line, &place, depth)?;
                } else if let Err(why) = self.read_line(line, &place, &mut section) {
                    self.refused.push(Fault { place, why, remedy: "fix the line" });
                    return Ok(());
                }
            }
        }
        self.skipped.extend(comments.unbalanced());
        Ok(())
    }

    /// Reads a line that begins with `#`, and what it includes.
    fn read_directive(&mut self, config_dir: &Path, line: &str, place: &Place, depth: usize) -> Result<()> {
        self.has_exec |= line.get(..5).is_some_and(|keyword| keyword.eq_ignore_ascii_case("#exec"));
        if depth == MAX_INCLUDE_DEPTH {
            return Ok(());
        }
        let Some(include) = Include::parse(line, place.clone(), config_dir)? else { return Ok(()) };
        let found = include.found.clone();
        self.includes.push(include);
        self.read_files(config_dir, &found, depth + 1)
    }

    /// Reads any other line: one that opens a section, or belongs to the open one. The error says why Asterisk refuses it.
    fn read_line(&mut self, line: &str, place: &Place, open: &mut Option<usize>) -> Result<(), &'static str> {
        if let Some(header) = line.strip_prefix('[') {
            *open = Some(self.read_header(header, place)?);
        } else if let Some(at) = *open {
            self.sections[at].take(line, place)?;
        } else if !line.is_empty() && !self.has_exec {
            return Err("stands before the first section");
        }
        Ok(())
    }

    /// Reads `name](…)`. Returns the section that the next lines belong to.
    fn read_header(&mut self, header: &str, place: &Place) -> Result<usize, &'static str> {
        let (name, rest) = header.split_once(']').ok_or("has no closing ]")?;
        let mut new = Section { name: name.to_owned(), place: place.clone(), template: false, entries: Vec::new() };
        let mut existing = None;
        let options = match rest.strip_prefix('(') {
            Some(rest) => rest.split_once(')').ok_or("has no closing )")?.0.split(',').collect(),
            None => Vec::new(),
        };
        for option in options {
            if let Some(filter) = option.strip_prefix('+') {
                let found = self.sections.iter().position(|section| section.is(name) && section.passes(filter));
                self.additions.push(Addition { name: name.to_owned(), to: found, place: place.clone() });
                if let Some(at) = found {
                    self.sections[at].template |= new.template;
                    self.sections[at].entries.append(&mut new.entries);
                    existing = found;
                } else if !self.has_exec {
                    return Err("adds to a section that does not exist above");
                }
            } else if option == "!" {
                existing.map_or(&mut new, |at: usize| &mut self.sections[at]).template = true;
            } else {
                let base = self.sections.iter().find(|section| option.is_empty() || section.is(option));
                if base.is_none() && !self.has_exec {
                    return Err("inherits from a section that does not exist above");
                }
                let inherited = base.map_or(Vec::new(), |base| base.entries.clone());
                existing.map_or(&mut new, |at| &mut self.sections[at]).entries.extend(inherited);
            }
        }
        let opened = existing.unwrap_or(self.sections.len());
        if existing.is_none() {
            self.sections.push(new);
        }
        self.last = Some(opened);
        Ok(opened)
    }
}

impl Section {
    /// Whether this is its name. Asterisk ignores the case where a header names another section.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Whether the filter of an addition finds it, such as `type=endpoint&context=^a` or `TEMPLATES=include`.
    fn passes(&self, filter: &str) -> bool {
        let has = |part: (&str, &str)| {
            let [key, value] = [part.0, part.1].map(|text| strip(text).trim_matches(['"', '\'']));
            if key == "TEMPLATES" {
                return self.template || value.eq_ignore_ascii_case("include");
            }
            // By bytes, as Asterisk does it. A huge expression must not take long.
            let [key, value] =
                [key, value].map(|text| RegexBuilder::new(text).unicode(false).size_limit(1 << 16).build());
            let (Ok(key), Ok(value)) = (key, value) else { return false };
            let fits = |entry: &Entry| key.is_match(entry.key.as_bytes()) && value.is_match(entry.value.as_bytes());
            self.entries.iter().any(fits)
        };
        let mut parts = filter.split('&').filter(|part| !part.is_empty());
        (!self.template || filter.contains("TEMPLATES")) && parts.all(|part| part.split_once('=').is_some_and(has))
    }

    /// Reads one of its lines. Asterisk ignores one without a key and a value.
    fn take(&mut self, line: &str, place: &Place) -> Result<(), &'static str> {
        let escaped = line.strip_prefix('\\');
        if escaped.is_some_and(|rest| !rest.starts_with(|c| c > ' ')) {
            return Err("begins with a \\ that escapes nothing");
        }
        let Some((key, value)) = escaped.unwrap_or(line).split_once('=') else { return Ok(()) };
        let (key, value, appends) = match key.strip_suffix('+') {
            Some(key) => (strip(key), value, true),
            None => (strip(key), value.strip_prefix('>').unwrap_or(value), false),
        };
        match self.entries.iter_mut().rev().find(|entry| appends && entry.key == key) {
            Some(entry) => {
                strip(&format!("{}{value}", entry.value)).clone_into(&mut entry.value);
                entry.place = place.clone();
            }
            None if key.is_empty() => {}
            None => {
                let entry = Entry { key: key.to_owned(), value: strip(value).to_owned(), place: place.clone() };
                self.entries.push(entry);
            }
        }
        Ok(())
    }

    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|entry| entry.has_key(key)).map(|entry| entry.value.as_str())
    }

    /// Which objects of PJSIP it describes: the first one counts.
    pub fn kind(&self) -> Option<&str> {
        self.values("type").next()
    }
}

impl Entry {
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

#[cfg(test)]
mod tests {
    use std::env;

    use uuid::Uuid;

    use super::*;

    /// Reads these files, each after a line `### name`; `main.conf` includes the others.
    fn read(files: &str) -> Config {
        let folder = env::temp_dir().join(Uuid::new_v4().to_string());
        fs::create_dir(&folder).expect("make a folder");
        for file in files.split("### ").skip(1) {
            let (name, text) = file.split_once('\n').expect("a name");
            fs::write(folder.join(name), text).expect("write a file");
        }
        let config = Config::read(&folder, Path::new("main.conf"));
        fs::remove_dir_all(&folder).expect("remove the folder");
        config.expect("files that can be read")
    }

    /// In the form of the recordings.
    fn recorded(config: &Config) -> String {
        if config.refused.iter().any(|fault| fault.place.file == config.files[0]) {
            return "Config file has invalid format\n".to_owned();
        }
        let section = |section: &Section| {
            let head = format!("[{}]{}\n", section.name, if section.template { "(!)" } else { "" });
            let lines = section.entries.iter().map(|entry| format!("{}={}\n", entry.key, entry.value));
            [head].into_iter().chain(lines).collect::<String>()
        };
        config.sections.iter().map(section).collect()
    }

    #[test]
    fn files_say_what_asterisk_reads_in_them() {
        let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/configuration");
        for recording in fs::read_dir(recordings).expect("the recordings") {
            let path = recording.expect("a recording").path();
            let text = fs::read_to_string(&path).expect("a text");
            let (files, asterisk) = text.split_once("### Asterisk reads\n").expect("what Asterisk reads");
            assert_eq!(recorded(&read(files)), asterisk, "{}", path.display());
        }
    }

    #[test]
    fn what_a_program_prints_may_be_a_section_that_is_missing() {
        let config = read("### main.conf\n#exec \"x\"\n[a](b)\na=1\n[c](+)\nc=1\n");
        assert_eq!((recorded(&config).as_str(), config.refused.len()), ("[a]\na=1\n[c]\nc=1\n", 0));
        let config = read("### main.conf\n#exec x\na=1\n[b]\nb=1\n");
        assert_eq!((recorded(&config).as_str(), config.refused.len()), ("[b]\nb=1\n", 0));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[;\\-\\\\\\[\\](!+=>,a é\n]{0,60}") {
            read(&format!("### main.conf\n{text}"));
        }
    }
}
