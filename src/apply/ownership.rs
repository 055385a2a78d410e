//! Which numbers change hands: whose registrations may be those of somebody who had the number before.
//!
//! A secret belongs to one user for ever, so no clock, counter or history is needed. A number of the snapshot changes hands
//! when
//!
//! - the secret in force is another than the snapshot's; or
//! - none is in force, and our file on disk has another, which may come into force any moment; or neither has one, and it
//!   has registrations; or
//! - its endpoint is in our file on disk but the routing on disk does not call it: an earlier apply was interrupted while the
//!   number was in quarantine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio::try_join;

use crate::asterisk::config::{Config, Unreadable};
use crate::asterisk::control::{Control, ControlError};
use crate::asterisk::files::GeneratedFiles;
use crate::asterisk::in_force::{self, Value};
use crate::asterisk::{foreign, registrations, render};
use crate::domain::{ExtensionNumber, User};

/// What our two files say, whoever wrote them last.
#[derive(Debug, Default)]
pub(crate) struct OnDisk {
    secrets: BTreeMap<ExtensionNumber, String>,
    pub(super) endpoints: BTreeSet<ExtensionNumber>,
    /// Whose priority 1 is our `Dial`, and not that of the quarantine.
    routed: BTreeSet<ExtensionNumber>,
}

impl OnDisk {
    /// Reads both files; an absent one says nothing.
    pub(crate) fn read(config_dir: &Path, files: &GeneratedFiles) -> Result<Self, Unreadable> {
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
            let first_priorities = foreign::first_priorities(routing.entries(section));
            let called = first_priorities.filter(|(number, entry)| entry.value.ends_with(&render::dial(*number)));
            on_disk.routed.extend(called.map(|(number, _)| number));
        }
        Ok(on_disk)
    }
}

/// The numbers of `users` that change hands.
pub(crate) async fn changing_hands(
    control: &Control,
    users: &[User],
    on_disk: &OnDisk,
) -> Result<BTreeSet<ExtensionNumber>, ControlError> {
    let (auths, registered) = try_join!(in_force::auths(control), registrations::list(control))?;
    let registered: BTreeSet<_> = registered.into_iter().map(|registration| registration.number).collect();
    let secrets = users.iter().map(|user| (user.extension.number, user.extension.secret.reveal().to_owned()));
    let (served, unserved): (BTreeMap<_, _>, BTreeMap<_, _>) = secrets.partition(|(number, _)| auths.contains(number));

    let mut changing = in_force::differing(control, Value::Secret, &served).await?;
    changing.extend(unserved.into_iter().filter_map(|(number, secret)| {
        let formers = on_disk.secrets.get(&number).map_or(registered.contains(&number), |former| *former != secret);
        formers.then_some(number)
    }));
    changing.extend(
        users
            .iter()
            .map(|user| user.extension.number)
            .filter(|number| on_disk.endpoints.contains(number) && !on_disk.routed.contains(number)),
    );
    Ok(changing)
}
