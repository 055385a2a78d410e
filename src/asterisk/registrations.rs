//! Which phones are registered, and evicting them.
//!
//! Asterisk stores registrations in its database, family `registrar/contact`, under keys `1000;@` and 32 hex digits. They survive
//! reloads, restarts and the removal of their AOR.
//!
//! While the AOR exists, [`evict`] overwrites the row with one that expired long ago. It then lists the AORs, which makes Asterisk
//! remove the registration, with its device state and its OPTIONS requests. Deleting the row would leave the device state and the
//! OPTIONS requests. If the AOR is gone, Asterisk keeps only the row, and [`evict`] deletes it.
//!
//! Asterisk commits its database up to a second after a change ([`COMMITTED_WITHIN`]). If another process reads the file at that
//! moment, the commit fails, and Asterisk rolls back all changes since the last commit. A listing can therefore show changes
//! that are undone later. A [`Look`] finds out: it writes a mark into the database, lists the registrations, and writes a second
//! mark. While both marks are there, Asterisk has not gone back to a state from before the listing. A rollback returns to the last
//! commit, and there are three cases:
//!
//! - The last commit came before the first mark: the rollback removes both marks.
//! - It came between the marks: the rollback removes the second one. For the next commit comes a second later, and by then the second
//!   mark was written. A look that takes longer than [`MAX_LOOK_TIME`] could break this, so it does not count.
//! - It came after the second mark: it contains what was listed.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use regex::Regex;
use tracing::info;
use uuid::Uuid;

use super::control::{Control, READINGS, unexpected};
use super::in_force::objects;
use crate::domain::ExtensionNumber;
use crate::render::ObjectType;

/// After this time a change to Asterisk's database is on the disk, or rolled back: `db_sync_thread` in `main/db.c` tries a commit
/// about a second after the last one. This is a second with a margin.
pub const COMMITTED_WITHIN: Duration = Duration::from_millis(1200);

/// Asterisk tries at most one commit within this time, because it sleeps for a second between two.
const MAX_LOOK_TIME: Duration = Duration::from_millis(900);

const LIST: &str = "database show registrar/contact";
const LIST_MARKS: &str = "database show pbx-portal";
/// The row that [`evict`] writes; Asterisk removes it, because it expired long ago.
const EVICTED: &str = r#"{"uri":"sip:x","expiration_time":"1"}"#;
/// What Asterisk answers to `database put`.
const PUT_DONE: &str = "Updated database successfully";

/// A phone's registration as an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub number: ExtensionNumber,
    /// The contact's URI: where the phone is.
    pub contact: String,
    key: String,
    /// The whole row: its expiry and its Call-ID, too.
    value: String,
}

/// A listing of the registrations, taken between two marks.
#[derive(Debug)]
pub struct Look {
    /// As of [`list`].
    pub registrations: Vec<Registration>,
    /// This look's marks are `{mark}/before` and `{mark}/after`.
    mark: String,
    /// All marks that were there at its end, also those of earlier looks.
    pub marks: BTreeSet<String>,
}

/// All registrations of our numbers, and rows of [`evict`] that Asterisk has not removed yet.
pub async fn list(control: &Control) -> Result<Vec<Registration>> {
    control.listing(&[LIST], parse).await
}

/// Evicts registrations: no call reaches these phones any more. It is for good if a later [`Look`] does not list them and still
/// holds after [`COMMITTED_WITHIN`].
pub async fn evict(control: &Control, registrations: &[Registration]) -> Result<()> {
    if registrations.is_empty() {
        return Ok(());
    }
    let aors = objects::numbers(control, ObjectType::Aor).await?;
    let evicted = EVICTED.replace('"', "\\\"");
    // A key is nothing but digits, `;@` and hex digits: see `parse`.
    let command = |Registration { number, key, .. }: &Registration| {
        if aors.contains(number) {
            format!("database put registrar/contact {key} \"{evicted}\"")
        } else {
            format!("database del registrar/contact {key}")
        }
    };
    let commands: Vec<_> = registrations.iter().map(command).collect();
    control.ask(&commands).await?;
    // Makes Asterisk remove what has expired.
    objects::numbers(control, ObjectType::Aor).await.map(drop)
}

impl Look {
    pub async fn now(control: &Control) -> Result<Self> {
        let mut answer = String::new();
        for _ in 0..READINGS {
            let mark = Uuid::new_v4().to_string();
            let [before, after] = ["before", "after"].map(|when| format!("database put pbx-portal {mark}/{when} 1"));
            let began = Instant::now();
            answer = control.ask(&[&before, LIST, &after, LIST_MARKS]).await?;
            if began.elapsed() < MAX_LOOK_TIME
                && let Some((registrations, marks)) = parse_look(&answer)
            {
                return Ok(Self { registrations, mark, marks });
            }
            info!(command = LIST, "the listing is truncated or took too long; it is retried");
        }
        ensure!(
            parse_look(&answer).is_none(),
            "Asterisk takes longer than {} ms to list the registrations: the machine is overloaded; look at its load, then apply again",
            MAX_LOOK_TIME.as_millis()
        );
        Err(unexpected(LIST, &answer))
    }

    /// The registrations that `earlier` did not list. One that was renewed since is another row, so it counts as new: ask only once
    /// no old phone can register any more.
    pub fn registered_since(&self, earlier: &Self) -> Vec<Registration> {
        let new = |row: &&Registration| !row.is_evicted() && !earlier.registrations.contains(row);
        self.registrations.iter().filter(new).cloned().collect()
    }

