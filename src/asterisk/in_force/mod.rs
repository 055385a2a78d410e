//! What Asterisk serves, asked over its control socket. The questions leave nothing behind in Asterisk: no channel, no event, no
//! record, no memory. `dialplan eval function` would.
//!
//! Asterisk drops lines if the reader is slow, so an answer counts only if it is complete: a listing must have as many rows as its
//! trailer says, and the options of an object must end with an empty line.

pub mod dialplan;
pub mod modules;
pub mod objects;
pub mod phones;

use crate::domain::{ExtensionNumber, Numbers};

/// The rows of a listing that begin with `heading`, without it; `None` unless they are as many as its trailer says.
pub(super) fn rows<'t>(text: &'t str, heading: &str) -> Option<Vec<&'t str>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix(heading));
    // The header explains each kind of row with one of `<…>`.
    let rows: Vec<_> = rows.filter(|row| !row.starts_with('<')).collect();
    let count: usize = text.lines().rev().find_map(trailer)?.trim().parse().ok()?;
    (rows.len() == count).then_some(rows)
}

/// The number of rows, if this line is the trailer of a listing.
fn trailer(line: &str) -> Option<&str> {
    match line.strip_prefix("Objects found: ") {
        None if line.starts_with("No objects found.") => Some("0"),
        None => [" taskprocessors", " results found.", " active subscriptions"]
            .iter()
            .find_map(|end| line.strip_suffix(end)),
        count => count,
    }
}

/// Those of our numbers that a listing names, in rows as [`rows`] finds them.
pub(super) fn numbers_in(text: &str, heading: &str) -> Option<Numbers> {
    Some(rows(text, heading)?.into_iter().filter_map(number_of).collect())
}

/// Our number at the beginning of a row, such as `1000/sip:…`.
fn number_of(row: &str) -> Option<ExtensionNumber> {
    ExtensionNumber::parse(row.split(['/', ' ']).next()?)
}

/// What a command printed, as `tests/suite/recordings.rs` recorded it.
#[cfg(test)]
macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/", $name, ".txt"))
            .split_once('\n')
            .expect("a command first")
            .1
    };
}
#[cfg(test)]
pub(super) use recorded;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::render::ObjectType;

    /// `text` without some of its lines.
    fn without(text: &str, lost: &BTreeSet<usize>) -> String {
        let kept = text.lines().enumerate().filter(|(index, _)| !lost.contains(index));
        kept.flat_map(|(_, line)| [line, "\n"]).collect()
    }

    proptest::proptest! {
        /// A listing that lost lines is not taken for another: it is none, or has the same content.
        #[test]
        fn a_truncated_listing_is_noticed(lost in proptest::collection::btree_set(0_usize..40, 1..6)) {
            macro_rules! same_or_none {
                ($parse:expr, $name:literal) => {
                    let parsed = $parse(&without(recorded!($name), &lost));
                    proptest::prop_assert!(parsed.is_none() || parsed == $parse(recorded!($name)), "{}: {:?}", $name, parsed);
                };
            }
            same_or_none!(|text: &str| numbers_in(text, objects::asked(ObjectType::Endpoint).heading), "endpoints");
            same_or_none!(|text: &str| numbers_in(text, objects::asked(ObjectType::Auth).heading), "auths");
            same_or_none!(|text: &str| numbers_in(text, objects::asked(ObjectType::Aor).heading), "aors");
            same_or_none!(phones::has_transport, "transports");
            same_or_none!(dialplan::parse, "dialplan");
            same_or_none!(modules::parse, "modules");
        }

        #[test]
        fn nothing_that_asterisk_prints_makes_it_panic(text in "([ '=>\\[\\]()./0-9a-zA-Z:-]{0,60}\n){0,8}") {
            let number = ExtensionNumber::new(1000).expect("a number");
            let _ = (dialplan::parse(&text), modules::parse(&text), phones::has_transport(&text));
            for kind in ObjectType::ALL {
                let _ = numbers_in(&text, objects::asked(kind).heading);
                let _ = objects::parse_options(kind, &text, &[number], |_, options| options.len());
            }
        }
    }
}
