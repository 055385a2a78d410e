//! Probes that look at Asterisk's configuration files and at the folders of the generated ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};

use super::probes::{Host, Probed, Trouble};
use crate::host::configuration::{Config, Entry, MainFiles, Place};
use crate::host::foreign;
use crate::host::includes::Include;
use crate::host::lock::HostLock;
use crate::host::place::folder;
use crate::host::rights;
use crate::render::CONTEXT;

impl Host {
    /// `ASTERISK_CONFIG_DIR` is a folder.
    pub(super) fn folder(&self) -> Result<String> {
        let shown = self.config_dir.display();
        match fs::metadata(&self.config_dir) {
            Ok(found) if found.is_dir() => Ok(shown.to_string()),
            Ok(_) => bail!("{shown} is not a folder; set ASTERISK_CONFIG_DIR to Asterisk's own"),
            Err(error) => bail!("cannot open {shown}: {error}; set ASTERISK_CONFIG_DIR to Asterisk's own"),
        }
    }

    /// This process can replace both generated files, and take the lock.
    pub(super) fn two_folders(&self) -> Result<String> {
        rights::check_targets(&self.files)?;
        HostLock::check(&self.files)?;
        Ok(self.files.both().map(|file| folder(file).display().to_string()).join(", "))
    }

    /// `pjsip.conf`, `extensions.conf` and all that they include can be read.
    pub(super) fn files_readable(main: &Result<MainFiles>) -> Result<String> {
        let MainFiles { pjsip, extensions } = main.as_ref().map_err(|error| anyhow!("{error}"))?;
        let count = pjsip.files.len() + extensions.files.len();
        Ok(format!("pjsip.conf and extensions.conf, {count} files with what they include"))
    }

    /// `pjsip.conf` and `extensions.conf`, each with the generated file that it should include.
    fn pairs<'m>(&'m self, main: &'m MainFiles) -> [(&'m Config, &'m Path); 2] {
        [(&main.pjsip, &self.files.endpoints), (&main.extensions, &self.files.routing)]
    }

    /// Asterisk refuses no line.
    pub(super) fn lines(main: &MainFiles) -> Result<String> {
        let refused = [&main.pjsip, &main.extensions]
            .into_iter()
            .flat_map(|config| config.refused.iter().map(|(place, why)| (place.file == config.files[0], place, why)));
        // One in a main file does more harm.
        if let Some((in_main, place, why)) = refused.min_by_key(|(in_main, ..)| !*in_main) {
            let rest = "the rest of that file, and the files that the same include line finds after it";
            let what = if in_main { "all of that file" } else { rest };
            bail!("{place}: this line {why}, so Asterisk refuses {what}; mend the line, then apply again");
        }
        Ok("none in pjsip.conf and extensions.conf".to_owned())
    }

    /// Every `#include` finds a file, or Asterisk refuses the file that it stands in. Ours need not exist before the first apply.
    pub(super) fn includes_that_find(&self, main: &MainFiles) -> Result<String> {
        for (config, own) in self.pairs(main) {
            if let Some(include) = config.includes.iter().find(|i| !i.tries && i.found.is_empty() && !i.includes(own)) {
                bail!(
                    "{}: '#include {}' finds no file, so Asterisk refuses what stands in that file; write #tryinclude there, or remove the line, then apply again",
                    include.place,
                    include.written
                );
            }
        }
        Ok("every #include of pjsip.conf and extensions.conf finds some".to_owned())
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
                bail!("{file} is included twice, {why}; remove one of the two lines, then apply again");
            }
        }
        Ok("neither of the generated files".to_owned())
    }

    /// Both files are included, by a line that allows for a missing file.
    pub(super) fn include_lines(&self, main: &MainFiles) -> Probed {
        let includes = self.includes(main)?;
        if let Some(include) = includes.iter().find(|include| !include.tries) {
            return Err(Trouble::Warning(format!(
                "{} includes the generated file by #include, so Asterisk refuses the whole file whenever that is missing; write #tryinclude there",
                include.place
            )));
        }
        Ok(includes.map(|include| include.place.to_string()).join(", "))
    }

    /// The lines that include the endpoints and the routing. Fails if one is missing.
    pub(crate) fn includes<'m>(&'m self, main: &'m MainFiles) -> Result<[&'m Include; 2]> {
        let [endpoints, routing] = self.pairs(main).map(|(config, generated)| {
            config.includes.iter().find(|include| include.includes(generated)).with_context(|| {
                let line = generated.strip_prefix(&self.config_dir).unwrap_or(generated).display();
                let main = config.files[0].display();
                if let Some((place, why)) = config.refused.iter().find(|(place, _)| place.file == config.files[0]) {
                    return format!("{main} may include the generated file, but {place} {why}, so Asterisk does not read what follows; mend that line, then apply again");
                }
                format!("{main} does not include the generated file; add the line '#tryinclude {line}' to it, then apply again")
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
                bail!(
                    "{}: a second [{}] of type={kind} (the first is at {first}) makes Asterisk refuse every {kind}; rename or remove it, then apply again",
                    section.place,
                    section.name
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

    /// Asterisk keeps registrations in its own database, and no copy of all of them elsewhere: an apply cannot evict them there.
    pub(super) fn registrations_kept(&self) -> Result<String> {
        let sorcery = Config::read_if_there(&self.config_dir, &self.config_dir.join("sorcery.conf"))?;
        let elsewhere = |entry: &&Entry| {
            let (key, value) = (entry.key.to_ascii_lowercase(), entry.value.replace(char::is_whitespace, ""));
            let mut options = key.split('/');
            let is_contact = options.next() == Some("contact");
            let is_cache = options.any(|option| option == "cache");
            is_contact && if is_cache { value.contains("full_backend_cache") } else { value != "astdb,registrar" }
        };
        let sections = sorcery.sections.iter().filter(|section| section.name.eq_ignore_ascii_case("res_pjsip"));
        match sections.flat_map(|section| &section.entries).find(elsewhere) {
            None => Ok("in Asterisk's own database".to_owned()),
            Some(Entry { key, value, place }) => bail!(
                "{place}: '{key} = {value}' keeps registrations where no apply can evict them, so an old phone would ring for a number's next owner; remove the line and restart Asterisk, then apply again"
            ),
        }
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
