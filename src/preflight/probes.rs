//! What an administrator must have set up beside the portal: one list of probes, each of which looks at one thing and changes
//! nothing.
//!
//! `pbx-portal check` shows them all. An apply refuses to begin if one of those that `refuse` fails. The likely cause of an
//! apply that is not proven is the first that fails. Most of these faults were seen on a real Asterisk that said "reloaded
//! successfully" all the same.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::try_join;

use crate::asterisk::control::Control;
use crate::asterisk::reload::AsteriskCommand;
use crate::host::configuration::MainFiles;
use crate::host::place::GeneratedFiles;
use crate::settings::Settings;

use Probe::{
    Asterisk, AsterisksFolder, Command, Context, Files, FilesToInclude, Folder, Foreign, IncludeLines, IncludedOnce,
    Modules, Permissions, Readable, Registrations, Routing, SectionsTwice, Transport, TwoFolders,
};

/// An Asterisk, and where its configuration and the generated files lie.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its control socket.
    pub control: Control,
    /// `ASTERISK_BIN`.
    pub command: AsteriskCommand,
    /// `ASTERISK_CONFIG_DIR`.
    pub config_dir: PathBuf,
    /// The two files below it.
    pub files: GeneratedFiles,
}

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Worth a look; an apply works.
    Warning,
    /// An apply, or the phones, will not work.
    Failure,
    /// It could not be looked at, because something that it depends on fails.
    Unknown,
}

/// What a probe found.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What it looked at.
    pub what: &'static str,
    /// How it ended.
    pub state: State,
    /// What is there, or what is wrong.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// A problem, as `what is wrong; what to do`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub enum Trouble {
    /// An apply works all the same.
    Warning(String),
    /// Must be mended.
    Failure(String),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Failure(error.to_string())
    }
}

/// What a probe found, or a problem.
pub type Probed = Result<String, Trouble>;

impl Finding {
    /// The result of a probe.
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

