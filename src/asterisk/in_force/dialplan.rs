//! Priority 1 of our numbers in the dialplan in force.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;

use crate::asterisk::{Command, Control};
use crate::domain::ExtensionNumber;
use crate::host::generated::ROUTING_FILE_NAME;
use crate::problem::Result;
use crate::render::CONTEXT;

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

/// `None` unless the listing is complete.
pub(super) fn parse(text: &str) -> Option<BTreeMap<ExtensionNumber, FirstPriority>> {
    // `  '1000' =>   [label] 1. Dial(…)  [file:line]`. Further priorities have no name before them, and few rows have a label. A hint
    // has no number. A caller-ID match stands behind the closing quote, so such a name is none of ours.
    static PRIORITY: LazyLock<Regex> = LazyLock::new(|| {
        let row = r"^(?:  '(?<name>.*?) => )? *(?:\[.*?\] +)?(?:(?<priority>[0-9]+)\.|hint:) (?<application>.+) \[(?<source>.*)\]$";
        Regex::new(row).expect("a regex")
    });
    static TRAILER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?m)^-= .*\(([0-9]+) .*\) in 1 context\. =-$").expect("a regex"));

    let mut found = BTreeMap::new();
    let mut rows = 0;
    let mut current = None;
    for row in text.lines().filter_map(|line| PRIORITY.captures(line)) {
        rows += 1;
        if let Some(name) = row.name("name") {
            current = name.as_str().strip_suffix('\'').and_then(ExtensionNumber::parse);
        }
        if let Some(number) = current.filter(|_| row.name("priority").is_some_and(|priority| priority.as_str() == "1"))
        {
            let application = row["application"].trim_end_matches(' ').to_owned();
            found.insert(number, FirstPriority { application, source: row["source"].to_owned() });
        }
    }
    let count: usize = TRAILER.captures(text)?[1].parse().ok()?;
    (rows == count).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::super::recorded;
    use super::*;

    #[test]
    fn first_priorities_are_ours_or_named() {
        let number = |number| ExtensionNumber::new(number).expect("a number");
        let dialplan = parse(recorded!("dialplan")).expect("a complete listing");
        assert!(dialplan.keys().copied().eq([1000, 1001, 1600].map(number)), "{dialplan:?}");
        assert!(dialplan[&number(1000)].is_ours("Dial(PJSIP/1000,25,i)"), "{dialplan:?}");
        assert_eq!(dialplan[&number(1600)].source, "pbx_config", "typed by an administrator");
        assert_eq!(parse(recorded!("empty-context")), Some(BTreeMap::new()));
        assert_eq!(parse(recorded!("no-context")), None);
    }
}
