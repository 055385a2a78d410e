//! What Asterisk serves, asked over its control socket: the objects of the numbers 1000 to 1999, their values, the
//! dialplan, and the modules that all of it needs.
//!
//! - A listing counts only if it has as many rows as its trailer says ([`Control::listing`]).
//! - Values are compared by digest, some ten with one command, so no secret is ever printed: Asterisk computes
//!   `MD5(${AST_SORCERY(…)}:${AST_SORCERY(…)}:…)` with each expression expanded once. Of a batch that differs, each number
//!   is asked about. An object that isn't there gives a blank inside the digest, so only listed ones are asked about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::LazyLock;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use md5::{Digest as _, Md5};
use regex::Regex;
use tokio::try_join;

use super::CONTEXT;
use super::control::{Control, ControlError, MAX_COMMAND_BYTES};
use crate::domain::ExtensionNumber;

/// How many questions are under way at once: Asterisk answers each on a thread of its own.
const AT_A_TIME: usize = 2;

/// What `dialplan eval function` expands into: 1,024 bytes with the terminator.
const MAX_EXPANDED_BYTES: usize = 1000;

/// Without any of these a phone of ours can't register or be called, or an apply can't be proven.
const MODULES: [&str; 16] = [
    "app_dial.so",
    "chan_pjsip.so",
    "func_logic.so",
    "func_md5.so",
    "func_sorcery.so",
    "pbx_config.so",
    "res_pjsip.so",
    "res_pjsip_authenticator_digest.so",
    "res_pjsip_endpoint_identifier_user.so",
    "res_pjsip_nat.so",
    "res_pjsip_registrar.so",
    "res_pjsip_sdp_rtp.so",
    "res_pjsip_session.so",
    "res_rtp_asterisk.so",
    "res_sorcery_astdb.so",
    "res_sorcery_config.so",
];

/// The objects of the pool's numbers that Asterisk serves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// With each, whether its auth and its AOR are those of its own name.
    pub endpoints: BTreeMap<ExtensionNumber, Links>,
    /// `type=auth`.
    pub auths: BTreeSet<ExtensionNumber>,
    /// `type=aor`.
    pub aors: BTreeSet<ExtensionNumber>,
}

/// Whether an endpoint uses the auth and the AOR of its own name.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Links {
    /// Its `InAuth:` line.
    pub auth: bool,
    /// Its `Aor:` line.
    pub aor: bool,
}

/// Priority 1 of an extension.
#[derive(Debug, PartialEq, Eq)]
pub struct FirstPriority {
    /// `Dial(PJSIP/1000,25)`.
    pub application: String,
    /// `file:line` (the file's base name), or the registrar where it came from no file.
    pub source: String,
}

/// A value that is compared by digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The password of an auth.
    Secret,
    /// The caller ID of an endpoint.
    CallerId,
}

impl Value {
    fn expression(self, number: ExtensionNumber) -> String {
        let (object, option) = match self {
            Self::Secret => ("auth", "password"),
            Self::CallerId => ("endpoint", "callerid"),
        };
        format!("${{AST_SORCERY(res_pjsip,{object},{number},{option})}}")
    }
}

/// Waits until Asterisk is fully booted: it answers before its modules are loaded.
///
/// # Errors
/// [`ControlError`]; `Hung` if it is not within the bound of a command.
pub async fn wait_fully_booted(control: &Control) -> Result<(), ControlError> {
    let command = "core waitfullybooted";
    let answer = control.ask(command).await?;
    if answer.contains("fully booted") { Ok(()) } else { Err(ControlError::unexpected(command, &answer)) }
}

/// The folder that Asterisk reads its configuration from.
///
/// # Errors
/// [`ControlError`].
pub async fn config_dir(control: &Control) -> Result<PathBuf, ControlError> {
    let parse = |text: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Configuration directory:"))
            .map(|path| path.trim().into())
    };
    control.listing("core show settings", parse).await
}

/// The needed modules that are not running.
///
/// # Errors
/// [`ControlError`].
pub async fn missing_modules(control: &Control) -> Result<Vec<&'static str>, ControlError> {
    let running = control.listing("module show", parse_modules).await?;
    Ok(MODULES.into_iter().filter(|module| !running.contains(*module)).collect())
}

/// The objects of our numbers: three listings.
///
/// # Errors
/// [`ControlError`].
pub async fn objects(control: &Control) -> Result<Objects, ControlError> {
    let (endpoints, auths, aors) =
        try_join!(control.listing("pjsip show endpoints", parse_endpoints), auths(control), aors(control))?;
    Ok(Objects { endpoints, auths, aors })
}

/// The auths of our numbers.
///
/// # Errors
/// [`ControlError`].
pub async fn auths(control: &Control) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    control.listing("pjsip show auths", |text| parse_names(text, "     Auth:  ")).await
}

