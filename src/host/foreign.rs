//! Finds what an administrator wrote about the numbers 1000 to 1999 outside our files.
//!
//! A second `[1000]` of one type makes Asterisk refuse that type for everybody, although it says "reloaded successfully".
//! `[1000](+type=endpoint)` adds to ours, and breaks all of pjsip.conf once 1000 is deleted. Of two priorities 1 of a number,
//! Asterisk uses only one.

use anyhow::{Result, bail};

use super::configuration::{Config, Entry, Place, Section};
use super::place::GeneratedFiles;
use crate::domain::ExtensionNumber;
use crate::render::CONTEXT;

/// Looks through `pjsip.conf`, `pjsip_wizard.conf` and `extensions.conf`, each with what it includes. Fails if somebody else
/// defines one of our numbers.
pub fn check(pjsip: &Config, wizards: &Config, extensions: &Config, ours: &GeneratedFiles) -> Result<()> {
    let stands = |place: &Place, what, number| {
        bail!(
            "{place}: {what} {number} is one of the numbers 1000 to 1999, which only the portal may define; rename or remove it, then apply again"
        )
    };
    let generated = pjsip.included(&ours.endpoints);
    for section in pjsip.sections.iter().filter(|s| !s.template && !generated.contains(&s.place.file)) {
        if let (Some(number), Some(what)) = (ExtensionNumber::parse(&section.name), collides(pjsip, section)) {
            return stands(&section.place, what, number);
        }
    }

    // A wizard makes an endpoint, an auth and an AOR of its section's name.
    for section in wizards.sections.iter().filter(|section| !section.template) {
        if let Some(number) = ExtensionNumber::parse(&section.name) {
            return stands(&section.place, "wizard", number);
        }
    }

    let generated = extensions.included(&ours.routing);
    for section in extensions.sections.iter().filter(|s| s.name == CONTEXT) {
        for (number, entry) in first_priorities(extensions.entries(section)) {
            if !generated.contains(&entry.place.file) {
                return stands(&entry.place, "priority 1 of extension", number);
            }
        }
    }
    Ok(())
}

/// What a section with one of our numbers as its name collides with; nothing if its type is another than ours (`identify`).
fn collides(config: &Config, section: &Section) -> Option<&'static str> {
    if section.addition {
        return Some("the addition to section");
    }
    let types = config.values(section, "type");
    ["endpoint", "auth", "AOR"].into_iter().find(|ours| types.iter().any(|found| found.eq_ignore_ascii_case(ours)))
}

/// The numbers 1000 to 1999 that have a priority 1 in these lines, each with its line; `1000/1001`, which matches a caller ID,
/// is none.
pub fn first_priorities(entries: Vec<&Entry>) -> impl Iterator<Item = (ExtensionNumber, &Entry)> {
    let mut extension = "";
    entries.into_iter().filter_map(move |entry| {
        let priority = if entry.has_key("exten") {
            let (name, rest) = entry.value.split_once(',')?;
            extension = name.trim();
            rest
        } else if entry.has_key("same") {
            entry.value.as_str()
        } else {
            return None;
        };
        // `1`, or `1(label)`.
        let priority = priority.split([',', '(']).next()?.trim();
        let number = ExtensionNumber::parse(extension)?;
        (priority == "1").then_some((number, entry))
    })
}
