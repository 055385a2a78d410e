//! Which phones are registered, and evicting them for good.
//!
//! Asterisk stores registrations in its database, family `registrar/contact`, under keys `1000;@` and 32 hex digits. They survive
//! reloads, restarts and the removal of their AOR. Once the AOR is gone, a registration is nothing but its row: no device state, no
//! OPTIONS requests. A phone's subscriptions are in the same database, family `subscription_persistence`.
//!
//! Asterisk commits up to a second later. If another process reads the file at that moment, it rolls back all since the last commit.
//! So [`delete`] deletes and commits in **one** command, which Asterisk runs under the lock that every use of its database takes:
//! nothing comes between the two, and no rollback can go back behind it. With `synchronous=EXTRA`, SQLite flushes the folder, too, once
//! the rollback journal is removed: a journal that a power cut brought back would undo the deletion. The portal never opens the file
//! itself.

use serde::Serialize;
use utoipa::ToSchema;

use super::in_force::{numbers_in, rows};
use super::{Command, Control};
use crate::domain::{ExtensionNumber, Numbers};
use crate::problem::{Result, problem};

/// A phone's registration as an extension. The API shows those that were evicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = EvictedRegistration, description = "A registration that was evicted.")]
pub struct Registration {
    /// The number that it was registered as.
    #[serde(rename = "extension")]
    #[schema(value_type = u16, minimum = 1000, maximum = 1999)]
    pub number: ExtensionNumber,
    /// Where the phone is.
    pub contact: String,
}

/// The beginning of a row of `pjsip show contacts`.
const CONTACT: &str = "  Contact:  ";

/// The beginning of a subscription in `pjsip show subscriptions`.
const SUBSCRIBER: &str = "Endpoint: ";

/// How many numbers one command deletes. Asterisk reads at most some 500 bytes of a command.
const AT_ONCE: usize = 20;

pub async fn list(control: &Control) -> Result<Vec<Registration>> {
    let unknown = |key| {
        problem!(
            "Asterisk keeps a registration of a number from 1000 to 1999 under '{key}', a key of a form that the portal does not know",
            "if somebody wrote it by hand, remove it (database del registrar/contact {key}); otherwise the portal does not work with this release of Asterisk"
        )
    };
    let rows = control.listing(&[Command::REGISTRATIONS], parse).await?;
    rows.into_iter().map(|row| row.map_err(unknown)).collect()
}

