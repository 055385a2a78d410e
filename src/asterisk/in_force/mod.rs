//! What Asterisk serves, asked over its control socket: the objects of the numbers 1000 to 1999, their values, the
//! dialplan, and the modules that all of it needs.
//!
//! - A listing counts only if it has as many rows as its trailer says ([`Control::listing`]). [`dialplan_of`] and [`endpoints_of`] have
//!   none, and are believed only where they show what was looked for. Lines below an endpoint are not counted.
//! - A secret is what `pjsip show auth` says, half of a thousand on each of two connections; only who may rule Asterisk can read it
//!   there. It goes nowhere else: no error tells such an answer.
//! - Caller IDs are compared by digest, a dozen with one command: `MD5(=${PJSIP_ENDPOINT(…)}:${PJSIP_ENDPOINT(…)}:…)` with
//!   each expression expanded once; of a dozen that differs, each is asked about. An object that isn't there gives a blank
//!   inside the digest, which is of nothing at all without the `=`, and fails. There are few such questions, because Asterisk
//!   keeps a kilobyte for good for each function that it is asked to evaluate (a topic `devicestate:all/CLIEval/…`, seen on
//!   22.10), and all of them make its listings slower.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use md5::{Digest as _, Md5};
use tokio::try_join;

use super::control::{Control, ControlError, MAX_COMMAND_BYTES};
use crate::domain::{ExtensionNumber, User};
use crate::render::CONTEXT;

/// What `dialplan eval function` expands into: 1,024 bytes with the terminator.
const MAX_EXPANDED_BYTES: usize = 1000;

/// Without any of these a phone of ours can't register or be called, or an apply can't be proven.
const MODULES: [&str; 16] = [
    "app_dial.so",
    "chan_pjsip.so",
    "func_logic.so",
    "func_md5.so",
    "func_pjsip_endpoint.so",
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

/// The objects of the pool's numbers that Asterisk serves; of auths and AORs only those beside the expected numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// With each, what belongs to it.
    pub endpoints: BTreeMap<ExtensionNumber, Links>,
    /// `type=auth` of other numbers than the expected ones.
    pub other_auths: BTreeSet<ExtensionNumber>,
    /// `type=aor` of other numbers than the expected ones.
    pub other_aors: BTreeSet<ExtensionNumber>,
}

/// What belongs to an endpoint.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Links {
    /// The auth of its own name and no other, by its `InAuth:` lines, which are there only if the auths are.
    pub auth: bool,
    /// The AOR of its own name and no other, by its `Aor:` lines, which are there only if the AORs are.
    pub aor: bool,
    /// Whether it could be called: a contact of any of its AORs, registered or permanent.
    pub contact: bool,
}

