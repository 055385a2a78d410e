//! Numbers of the pool outside our files: what an administrator wrote by hand and Asterisk would refuse or mix with ours.
//!
//! A second `[1000]` of one type makes Asterisk refuse that type for everybody, while it says "reloaded successfully".
//! `[1000](+type=endpoint)` adds to ours and breaks all of pjsip.conf on the day 1000 is deleted. A second priority 1 of
//! a number hides ours or is hidden by it. So each is looked for on disk, before anything is written.

use super::configuration::{Config, Entry, Place, Section};
use super::place::GeneratedFiles;
use crate::domain::ExtensionNumber;
use crate::render::CONTEXT;

/// Something of a number of ours stands elsewhere: an apply would collide with it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{place}: {what} {number} belongs to the numbers 1000 to 1999, which the portal alone defines; rename or remove it, then apply again"
)]
pub struct Foreign {
    place: Place,
    what: &'static str,
    number: ExtensionNumber,
}

/// Looks through pjsip.conf, `pjsip_wizard.conf` and extensions.conf, each with what it includes.
///
/// # Errors
/// The first thing found.
pub fn check(pjsip: &Config, wizards: &Config, extensions: &Config, ours: &GeneratedFiles) -> Result<(), Foreign> {
    let stands = |place: &Place, what, number| Err(Foreign { place: place.clone(), what, number });
    let generated = pjsip.included(&ours.endpoints);
    for section in pjsip.sections.iter().filter(|s| !s.template && !s.place.is_in(&generated)) {
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
            if !entry.place.is_in(&generated) {
                return stands(&entry.place, "priority 1 of extension", number);
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