    /// Whether Asterisk has not gone back to a state from before this listing. If so [`COMMITTED_WITHIN`] after the look, what it
    /// listed is on the disk.
    pub async fn holds(&self, control: &Control) -> Result<bool> {
        Ok(self.holds_in(&control.listing(&[LIST_MARKS], parse_marks).await?))
    }

    /// Whether Asterisk, when it had these marks, had not gone back to a state from before this listing.
    pub fn holds_in(&self, marks: &BTreeSet<String>) -> bool {
        ["before", "after"].iter().all(|when| marks.contains(&format!("{}/{when}", self.mark)))
    }
}

/// Removes the marks of all looks.
pub async fn forget_looks(control: &Control) -> Result<()> {
    control.ask(&["database deltree pbx-portal"]).await.map(drop)
}

impl Registration {
    /// Whether it is the row that [`evict`] leaves until Asterisk removes it.
    pub fn is_evicted(&self) -> bool {
        self.value == EVICTED
    }
}

/// `None` unless the listing is whole.
fn parse(text: &str) -> Option<Vec<Registration>> {
    // A phone's User-Agent is printed raw behind the key, so nothing but the anchored key is believed.
    static ROW: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^/registrar/contact/((1[0-9]{3});@[0-9a-f]{32}) *: (.*)$").expect("a regex"));

    let rows = rows(text, "/registrar/contact/")?;
    let registrations = rows.iter().filter_map(|row| ROW.captures(row)).filter_map(|row| {
        let value: serde_json::Value = serde_json::from_str(&row[3]).unwrap_or_default();
        let contact = value["uri"].as_str().unwrap_or("unknown").to_owned();
        let number = ExtensionNumber::parse(&row[2])?;
        Some(Registration { number, contact, key: row[1].to_owned(), value: row[3].to_owned() })
    });
    Some(registrations.collect())
}

/// The marks by name; `None` unless the listing is whole.
fn parse_marks(text: &str) -> Option<BTreeSet<String>> {
    let rows = rows(text, "/pbx-portal/")?;
    let name = |row: &str| Some(row.strip_prefix("/pbx-portal/")?.split_once(':')?.0.trim_end().to_owned());
    rows.into_iter().map(name).collect()
}

/// What the four commands of a look print; `None` unless all of it is there.
fn parse_look(text: &str) -> Option<(Vec<Registration>, BTreeSet<String>)> {
    let lines: Vec<_> = text.lines().collect();
    let mut parts = lines.split(|line| *line == PUT_DONE);
    let (_, registrations, marks) = (parts.next()?, parts.next()?, parts.next()?);
    Some((parse(&registrations.join("\n"))?, parse_marks(&marks.join("\n"))?))
}

/// The rows of `database show`; `None` unless there are as many as the last line says.
fn rows<'t>(text: &'t str, family: &str) -> Option<Vec<&'t str>> {
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with(family)).collect();
    let count: usize = text.lines().last()?.strip_suffix(" results found.")?.parse().ok()?;
    (rows.len() == count).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contact of alice claims, in its User-Agent, to be a row of 1002.
    const ROWS: &str = include_str!("../../tests/recordings/registrations.txt");

    #[test]
    fn only_our_own_keys_are_believed() {
        let registrations = parse(ROWS).expect("a whole listing");
        assert!(registrations.iter().map(|r| r.number.to_string()).eq(["1000", "1001"]), "{registrations:?}");
        for registration in registrations {
            let (number, key) = (registration.number.to_string(), registration.key);
            assert!(registration.contact.starts_with(&format!("sip:{number}@127.0.0.1:")), "{}", registration.contact);
            assert!(key.starts_with(&format!("{number};@")) && key.len() == 38, "{key}");
            assert!(registration.value.contains("expiration_time"), "{}", registration.value);
        }
        assert_eq!(parse(include_str!("../../tests/recordings/no-registrations.txt")), Some(Vec::new()));
    }

    #[test]
    fn a_truncated_listing_is_none() {
        for lost in ["1000", "1001", "alice", "3 results"] {
            let kept: Vec<_> =
                ROWS.lines().filter(|l| !l.trim_start_matches("/registrar/contact/").starts_with(lost)).collect();
            assert_eq!(parse(&kept.join("\n")), None, "{lost}");
        }
    }

    #[test]
    fn a_look_is_whole_or_none() {
        let marks = include_str!("../../tests/recordings/marks.txt").split_once('\n').expect("a command first").1;
        let look = [ROWS, marks].map(str::trim_end).join(&format!("\n{PUT_DONE}\n"));
        let look = format!("{PUT_DONE}\n{look}\n");
        let (registrations, marks) = parse_look(&look).expect("a whole look");
        let mark = "01234567-89ab-cdef-0123-456789abcdef";
        let expected = [format!("{mark}/after"), format!("{mark}/before"), "short".to_owned()];
        assert_eq!((registrations.len(), marks), (2, BTreeSet::from(expected)));
        // The first line of the recording is the command.
        for lost in (0..look.lines().count()).filter(|lost| *lost != 1) {
            let kept: Vec<_> = look.lines().enumerate().filter(|(index, _)| *index != lost).collect();
            let kept: Vec<_> = kept.into_iter().map(|(_, line)| line).collect();
            assert!(parse_look(&kept.join("\n")).is_none(), "without line {lost}");
        }
    }
}
