//! What an administrator must have set up beside the portal, each thing with a probe that looks at it and changes nothing.
//! `pbx-portal check` shows them all; the first that fails is the likely cause of an apply that is not proven.
//!
//! Each state was seen on a real Asterisk that said "reloaded successfully" all the same. Whatever is wrong is told as
//! `what is wrong; how to mend it`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::Serialize;

use crate::asterisk::control::{Control, Server};
use crate::asterisk::in_force;
use crate::host::configuration::{Config, Include, MainFiles, Place};
use crate::host::files;
use crate::host::foreign;
use crate::host::place::{GeneratedFiles, folder as folder_of};
use crate::render::CONTEXT;
use crate::settings::Settings;

/// The oldest release line whose behaviour was measured.
const OLDEST_RELEASE: u32 = 22;

/// An Asterisk, and where its configuration and the generated files lie.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its control socket.
    pub control: Control,
    /// `ASTERISK_CONFIG_DIR`.
    pub config_dir: PathBuf,
    /// Under it.
    pub files: GeneratedFiles,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Worth a look; an apply works.
    Warning,
    /// An apply, or the phones, won't work.
    Failure,
    /// It could not be looked at, because of a failure above.
    Unknown,
}

/// What a probe found.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub state: State,
    /// What is there, or what is wrong.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// What is not as it should be.
pub enum Trouble {
    /// Worth a look.
    Warning(String),
    /// To be mended.
    Failure(String),
}

impl<E: std::error::Error> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failure(error.to_string())
    }
}

/// What there is, or what is not as it should be.
pub type Probed = Result<String, Trouble>;

impl Finding {
    /// What came of a probe.
    #[must_use]
    pub fn of(what: &'static str, probed: Probed) -> Self {
        let (state, text) = match probed {
            Ok(found) => return Self { what, state: State::Ok, found, mend: None },
            Err(Trouble::Warning(text)) => (State::Warning, text),
            Err(Trouble::Failure(text)) => (State::Failure, text),
        };
        let (found, mend) = match text.split_once("; ") {
            Some((found, mend)) => (found.to_owned(), Some(mend.to_owned())),
            None => (text, None),
        };
        Self { what, state, found, mend }
    }

    /// The same if it could be looked at.
    pub async fn if_possible(what: &'static str, possible: bool, probe: impl Future<Output = Probed>) -> Self {
        if possible {
            Self::of(what, probe.await)
        } else {
            Self { what, state: State::Unknown, found: "not looked at, see above".to_owned(), mend: None }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)?;
        self.mend.iter().try_for_each(|mend| write!(f, "; {mend}"))
    }
}