    /// Like [`Finding::of`], but does not run the probe if something that it depends on fails.
    pub async fn if_possible(what: &'static str, possible: bool, probe: impl Future<Output = Probed>) -> Self {
        if possible {
            Self::of(what, probe.await)
        } else {
            Self {
                what,
                state: State::Unknown,
                found: "not checked: it depends on a failure above".to_owned(),
                mend: None,
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    Asterisk,
    Permissions,
    Command,
    Modules,
    Folder,
    AsterisksFolder,
    TwoFolders,
    Files,
    FilesToInclude,
    IncludedOnce,
    IncludeLines,
    Readable,
    SectionsTwice,
    Foreign,
    Registrations,
    Context,
    Routing,
    Transport,
}

/// A row of the list.
struct Row {
    probe: Probe,
    what: &'static str,
    /// If one of these fails, this is not looked at: it would only fail for the same reason.
    needs: &'static [Probe],
    /// Whether an apply refuses to begin if this fails.
    refuses: bool,
}

const ANSWERS: &[Probe] = &[Asterisk, Permissions];
const IN_FOLDER: &[Probe] = &[Folder, AsterisksFolder];
const IN_FILES: &[Probe] = &[Folder, AsterisksFolder, Files];

/// What others depend on comes first.
const LIST: [Row; 18] = [
    Row { probe: Asterisk, what: "Asterisk", needs: &[], refuses: true },
    Row { probe: Modules, what: "Asterisk's modules", needs: &[Asterisk], refuses: true },
    // Needs the modules: without PJSIP's, Asterisk would take the harmless `pjsip reload qualify` for `pjsip reload`.
    Row { probe: Permissions, what: "the permission to run commands", needs: &[Asterisk, Modules], refuses: true },
    Row { probe: Command, what: "the asterisk command", needs: ANSWERS, refuses: true },
    Row { probe: Folder, what: "the configuration folder", needs: &[], refuses: true },
    Row {
        probe: AsterisksFolder,
        what: "Asterisk's configuration folder",
        needs: &[Asterisk, Permissions, Folder],
        refuses: false,
    },
    Row { probe: TwoFolders, what: "the two folders", needs: IN_FOLDER, refuses: true },
    Row { probe: Files, what: "Asterisk's configuration files", needs: IN_FOLDER, refuses: true },
    Row { probe: FilesToInclude, what: "files to include", needs: IN_FILES, refuses: true },
    Row { probe: IncludedOnce, what: "files included twice", needs: IN_FILES, refuses: true },
    Row {
        probe: IncludeLines,
        what: "the include lines",
        needs: &[Folder, AsterisksFolder, Files, IncludedOnce],
        refuses: false,
    },
    Row {
        probe: Readable,
        what: "Asterisk may read the files",
        needs: &[Asterisk, Folder, AsterisksFolder, TwoFolders],
        refuses: false,
    },
    Row { probe: SectionsTwice, what: "sections of one name and type", needs: IN_FILES, refuses: false },
    Row { probe: Foreign, what: "the numbers 1000 to 1999", needs: IN_FILES, refuses: true },
    Row { probe: Registrations, what: "where registrations are kept", needs: IN_FOLDER, refuses: true },
    Row { probe: Context, what: "the dialplan context", needs: IN_FILES, refuses: false },
    Row { probe: Routing, what: "where routing comes from", needs: ANSWERS, refuses: true },
    Row { probe: Transport, what: "a transport", needs: ANSWERS, refuses: false },
];

impl Host {
    /// The host that the settings describe.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let config_dir = &settings.asterisk_config_dir;
        let config_dir = std::path::absolute(config_dir).unwrap_or_else(|_| config_dir.clone());
        let bound = Duration::from_secs(settings.asterisk_timeout_secs);
        Self {
            control: Control::new(&settings.asterisk_run_dir, bound),
            command: AsteriskCommand { program: settings.asterisk_bin.clone(), bound },
            files: GeneratedFiles::under(&config_dir),
            config_dir,
        }
    }

    /// `pjsip.conf` and `extensions.conf`, as they are now.
    #[must_use]
    pub fn main_files(&self) -> MainFiles {
        MainFiles::read(&self.config_dir)
    }

    /// Runs all probes.
    pub async fn probe(&self) -> Vec<Finding> {
        let main = self.main_files();
        let (mut findings, mut failed) = (Vec::new(), Vec::new());
        for Row { probe, what, needs, .. } in LIST {
            let possible = !needs.iter().any(|need| failed.contains(need));
            let finding = Finding::if_possible(what, possible, self.run(probe, &main)).await;
            if finding.state == State::Failure {
                failed.push(probe);
            }
            findings.push(finding);
        }
        findings
    }

    /// Runs the probes for which an apply refuses to begin, except [`Host::asterisk`] and [`Host::same_asterisk`], and gives the
    /// files that it read.
    ///
    /// # Errors
    /// The first failure.
    pub async fn probe_before_apply(&self) -> Result<MainFiles, Trouble> {
        let others = async {
            let main = self.main_files();
            for row in LIST.iter().filter(|row| row.refuses && ![Asterisk, Command, Routing].contains(&row.probe)) {
                self.run(row.probe, &main).await?;
            }
            Ok(main)
        };
        // Asterisk lists the dialplan while this process reads the files.
        let (_, main) = try_join!(self.routing_from_files(), others)?;
        Ok(main)
    }

    /// The first failure; otherwise where to look.
    pub async fn likely_cause(&self) -> String {
        let failure = self.probe().await.into_iter().find(|finding| finding.state == State::Failure);
        let Some(Finding { found, mend, .. }) = failure else {
            return "none was found; Asterisk's own log (messages.log) says what it refused".to_owned();
        };
        [Some(found), mend].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }

    async fn run(&self, probe: Probe, main: &MainFiles) -> Probed {
        match probe {
            Asterisk => self.asterisk().await,
            Permissions => self.permissions().await,
            Command => self.same_asterisk().await,
            Modules => self.modules().await,
            Folder => self.folder(),
            AsterisksFolder => self.asterisks_folder().await,
            TwoFolders => self.two_folders(),
            Files => Self::files_readable(main),
            FilesToInclude => self.includes_that_find(main),
            IncludedOnce => self.included_once(main),
            IncludeLines => self.include_lines(main),
            Readable => self.readable_by_asterisk().await,
            SectionsTwice => Self::no_section_twice(main),
            Foreign => self.nothing_foreign(main),
            Registrations => self.registrations_kept(),
            Context => self.context_elsewhere(main),
            Routing => self.routing_from_files().await,
            Transport => self.transport().await,
        }
    }
}

/// Whether an apply would begin, after these findings of [`Host::probe`].
#[must_use]
pub fn would_begin(findings: &[Finding]) -> bool {
    let refuses = |what| LIST.iter().any(|row| row.what == what && row.refuses);
    findings.iter().all(|finding| finding.state != State::Failure || !refuses(finding.what))
}

pub(super) fn failure(text: String) -> Probed {
    Err(Trouble::Failure(text))
}