/// The AORs of our numbers. Asking makes Asterisk drop contacts that have expired.
///
/// # Errors
/// [`ControlError`].
pub async fn aors(control: &Control) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    control.listing("pjsip show aors", |text| parse_names(text, "      Aor:  ")).await
}

/// Whether there is a transport: without one, no phone can reach Asterisk.
///
/// # Errors
/// [`ControlError`].
pub async fn has_transport(control: &Control) -> Result<bool, ControlError> {
    control.listing("pjsip show transports", parse_transports).await
}

/// Priority 1 of each of our numbers in the dialplan; `None` if the context is not in force.
///
/// # Errors
/// [`ControlError`].
pub async fn dialplan(control: &Control) -> Result<Option<BTreeMap<ExtensionNumber, FirstPriority>>, ControlError> {
    let absent = |text: &str| text.contains("There is no existence of").then_some(None);
    control
        .listing(&format!("dialplan show {CONTEXT}"), |text| absent(text).or_else(|| parse_dialplan(text).map(Some)))
        .await
}

/// Which of `expected` have another value in force. Only objects that are listed may be asked about.
///
/// # Errors
/// [`ControlError`]: a value that could not be read is not a value that differs.
pub async fn differing(
    control: &Control,
    value: Value,
    expected: &BTreeMap<ExtensionNumber, String>,
) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    let expected: Vec<_> = expected.iter().map(|(number, text)| (*number, text.as_str())).collect();
    let whole = batches(value, &expected);
    let differing = batches_that_differ(control, value, whole).await?;
    let single = differing.iter().flat_map(|batch| batch.chunks(1)).collect();
    let differing = batches_that_differ(control, value, single).await?;
    Ok(differing.into_iter().flatten().map(|(number, _)| *number).collect())
}

/// Asks about several batches at a time.
async fn batches_that_differ<'a, 'b>(
    control: &Control,
    value: Value,
    batches: Vec<&'a [(ExtensionNumber, &'b str)]>,
) -> Result<Vec<&'a [(ExtensionNumber, &'b str)]>, ControlError> {
    stream::iter(batches)
        .map(|batch| async move { Ok((batch, in_force(control, value, batch).await?)) })
        .buffer_unordered(AT_A_TIME)
        .try_filter_map(|(batch, equal)| async move { Ok((!equal).then_some(batch)) })
        .try_collect()
        .await
}

/// As many values at a time as fit Asterisk's buffers.
fn batches<'a, 'b>(value: Value, expected: &'a [(ExtensionNumber, &'b str)]) -> Vec<&'a [(ExtensionNumber, &'b str)]> {
    let mut batches = Vec::new();
    let (mut start, mut command, mut expanded) = (0, digest_command("").len(), 0);
    for (index, (number, text)) in expected.iter().enumerate() {
        let (more_command, more_expanded) = (value.expression(*number).len() + 1, text.len() + 1);
        if command + more_command > MAX_COMMAND_BYTES || expanded + more_expanded > MAX_EXPANDED_BYTES {
            batches.push(&expected[start..index]);
            (start, command, expanded) = (index, digest_command("").len(), 0);
        }
        command += more_command;
        expanded += more_expanded;
    }
    batches.push(&expected[start..]);
    batches.retain(|batch| !batch.is_empty());
    batches
}

