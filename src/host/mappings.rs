//! `sorcery.conf`: where PJSIP keeps its objects, by the rules of `main/sorcery.c`.
//!
//! Without a mapping, Asterisk reads endpoints, auths and AORs in `pjsip.conf`, and keeps registrations (contacts) in its own
//! database. A line such as `endpoint = realtime,ps_endpoints` maps a type elsewhere. Of two lines that map one type to the same
//! wizard (the word behind `=`), Asterisk drops the second. A line such as `endpoint/cache = memory_cache,…` adds a copy.
//!
//! Asterisk keeps blanks inside a value, distinguishes the case of types, and reads the first of two sections of one name.

use std::fmt;
use std::path::Path;

use super::configuration::{Config, Entry};
use crate::problem::{Result, bail, ensure};
use crate::render::ObjectType;

/// Reads the objects that describe users.
const PJSIP: &str = "res_pjsip";

/// These modules of PJSIP read a section of their own, and add its mappings behind those of [`PJSIP`], whatever their type.
const OTHERS: [&str; 7] = [
    "acl",
    "res_pjsip_endpoint_identifier_ip",
    "res_pjsip_outbound_publish",
    "res_pjsip_outbound_registration",
    "res_pjsip_phoneprov_provider",
    "res_pjsip_publish_asterisk",
    "res_pjsip_pubsub",
];

const REMOVE: &str = "remove the line and restart Asterisk";

/// `type[/options] = wizard[,data]`
struct Mapping<'c> {
    entry: &'c Entry,
    kind: &'c str,
    is_cache: bool,
    wizard: &'c str,
    data: &'c str,
}

impl<'c> Mapping<'c> {
    /// `None` for a line that Asterisk skips.
    fn parse(entry: &'c Entry) -> Option<Self> {
        let (kind, options) = entry.key.split_once('/').unwrap_or((&entry.key, ""));
        let (wizard, data) = entry.value.split_once(',').unwrap_or((&entry.value, ""));
        let is_cache = options.contains("cache") || wizard == "memory_cache";
        (!kind.is_empty() && !wizard.is_empty()).then_some(Self { entry, kind, is_cache, wizard, data })
    }

    /// Whether it reads the objects of this type in `pjsip.conf`.
    fn reads_pjsip_conf(&self, config_dir: &Path) -> bool {
        let mut options = self.data.split(',');
        let file = options.next().unwrap_or_default();
        let criteria = format!("criteria=type={}", self.kind);
        config_dir.join(file) == config_dir.join("pjsip.conf") && options.any(|option| option == criteria)
    }
}

/// `file:line: 'the line'`
impl fmt::Display for Mapping<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { key, value, place } = self.entry;
        write!(f, "{place}: '{key} = {value}'")
    }
}

/// Fails if Asterisk does not read the users' objects in `pjsip.conf` alone, keeps a copy of any, or keeps registrations elsewhere
/// than in its own database. `pjsip_declined` says that PJSIP could not start.
pub fn check(sorcery: &Config, config_dir: &Path, pjsip_declined: bool) -> Result<()> {
    let section = |name: &str| sorcery.sections.iter().find(|section| !section.template && section.is(name));
    let mappings = |name: &str| section(name).into_iter().flat_map(|s| &s.entries).filter_map(Mapping::parse);
    if pjsip_declined && let Some(line) = mappings(PJSIP).find(|m| !["config", "astdb", "memory"].contains(&m.wizard)) {
        bail!(
            "{line} keeps res_pjsip.so from starting if Asterisk does not know what it names (in extconfig.conf, say)",
            "{REMOVE}"
        );
    }
    for line in mappings(PJSIP).chain(OTHERS.into_iter().flat_map(mappings)) {
        let is_contact = line.kind == "contact";
        let is_ours = is_contact || ObjectType::ALL.iter().any(|kind| kind.as_str() == line.kind);
        ensure!(
            !line.is_cache || !is_ours,
            "{line} keeps a copy that outlives a reload, so a deleted user's phone could still register and call",
            "{REMOVE}"
        );
        ensure!(
            !is_contact || (line.wizard, line.data) == ("astdb", "registrar"),
            "{line} keeps registrations where no apply can evict them, so an old phone would ring for a number's next owner",
            "{REMOVE}"
        );
    }
    for kind in ObjectType::ALL.map(ObjectType::as_str) {
        let mapped: Vec<_> = mappings(PJSIP).filter(|mapping| mapping.kind == kind).collect();
        let file = mapped.iter().find(|mapping| mapping.wizard == "config");
        if let Some(line) = file.or(mapped.first()).filter(|line| !line.reads_pjsip_conf(config_dir)) {
            bail!(
                "{line} makes Asterisk read every {kind} elsewhere than in pjsip.conf, and so none of the generated ones",
                "remove the line, or write '{kind} = config,pjsip.conf,criteria=type={kind}' above it, and restart Asterisk"
            );
        }
    }
    Ok(())
}
