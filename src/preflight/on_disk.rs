//! Probes that look at Asterisk's configuration files and at the folders of the generated ones.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::probes::Found;
use crate::host::configuration::{Config, MainFiles, Place, Section};
use crate::host::foreign;
use crate::host::includes::Include;
use crate::host::lock::HostLock;
use crate::host::place::folder;
use crate::host::rights;
use crate::pbx::Pbx;
use crate::problem::{Problem, Result, bail, ensure, problem};
use crate::render::CONTEXT;

/// The files that are read, each with what it includes.
const FILES: &str = "pjsip.conf, extensions.conf and sorcery.conf";

impl Pbx {
    /// `ASTERISK_CONFIG_DIR` is a folder.
    pub(super) fn folder(&self) -> Result<String> {
        let shown = self.config_dir.display();
        match fs::metadata(&self.config_dir) {
            Ok(found) if found.is_dir() => Ok(shown.to_string()),
            Ok(_) => bail!("{shown} is not a folder", "set ASTERISK_CONFIG_DIR to Asterisk's own"),
            Err(error) => bail!("cannot open {shown}: {error}", "set ASTERISK_CONFIG_DIR to Asterisk's own"),
        }
    }

    /// This process can replace both generated files, and take the lock.
    pub(super) fn two_folders(&self) -> Result<Found> {
        rights::check_targets(&self.files)?;
        HostLock::check(&self.files)?;
        let open = |folder: &&Path| fs::metadata(folder).is_ok_and(|found| found.mode() & 0o002 != 0);
        if let Some(folder) = self.files.both().map(folder).iter().find(|folder| open(folder)) {
            let folder = folder.display();
            return Ok(Found::Warning(problem!(
                "every user of this machine may write in {folder}, and so run programs as Asterisk",
                "close it with: chmod o-w {folder}"
            )));
        }
        Ok(self.files.both().map(|file| folder(file).display().to_string()).join(", ").into())
    }

    /// `pjsip.conf`, `extensions.conf`, `sorcery.conf` and all that they include can be read.
    pub(super) fn files_readable(main: &Result<MainFiles>) -> Result<String> {
        let main = main.as_ref().map_err(Problem::clone)?;
        let count: usize = main.all().map(|config| config.files.len()).iter().sum();
        Ok(format!("{FILES}: {count} files with what they include"))
    }