async fn in_force(control: &Control, value: Value, batch: &[(ExtensionNumber, &str)]) -> Result<bool, ControlError> {
    let expressions: Vec<_> = batch.iter().map(|(number, _)| value.expression(*number)).collect();
    let texts: Vec<_> = batch.iter().map(|(_, text)| *text).collect();
    let expected = hexadecimal(&Md5::digest(texts.join(":")));
    let command = digest_command(&expressions.join(":"));
    let answer = control.ask(&command).await?;
    match parse_result(&answer) {
        Some(digest) if digest.len() == expected.len() => Ok(digest == expected),
        _ => Err(ControlError::unexpected(&command, &answer)),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn digest_command(expressions: &str) -> String {
    format!("dialplan eval function MD5({expressions})")
}

/// What `dialplan eval function` gives; `None` for a failure.
fn parse_result(text: &str) -> Option<&str> {
    let result = text.strip_prefix("Return Value: Success (0)\nResult: ")?;
    Some(result.trim_end_matches('\n'))
}

fn parse_modules(text: &str) -> Option<BTreeSet<String>> {
    let rows: Vec<_> = text.lines().skip(1).filter(|line| !line.trim().is_empty()).collect();
    let (trailer, rows) = rows.split_last()?;
    let count: usize = trailer.strip_suffix(" modules loaded")?.parse().ok()?;
    let running = rows.iter().filter(|row| row.contains(" Running ") && !row.contains(" Not Running "));
    (rows.len() == count).then(|| running.filter_map(|row| row.split_whitespace().next()).map(str::to_owned).collect())
}

/// `None` unless as many rows were seen as the trailer of a `pjsip show …` listing says.
fn whole(text: &str, rows: usize) -> Option<()> {
    let count = match text.lines().rev().find_map(|line| line.strip_prefix("Objects found: ")) {
        Some(count) => count.trim().parse().ok()?,
        None if text.contains("No objects found.") => 0,
        None => return None,
    };
    (rows == count).then_some(())
}

/// Our number in a column that shows `NNNN` or `NNNN/NNNN`; longer names are cut by Asterisk and are never ours.
fn own_number(column: &str) -> Option<ExtensionNumber> {
    let name = column.split_whitespace().next()?;
    match name.split_once('/') {
        None => ExtensionNumber::parse(name),
        Some((number, same)) => ExtensionNumber::parse(number).filter(|_| number == same),
    }
}

fn parse_endpoints(text: &str) -> Option<BTreeMap<ExtensionNumber, Links>> {
    let mut endpoints = BTreeMap::new();
    let (mut rows, mut current) = (0, None);
    // The header explains each kind of row with one of `<…>`.
    for line in text.lines().filter(|line| !line.contains("  <")) {
        if let Some(column) = line.strip_prefix(" Endpoint:  ") {
            rows += 1;
            current = own_number(column);
            endpoints.extend(current.map(|number| (number, Links::default())));
        } else if let Some(links) = current.and_then(|number| endpoints.get_mut(&number)) {
            if let Some(column) = line.strip_prefix("     InAuth:  ") {
                links.auth = own_number(column) == current;
            } else if let Some(column) = line.strip_prefix("        Aor:  ") {
                links.aor = own_number(column) == current;
            }
        }
    }
    whole(text, rows)?;
    Some(endpoints)
}

fn parse_names(text: &str, label: &str) -> Option<BTreeSet<ExtensionNumber>> {
    let columns: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix(label)).filter(|c| !c.starts_with('<')).collect();
    whole(text, columns.len())?;
    Some(columns.into_iter().filter_map(own_number).collect())
}

fn parse_transports(text: &str) -> Option<bool> {
    let rows = text.lines().filter(|line| line.starts_with("Transport:  ") && !line.contains("  <")).count();
    whole(text, rows).map(|()| rows > 0)
}

fn parse_dialplan(text: &str) -> Option<BTreeMap<ExtensionNumber, FirstPriority>> {
    static HEAD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^  '(.*?)'( \(CID match '.*'\))? => +(.*)$").expect("a regex"));
    static ROW: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^ *(?:\[[^]]*\] +)?(?:(hint): |(\d+)\. )(.*\S) +\[([^]]*)\]$").expect("a regex"));
    static TRAILER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^-= \d+ extensions? \((\d+) priorit(?:y|ies)\) in 1 context\. =-$").expect("a regex")
    });

    let count: usize = TRAILER.captures(text)?[1].parse().ok()?;
    let mut first_priorities = BTreeMap::new();
    let (mut rows, mut current) = (0, None);
    for line in text.lines() {
        let rest = match HEAD.captures(line) {
            Some(head) => {
                current = ExtensionNumber::parse(&head[1]).filter(|_| head.get(2).is_none());
                head.get(3).map_or("", |rest| rest.as_str())
            }
            None => line,
        };
        let Some(row) = ROW.captures(rest) else { continue };
        rows += 1;
        if let (Some(number), Some("1")) = (current, row.get(2).map(|priority| priority.as_str())) {
            let first = FirstPriority { application: row[3].to_owned(), source: row[4].to_owned() };
            first_priorities.insert(number, first);
        }
    }
    (rows == count).then_some(first_priorities)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: i64) -> ExtensionNumber {
        ExtensionNumber::try_from(number).expect("a number")
    }

    fn numbers(numbers: &[i64]) -> BTreeSet<ExtensionNumber> {
        numbers.iter().copied().map(number).collect()
    }

    /// What a command printed, as `tests/suite/recordings.rs` recorded it.
    macro_rules! recorded {
        ($name:literal) => {
            include_str!(concat!("../../tests/recordings/", $name, ".txt")).split_once('\n').expect("a command first").1
        };
    }

    const AUTH: &str = "     Auth:  ";
    const AOR: &str = "      Aor:  ";

    #[test]
    fn endpoints_with_their_own_auth_and_aor() {
        let endpoints = parse_endpoints(recorded!("endpoints")).expect("a whole listing");
        assert!(endpoints.keys().copied().eq(numbers(&[1000, 1001])), "{endpoints:?}");
        assert!(endpoints.values().all(|links| links.auth && links.aor), "{endpoints:?}");
        let foreign = recorded!("endpoints").replace("InAuth:  1000/1000", "InAuth:  alice/bob");
        let links = parse_endpoints(&foreign).expect("a whole listing")[&number(1000)];
        assert_eq!((links.auth, links.aor), (false, true));
        let lost = recorded!("endpoints").replace("     InAuth:  1000/1000\n", "");
        assert!(!parse_endpoints(&lost).expect("endpoints")[&number(1000)].auth, "a lost line proves nothing");
        assert_eq!(parse_endpoints(recorded!("no-endpoints")), Some(BTreeMap::new()));
    }

    #[test]
    fn auths_aors_and_transports() {
        assert_eq!(parse_names(recorded!("auths"), AUTH), Some(numbers(&[1000, 1001])));
        assert_eq!(parse_names(recorded!("aors"), AOR), Some(numbers(&[1000, 1001])));
        assert_eq!(parse_transports(recorded!("transports")), Some(true));
        assert_eq!(parse_transports(recorded!("no-endpoints")), Some(false));
    }

    #[test]
    fn first_priorities_are_ours_or_named() {
        let dialplan = parse_dialplan(recorded!("dialplan")).expect("a whole listing");
        assert!(dialplan.keys().copied().eq(numbers(&[1000, 1001, 1600])), "{dialplan:?}");
        let first = &dialplan[&number(1000)];
        assert_eq!(
            (first.application.as_str(), first.source.as_str()),
            ("Dial(PJSIP/1000,25)", "generated_routing.conf:5")
        );
        assert_eq!(dialplan[&number(1600)].source, "pbx_config", "typed by an administrator");
        assert_eq!(parse_dialplan(recorded!("empty-context")), Some(BTreeMap::new()));
        assert_eq!(parse_dialplan(recorded!("no-context")), None);
    }

    #[test]
    fn results_and_modules() {
        let digest = parse_result(recorded!("digest")).expect("a result");
        assert_eq!(digest, hexadecimal(&Md5::digest("\"Alice\" <1000>")));
        assert_eq!(parse_result(recorded!("no-value")), None);
        let running = parse_modules(recorded!("modules")).expect("a whole listing");
        assert!(running.contains("func_md5.so"), "{running:?}");
        assert_eq!(parse_modules(recorded!("a-module-that-does-not-run")), Some(BTreeSet::new()));
    }

    proptest::proptest! {
        /// A listing that lost lines is not taken for another: it is none, or says the same.
        #[test]
        fn no_lost_line_goes_unnoticed(lost in proptest::collection::btree_set(0_usize..40, 1..6)) {
            let without = |text: &str| {
                let kept = text.lines().enumerate().filter(|(index, _)| !lost.contains(index));
                kept.flat_map(|(_, line)| [line, "\n"]).collect::<String>()
            };
            macro_rules! same_or_none {
                ($parse:expr, $name:literal) => {
                    let parsed = $parse(&without(recorded!($name)));
                    proptest::prop_assert!(parsed.is_none() || parsed == $parse(recorded!($name)), "{}: {:?}", $name, parsed);
                };
            }
            // The lines below an endpoint are not counted: without one, the proof fails and is never given for nothing.
            let heads = |text: &str| parse_endpoints(text).map(|endpoints| endpoints.into_keys().collect::<Vec<_>>());
            same_or_none!(heads, "endpoints");
            same_or_none!(|text: &str| parse_names(text, AUTH), "auths");
            same_or_none!(|text: &str| parse_names(text, AOR), "aors");
            same_or_none!(parse_transports, "transports");
            same_or_none!(parse_dialplan, "dialplan");
            same_or_none!(parse_modules, "modules");
        }
    }

    #[test]
    fn a_batch_fits_the_buffers_of_asterisk() {
        let long = "x".repeat(90);
        let expected: Vec<_> =
            numbers(&(1000..2000).collect::<Vec<_>>()).into_iter().map(|number| (number, long.as_str())).collect();
        for value in [Value::Secret, Value::CallerId] {
            let batches = batches(value, &expected);
            assert_eq!(batches.concat(), expected);
            assert!(batches.len() <= 125, "at least eight at a time");
            for batch in batches {
                let expressions: Vec<_> = batch.iter().map(|(number, _)| value.expression(*number)).collect();
                assert!(
                    digest_command(&expressions.join(":")).len() <= MAX_COMMAND_BYTES
                        && batch.len() * 91 <= MAX_EXPANDED_BYTES
                );
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_asterisk_prints_makes_it_panic(text in "([ '=>\\[\\]()./0-9a-zA-Z:-]{0,60}\n){0,8}") {
            let _ = (parse_endpoints(&text), parse_names(&text, "     Auth:  "), parse_dialplan(&text), parse_modules(&text), parse_result(&text));
        }
    }
}
