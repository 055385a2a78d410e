//! Probes that look at Asterisk's configuration files and at the folders of the generated ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::probes::{Host, Probed, Trouble, failure};
use crate::host::configuration::{Config, MainFiles, Place};
use crate::host::files;
use crate::host::foreign;
use crate::host::includes::Include;
use crate::host::place::folder;
use crate::render::CONTEXT;

impl Host {
    /// `ASTERISK_CONFIG_DIR` is a folder.
    pub(super) fn folder(&self) -> Probed {
        let shown = self.config_dir.display();
        match fs::metadata(&self.config_dir) {
            Ok(found) if found.is_dir() => Ok(shown.to_string()),
            Ok(_) => failure(format!("{shown} is not a folder; set ASTERISK_CONFIG_DIR to Asterisk's own")),
            Err(error) => failure(format!("cannot open {shown}: {error}; set ASTERISK_CONFIG_DIR to Asterisk's own")),
        }
    }

    /// This process can replace both generated files.
    pub(super) fn two_folders(&self) -> Probed {
        files::check_targets(&self.files)?;
        let lock = self.files.lock();
        let shown = lock.display();
        match fs::symlink_metadata(&lock) {
            Ok(found) if !found.is_file() => {
                return failure(format!("the lock file {shown} is no regular file; remove it, then apply again"));
            }
            Ok(_) => accessat(CWD, &lock, Access::WRITE_OK, AtFlags::EACCESS).map_err(|error| {
                Trouble::Failure(format!(
                    "this user cannot write the lock file {shown}: {error}; if no apply runs, remove it, then apply again"
                ))
            })?,
            Err(_) => {}
        }
        Ok([&self.files.endpoints, &self.files.routing].map(|file| folder(file).display().to_string()).join(", "))
    }

    /// `pjsip.conf`, `extensions.conf` and all that they include can be read.
    pub(super) fn files_readable(main: &MainFiles) -> Probed {
        let count = main.pjsip()?.files.len() + main.extensions()?.files.len();
        Ok(format!("pjsip.conf and extensions.conf, {count} files with what they include"))
    }

    /// Every `#include` finds a file, or Asterisk refuses the file that it stands in. Ours need not exist before the first apply.
    pub(super) fn includes_that_find(&self, main: &MainFiles) -> Probed {
        let ours = |include: &Include| {
            [&self.files.endpoints, &self.files.routing].iter().any(|generated| include.includes(generated))
        };
        for config in [main.pjsip()?, main.extensions()?] {
            if let Some(include) = config.includes.iter().find(|i| !i.tries && i.found.is_empty() && !ours(i)) {
                return failure(format!(
                    "{}: '#include {}' finds no file, so Asterisk refuses what stands in that file; write #tryinclude there, or remove the line, then apply again",
                    include.place, include.written
                ));
            }
        }
        Ok("every #include of pjsip.conf and extensions.conf finds some".to_owned())
    }

    /// No generated file is included twice: its sections would be there twice.
    pub(super) fn included_once(&self, main: &MainFiles) -> Probed {
        for (config, generated) in [(main.pjsip()?, &self.files.endpoints), (main.extensions()?, &self.files.routing)] {
            let mut found = config.includes.iter().filter(|include| include.includes(generated));
            if let (Some(first), Some(second)) = (found.next(), found.next()) {
                return failure(format!(
                    "{} is included twice, at {} and at {}; remove one of the two lines, then apply again",
                    generated.display(),
                    first.place,
                    second.place
                ));
            }
        }
        Ok("neither of the generated files".to_owned())
    }

    /// Both files are included, by a line that allows for a missing file.
    pub(super) fn include_lines(&self, main: &MainFiles) -> Probed {
        let includes = self.includes(main)?;
        for (generated, include) in &includes {
            if !include.tries {
                return Err(Trouble::Warning(format!(
                    "{} includes {} by #include, so Asterisk refuses the whole file whenever that is missing; write #tryinclude there",
                    include.place,
                    generated.display()
                )));
            }
        }
        Ok(includes.map(|(_, include)| include.place.to_string()).join(", "))
    }

