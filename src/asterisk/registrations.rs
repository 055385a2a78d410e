//! Which phones are registered, and evicting one.
//!
//! Asterisk keeps registrations in its database, family `registrar/contact`, under keys `1000;@` and 32 hex digits, over
//! reloads, restarts and the removal of their AOR. While the AOR is there, a registration is expired: its row is
//! overwritten with one that expired long ago, and the next `pjsip show aors` makes Asterisk remove it, with its device
//! state and its OPTIONS. Deleting the row would leave both. Where the AOR is gone there is nothing but the row: it is
//! deleted. An eviction is done when the key is no longer listed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;
use tokio::time::sleep;

use super::control::{Control, ControlError};
use super::in_force;
use crate::domain::{ExtensionNumber, some_of};

const LISTING: &str = "database show registrar/contact";

/// A phone's registration as an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who it is called as.
    pub number: ExtensionNumber,
    /// The contact's URI: where the phone is.
    pub contact: String,
    key: String,
}

/// All registrations of our numbers.
///
/// # Errors
/// [`ControlError`].
pub async fn list(control: &Control) -> Result<Vec<Registration>, ControlError> {
    control.listing(LISTING, parse).await
}

/// What came of an eviction.
#[derive(Debug, Default)]
pub struct Eviction {
    /// The registrations that there were, each once.
    pub evicted: Vec<Registration>,
    /// The numbers that were registered still, or again, after the last attempt.
    pub kept: BTreeSet<ExtensionNumber>,
}

/// Evicts every registration that `unwanted` picks, until none is listed, at most `attempts` times: while its secret is in force, a
/// phone may register again at once.
///
/// # Errors
/// [`ControlError`].
pub async fn evict(
    control: &Control,
    attempts: usize,
    unwanted: impl Fn(ExtensionNumber) -> bool,
) -> Result<Eviction, ControlError> {
    let mut evicted = BTreeMap::new();
    let mut kept = BTreeSet::new();
    for attempt in 0..=attempts {
        let mut left = list(control).await?;
        left.retain(|registration| unwanted(registration.number));
        kept = left.iter().map(|registration| registration.number).collect();
        if left.is_empty() || attempt == attempts {
            break;
        }
        if attempt > 0 {
            sleep(Duration::from_millis(50)).await;
        }
        let aors = in_force::aors(control).await?;
        for registration in &left {
            forget(control, registration, &aors).await?;
            evicted.entry(registration.key.clone()).or_insert_with(|| registration.clone());
        }
        // Makes Asterisk see which have expired.
        in_force::aors(control).await?;
    }
    Ok(Eviction { evicted: evicted.into_values().collect(), kept })
}

/// What is registered still must be nothing.
///
/// # Errors
/// [`ControlError::Kept`].
pub fn none_kept(kept: BTreeSet<ExtensionNumber>) -> Result<(), ControlError> {
    if kept.is_empty() { Ok(()) } else { Err(ControlError::Kept { numbers: some_of(kept) }) }
}

async fn forget(
    control: &Control,
    registration: &Registration,
    aors: &BTreeSet<ExtensionNumber>,
) -> Result<(), ControlError> {
    // The key is nothing but digits, `;@` and hex digits: see `parse`.
    let key = &registration.key;
    let command = if aors.contains(&registration.number) {
        format!(r#"database put registrar/contact {key} "{{\"uri\":\"sip:x\",\"expiration_time\":\"1\"}}""#)
    } else {
        format!("database del registrar/contact {key}")
    };
    // A registration that went away by itself meanwhile is as good: what counts is the next listing.
    control.ask(&command).await.map(|_| ())
}

/// `None` unless as many rows were seen as the trailer says.
fn parse(text: &str) -> Option<Vec<Registration>> {
    static TRAILER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?m)^([0-9]+) results? found\.$").expect("a regex"));
    // A phone's User-Agent is printed raw behind the key, so nothing but the anchored key is believed.
    static ROW: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^/registrar/contact/((1[0-9]{3});@[0-9a-f]{32}) *: (.*)$").expect("a regex"));

    let count: usize = TRAILER.captures_iter(text).last()?[1].parse().ok()?;
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("/registrar/contact/")).collect();
    let registrations = rows.iter().filter_map(|row| ROW.captures(row)).filter_map(|row| {
        let value: serde_json::Value = serde_json::from_str(&row[3]).unwrap_or_default();
        let contact = value["uri"].as_str().unwrap_or("unknown").to_owned();
        Some(Registration { number: ExtensionNumber::parse(&row[2])?, contact, key: row[1].to_owned() })
    });
    (rows.len() == count).then(|| registrations.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contact of alice claims, in its User-Agent, to be a row of 1002.
    const ROWS: &str = include_str!("../../tests/recordings/registrations.txt");

    #[test]
    fn only_our_own_keys_are_believed() {
        let registrations = parse(ROWS).expect("a whole listing");
        assert!(registrations.iter().map(|r| r.number.get()).eq([1000, 1001]), "{registrations:?}");
        for registration in registrations {
            let (number, key) = (registration.number.to_string(), registration.key);
            assert!(registration.contact.starts_with(&format!("sip:{number}@127.0.0.1:")), "{}", registration.contact);
            assert!(key.starts_with(&format!("{number};@")) && key.len() == 38, "{key}");
        }
        assert_eq!(parse(include_str!("../../tests/recordings/no-registrations.txt")), Some(Vec::new()));
    }

    #[test]
    fn a_listing_that_lost_lines_is_none() {
        for lost in ["1000", "1001", "alice", "3 results"] {
            let kept: Vec<_> =
                ROWS.lines().filter(|l| !l.trim_start_matches("/registrar/contact/").starts_with(lost)).collect();
            assert_eq!(parse(&kept.join("\n")), None, "{lost}");
        }
    }
}