/// Deletes the registrations and subscriptions that Asterisk keeps of these numbers. Returns whether the deletion is committed: if
/// not, another process reads Asterisk's database, and Asterisk may take the deletion back.
pub async fn delete(control: &Control, numbers: &Numbers) -> Result<bool> {
    let numbers: Vec<_> = numbers.iter().copied().collect();
    for some in numbers.chunks(AT_ONCE) {
        let answer = control.ask(&[deletion(some)]).await?;
        if !answer.lines().any(|line| line.trim_end() == "committed: yes") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Asterisk's connection always has a transaction open: COMMIT ends it, BEGIN opens the next. Between the two, `synchronous` can be set.
///
/// A contact's key is `/registrar/contact/1000;@…`, so its number and the `;` begin at character 20. A subscription's row is JSON. Its
/// endpoint is found as text, because an older SQLite has no functions for JSON: the number and a `"`, which becomes a `;`, begin 12
/// characters, the length of `"endpoint":"`, behind the beginning of that. Within a text that the phone chose, each `"` is escaped, so it
/// can't be found there.
fn deletion(numbers: &[ExtensionNumber]) -> Command {
    // Within quotes of Asterisk's command line.
    const ENDPOINT: &str = r#"\"endpoint\":\""#;
    let numbers = numbers.iter().map(|number| format!("'{number};'")).collect::<Vec<_>>().join(",");
    Command::QUERY.with(format_args!(
        "\"COMMIT; PRAGMA synchronous=EXTRA; BEGIN; DELETE FROM astdb WHERE CASE WHEN key LIKE '/registrar/contact/%' THEN substr(key,20,5) \
        WHEN key LIKE '/subscription_persistence/%' THEN replace(substr(value,instr(value,'{ENDPOINT}')+12,5),char(34),';') END \
        IN ({numbers}); COMMIT; BEGIN; SELECT 'yes' AS committed\""
    ))
}

/// The numbers of ours that have a contact, wherever Asterisk keeps it.
pub async fn numbers_with_contacts(control: &Control) -> Result<Numbers> {
    control.listing(&[Command::CONTACTS], |text| numbers_in(text, CONTACT)).await
}

/// The numbers of ours whose phones watch something, such as a hint.
pub async fn numbers_with_subscriptions(control: &Control) -> Result<Numbers> {
    control.listing(&[Command::SUBSCRIPTIONS], |text| numbers_in(text, SUBSCRIBER)).await
}

/// The value of a row, if what follows `1000;` in it has the form of ours.
fn value(contact: &str) -> Option<&str> {
    let (digest, rest) = contact.strip_prefix('@')?.split_at_checked(32)?;
    let is_digest = digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    rest.trim_start_matches(' ').strip_prefix(": ").filter(|_| is_digest)
}

/// The rows of our numbers, or the key of one that has an unknown form; `None` unless the listing is complete.
///
/// A phone's User-Agent is printed raw behind the key, so nothing but the anchored key is believed.
fn parse(text: &str) -> Option<Vec<Result<Registration, String>>> {
    let registration = |row: &str| {
        let (aor, contact) = row.split_once(';')?;
        let number = ExtensionNumber::parse(aor)?;
        let Some(value) = value(contact) else {
            return Some(Err(row.split([' ', ':']).next().unwrap_or_default().to_owned()));
        };
        let value: serde_json::Value = serde_json::from_str(value).unwrap_or_default();
        Some(Ok(Registration { number, contact: value["uri"].as_str().unwrap_or("unknown").to_owned() }))
    };
    Some(rows(text, "/registrar/contact/")?.into_iter().filter_map(registration).collect())
}

#[cfg(test)]
mod tests {
    use super::super::in_force::recorded;
    use super::*;

    fn numbers(numbers: impl IntoIterator<Item = i32>) -> Numbers {
        numbers.into_iter().map(|number| ExtensionNumber::new(number).expect("a number")).collect()
    }

    /// The contact of alice claims, in its User-Agent, to be a row of 1002.
    #[test]
    fn only_our_own_keys_are_believed() {
        let rows = parse(recorded!("registrations")).expect("a complete listing");
        let registrations: Vec<_> = rows.into_iter().map(|row| row.expect("a key of a known form")).collect();
        assert!(registrations.iter().map(|r| r.number.to_string()).eq(["1000", "1001"]), "{registrations:?}");
        for Registration { number, contact } in registrations {
            assert!(contact.starts_with(&format!("sip:{number}@127.0.0.1:")), "{contact}");
        }
        assert_eq!(parse(recorded!("no-registrations")), Some(Vec::new()));
    }

    #[test]
    fn a_key_of_an_unknown_form_is_an_error_if_the_number_is_ours() {
        let row = |key: &str| format!("/registrar/contact/{key}  : {{}}\n1 results found.\n");
        for key in ["1000;@short", "1999;0123456789abcdef0123456789abcdef", "1000;@0123456789abcdef0123456789abcdef0"] {
            assert_eq!(parse(&row(key)), Some(vec![Err(key.to_owned())]));
        }
        for key in ["2000;@short", "10000;@short", "alice;@short", "1000-desk;@short"] {
            assert_eq!(parse(&row(key)), Some(Vec::new()), "{key}");
        }
    }

    #[test]
    fn a_truncated_listing_is_none() {
        let without =
            |text: &str, lost: &str| text.lines().filter(|l| !l.contains(lost)).collect::<Vec<_>>().join("\n");
        for lost in ["/1000;", "/1001;", "/alice;", "3 results"] {
            assert_eq!(parse(&without(recorded!("registrations"), lost)), None, "{lost}");
        }
        for lost in ["  1000/", "  1001/", "Objects found"] {
            assert_eq!(numbers_in(&without(recorded!("contacts"), lost), CONTACT), None, "{lost}");
        }
        for lost in ["Endpoint: 1000", "active"] {
            assert_eq!(numbers_in(&without(recorded!("subscriptions"), lost), SUBSCRIBER), None, "{lost}");
        }
    }

    #[test]
    fn contacts_and_subscriptions_of_our_numbers() {
        assert_eq!(numbers_in(recorded!("contacts"), CONTACT), Some(numbers([1000, 1001])));
        assert_eq!(numbers_in(recorded!("no-contacts"), CONTACT), Some(Numbers::new()));
        assert_eq!(numbers_in(recorded!("subscriptions"), SUBSCRIBER), Some(numbers([1000])));
    }

    #[test]
    fn a_deletion_is_a_line_that_asterisk_reads_to_its_end() {
        let most: Vec<_> = numbers((1000..).take(AT_ONCE)).into_iter().collect();
        assert!(deletion(&most).line().len() < 480);
    }
}