    /// The lines that include the endpoints and the routing.
    ///
    /// # Errors
    /// Which line is missing, or which file cannot be read.
    pub fn includes<'m>(&'m self, main: &'m MainFiles) -> Result<[(&'m Path, &'m Include); 2], Trouble> {
        let find = |name: &str, config: &'m Config, generated: &'m Path| {
            let include = config.includes.iter().find(|include| include.includes(generated));
            include.map(|include| (generated, include)).ok_or_else(|| {
                let line = generated.strip_prefix(&self.config_dir).unwrap_or(generated).display();
                Trouble::Failure(format!(
                    "{} does not include the generated file; add the line '#tryinclude {line}' to it, then apply again",
                    self.config_dir.join(name).display()
                ))
            })
        };
        Ok([
            find("pjsip.conf", main.pjsip()?, &self.files.endpoints)?,
            find("extensions.conf", main.extensions()?, &self.files.routing)?,
        ])
    }

    /// No two sections have one name and type, whatever the name: Asterisk would refuse that type for everybody.
    pub(super) fn no_section_twice(main: &MainFiles) -> Probed {
        let pjsip = main.pjsip()?;
        let mut seen: BTreeMap<(String, String), &Place> = BTreeMap::new();
        for section in pjsip.sections.iter().filter(|section| !section.template && !section.addition) {
            for kind in pjsip.values(section, "type") {
                if let Some(first) = seen.insert((section.name.to_lowercase(), kind.to_lowercase()), &section.place) {
                    return failure(format!(
                        "{}: a second [{}] of type={kind} (the first is at {first}) makes Asterisk refuse every {kind}; rename or remove it, then apply again",
                        section.place, section.name
                    ));
                }
            }
        }
        Ok("none in pjsip.conf".to_owned())
    }

    /// Nobody else defines one of our numbers.
    pub(super) fn nothing_foreign(&self, main: &MainFiles) -> Probed {
        let wizards = Config::read_if_there(&self.config_dir, &self.config_dir.join("pjsip_wizard.conf"))?;
        foreign::check(main.pjsip()?, &wizards, main.extensions()?, &self.files)?;
        Ok("defined only in the generated files".to_owned())
    }

    /// Asterisk keeps registrations in its own database, and no copy of all of them elsewhere: an apply cannot evict them there.
    pub(super) fn registrations_kept(&self) -> Probed {
        let sorcery = Config::read_if_there(&self.config_dir, &self.config_dir.join("sorcery.conf"))?;
        for section in sorcery.sections.iter().filter(|section| section.name.eq_ignore_ascii_case("res_pjsip")) {
            for entry in sorcery.entries(section) {
                let key = entry.key.to_ascii_lowercase();
                let mut key = key.split('/');
                if key.next() != Some("contact") {
                    continue;
                }
                let mut value = entry.value.split(',').map(str::trim);
                let in_reach = if key.any(|option| option == "cache") {
                    !value.any(|option| option.starts_with("full_backend_cache"))
                } else {
                    value.eq(["astdb", "registrar"])
                };
                if !in_reach {
                    return failure(format!(
                        "{}: '{} = {}' keeps registrations where no apply can evict them, so an old phone would ring for a number's next owner; remove the line and restart Asterisk, then apply again",
                        entry.place, entry.key, entry.value
                    ));
                }
            }
        }
        Ok("in Asterisk's own database".to_owned())
    }

    /// Says where an administrator added something to our context. That is allowed.
    pub(super) fn context_elsewhere(&self, main: &MainFiles) -> Probed {
        let dialplan = main.extensions()?;
        let generated = dialplan.included(&self.files.routing);
        let sections = dialplan.sections.iter().filter(|s| s.name == CONTEXT && !generated.contains(&s.place.file));
        let places: Vec<_> = sections.map(|section| section.place.to_string()).collect();
        Ok(if places.is_empty() {
            format!("{CONTEXT}, defined by the generated file alone")
        } else {
            format!("{CONTEXT}, with additions of your own at {}", places.join(", "))
        })
    }
}
