//! Which numbers change hands: their registrations may belong to a former owner. A number of the snapshot changes hands if
//!
//! - the secret in force differs from the snapshot's; or
//! - no secret is in force, and either our file on disk has a different one, which may come into force at any moment, or the file
//!   has none and the number has registrations; or
//! - our routing on disk has the quarantine's line for it: an earlier apply left it there. A routing file that is missing or was
//!   emptied by hand is no quarantine.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::asterisk::registrations::Registration;
use crate::domain::{ExtensionNumber, Numbers, User};
use crate::host::configuration::{Config, MainFiles, Section};
use crate::host::foreign;
use crate::preflight::probes::Host;
use crate::render;

/// What our two files say, also if somebody edited them.
#[derive(Default)]
pub(super) struct OnDisk {
    pub(super) secrets: BTreeMap<ExtensionNumber, String>,
    /// The numbers that an earlier apply left in quarantine.
    pub(super) quarantined: Numbers,
}

impl OnDisk {
    /// Takes both files from what Asterisk reads in `main`. Reads a file by itself if Asterisk does not; an absent one is empty.
    pub(super) fn of(host: &Host, main: &MainFiles) -> Result<Self> {
        let mut on_disk = Self::default();
        each_section(host, &main.pjsip, &host.files.endpoints, |section| {
            if let Some(number) = ExtensionNumber::parse(&section.name)
                && let Some(secret) = section.values("password").last()
            {
                on_disk.secrets.insert(number, secret.to_owned());
            }
        })?;
        each_section(host, &main.extensions, &host.files.routing, |section| {
            let first_priorities = foreign::first_priorities(&section.entries);
            let quarantined = first_priorities.filter(|(_, entry)| entry.value.ends_with(render::QUARANTINED));
            on_disk.quarantined.extend(quarantined.map(|(number, _)| number));
        })?;
        Ok(on_disk)
    }
}

fn each_section(host: &Host, main: &Config, path: &Path, take: impl FnMut(&Section)) -> Result<()> {
    let files = main.included(path);
    let own: Vec<_> = main.sections.iter().filter(|section| files.contains(&section.place.file)).collect();
    if own.is_empty() {
        Config::read_if_there(&host.config_dir, path)?.sections.iter().for_each(take);
    } else {
        own.into_iter().for_each(take);
    }
    Ok(())
}

/// The numbers of `users` that change hands, if these secrets are in force and these registrations are listed.
pub(super) fn changing_hands(
    users: &[User],
    on_disk: &OnDisk,
    secrets: &BTreeMap<ExtensionNumber, String>,
    registered: &[Registration],
) -> Numbers {
    let changes = |user: &&User| {
        let (number, secret) = (user.extension.number, user.extension.secret.reveal());
        let another = match secrets.get(&number).or(on_disk.secrets.get(&number)) {
            Some(former) => former != secret,
            None => registered.iter().any(|registration| registration.number == number),
        };
        another || on_disk.quarantined.contains(&number)
    };
    users.iter().filter(changes).map(|user| user.extension.number).collect()
}