/// Priority 1 of an extension.
#[derive(Debug, PartialEq, Eq)]
pub struct FirstPriority {
    /// `Dial(PJSIP/1000,25)`.
    pub application: String,
    /// `file:line` (the file's base name), or the registrar where it came from no file.
    pub source: String,
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

/// The objects of our numbers: a listing of the endpoints, which shows their auths and AORs too, and what there is of auths and
/// AORs beside the `expected` numbers.
///
/// # Errors
/// [`ControlError`].
pub async fn objects(control: &Control, expected: &BTreeSet<ExtensionNumber>) -> Result<Objects, ControlError> {
    let (auths, aors) = (list_beside("auths", expected), list_beside("aors", expected));
    let (endpoints, mut other_auths, mut other_aors) = try_join!(
        endpoints(control),
        control.listing(&auths, |text| parse_names(text, "     Auth:  ", auth_number)),
        control.listing(&aors, |text| parse_names(text, "      Aor:  ", own_number))
    )?;
    other_auths.retain(|number| !expected.contains(number));
    other_aors.retain(|number| !expected.contains(number));
    Ok(Objects { endpoints, other_auths, other_aors })
}

/// The endpoints of our numbers, by a listing of all.
///
/// # Errors
/// [`ControlError`].
pub async fn endpoints(control: &Control) -> Result<BTreeMap<ExtensionNumber, Links>, ControlError> {
    control.listing("pjsip show endpoints", parse_endpoints).await
}

/// The same of a few numbers, not checked for lost lines: one that is missing may be there.
///
/// # Errors
/// [`ControlError`].
pub async fn endpoints_of(
    control: &Control,
    numbers: &BTreeSet<ExtensionNumber>,
) -> Result<BTreeMap<ExtensionNumber, Links>, ControlError> {
    let commands: Vec<_> = numbers.iter().map(|number| format!("pjsip show endpoint {number}")).collect();
    Ok(parse_links(&control.ask_all(&commands).await?).1)
}

/// Asks for everything beside the `expected` numbers, as far as a command has room to say so: Asterisk lists a thousand much
/// slower than it passes over them.
fn list_beside(what: &str, expected: &BTreeSet<ExtensionNumber>) -> String {
    let all = format!("pjsip list {what}");
    let beside = format!("{all} like ^({})$", patterns_beside("1", expected).join("|"));
    if beside.len() <= MAX_COMMAND_BYTES { beside } else { all }
}

/// Patterns of the pool's numbers that begin with some digits and are not `expected`, as few as there can be.
fn patterns_beside(digits: &str, expected: &BTreeSet<ExtensionNumber>) -> Vec<String> {
    let rest = 4 - digits.len();
    let number = |digit: &str| ExtensionNumber::parse(&format!("{digits}{}", digit.repeat(rest)));
    let (Some(first), Some(last)) = (number("0"), number("9")) else { return Vec::new() };
    match expected.range(first..=last).count() {
        0 => vec![format!("{digits}{}", ".".repeat(rest))],
        count if count == 10_usize.pow(u32::try_from(rest).expect("a few")) => Vec::new(),
        _ => (0..10).flat_map(|digit| patterns_beside(&format!("{digits}{digit}"), expected)).collect(),
    }
}

/// The AORs of our numbers, asked for in the way that makes Asterisk drop contacts that have expired.
///
/// # Errors
/// [`ControlError`].
pub async fn aors(control: &Control) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    control.listing("pjsip show aors", |text| parse_names(text, "      Aor:  ", own_number)).await
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

/// The same of a few numbers, not checked for lost lines: one that is missing may be there, and one that is shown may come from a
/// context that ours includes. Only the whole listing tells.
///
/// # Errors
/// [`ControlError`].
pub async fn dialplan_of(
    control: &Control,
    numbers: &BTreeSet<ExtensionNumber>,
) -> Result<BTreeMap<ExtensionNumber, FirstPriority>, ControlError> {
    let commands: Vec<_> = numbers.iter().map(|number| format!("dialplan show {number}@{CONTEXT}")).collect();
    Ok(parse_priorities(&control.ask_all(&commands).await?).1)
}

/// The secrets in force of `numbers`; one that has no auth has none.
///
/// # Errors
/// [`ControlError`], which tells no secret.
pub async fn secrets(
    control: &Control,
    numbers: impl IntoIterator<Item = ExtensionNumber>,
) -> Result<BTreeMap<ExtensionNumber, String>, ControlError> {
    let numbers: Vec<_> = numbers.into_iter().collect();
    let ask = async |numbers: &[ExtensionNumber]| {
        let commands: Vec<_> = numbers.iter().map(|number| format!("pjsip show auth {number}")).collect();
        control.listings(&commands, |text| parse_secrets(text, numbers)).await.map_err(ControlError::without_secrets)
    };
    by_halves(&numbers, ask).await
}

/// Asks about each half on a connection of its own: Asterisk answers each connection by a thread, and answers both at once where it
/// has two processors.
async fn by_halves<T, R: IntoIterator + Extend<R::Item>>(
    all: &[T],
    ask: impl AsyncFn(&[T]) -> Result<R, ControlError>,
) -> Result<R, ControlError> {
    let (first, second) = all.split_at(all.len() / 2);
    let (mut answers, others) = try_join!(ask(first), ask(second))?;
    answers.extend(others);
    Ok(answers)
}

/// The numbers of `users` whose secret is another than the one in force, or has none there.
#[must_use]
pub fn other_secrets<'u>(
    users: impl IntoIterator<Item = &'u User>,
    in_force: &BTreeMap<ExtensionNumber, String>,
) -> BTreeSet<ExtensionNumber> {
    let differs =
        |user: &&User| in_force.get(&user.extension.number).is_none_or(|own| own != user.extension.secret.reveal());
    users.into_iter().filter(differs).map(|user| user.extension.number).collect()
}

