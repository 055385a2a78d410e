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

use crate::asterisk::config::{Config, MainFiles, Section, Unreadable};
use crate::asterisk::control::{Control, ControlError};
use crate::asterisk::{foreign, in_force, registrations, render};
use crate::domain::{ExtensionNumber, User};
use crate::probes::{Host, Trouble};

/// What our two files say, whoever wrote them last.
#[derive(Default)]
pub(crate) struct OnDisk {
    secrets: BTreeMap<ExtensionNumber, String>,
    pub(super) endpoints: BTreeSet<ExtensionNumber>,
    /// Whose priority 1 is our `Dial`, and not that of the quarantine.
    routed: BTreeSet<ExtensionNumber>,
}

impl OnDisk {
    /// Takes both files from what includes them in `main`; one that is not included is read by itself, and an absent one says
    /// nothing.
    ///
    /// # Errors
    /// Which file can't be read.
    pub(crate) fn of(host: &Host, main: &MainFiles) -> Result<Self, Trouble> {
        let mut on_disk = Self::default();
        each_section(host, main.pjsip()?, &host.files.endpoints, |config, section| {
            let Some(number) = ExtensionNumber::parse(&section.name) else { return };
            if config.values(section, "type").contains(&"endpoint") {
                on_disk.endpoints.insert(number);
            }
            on_disk
                .secrets
                .extend(config.values(section, "password").first().map(|secret| (number, (*secret).to_owned())));
        })?;
        each_section(host, main.extensions()?, &host.files.routing, |config, section| {
            let first_priorities = foreign::first_priorities(config.entries(section));
            let called = first_priorities.filter(|(number, entry)| entry.value().ends_with(&render::dial(*number)));
            on_disk.routed.extend(called.map(|(number, _)| number));
        })?;
        Ok(on_disk)
    }
}

fn each_section(
    host: &Host,
    main: &Config,
    path: &Path,
    mut take: impl FnMut(&Config, &Section),
) -> Result<(), Unreadable> {
    let files = main.included(path);
    let alone;
    let config = if files.is_empty() {
        alone = Config::read_if_there(&host.config_dir, path)?;
        &alone
    } else {
        main
    };
    let own = config.sections.iter().filter(|section| files.is_empty() || section.place.is_in(&files));
    own.for_each(|section| take(config, section));
    Ok(())
}

/// The secrets in force, and the numbers that have registrations.
pub(crate) struct Served {
    secrets: BTreeMap<ExtensionNumber, String>,
    pub(crate) registered: BTreeSet<ExtensionNumber>,
}

impl Served {
    /// Asks Asterisk about the numbers of `users`.
    pub(crate) async fn ask(control: &Control, users: &[User]) -> Result<Self, ControlError> {
        let numbers = users.iter().map(|user| user.extension.number);
        let (secrets, registered) = try_join!(in_force::secrets(control, numbers), registrations::list(control))?;
        Ok(Self { secrets, registered: registered.into_iter().map(|registration| registration.number).collect() })
    }
}

/// Those of `changing` whose secrets in force tell, while an apply goes on, whether a reload before its own brought a new one: those
/// whose new secret is on disk or in force already, and one for all others, whose new secrets come with the file that the apply
/// writes, and so all at once.
pub(super) fn witnesses(
    users: &[User],
    on_disk: &OnDisk,
    served: &Served,
    changing: &BTreeSet<ExtensionNumber>,
) -> BTreeSet<ExtensionNumber> {
    let theirs = users.iter().filter(|user| changing.contains(&user.extension.number));
    let (early, others): (Vec<_>, Vec<_>) = theirs.partition(|user| {
        let known = [&on_disk.secrets, &served.secrets].map(|secrets| secrets.get(&user.extension.number));
        known.into_iter().flatten().any(|secret| secret == user.extension.secret.reveal())
    });
    early.into_iter().chain(others.into_iter().take(1)).map(|user| user.extension.number).collect()
}

/// The numbers of `users` that change hands.
pub(crate) fn changing_hands(users: &[User], on_disk: &OnDisk, served: &Served) -> BTreeSet<ExtensionNumber> {
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

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Email, Extension, Name, Secret};
    use crate::storage::DEFAULT_TENANT;

    #[test]
    fn witnesses_are_those_who_may_be_new_already_and_one_of_the_others() {
        let number = |number: i64| ExtensionNumber::try_from(number).expect("a number");
        let users: Vec<_> = (1000..1006)
            .map(|n| User {
                id: Uuid::new_v4(),
                tenant_id: DEFAULT_TENANT,
                name: Name::parse("User").expect("a name"),
                email: Email::parse("user@example.com").expect("an address"),
                extension: Extension { number: number(n), secret: Secret::generate() },
                created_at: OffsetDateTime::UNIX_EPOCH,
            })
            .collect();
        let new = |n: usize| (users[n].extension.number, users[n].extension.secret.reveal().to_owned());
        let old = |n: usize| (users[n].extension.number, "old".to_owned());
        let on_disk = OnDisk { secrets: [old(1), new(2), old(3)].into(), ..OnDisk::default() };
        let served = Served { secrets: [old(1), old(2), new(3), old(4)].into(), registered: BTreeSet::new() };
        // 1000 does not change hands; 1005 is nowhere.
        let changing = (1001..1006).map(number).collect();
        let expected = [1001, 1002, 1003].map(number).into();
        assert_eq!(witnesses(&users, &on_disk, &served, &changing), expected);
    }
}
