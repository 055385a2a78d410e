//! What an administrator must have set up beside the portal: one list of probes, each of which looks at one thing and changes
//! nothing. `pbx-portal check` shows them all. An apply refuses to begin if one that it needs fails. If an apply is not proven, the
//! first probe that fails is the likely cause.

use std::future::ready;
use std::pin::Pin;

use tokio::join;

use InApply::{Always, IfModulesAreMissing, Meanwhile, No};

use super::finding::{Finding, Found};
use super::{on_disk, running};
use crate::asterisk::in_force::modules::Modules;
use crate::host::configuration::MainFiles;
use crate::pbx::Pbx;
use crate::problem::{Problem, Result};

struct Probe(
    /// Its name in the report.
    &'static str,
    /// Probes above it after whose failure `check` does not run this one: what it finds would follow from that, or be about other
    /// files. One that is unknown does not hinder it (the files can be checked while Asterisk is down), so the list has the needs of
    /// needs, too.
    &'static [&'static str],
    InApply,
    for<'a> fn(&'a Setup<'a>) -> Look<'a>,
);

type Look<'a> = Pin<Box<dyn Future<Output = Result<Found>> + Send + 'a>>;

/// Whether an apply looks at it before it begins. `check` looks at everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InApply {
    Always,
    /// It may be why a module is missing.
    IfModulesAreMissing,
    /// Yes: [`before_apply`] calls it by its name, while the others read the files.
    Meanwhile,
    No,
}

/// What the probes look at.
struct Setup<'a> {
    pbx: &'a Pbx,
    /// Empty if one of them, or of those that they include, is unreadable.
    main: MainFiles,
    unreadable: Option<Problem>,
    modules: Result<Modules>,
}

const ASTERISK: &str = "Asterisk";
const CONFIG_DIR: &str = "the configuration folder";
const SAME_CONFIG_DIR: &str = "Asterisk's configuration folder";
const TWO_FOLDERS: &str = "the two folders";
const READABLE: &str = "Asterisk's configuration files";
const ONCE: &str = "files included twice";
const MODULES: &str = "Asterisk's modules";
const PERMITTED: &str = "the permission to run commands";

/// What looking into the folders needs.
const FOLDERS: &[&str] = &[CONFIG_DIR, SAME_CONFIG_DIR];

/// What looking into the configuration files needs.
const FILES: &[&str] = &[CONFIG_DIR, SAME_CONFIG_DIR, READABLE];

/// What asking Asterisk needs.
const ANSWERS: &[&str] = &[ASTERISK, PERMITTED];

/// All probes but [`ASTERISK`], which comes before them, in the order of the report.
#[rustfmt::skip]
const PROBES: [Probe; 20] = [
    Probe(CONFIG_DIR, &[], Always, |on| now(on_disk::config_dir(&on.pbx.config_dir))),
    Probe(SAME_CONFIG_DIR, &[ASTERISK, CONFIG_DIR], No, |on| Box::pin(running::same_config_dir(on.pbx))),
    Probe(TWO_FOLDERS, FOLDERS, Always, |on| now(on_disk::two_folders(&on.pbx.files))),
    Probe(READABLE, FOLDERS, Always, |on| now(on_disk::readable(&on.main, on.unreadable.as_ref()))),
    Probe("files to include", FILES, Always, |on| now(on_disk::includes_that_find(&on.main, &on.pbx.files, &on.missing()))),
    Probe("mappings elsewhere", FILES, Always, |on| now(on_disk::mappings(&on.main, &on.pbx.config_dir, on.has_declined_pjsip()))),
    Probe("files from a database", &[ASTERISK], IfModulesAreMissing, |on| Box::pin(running::files_from_a_database(&on.pbx.control))),
    Probe(ONCE, FILES, Always, |on| now(on_disk::included_once(&on.main, &on.pbx.files))),
    Probe("the include lines", &[CONFIG_DIR, SAME_CONFIG_DIR, READABLE, ONCE], No, |on| now(on_disk::include_lines(&on.main, on.pbx))),
    Probe("Asterisk may read the files", &[ASTERISK, CONFIG_DIR, SAME_CONFIG_DIR, TWO_FOLDERS], IfModulesAreMissing,
        |on| Box::pin(running::readable_by_asterisk(on.pbx, &on.main))),
    Probe("sections of one name and type", FILES, No, |on| now(on_disk::no_section_twice(&on.main))),
    Probe("lines that Asterisk refuses", FILES, IfModulesAreMissing, |on| now(on_disk::lines(&on.main))),
    Probe("the numbers 1000 to 1999", FILES, Always, |on| now(on_disk::nothing_foreign(&on.main, on.pbx))),
    Probe("the dialplan context", FILES, No, |on| now(Ok(on_disk::context_elsewhere(&on.main, &on.pbx.files)))),
    Probe(MODULES, &[ASTERISK], Always, |on| now(on.modules.as_ref().map_err(Problem::clone).and_then(running::modules))),
    // Stays below MODULES: without PJSIP's modules, Asterisk takes the harmless `pjsip reload qualify` for `pjsip reload`.
    Probe(PERMITTED, &[ASTERISK, MODULES], Always, |on| Box::pin(running::permissions(&on.pbx.control))),
    Probe("the asterisk command", ANSWERS, Meanwhile, |on| Box::pin(running::same_asterisk(on.pbx))),
    Probe("where routing comes from", ANSWERS, Meanwhile, |on| Box::pin(running::routing_from_files(&on.pbx.control))),
    Probe("phones", ANSWERS, No, |on| Box::pin(running::phones(&on.pbx.control))),
    Probe("where calls to phones end", ANSWERS, No, |on| Box::pin(running::contacts(&on.pbx.control))),
];

