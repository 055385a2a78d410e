//! What Asterisk serves, asked over its control socket. The questions leave nothing behind in Asterisk: no channel, no event, no
//! record, no memory. `dialplan eval function` would.
//!
//! Asterisk drops lines if the reader is slow, so an answer counts only if it is complete: a listing must have as many rows as its
//! trailer says, and the options of an object must end with an empty line.

pub mod dialplan;
pub mod modules;
pub mod objects;
pub mod phones;

/// `None` unless `rows` is the number in the trailer of a `pjsip show …` listing.
pub(super) fn complete(text: &str, rows: usize) -> Option<()> {
    let count = match text.lines().rev().find_map(|line| line.strip_prefix("Objects found: ")) {
        Some(count) => count.trim().parse().ok()?,
        None if text.contains("No objects found.") => 0,
        None => return None,
    };
    (rows == count).then_some(())
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
    use crate::domain::ExtensionNumber;
    use crate::render::ObjectType;

    /// `text` without some of its lines.
    fn without(text: &str, lost: &BTreeSet<usize>) -> String {
        let kept = text.lines().enumerate().filter(|(index, _)| !lost.contains(index));
        kept.flat_map(|(_, line)| [line, "\n"]).collect()
    }

    proptest::proptest! {
        /// A listing that lost lines is not taken for another: it is none, or says the same.
        #[test]
        fn a_truncated_listing_is_noticed(lost in proptest::collection::btree_set(0_usize..40, 1..6)) {
            macro_rules! same_or_none {
                ($parse:expr, $name:literal) => {
                    let parsed = $parse(&without(recorded!($name), &lost));
                    proptest::prop_assert!(parsed.is_none() || parsed == $parse(recorded!($name)), "{}: {:?}", $name, parsed);
                };
            }
            same_or_none!(|text: &str| objects::parse_numbers(ObjectType::Endpoint, text), "endpoints");
            same_or_none!(|text: &str| objects::parse_numbers(ObjectType::Auth, text), "auths");
            same_or_none!(|text: &str| objects::parse_numbers(ObjectType::Aor, text), "aors");
            same_or_none!(modules::parse_transports, "transports");
            same_or_none!(dialplan::parse, "dialplan");
            same_or_none!(modules::parse, "modules");
        }

        #[test]
        fn nothing_that_asterisk_prints_makes_it_panic(text in "([ '=>\\[\\]()./0-9a-zA-Z:-]{0,60}\n){0,8}") {
            let number = ExtensionNumber::new(1000).expect("a number");
            let _ = (dialplan::parse(&text), modules::parse(&text), modules::parse_transports(&text));
            for kind in ObjectType::ALL {
                let _ = objects::parse_numbers(kind, &text);
                let _ = objects::parse_options(kind, &text, &[number], |_, options| options.len());
            }
        }
    }
}