    /// `pjsip.conf` and `extensions.conf`, each with the generated file that it should include.
    fn pairs<'m>(&'m self, main: &'m MainFiles) -> [(&'m Config, &'m Path); 2] {
        [(&main.pjsip, &self.files.endpoints), (&main.extensions, &self.files.routing)]
    }

    /// Asterisk refuses no line, and skips none by mistake.
    pub(super) fn lines(main: &MainFiles) -> Result<Found> {
        let refused = main
            .all()
            .into_iter()
            .flat_map(|config| config.refused.iter().map(|(place, why)| (place.file == config.files[0], place, why)));
        // One in a main file does more harm.
        if let Some((in_main, place, why)) = refused.min_by_key(|(in_main, ..)| !*in_main) {
            let rest = "the rest of that file, and the files that the same include line finds after it";
            let what = if in_main { "all of that file" } else { rest };
            bail!("{place}: this line {why}, so Asterisk refuses {what}", "fix the line, then apply again");
        }
        match main.all().into_iter().find_map(|config| config.skipped.first()) {
            Some((place, why, remedy)) => Ok(Found::Warning(problem!("{place} {why}", "{remedy}"))),
            None => Ok(format!("none in {FILES}").into()),
        }
    }

    /// Every `#include` finds a file, or Asterisk refuses the file that it stands in, and some `missing` modules with it. Ours need
    /// not exist before the first apply, unless a module is missing.
    pub(super) fn includes_that_find(&self, main: &MainFiles, missing: &[&str]) -> Result<String> {
        let ours = |include: &Include| self.files.both().into_iter().any(|own| include.includes(own));
        let fails = |i: &&Include| !i.tries && i.found.is_empty() && (!missing.is_empty() || !ours(i));
        let all = main.all().into_iter().flat_map(|config| &config.includes);
        let failing = all.filter(fails).map(|i| format!("{}: '#include {}'", i.place, i.written)).collect::<Vec<_>>();
        let load = match missing {
            [] => String::new(),
            missing => format!("load {} (module load), and ", missing.join(" ")),
        };
        let lines = failing.join(", and ");
        ensure!(
            failing.is_empty(),
            "{lines} finds no file, so Asterisk refuses what stands in that file",
            "write #tryinclude there, or remove the line, then {load}apply again"
        );
        Ok(format!("every #include of {FILES} finds some"))
    }

    /// No generated file is included twice: its sections would be there twice.
    pub(super) fn included_once(&self, main: &MainFiles) -> Result<String> {
        for (config, generated) in self.pairs(main) {
            let including = config.includes.iter().filter(|include| include.includes(generated));
            let (places, file) = (including.map(|include| &include.place).collect::<Vec<_>>(), generated.display());
            if let [first, second, ..] = places[..] {
                let why = if first == second {
                    format!("at {first}, because {} is included twice itself", first.file.display())
                } else {
                    format!("at {first} and at {second}")
                };
                bail!("{file} is included twice, {why}", "remove one of the two lines, then apply again");
            }
        }
        Ok("neither of the generated files".to_owned())
    }

    /// Both files are included, by a line that allows for a missing file.
    pub(super) fn include_lines(&self, main: &MainFiles) -> Result<Found> {
        let includes = self.includes(main)?;
        if let Some(include) = includes.iter().find(|include| !include.tries) {
            let place = &include.place;
            return Ok(Found::Warning(problem!(
                "{place} includes the generated file by #include, so Asterisk refuses the whole file whenever that is missing",
                "write #tryinclude there"
            )));
        }
        Ok(includes.map(|include| include.place.to_string()).join(", ").into())
    }

    /// The lines that include the endpoints and the routing. Fails if one is missing.
    pub(crate) fn includes<'m>(&'m self, main: &'m MainFiles) -> Result<[&'m Include; 2]> {
        let [endpoints, routing] = self.pairs(main).map(|(config, generated)| {
            config.includes.iter().find(|include| include.includes(generated)).ok_or_else(|| {
                let line = generated.strip_prefix(&self.config_dir).unwrap_or(generated).display();
                let main = config.files[0].display();
                if let Some((place, why)) = config.refused.iter().find(|(place, _)| place.file == config.files[0]) {
                    return problem!(
                        "{main} may include the generated file, but {place} {why}, so Asterisk does not read what follows",
                        "fix that line, then apply again"
                    );
                }
                if let Some((place, why, remedy)) = config.skipped.iter().find(|(place, ..)| place.file == config.files[0]) {
                    return problem!(
                        "{main} may include the generated file, but {place} {why}",
                        "{remedy}, then apply again"
                    );
                }
                problem!("{main} does not include the generated file", "add the line '#tryinclude {line}' to it, then apply again")
            })
        });
        Ok([endpoints?, routing?])
    }

    /// No two sections have one name and type, whatever the name: Asterisk would refuse that type for everybody.
    pub(super) fn no_section_twice(main: &MainFiles) -> Result<String> {
        let mut seen: BTreeMap<(&str, &str), &Place> = BTreeMap::new();
        for section in main.pjsip.sections.iter().filter(|section| !section.template) {
            if let Some(kind) = section.kind()
                && let Some(first) = seen.insert((&section.name, kind), &section.place)
            {
                let Section { place, name, .. } = section;
                bail!(
                    "{place}: a second [{name}] of type={kind} (the first is at {first}) makes Asterisk refuse every {kind}",
                    "rename or remove it, then apply again"
                );
            }
        }
        Ok("none in pjsip.conf".to_owned())
    }

    /// Nobody else defines one of our numbers.
    pub(super) fn nothing_foreign(&self, main: &MainFiles) -> Result<String> {
        let wizards = Config::read_if_there(&self.config_dir, &self.config_dir.join("pjsip_wizard.conf"))?;
        foreign::check(main, &wizards, &self.files)?;
        Ok("defined only in the generated files".to_owned())
    }

    /// Says where an administrator added something to our context. That is allowed.
    pub(super) fn context_elsewhere(&self, main: &MainFiles) -> String {
        let dialplan = &main.extensions;
        let generated = dialplan.included(&self.files.routing);
        let sections = dialplan.sections.iter().map(|section| (&section.name, &section.place));
        let all = sections.chain(dialplan.additions.iter().map(|addition| (&addition.name, &addition.place)));
        let places = all.filter(|(name, place)| *name == CONTEXT && !generated.contains(&place.file));
        let places: Vec<_> = places.map(|(_, place)| place.to_string()).collect();
        match places.join(", ").as_str() {
            "" => format!("{CONTEXT}, defined by the generated file alone"),
            places => format!("{CONTEXT}, with additions of your own at {places}"),
        }
    }
}
