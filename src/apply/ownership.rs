//! Which numbers change hands: whose registrations may be those of somebody who had the number before.
//!
//! A secret belongs to one user for ever, so no clock, counter or history is needed. A number of the snapshot changes hands
//! when
//!
//! - the secret in force is another than the snapshot's; or
//! - none is in force, and our file on disk has another, which may come into force any moment; or neither has one, and it
//!   has registrations; or
//! - its endpoint is in our file on disk but it is not in the routing on disk: an earlier apply was interrupted while the
//!   number was in quarantine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio::try_join;

use crate::asterisk::config::{Config, Unreadable};
use crate::asterisk::control::{Control, ControlError};
use crate::asterisk::files::GeneratedFiles;
use crate::asterisk::{foreign, in_force, registrations};
use crate::domain::{ExtensionNumber, User};

/// What our two files say, whoever wrote them last.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    secrets: BTreeMap<ExtensionNumber, String>,
    endpoints: BTreeSet<ExtensionNumber>,
    routed: BTreeSet<ExtensionNumber>,
}

impl OnDisk {
    /// Reads both files; an absent one says nothing.
    pub(super) fn read(config_dir: &Path, files: &GeneratedFiles) -> Result<Self, Unreadable> {
        let read = |path: &Path| match Config::read(config_dir, path) {
            Err(Unreadable { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
            read => read,
        };
        let (endpoints, routing) = (read(&files.endpoints)?, read(&files.routing)?);
        let mut on_disk = Self::default();
        for section in &endpoints.sections {
            let Some(number) = ExtensionNumber::parse(&section.name) else { continue };
            if endpoints.values(section, "type").contains(&"endpoint") {
                on_disk.endpoints.insert(number);
            }
            on_disk
                .secrets
                .extend(endpoints.values(section, "password").first().map(|secret| (number, (*secret).to_owned())));
        }
        for section in &routing.sections {
            on_disk.routed.extend(foreign::first_priorities(routing.entries(section)).map(|(number, _)| number));
        }
        Ok(on_disk)
    }
}

/// The secrets in force, and the numbers that have registrations.
pub(super) struct Served {
    secrets: BTreeMap<ExtensionNumber, String>,
    registered: BTreeSet<ExtensionNumber>,
}

impl Served {
    /// Asks Asterisk about the numbers of `users`.
    pub(super) async fn ask(control: &Control, users: &[User]) -> Result<Self, ControlError> {
        let numbers = users.iter().map(|user| user.extension.number);
        let (secrets, registered) = try_join!(in_force::secrets(control, numbers), registrations::list(control))?;
        Ok(Self { secrets, registered: registered.into_iter().map(|registration| registration.number).collect() })
    }
}

/// The numbers of `users` that change hands.
pub(super) fn changing_hands(users: &[User], on_disk: &OnDisk, served: &Served) -> BTreeSet<ExtensionNumber> {
    let changes = |user: &&User| {
        let (number, secret) = (user.extension.number, user.extension.secret.reveal());
        let another = match served.secrets.get(&number).or(on_disk.secrets.get(&number)) {
            Some(former) => former != secret,
            None => served.registered.contains(&number),
        };
        another || (on_disk.endpoints.contains(&number) && !on_disk.routed.contains(&number))
    };
    users.iter().filter(changes).map(|user| user.extension.number).collect()
}
