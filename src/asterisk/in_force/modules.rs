//! The parts of the running Asterisk that an apply needs.

use std::collections::BTreeSet;

use crate::asterisk::control::unexpected;
use crate::asterisk::{Command, Control};
use crate::problem::Result;

/// Without any of these, a phone of ours cannot register, be called or talk, or an apply cannot be proven; with all of them it
/// works. Each stands behind those that it depends on: `module load` refuses one whose dependencies do not run.
const NEEDED: [&str; 18] = [
    "res_sorcery_config.so",
    "res_sorcery_memory.so",
    "res_sorcery_astdb.so",
    "res_pjproject.so",
    "res_pjsip.so",
    "res_pjsip_session.so",
    "res_pjsip_pubsub.so",
    "res_pjsip_authenticator_digest.so",
    "res_pjsip_endpoint_identifier_user.so",
    "res_pjsip_nat.so",
    "res_pjsip_registrar.so",
    "res_rtp_asterisk.so",
    "res_pjsip_sdp_rtp.so",
    "bridge_simple.so",
    "chan_pjsip.so",
    "app_dial.so",
    "func_logic.so",
    "pbx_config.so",
];

/// Without these, some calls fail: those between phones of which one knows ulaw alone, the other alaw alone.
const CODECS: [&str; 2] = ["codec_alaw.so", "codec_ulaw.so"];

/// The beginning of a timing source's name. Without any, music on hold is silent.
const TIMING: &str = "res_timing_";

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Modules {
    running: BTreeSet<String>,
    /// Asterisk loaded these, but they could not start, as a rule because of their configuration.
    declined: BTreeSet<String>,
}

impl Modules {
    pub async fn list(control: &Control) -> Result<Self> {
        control.listing(&[Command::MODULES], parse).await
    }

    /// The needed modules that do not run, in an order in which they can be loaded.
    pub fn missing(&self) -> Vec<&'static str> {
        NEEDED.into_iter().filter(|module| !self.running.contains(*module)).collect()
    }

    /// The modules without which only some calls fail.
    pub fn missing_for_some(&self) -> Vec<&'static str> {
        let mut missing: Vec<_> = CODECS.into_iter().filter(|module| !self.running.contains(*module)).collect();
        if !self.running.iter().any(|module| module.starts_with(TIMING)) {
            missing.push("res_timing_timerfd.so");
        }
        missing
    }

    /// Whether Asterisk loaded a module that could not start.
    pub fn has_declined(&self, module: &str) -> bool {
        self.declined.contains(module)
    }
}

/// Waits until Asterisk is fully booted, as long as a command may take: it answers before its modules are loaded.
pub async fn wait_fully_booted(control: &Control) -> Result<()> {
    let answer = control.ask(&[Command::WAIT_FULLY_BOOTED]).await?;
    if answer.contains("fully booted") {
        return Ok(());
    }
    Err(unexpected(Command::WAIT_FULLY_BOOTED.line(), &answer))
}

/// The files of these that Asterisk reads from a database, because `extconfig.conf` says so, each with the engine.
pub async fn read_from_a_database(control: &Control, files: &[&str]) -> Result<Vec<String>> {
    let answer = control.ask(&[Command::CONFIG_MAPPINGS]).await?;
    let mut found = Vec::new();
    let mut engine = "";
    for line in answer.lines() {
        if let Some(name) = line.strip_prefix("Config Engine: ") {
            engine = name.trim();
        } else if let Some(file) = files.iter().find(|file| line.starts_with(&format!("===> {file} ("))) {
            found.push(format!("{file} ({engine})"));
        }
    }
    Ok(found)
}

/// `None` unless the listing is complete.
pub(super) fn parse(text: &str) -> Option<Modules> {
    let rows: Vec<_> = text.lines().skip(1).filter(|line| !line.trim().is_empty()).collect();
    let (trailer, rows) = rows.split_last()?;
    let count: usize = trailer.strip_suffix(" modules loaded")?.parse().ok()?;
    let in_state = |state: &str| {
        let rows = rows.iter().filter(|row| row.contains(&format!("  {state}  ")));
        rows.filter_map(|row| row.split_whitespace().next()).map(str::to_owned).collect()
    };
    (rows.len() == count).then(|| Modules { running: in_state("Running"), declined: in_state("Not Running") })
}

#[cfg(test)]
mod tests {
    use super::super::recorded;
    use super::*;

    #[test]
    fn modules_that_run_and_that_do_not() {
        let modules = parse(recorded!("modules")).expect("a complete listing");
        assert!(modules.running.contains("app_dial.so") && !modules.missing().contains(&"app_dial.so"), "{modules:?}");
        let modules = parse(recorded!("a-module-that-does-not-run")).expect("a complete listing");
        assert!(modules.running.is_empty() && modules.has_declined("func_odbc.so"), "{modules:?}");
        assert_eq!(modules.missing(), NEEDED);
    }
}
