//! Finds what an administrator wrote about the numbers 1000 to 1999 outside our files.
//!
//! A second `[1000]` of one type makes Asterisk refuse that type for everybody, although it says "reloaded successfully".
//! `[1000](+type=endpoint)` adds to ours, and breaks all of pjsip.conf once 1000 is deleted. Of two priorities 1 of a number,
//! Asterisk uses only one.

use super::configuration::{Config, Entry, MainFiles, Section};
use super::generated::GeneratedFiles;
use super::lines::Place;
use crate::domain::ExtensionNumber;
use crate::problem::{Problem, Result, problem};
use crate::render::{CONTEXT, ObjectType};

/// Looks through `pjsip.conf`, `extensions.conf` and `pjsip_wizard.conf`, each with what it includes. Fails if somebody else
/// defines one of our numbers.
pub fn check(MainFiles { pjsip, extensions, .. }: &MainFiles, wizards: &Config, ours: &GeneratedFiles) -> Result<()> {
    let generated = [pjsip.names_of(&ours.endpoints), extensions.names_of(&ours.routing)].concat();
    let is_foreign = |place: &Place| !generated.contains(&place.file);
    let number_of = |section: &Section| {
        ExtensionNumber::parse(&section.name).filter(|_| !section.template && is_foreign(&section.place))
    };
    for section in &pjsip.sections {
        if let (Some(number), Some(kind)) = (number_of(section), collides(section)) {
            return Err(foreign(&section.place, kind, number));
        }
    }
    for addition in pjsip.additions.iter().filter(|addition| is_foreign(&addition.place)) {
        // An addition to nothing makes Asterisk refuse the file.
        let counts = addition.to.is_none_or(|at| collides(&pjsip.sections[at]).is_some());
        if let Some(number) = ExtensionNumber::parse(&addition.name).filter(|_| counts) {
            return Err(foreign(&addition.place, "the addition to section", number));
        }
    }
    for section in &wizards.sections {
        // It makes an endpoint, an auth and an AOR of its own name.
        if let Some(number) = number_of(section) {
            return Err(foreign(&section.place, "wizard", number));
        }
    }
    for section in extensions.sections.iter().filter(|section| section.name == CONTEXT && !section.template) {
        for (number, entry) in first_priority_lines(&section.entries) {
            if is_foreign(&entry.place) {
                return Err(foreign(&entry.place, "priority 1 of extension", number));
            }
        }
    }
    Ok(())
}

fn foreign(place: &Place, what: &str, number: ExtensionNumber) -> Problem {
    problem!(
        "{place}: {what} {number} is one of the numbers 1000 to 1999, which only the portal may define",
        "rename or remove it"
    )
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
