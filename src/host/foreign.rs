//! Finds what an administrator wrote about the numbers 1000 to 1999 outside our files.
//!
//! A second `[1000]` of one type makes Asterisk refuse that type for everybody, although it says "reloaded successfully".
//! `[1000](+type=endpoint)` adds to ours, and breaks all of pjsip.conf once 1000 is deleted. Of two priorities 1 of a number,
//! Asterisk uses only one.

use super::configuration::{Addition, Config, Entry, MainFiles, Section};
use super::generated::GeneratedFiles;
use super::lines::Place;
use crate::domain::ExtensionNumber;
use crate::problem::{Result, bail};
use crate::render::{CONTEXT, ObjectType};

/// Looks through `pjsip.conf`, `extensions.conf` and `pjsip_wizard.conf`, each with what it includes. Fails if somebody else
/// defines one of our numbers.
pub fn check(MainFiles { pjsip, extensions, .. }: &MainFiles, wizards: &Config, ours: &GeneratedFiles) -> Result<()> {
    let generated = [pjsip.names_of(&ours.endpoints), extensions.names_of(&ours.routing)].concat();
    let foreign = |place: &Place| !generated.contains(&place.file);
    let number = |s: &Section| ExtensionNumber::parse(&s.name).filter(|_| !s.template && foreign(&s.place));
    let objects = pjsip.sections.iter().filter_map(|s| Some((number(s)?, collides(s)?, &s.place)));
    // An addition to nothing makes Asterisk refuse the file.
    let adds = |a: &&Addition| foreign(&a.place) && a.to.is_none_or(|at| collides(&pjsip.sections[at]).is_some());
    let added = pjsip.additions.iter().filter(adds);
    let added = added.filter_map(|a| Some((ExtensionNumber::parse(&a.name)?, "the addition to section", &a.place)));
    // A wizard makes an endpoint, an auth and an AOR of its section's name.
    let wizards = wizards.sections.iter().filter_map(|s| Some((number(s)?, "wizard", &s.place)));
    let context = extensions.sections.iter().filter(|section| section.name == CONTEXT && !section.template);
    let routed = context.flat_map(|section| first_priority_lines(&section.entries));
    let routed = routed.filter(|(_, entry)| foreign(&entry.place));
    let routed = routed.map(|(number, entry)| (number, "priority 1 of extension", &entry.place));
    match objects.chain(added).chain(wizards).chain(routed).next() {
        None => Ok(()),
        Some((number, what, place)) => bail!(
            "{place}: {what} {number} is one of the numbers 1000 to 1999, which only the portal may define",
            "rename or remove it"
        ),
    }
}

/// What a section with one of our numbers as its name collides with; nothing if its type is another than ours (`identify`).
fn collides(section: &Section) -> Option<&'static str> {
    ObjectType::ALL.into_iter().find(|kind| section.kind() == Some(kind.as_str())).map(ObjectType::label)
}

/// The numbers 1000 to 1999 that have a priority 1 in these lines, each with its line; `1000/1001`, which matches a caller ID, is none.
fn first_priority_lines(entries: &[Entry]) -> impl Iterator<Item = (ExtensionNumber, &Entry)> {
    let mut extension = "";
    entries.iter().filter_map(move |entry| {
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