/// Which of `expected` have another caller ID in force, or none.
///
/// # Errors
/// [`ControlError`]: a value that could not be read is not a value that differs.
pub async fn other_caller_ids(
    control: &Control,
    expected: &BTreeMap<ExtensionNumber, String>,
) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    let expected: Vec<_> = expected.iter().map(|(number, text)| (*number, text.as_str())).collect();
    let differing = digests_that_differ(control, batches(&expected)).await?;
    let single: Vec<_> = differing.iter().flat_map(|(batch, _)| batch.chunks(1)).collect();
    let differing = digests_that_differ(control, single).await?;
    if let Some((unread, _)) = differing.iter().find(|(_, digest)| *digest == digest_of_texts("")) {
        return Err(ControlError::unexpected(&digest_command(unread), "no caller ID was read"));
    }
    Ok(differing.into_iter().flat_map(|(batch, _)| batch).map(|(number, _)| *number).collect())
}

/// Caller IDs that are compared by one digest.
type Batch<'a> = &'a [(ExtensionNumber, &'a str)];

async fn digests_that_differ<'a>(
    control: &Control,
    batches: Vec<Batch<'a>>,
) -> Result<Vec<(Batch<'a>, String)>, ControlError> {
    let ask = async |batches: &[Batch]| {
        let commands: Vec<_> = batches.iter().map(|batch| digest_command(batch)).collect();
        control.listings(&commands, |text| parse_digests(text, batches.len())).await
    };
    let digests = by_halves(&batches, ask).await?;
    Ok(batches.into_iter().zip(digests).filter(|(batch, digest)| *digest != digest_of(batch)).collect())
}

/// As many at a time as fit Asterisk's buffers.
fn batches<'a>(expected: &'a [(ExtensionNumber, &'a str)]) -> Vec<Batch<'a>> {
    let mut batches = Vec::new();
    let (mut start, mut command, mut expanded) = (0, digest_command(&[]).len(), 0);
    for (index, (number, text)) in expected.iter().enumerate() {
        let (more_command, more_expanded) = (expression(*number).len() + 1, text.len() + 1);
        if command + more_command > MAX_COMMAND_BYTES || expanded + more_expanded > MAX_EXPANDED_BYTES {
            batches.push(&expected[start..index]);
            (start, command, expanded) = (index, digest_command(&[]).len(), 0);
        }
        command += more_command;
        expanded += more_expanded;
    }
    batches.push(&expected[start..]);
    batches.retain(|batch| !batch.is_empty());
    batches
}

fn expression(number: ExtensionNumber) -> String {
    format!("${{PJSIP_ENDPOINT({number},callerid)}}")
}

fn digest_command(batch: Batch) -> String {
    let expressions: Vec<_> = batch.iter().map(|(number, _)| expression(*number)).collect();
    format!("dialplan eval function MD5(={})", expressions.join(":"))
}

fn digest_of(batch: Batch) -> String {
    let texts: Vec<_> = batch.iter().map(|(_, text)| *text).collect();
    digest_of_texts(&texts.join(":"))
}

fn digest_of_texts(joined: &str) -> String {
    hexadecimal(&Md5::digest(format!("={joined}")))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// What commands of [`digest_command`] give; `None` unless all of it is there.
fn parse_digests(text: &str, count: usize) -> Option<Vec<String>> {
    let mut digests = Vec::with_capacity(count);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let digest = lines.next().filter(|_| line == "Return Value: Success (0)")?.strip_prefix("Result: ")?;
        if digest.len() != 32 {
            return None;
        }
        digests.push(digest.to_owned());
    }
    (digests.len() == count).then_some(digests)
}

/// The lines of a long listing: twice as fast as [`str::lines`], which looks for a carriage return that Asterisk never sends.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
}

/// What `pjsip show auth` gives for each of `numbers`; `None` unless all of it is there.
fn parse_secrets(text: &str, numbers: &[ExtensionNumber]) -> Option<BTreeMap<ExtensionNumber, String>> {
    let mut secrets = BTreeMap::new();
    let mut lines = lines(text);
    for number in numbers {
        let absent = format!("Unable to find object {number}.");
        let head = format!("     Auth:  {number}/");
        if lines.find(|line| *line == absent || line.starts_with(&head))? != absent {
            let secret = lines.find(|line| line.starts_with(" password "))?.split_once(" : ")?.1;
            // The last line: without it, the next head may be missed.
            lines.find(|line| line.starts_with(" username "))?;
            secrets.insert(*number, secret.to_owned());
        }
    }
    Some(secrets)
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
    let (rows, endpoints) = parse_links(text);
    whole(text, rows)?;
    Some(endpoints)
}

/// How many endpoints there are, and what belongs to each of ours.
fn parse_links(text: &str) -> (usize, BTreeMap<ExtensionNumber, Links>) {
    let mut endpoints = BTreeMap::new();
    let (mut rows, mut current) = (0, None);
    let (mut auths, mut aors) = (0, 0);
    // The header explains each kind of row with one of `<…>`.
    for line in lines(text).filter(|line| !line.contains("  <")) {
        if let Some(column) = line.strip_prefix(" Endpoint:  ") {
            rows += 1;
            current = own_number(column);
            (auths, aors) = (0, 0);
            endpoints.extend(current.map(|number| (number, Links::default())));
        } else if let Some(links) = current.and_then(|number| endpoints.get_mut(&number)) {
            if let Some(column) = line.strip_prefix("     InAuth:  ") {
                auths += 1;
                links.auth = auths == 1 && own_number(column) == current;
            } else if let Some(column) = line.strip_prefix("        Aor:  ") {
                aors += 1;
                links.aor = aors == 1 && own_number(column) == current;
            } else if line.starts_with("      Contact:  ") {
                links.contact = true;
            }
        }
    }
    (rows, endpoints)
}

/// Our number in a column that shows an auth's name and its user's, whoever that is.
fn auth_number(column: &str) -> Option<ExtensionNumber> {
    ExtensionNumber::parse(column.split(['/', ' ']).next()?)
}

fn parse_names(
    text: &str,
    label: &str,
    number: impl Fn(&str) -> Option<ExtensionNumber>,
) -> Option<BTreeSet<ExtensionNumber>> {
    let columns: Vec<_> =
        lines(text).filter_map(|line| line.strip_prefix(label)).filter(|c| !c.starts_with('<')).collect();
    whole(text, columns.len())?;
    Some(columns.into_iter().filter_map(number).collect())
}

fn parse_transports(text: &str) -> Option<bool> {
    let rows = text.lines().filter(|line| line.starts_with("Transport:  ") && !line.contains("  <")).count();
    whole(text, rows).map(|()| rows > 0)
}

fn parse_dialplan(text: &str) -> Option<BTreeMap<ExtensionNumber, FirstPriority>> {
    let count: usize = text.lines().rev().find_map(trailer)?.parse().ok()?;
    let (rows, first_priorities) = parse_priorities(text);
    (rows == count).then_some(first_priorities)
}

/// How many priorities there are, and the first of each of our numbers.
fn parse_priorities(text: &str) -> (usize, BTreeMap<ExtensionNumber, FirstPriority>) {
    let mut first_priorities = BTreeMap::new();
    let (mut rows, mut current) = (0, None);
    for line in lines(text) {
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
    (rows, first_priorities)
}

/// How many priorities there are: `-= 2 extensions (4 priorities) in 1 context. =-`.
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
    use regex::Regex;

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
            include_str!(concat!("../../../tests/recordings/", $name, ".txt"))
                .split_once('\n')
                .expect("a command first")
                .1
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
        assert_eq!((links.auth, links.aor, links.contact), (false, true, true));
        for (own, second) in
            [("     InAuth:  1000/1000", "     InAuth:  alice/bob"), ("        Aor:  1000 ", "        Aor:  alice ")]
        {
            for both in [[own, second], [second, own]] {
                let links = parse_endpoints(&recorded!("endpoints").replace(own, &both.join("\n")));
                let links = links.expect("a whole listing")[&number(1000)];
                assert!(links.auth != links.aor, "{both:?}: {links:?}");
            }
        }
        let all = Links { auth: true, aor: true, contact: true };
        assert_eq!(parse_links(recorded!("endpoint")), (1, BTreeMap::from([(number(1000), all)])));
        let unregistered = recorded!("endpoints").replace("      Contact:  1000/", "");
        assert!(!parse_endpoints(&unregistered).expect("a whole listing")[&number(1000)].contact);
        let lost = recorded!("endpoints").replace("     InAuth:  1000/1000\n", "");
        assert!(!parse_endpoints(&lost).expect("endpoints")[&number(1000)].auth, "a lost line proves nothing");
        assert_eq!(parse_endpoints(recorded!("no-endpoints")), Some(BTreeMap::new()));
    }

    #[test]
    fn auths_aors_and_transports() {
        let others = recorded!("auths").replace("alice/bob", "1900/bob");
        assert_eq!(parse_names(&others, AUTH, auth_number), Some(numbers(&[1000, 1001, 1900])), "whoever its user is");
        assert_eq!(parse_names(recorded!("auths"), AUTH, auth_number), Some(numbers(&[1000, 1001])));
        assert_eq!(parse_names(recorded!("aors"), AOR, own_number), Some(numbers(&[1000, 1001])));
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
        let expected = ["=\"Alice\" <1000>:\"Bob\" <1001>"].map(|text| hexadecimal(&Md5::digest(text)));
        assert_eq!(parse_digests(recorded!("digest"), 1).expect("a result"), expected);
        assert_eq!(parse_digests(recorded!("no-value"), 1), None);
        assert_eq!(parse_digests(recorded!("digest"), 2), None);
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
            same_or_none!(|text: &str| parse_names(text, AUTH, auth_number), "auths");
            same_or_none!(|text: &str| parse_names(text, AOR, own_number), "aors");
            same_or_none!(parse_transports, "transports");
            same_or_none!(parse_dialplan, "dialplan");
            same_or_none!(parse_modules, "modules");
            same_or_none!(|text: &str| parse_digests(text, 1), "digest");
            same_or_none!(|text: &str| parse_secrets(text, &[number(1000)]), "auth");
        }
    }

    #[test]
    fn secrets_of_those_that_have_one() {
        let three = [1000, 1001, 1999].map(number);
        let text = [recorded!("auth"), &recorded!("auth").replace("1000", "1001"), recorded!("no-auth")].concat();
        let secrets = parse_secrets(&text, &three).expect("whole");
        assert!(secrets.keys().copied().eq(numbers(&[1000, 1001])), "{secrets:?}");
        assert!(secrets.values().all(|secret| secret == "SECRET"), "{secrets:?}");
        for lost in ["     Auth:  1001", " password  ", " username", "Unable"] {
            let kept = text.lines().filter(|line| !line.starts_with(lost)).collect::<Vec<_>>().join("\n");
            assert_eq!(parse_secrets(&kept, &three), None, "{lost}");
        }
    }

    #[test]
    fn what_is_beside_some_numbers_is_asked_for_briefly() {
        let all = numbers(&(1000..2000).collect::<Vec<_>>());
        assert_eq!(list_beside("auths", &BTreeSet::new()), "pjsip list auths like ^(1...)$");
        assert_eq!(list_beside("auths", &all), "pjsip list auths like ^()$");
        let some = numbers(&(1000..1980).filter(|number| *number != 1234).collect::<Vec<_>>());
        assert_eq!(list_beside("aors", &some), "pjsip list aors like ^(1234|198.|199.)$");
        let odd = numbers(&(1000..2000).filter(|number| number % 2 == 1).collect::<Vec<_>>());
        assert_eq!(list_beside("aors", &odd), "pjsip list aors", "there is no room to say it");
    }

    #[test]
    fn a_batch_fits_the_buffers_of_asterisk() {
        let long = "x".repeat(88);
        for text in ["x", &long] {
            let expected: Vec<_> = (1000..2000).map(|value| (number(value), text)).collect();
            let batches = batches(&expected);
            assert_eq!(batches.concat(), expected);
            assert!(batches.len() <= 1000 / 11 + 1, "at least eleven at a time");
            for batch in batches {
                let expanded = batch.len() * (text.len() + 1);
                assert!(digest_command(batch).len() <= MAX_COMMAND_BYTES && expanded <= MAX_EXPANDED_BYTES);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn the_patterns_are_of_all_other_numbers_and_no_more(expected in proptest::collection::btree_set(1000_i64..2000, 0..1000)) {
            let expected: BTreeSet<_> = expected.into_iter().map(number).collect();
            let patterns = Regex::new(&format!("^({})$", patterns_beside("1", &expected).join("|"))).expect("a pattern");
            for number in (1000..2000).map(number) {
                proptest::prop_assert_eq!(patterns.is_match(&number.to_string()), !expected.contains(&number));
            }
        }

        #[test]
        fn nothing_that_asterisk_prints_makes_it_panic(text in "([ '=>\\[\\]()./0-9a-zA-Z:-]{0,60}\n){0,8}") {
            let _ = (parse_endpoints(&text), parse_names(&text, "     Auth:  ", auth_number), parse_dialplan(&text), parse_modules(&text), parse_digests(&text, 1), parse_secrets(&text, &[number(1000)]));
        }
    }
}
