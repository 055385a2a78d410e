//! What an administrator must have set up beside the portal: one list of probes, each of which looks at one thing and changes
//! nothing. `pbx-portal check` shows them all. An apply refuses to begin if one that it needs fails. The likely cause of an apply
//! that is not proven is the first that fails.

use serde::Serialize;
use tokio::join;

use crate::asterisk::in_force::modules::Modules;
use crate::host::configuration::MainFiles;
use crate::pbx::Pbx;
use crate::problem::{Problem, Result};

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Worth a look; an apply works.
    Warning,
    /// An apply, or the phones, will not work.
    Failure,
    /// It could not be looked at, because something that it depends on fails.
    Unknown,
}

/// What a probe found that an apply works with.
#[derive(Debug)]
pub enum Found {
    Fine(String),
    Warning(Problem),
}

impl From<String> for Found {
    fn from(text: String) -> Self {
        Self::Fine(text)
    }
}

/// What a probe looked at, and what it found.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub what: &'static str,
    pub state: State,
    /// What is there, or what is wrong.
    pub found: String,
    #[serde(rename = "mend", skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// The result of a probe.
    pub(crate) fn of(what: &'static str, found: Result<Found>) -> Self {
        let (state, Problem { what: found, remedy }) = match found {
            Ok(Found::Fine(found)) => return Self { what, state: State::Ok, found, remedy: None },
            Ok(Found::Warning(problem)) => (State::Warning, problem),
            Err(problem) => (State::Failure, problem),
        };
        Self { what, state, found, remedy: Some(remedy) }
    }
}

/// Runs a probe and adds what it found to a list. If it is not `possible`, because something that it depends on failed, only this is
/// added. Says whether the probe did not fail.
pub(crate) async fn add<F: Into<Found>>(
    list: &mut Vec<Finding>,
    what: &'static str,
    possible: bool,
    probe: impl Future<Output = Result<F>>,
) -> bool {
    let finding = if possible {
        Finding::of(what, probe.await.map(Into::into))
    } else {
        let found = "not checked: it depends on a failure above".to_owned();
        Finding { what, state: State::Unknown, found, remedy: None }
    };
    let passed = finding.state != State::Failure;
    list.push(finding);
    passed
}

/// The first failure.
fn first_failure(list: Vec<Finding>) -> Option<Problem> {
    let Finding { found, remedy, .. } = list.into_iter().find(|finding| finding.state == State::Failure)?;
    Some(Problem { what: found, remedy: remedy.unwrap_or_default() })
}

impl Pbx {
    /// Runs all probes.
    pub(super) async fn probe(&self) -> Vec<Finding> {
        self.list(&MainFiles::read(&self.config_dir), true).await
    }

    /// Runs the probes that an apply needs, except [`Pbx::asterisk`], on which they depend. Gives the files that it read, or the
    /// first failure.
    pub(crate) async fn probe_before_apply(&self) -> Result<MainFiles> {
        let others = async {
            let main = MainFiles::read(&self.config_dir);
            first_failure(self.list(&main, false).await).map_or(main, Err)
        };
        // Asterisk lists the dialplan, and a process starts, while this one reads the files.
        let (main, routing, same_asterisk) = join!(others, self.routing_from_files(), self.same_asterisk());
        let main = main?;
        routing?;
        same_asterisk?;
        Ok(main)
    }

    /// The first failure; otherwise where to look.
    pub(crate) async fn likely_cause(&self) -> String {
        let none = || "none was found; Asterisk's own log (messages.log) says what it refused".to_owned();
        first_failure(self.probe().await).map_or_else(none, |failure| failure.to_string())
    }

    /// The list. Without `all`, only what an apply needs, and does not ask by itself, is looked at. What others depend on comes first:
    /// if it fails, they would only fail for the same reason.
    async fn list(&self, main: &Result<MainFiles>, all: bool) -> Vec<Finding> {
        let (read, unread, mut found) = (main, MainFiles::default(), Vec::new());
        let (main, list) = (read.as_ref().unwrap_or(&unread), &mut found);

        let asterisk = add(list, "Asterisk", all, self.asterisk()).await;
        let modules = if asterisk { Modules::list(&self.control).await } else { Ok(Modules::default()) };
        let missing = modules.as_ref().map_or(Vec::new(), Modules::missing);
        let declined = modules.as_ref().is_ok_and(|modules| modules.has_declined("res_pjsip.so"));
        // If a module is missing, the configuration may be why.
        let causes = all || asterisk && !missing.is_empty();

        let folder = add(list, "the configuration folder", true, async { self.folder() }).await;
        let theirs = all && asterisk && folder;
        let theirs = add(list, "Asterisk's configuration folder", theirs, self.asterisks_folder()).await;
        let folder = folder && theirs;
        let two_folders = add(list, "the two folders", folder, async { self.two_folders() }).await;
        let files = add(list, "Asterisk's configuration files", folder, async { Self::files_readable(read) }).await;
        let files = folder && files;
        add(list, "files to include", files, async { self.includes_that_find(main, &missing) }).await;
        add(list, "mappings elsewhere", files, self.mappings(main, causes && asterisk, declined)).await;
        let once = add(list, "files included twice", files, async { self.included_once(main) }).await;
        add(list, "the include lines", all && files && once, async { self.include_lines(main) }).await;
        let readable = causes && asterisk && folder && two_folders;
        add(list, "Asterisk may read the files", readable, self.readable_by_asterisk(main)).await;
        add(list, "sections of one name and type", all && files, async { Self::no_section_twice(main) }).await;
        add(list, "lines that Asterisk refuses", causes && files, async { Self::lines(main) }).await;
        add(list, "the numbers 1000 to 1999", files, async { self.nothing_foreign(main) }).await;
        add(list, "the dialplan context", all && files, async { Ok(self.context_elsewhere(main)) }).await;

        let modules = async { Self::modules(&modules?) };
        let modules = add(list, "Asterisk's modules", asterisk, modules).await;
        // Without PJSIP's modules, Asterisk would take the harmless `pjsip reload qualify` for `pjsip reload`.
        let permitted = add(list, "the permission to run commands", asterisk && modules, self.permissions()).await;
        let answers = asterisk && permitted;
        add(list, "the asterisk command", all && answers, self.same_asterisk()).await;
        add(list, "where routing comes from", all && answers, self.routing_from_files()).await;
        add(list, "phones", all && answers, self.phones()).await;
        add(list, "where calls to phones end", all && answers, self.contacts()).await;
        found
    }
}