impl Host {
    /// The host that the settings describe.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let config_dir = &settings.asterisk_config_dir;
        let config_dir = std::path::absolute(config_dir).unwrap_or_else(|_| config_dir.clone());
        Self {
            control: Control::new(&settings.asterisk_run_dir, settings.asterisk_timeout()),
            files: GeneratedFiles::under(&config_dir),
            config_dir,
        }
    }

    /// All probes, the one most others depend on first.
    pub async fn probe(&self) -> Vec<Finding> {
        let main = &self.main_files();
        let asterisk = Finding::of("Asterisk", self.asterisk().await);
        let up = asterisk.state == State::Ok;
        vec![
            asterisk,
            Finding::if_possible("Asterisk's modules", up, self.modules()).await,
            Finding::if_possible("Asterisk's configuration folder", up, self.configuration_folder()).await,
            Finding::of("the two folders", self.folders()),
            Finding::of("files to include", self.includes_that_find(main)),
            Finding::of("the include lines", self.include_lines(main)),
            Finding::if_possible("Asterisk may read the files", up, self.readable_by_asterisk()).await,
            Finding::of("sections of one name and type", Self::no_section_twice(main)),
            Finding::of("the numbers 1000 to 1999", self.nothing_foreign(main)),
            Finding::of("where registrations are kept", self.registrations_kept()),
            Finding::of("the dialplan context", self.context_elsewhere(main)),
            Finding::if_possible("where routing comes from", up, self.routing_from_files()).await,
            Finding::if_possible("a transport", up, self.transport()).await,
        ]
    }

    /// The first failure that is found; else where to look.
    pub async fn likely_cause(&self) -> String {
        let failure = self.probe().await.into_iter().find(|finding| finding.state == State::Failure);
        failure.map_or_else(
            || "none was found; Asterisk's own log (messages.log) says what it refused".to_owned(),
            |finding| finding.to_string(),
        )
    }

    /// It answers, is no older than what was measured, and is fully booted.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn asterisk(&self) -> Probed {
        let server = self.control.server().await?;
        let version = &server.version;
        if server.release().is_some_and(|release| release < OLDEST_RELEASE) {
            return failure(format!(
                "Asterisk {version} is older than {OLDEST_RELEASE}, the oldest that the portal works with; upgrade it, then apply again"
            ));
        }
        in_force::wait_fully_booted(&self.control).await?;
        Ok(format!("{version}, fully booted"))
    }

    /// Those without which a phone can't register or be called, or an apply can't be proven.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn modules(&self) -> Probed {
        let missing = in_force::missing_modules(&self.control).await?;
        if missing.is_empty() {
            return Ok("all that are needed are running".to_owned());
        }
        failure(format!(
            "Asterisk lacks these modules: {}; load them (module load, and in modules.conf), then apply again",
            missing.join(" ")
        ))
    }

    async fn configuration_folder(&self) -> Probed {
        let reads = in_force::config_dir(&self.control).await?;
        let ours = &self.config_dir;
        match (fs::canonicalize(&reads), fs::canonicalize(ours)) {
            (Ok(a), Ok(b)) if a != b => failure(format!(
                "Asterisk reads its configuration from {}, not from {}; set ASTERISK_CONFIG_DIR to it",
                reads.display(),
                ours.display()
            )),
            _ => Ok(reads.display().to_string()),
        }
    }

    /// This process may write into both.
    fn folders(&self) -> Probed {
        files::check_targets(&self.files)?;
        let folders = [&self.files.endpoints, &self.files.routing].map(|file| folder_of(file));
        for folder in folders {
            accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(|error| {
                Trouble::Failure(format!(
                    "{} can't be written by this user: {error}; make it with: {}",
                    folder.display(),
                    self.files.install_command()
                ))
            })?;
        }
        let lock = self.files.lock();
        match fs::symlink_metadata(&lock) {
            Ok(found) if !found.is_file() => {
                let lock = lock.display();
                return failure(format!("the lock file {lock} is no regular file; remove it, then apply again"));
            }
            Ok(_) => accessat(CWD, &lock, Access::WRITE_OK, AtFlags::EACCESS).map_err(|error| {
                let lock = lock.display();
                Trouble::Failure(format!(
                    "the lock file {lock} can't be written by this user: {error}; if no apply runs, remove it, then apply again"
                ))
            })?,
            Err(_) => {}
        }
        Ok(folders.map(|folder| folder.display().to_string()).join(", "))
    }

    /// What an apply refuses of Asterisk's configuration before it touches anything.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn refusals(&self, main: &MainFiles) -> Result<(), Trouble> {
        self.includes_that_find(main)?;
        self.included_once(main)?;
        self.registrations_kept()?;
        self.nothing_foreign(main)?;
        Ok(())
    }

    /// Asterisk refuses a file that includes nothing by `#include`. Before the first apply, ours are not there yet.
    fn includes_that_find(&self, main: &MainFiles) -> Probed {
        for config in [main.pjsip()?, main.extensions()?] {
            let ours = |include: &Include| {
                [&self.files.endpoints, &self.files.routing].iter().any(|generated| include.includes(generated))
            };
            if let Some(include) = config.includes.iter().find(|i| !i.tries && i.finds_nothing() && !ours(i)) {
                return failure(format!(
                    "{}: '#include {}' finds no file, so Asterisk refuses what stands in that file; write #tryinclude there, or remove the line, then apply again",
                    include.place, include.written
                ));
            }
        }
        Ok("every #include of pjsip.conf and extensions.conf finds some".to_owned())
    }

    /// Both files are included, in the form that forgives a file that is not there.
    fn include_lines(&self, main: &MainFiles) -> Probed {
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

    /// Which line includes the endpoints, and which the routing.
    ///
    /// # Errors
    /// Which line is missing, or which file can't be read.
    pub fn includes<'m>(&'m self, main: &'m MainFiles) -> Result<[(&'m Path, &'m Include); 2], Trouble> {
        let [endpoints, routing] = self.included_once(main)?;
        let find = |main: &str, generated, include: Option<&'m Include>| {
            include.map(|include| (generated, include)).ok_or_else(|| {
                let line = Path::strip_prefix(generated, &self.config_dir).unwrap_or(generated).display();
                let main = self.config_dir.join(main);
                let main = main.display();
                Trouble::Failure(format!(
                    "{main} does not include the generated file; add the line '#tryinclude {line}' to it, then apply again"
                ))
            })
        };
        Ok([
            find("pjsip.conf", &self.files.endpoints, endpoints)?,
            find("extensions.conf", &self.files.routing, routing)?,
        ])
    }

    /// The line that includes each file, if there is one: two make two sections of one name and type.
    fn included_once<'m>(&self, main: &'m MainFiles) -> Result<[Option<&'m Include>; 2], Trouble> {
        let find = |main: &'m Config, generated: &Path| {
            let mut found = main.includes.iter().filter(|include| include.includes(generated));
            match (found.next(), found.next()) {
                (Some(first), Some(second)) => Err(Trouble::Failure(format!(
                    "{} is included twice, at {} and at {}; remove one of the two lines, then apply again",
                    generated.display(),
                    first.place,
                    second.place
                ))),
                (first, _) => Ok(first),
            }
        };
        Ok([find(main.pjsip()?, &self.files.endpoints)?, find(main.extensions()?, &self.files.routing)?])
    }

    /// Neither a file's own mode nor a folder above it keeps the user that Asterisk runs as away.
    async fn readable_by_asterisk(&self) -> Probed {
        let asterisk = self.control.server().await?;
        for file in [&self.files.endpoints, &self.files.routing] {
            if let Some(closed) = closed_to(&asterisk, file) {
                return failure(format!(
                    "Asterisk runs as user {}, which may not read {}; give the folder a group of that user (chgrp asterisk {folder}; chmod 2750 {folder}), then apply again",
                    asterisk.uid,
                    closed.display(),
                    folder = folder_of(file).display(),
                ));
            }
        }
        Ok(format!("as user {}", asterisk.uid))
    }

    /// Two sections of one name and type, of whatever name, make Asterisk refuse that type for everybody.
    fn no_section_twice(main: &MainFiles) -> Probed {
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
        Ok("none stands twice in pjsip.conf".to_owned())
    }

    /// Neither in pjsip.conf, `pjsip_wizard.conf` and extensions.conf nor in what they include.
    fn nothing_foreign(&self, main: &MainFiles) -> Probed {
        let wizards = Config::read_if_there(&self.config_dir, &self.config_dir.join("pjsip_wizard.conf"))?;
        foreign::check(main.pjsip()?, &wizards, main.extensions()?, &self.files)?;
        Ok("nothing of them stands outside the generated files".to_owned())
    }

    /// Only what Asterisk keeps in its own database can be evicted.
    fn registrations_kept(&self) -> Probed {
        let sorcery = Config::read_if_there(&self.config_dir, &self.config_dir.join("sorcery.conf"))?;
        for section in sorcery.sections.iter().filter(|section| section.name.eq_ignore_ascii_case("res_pjsip")) {
            for entry in sorcery.entries(section) {
                let key = entry.key().to_ascii_lowercase();
                let mut key = key.split('/');
                let keeps = key.next() == Some("contact") && !key.any(|option| option == "cache");
                if keeps && entry.value().split(',').map(str::trim).ne(["astdb", "registrar"]) {
                    return failure(format!(
                        "{}: 'contact = {}' keeps registrations where no apply can evict them, so an old phone would ring for a number's next owner; remove the line and restart Asterisk, then apply again",
                        entry.place,
                        entry.value()
                    ));
                }
            }
        }
        Ok("in Asterisk's own database".to_owned())
    }

    /// An administrator's own additions are welcome, and worth knowing of.
    fn context_elsewhere(&self, main: &MainFiles) -> Probed {
        let dialplan = main.extensions()?;
        let generated = dialplan.included(&self.files.routing);
        let sections = dialplan.sections.iter().filter(|s| s.name == CONTEXT && !s.place.is_in(&generated));
        let places: Vec<_> = sections.map(|section| section.place.to_string()).collect();
        Ok(if places.is_empty() {
            format!("{CONTEXT}, defined by the generated file alone")
        } else {
            format!("{CONTEXT}, with additions of your own at {}", places.join(", "))
        })
    }

    /// A priority 1 of a number of ours that no configuration file gave (AEL, Lua): a reload of ours would not take it away.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn routing_from_files(&self) -> Probed {
        let first_priorities = in_force::dialplan(&self.control).await?.unwrap_or_default();
        // `dialplan reload` rebuilds what pbx_config made, from a file (`file:line`) or a command line (`pbx_config`).
        let written = |source: &str| source.contains(':') || source == "pbx_config";
        match first_priorities.into_iter().find(|(_, first)| !written(&first.source)) {
            None => Ok("extensions.conf and what it includes".to_owned()),
            Some((number, first)) => failure(format!(
                "priority 1 of extension {number} in {CONTEXT} comes from {}, not from a file; remove it there, then apply again",
                first.source
            )),
        }
    }

    /// Without one, no phone can reach Asterisk.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn transport(&self) -> Probed {
        if in_force::has_transport(&self.control).await? {
            return Ok("there is one".to_owned());
        }
        Err(Trouble::Warning(
            "Asterisk has no transport, so no phone can reach it; add a section of type=transport to pjsip.conf, then restart Asterisk"
                .to_owned(),
        ))
    }

    /// pjsip.conf and extensions.conf, as they are now.
    #[must_use]
    pub fn main_files(&self) -> MainFiles {
        MainFiles::read(&self.config_dir)
    }
}

fn failure(text: String) -> Probed {
    Err(Trouble::Failure(text))
}

/// What the user that Asterisk runs as can't read: the file itself, or a folder above it.
fn closed_to<'a>(asterisk: &Server, file: &'a Path) -> Option<&'a Path> {
    let may = |path: &Path, bit: u32| {
        let Ok(found) = fs::metadata(path) else { return true };
        let shift = if found.uid() == asterisk.uid {
            6
        } else if asterisk.groups.contains(&found.gid()) {
            3
        } else {
            0
        };
        asterisk.uid == 0 || found.mode() >> shift & bit == bit
    };
    if may(file, 4) { file.ancestors().skip(1).find(|folder| !may(folder, 1)) } else { Some(file) }
}
