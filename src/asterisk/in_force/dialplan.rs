//! Priority 1 of our numbers in the dialplan in force.

use std::collections::BTreeMap;

use crate::asterisk::command::Command;
use crate::asterisk::control::Control;
use crate::domain::ExtensionNumber;
use crate::host::place::ROUTING_FILE_NAME;
use crate::problem::Result;
use crate::render::CONTEXT;

/// Priority 1 of an extension.
#[derive(Debug, PartialEq, Eq)]
pub struct FirstPriority {
    /// `Dial(PJSIP/1000,25,i)`.
    pub application: String,
    /// `file:line` (the file's base name), or the registrar where it came from no file.
    pub source: String,
}

impl FirstPriority {
    /// Whether it is this line of our file.
    pub fn is_ours(&self, application: &str) -> bool {
        self.application == application && self.source.starts_with(&format!("{ROUTING_FILE_NAME}:"))
    }
}

/// Priority 1 of each of our numbers; `None` if the context is not in force.
pub async fn first_priorities(control: &Control) -> Result<Option<BTreeMap<ExtensionNumber, FirstPriority>>> {
    let absent = |text: &str| text.contains("There is no existence of").then_some(None);
    control.listing(&[Command::DIALPLAN.with(CONTEXT)], |text| absent(text).or_else(|| parse(text).map(Some))).await
}

/// `None` unless the listing is whole.
pub(super) fn parse(text: &str) -> Option<BTreeMap<ExtensionNumber, FirstPriority>> {
    let count: usize = text.lines().rev().find_map(trailer)?.parse().ok()?;
    let mut first_priorities = BTreeMap::new();
    let (mut rows, mut current) = (0, None);
    for line in text.lines() {
        let head = line.strip_prefix("  '").and_then(|head| head.split_once(" => "));
        let rest = head.map_or(line, |(_, rest)| rest);
        if let Some((name, _)) = head {
            // A caller-ID match stands behind the closing quote.
            current = name.strip_suffix('\'').and_then(ExtensionNumber::parse);
        }
        let Some((priority, first)) = row(rest) else { continue };
        rows += 1;
        if let (Some(number), "1") = (current, priority) {
            first_priorities.insert(number, first);
        }
    }
    (rows == count).then_some(first_priorities)
}

/// The number of priorities: `-= 2 extensions (4 priorities) in 1 context. =-`.
fn trailer(line: &str) -> Option<&str> {
    let (_, count) = line.strip_prefix("-= ")?.strip_suffix(") in 1 context. =-")?.split_once('(')?;
    count.split_once(' ').map(|(count, _)| count)
}

/// `1. Dial(…)  [file:line]`, with a label in brackets before it or not; a hint has no priority but `hint`.
fn row(text: &str) -> Option<(&str, FirstPriority)> {
    let text = text.trim_start_matches(' ');
    let text = match text.strip_prefix('[') {
        Some(labelled) => labelled.split_once("] ")?.1.trim_start_matches(' '),
        None => text,
    };
    let (priority, text) = match text.strip_prefix("hint: ") {
        Some(hint) => ("hint", hint),
        None => text.split_once(". ").filter(|(p, _)| !p.is_empty() && p.bytes().all(|byte| byte.is_ascii_digit()))?,
    };
    let (application, source) = text.strip_suffix(']')?.rsplit_once(" [")?;
    let application = application.trim_end_matches(' ');
    let first = FirstPriority { application: application.to_owned(), source: source.to_owned() };
    (!application.is_empty()).then_some((priority, first))
}

#[cfg(test)]
mod tests {
    use super::super::recorded;
    use super::*;

    #[test]
    fn first_priorities_are_ours_or_named() {
        let number = |number| ExtensionNumber::new(number).expect("a number");
        let dialplan = parse(recorded!("dialplan")).expect("a whole listing");
        assert!(dialplan.keys().copied().eq([1000, 1001, 1600].map(number)), "{dialplan:?}");
        assert!(dialplan[&number(1000)].is_ours("Dial(PJSIP/1000,25,i)"), "{dialplan:?}");
        assert_eq!(dialplan[&number(1600)].source, "pbx_config", "typed by an administrator");
        assert_eq!(parse(recorded!("empty-context")), Some(BTreeMap::new()));
        assert_eq!(parse(recorded!("no-context")), None);
    }
}
