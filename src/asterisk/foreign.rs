//! Numbers of the pool outside our files: what an administrator wrote by hand and Asterisk would refuse or mix with ours.
//!
//! A second `[1000]` of one type makes Asterisk refuse that type for everybody, while it says "reloaded successfully".
//! `[1000](+type=endpoint)` adds to ours and breaks all of pjsip.conf on the day 1000 is deleted. A second priority 1 of
//! a number hides ours or is hidden by it. So each is looked for on disk, before anything is written.

use std::path::Path;

use super::CONTEXT;
use super::config::{Config, Entry, Section, Unreadable};
use super::files::GeneratedFiles;
use crate::domain::ExtensionNumber;

/// What an apply would collide with, or can't know that it would not.
#[derive(Debug, thiserror::Error)]
pub enum Foreign {
    /// Something of a number of ours stands elsewhere.
    #[error(
        "{place}: {what} {number} belongs to the numbers 1000 to 1999, which the portal alone defines; rename or remove it, then apply again"
    )]
    Stands {
        /// `file:line`.
        place: String,
        /// What it is.
        what: &'static str,
        /// Whose.
        number: ExtensionNumber,
    },
    /// Asterisk's configuration can't be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// Looks through pjsip.conf, `pjsip_wizard.conf`, extensions.conf and what they include.
///
/// # Errors
/// The first thing found, or the first file that can't be read.
pub fn check(config_dir: &Path, ours: &GeneratedFiles) -> Result<(), Foreign> {
    let pjsip = Config::read(config_dir, &config_dir.join("pjsip.conf"))?;
    let generated = pjsip.included(&ours.endpoints);
    for section in pjsip.sections.iter().filter(|s| !s.template && !generated.contains(&s.place.file)) {
        if let (Some(number), Some(what)) = (ExtensionNumber::parse(&section.name), collides(&pjsip, section)) {
            return Err(Foreign::Stands { place: section.place.to_string(), what, number });
        }
    }

    // A wizard makes an endpoint, an auth and an AOR of its section's name.
    let wizards = Config::read_if_there(config_dir, &config_dir.join("pjsip_wizard.conf"))?;
    for section in wizards.sections.iter().filter(|section| !section.template) {
        if let Some(number) = ExtensionNumber::parse(&section.name) {
            return Err(Foreign::Stands { place: section.place.to_string(), what: "wizard", number });
        }
    }

    let dialplan = Config::read(config_dir, &config_dir.join("extensions.conf"))?;
    let generated = dialplan.included(&ours.routing);
    for section in dialplan.sections.iter().filter(|s| s.name == CONTEXT) {
        for (number, entry) in first_priorities(dialplan.entries(section)) {
            if !generated.contains(&entry.place.file) {
                let what = "priority 1 of extension";
                return Err(Foreign::Stands { place: entry.place.to_string(), what, number });
            }
        }
    }
    Ok(())
}

/// What a section named as one of our numbers collides with, if anything: `[1000]` with `type=identify` is nobody's harm.
fn collides(config: &Config, section: &Section) -> Option<&'static str> {
    if section.addition {
        return Some("the addition to section");
    }
    let types = config.values(section, "type");
    let is = |wanted: &str| types.iter().any(|t| t.eq_ignore_ascii_case(wanted));
    if is("endpoint") {
        Some("endpoint")
    } else if is("auth") {
        Some("auth")
    } else if is("aor") {
        Some("AOR")
    } else {
        None
    }
}

/// The numbers of the pool that a section's lines give a priority 1, caller-ID matches aside, each with the line that does.
pub fn first_priorities(entries: Vec<&Entry>) -> impl Iterator<Item = (ExtensionNumber, &Entry)> {
    let mut extension = "";
    entries.into_iter().filter_map(move |entry| {
        let priority = match entry.key.as_str() {
            "exten" => {
                let (name, rest) = entry.value.split_once(',')?;
                extension = name.trim();
                rest
            }
            "same" => entry.value.as_str(),
            _ => return None,
        };
        // `1`, or `1(label)`.
        let priority = priority.split([',', '(']).next()?.trim();
        let number = ExtensionNumber::parse(extension)?;
        (priority == "1").then_some((number, entry))
    })
}