/// The result of a probe that does not wait, as a future.
fn now<'a>(found: Result<Found>) -> Look<'a> {
    Box::pin(ready(found))
}

impl<'a> Setup<'a> {
    fn new(pbx: &'a Pbx, modules: Result<Modules>) -> Self {
        let read = MainFiles::read(&pbx.config_dir);
        let unreadable = read.as_ref().err().cloned();
        Self { pbx, main: read.unwrap_or_default(), unreadable, modules }
    }

    /// The needed modules that do not run, as far as Asterisk says so.
    fn missing(&self) -> Vec<&'static str> {
        self.modules.as_ref().map(Modules::missing).unwrap_or_default()
    }

    fn has_declined_pjsip(&self) -> bool {
        self.modules.as_ref().is_ok_and(|modules| modules.has_declined("res_pjsip.so"))
    }
}

/// Runs all probes. One that depends on a failure is unknown.
pub async fn all(pbx: &Pbx) -> Vec<Finding> {
    let asterisk = running::asterisk(&pbx.control).await;
    let modules = match &asterisk {
        Ok(_) => Modules::list(&pbx.control).await,
        Err(problem) => Err(problem.clone()),
    };
    let setup = Setup::new(pbx, modules);
    let mut findings = vec![Finding::of(ASTERISK, asterisk)];
    for Probe(name, needs, _, look) in PROBES {
        let is_needed = |finding: &&Finding| needs.contains(&finding.name);
        let possible = !findings.iter().filter(is_needed).any(Finding::failed);
        findings.push(if possible { Finding::of(name, look(&setup).await) } else { Finding::unknown(name) });
    }
    findings
}

/// Runs the probes that an apply needs. The caller has run [`running::asterisk`]. Returns the files that were read, or the first
/// failure.
pub async fn before_apply(pbx: &Pbx) -> Result<MainFiles> {
    let others = async {
        let setup = Setup::new(pbx, Modules::list(&pbx.control).await);
        let modules_are_missing = !setup.missing().is_empty();
        for Probe(_, _, in_apply, look) in PROBES {
            if in_apply == Always || in_apply == IfModulesAreMissing && modules_are_missing {
                look(&setup).await?;
            }
        }
        Ok(setup.main)
    };
    // Asterisk lists the dialplan, and a process starts, while this one reads the files.
    let (main, routing, same_asterisk) =
        join!(others, running::routing_from_files(&pbx.control), running::same_asterisk(pbx));
    let main = main?;
    routing?;
    same_asterisk?;
    Ok(main)
}

/// The first failure; otherwise where to look.
pub async fn likely_cause(pbx: &Pbx) -> String {
    match all(pbx).await.into_iter().find(Finding::failed) {
        Some(Finding { found, remedy: Some(remedy), .. }) => format!("{found}; {remedy}"),
        _ => "none was found; Asterisk's own log (messages.log) says what it refused".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_needs_only_those_above_it() {
        let mut above = vec![ASTERISK];
        for Probe(name, needs, ..) in PROBES {
            assert!(needs.iter().all(|need| above.contains(need)), "{name}");
            assert!(!above.contains(&name), "{name} stands twice");
            above.push(name);
        }
    }
}
