//! The parts of the running Asterisk that an apply needs.

use std::collections::BTreeSet;

use anyhow::Result;

use super::complete;
use crate::asterisk::control::{Control, unexpected};

/// Without any of these, a phone of ours cannot register or be called, or an apply cannot be proven.
const MODULES: [&str; 14] = [
    "app_dial.so",
    "chan_pjsip.so",
    "func_logic.so",
    "pbx_config.so",
    "res_pjsip.so",
    "res_pjsip_authenticator_digest.so",
    "res_pjsip_endpoint_identifier_user.so",
    "res_pjsip_nat.so",
    "res_pjsip_registrar.so",
    "res_pjsip_sdp_rtp.so",
    "res_pjsip_session.so",
    "res_rtp_asterisk.so",
    "res_sorcery_astdb.so",
    "res_sorcery_config.so",
];

/// Waits until Asterisk is fully booted, within the bound of a command: it answers before its modules are loaded.
pub async fn wait_fully_booted(control: &Control) -> Result<()> {
    let command = "core waitfullybooted";
    let answer = control.ask(&[command]).await?;
    if answer.contains("fully booted") { Ok(()) } else { Err(unexpected(command, &answer)) }
}

/// The needed modules that are not running.
pub async fn missing(control: &Control) -> Result<Vec<&'static str>> {
    let running = control.listing(&["module show"], parse).await?;
    Ok(MODULES.into_iter().filter(|module| !running.contains(*module)).collect())
}

/// Whether there is a transport: without one, no phone can reach Asterisk.
pub async fn has_transport(control: &Control) -> Result<bool> {
    control.listing(&["pjsip show transports"], parse_transports).await
}

/// The running modules; `None` unless the listing is whole.
pub(super) fn parse(text: &str) -> Option<BTreeSet<String>> {
    let rows: Vec<_> = text.lines().skip(1).filter(|line| !line.trim().is_empty()).collect();
    let (trailer, rows) = rows.split_last()?;
    let count: usize = trailer.strip_suffix(" modules loaded")?.parse().ok()?;
    let running = rows.iter().filter(|row| row.contains(" Running ") && !row.contains(" Not Running "));
    (rows.len() == count).then(|| running.filter_map(|row| row.split_whitespace().next()).map(str::to_owned).collect())
}

/// `None` unless the listing is whole.
pub(super) fn parse_transports(text: &str) -> Option<bool> {
    let rows = text.lines().filter(|line| line.starts_with("Transport:  ") && !line.contains("  <")).count();
    complete(text, rows).map(|()| rows > 0)
}

#[cfg(test)]
mod tests {
    use super::super::recorded;
    use super::*;

    #[test]
    fn modules_that_run_and_transports() {
        let running = parse(recorded!("modules")).expect("a whole listing");
        assert!(running.contains("app_dial.so"), "{running:?}");
        assert_eq!(parse(recorded!("a-module-that-does-not-run")), Some(BTreeSet::new()));
        assert_eq!(parse_transports(recorded!("transports")), Some(true));
        assert_eq!(parse_transports(recorded!("no-endpoints")), Some(false));
    }
}
