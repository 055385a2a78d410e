//! Which numbers change hands: their registrations may belong to a former owner, or to somebody who had the number before. The rule
//! is one sentence:
//!
//! > A number of the snapshot changes hands unless its secret is the one in force or, if none is in force, the one in our file.
//!
//! A secret belongs to one user for ever. So if the secret in force is not the snapshot's, the number has another owner now, whatever
//! happened in between. If none is in force, Asterisk was restarted on a configuration that it refuses, or nobody has the number.
//! Then our file decides, because Asterisk may load it at any time. The file names a new owner only after the number was taken away
//! from the former one ([`super::take_away`]), so an owner whom it names has no former owner's registration to fear.

use std::collections::BTreeMap;

use crate::domain::{ExtensionNumber, Numbers, Secret, User};
use crate::host::configuration::{Config, MainFiles, Section};
use crate::pbx::Pbx;
use crate::problem::{Result, bail};

/// Secrets by number.
pub(super) type Secrets = BTreeMap<ExtensionNumber, String>;

/// Who has our numbers before an apply.
pub(super) struct Before {
    /// The secrets in force of the numbers that were asked for.
    in_force: Secrets,
    /// Of each number that has a section in our file: its secret there, also if somebody edited it; empty if it has none.
    pub(super) in_file: Secrets,
    /// The numbers that have an auth in force.
    pub(super) served: Numbers,
}

impl Before {
    /// Uses our file as Asterisk reads it in `main`. If Asterisk does not, reads it directly; a missing one counts as empty. Fails if
    /// Asterisk does not show the secrets in force as they are.
    pub(super) fn new(pbx: &Pbx, main: &MainFiles, in_force: Secrets, served: Numbers) -> Result<Self> {
        let path = &pbx.files.endpoints;
        let files = main.pjsip.included(path);
        let ours = |section: &&Section| files.contains(&section.place.file);
        let is_read = main.pjsip.sections.iter().any(|section| ours(&section));
        let directly = if is_read { Config::default() } else { Config::read_if_there(&pbx.config_dir, path)? };
        let mut before = Self { in_force, in_file: Secrets::new(), served };
        for section in main.pjsip.sections.iter().filter(ours).chain(&directly.sections) {
            let Some(number) = ExtensionNumber::parse(&section.name) else { continue };
            let secret = before.in_file.entry(number).or_default();
            if let Some(password) = section.values("password").last() {
                password.clone_into(secret);
            }
        }
        before.ensure_secrets_are_shown()?;
        Ok(before)
    }

    /// The numbers that had an owner.
    pub(super) fn had_an_owner(&self) -> Numbers {
        self.served.iter().chain(self.in_file.keys()).copied().collect()
    }

    /// The numbers of `users` that change hands.
    pub(super) fn changing_hands(&self, users: &[User]) -> Numbers {
        let changes = |user: &&User| {
            let number = user.extension.number;
            // If neither has a secret of it, nobody has the number.
            let decides = self.in_force.get(&number).or_else(|| self.in_file.get(&number));
            decides.is_none_or(|secret| secret != user.extension.secret.reveal())
        };
        users.iter().filter(changes).map(|user| user.extension.number).collect()
    }

    /// Fails if Asterisk masks secrets: every number would change hands in every apply. Only numbers whose secret in our file has the
    /// form of ours count; another was edited by hand. A secret in force is masked if it has not that form, or if two numbers have it
    /// whose secrets in our file differ.
    fn ensure_secrets_are_shown(&self) -> Result<()> {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (number, in_force) in &self.in_force {
            let Some(in_file) = self.in_file.get(number).filter(|secret| Secret::parse(secret).is_ok()) else {
                continue;
            };
            let of_two = seen.insert(in_force, in_file).is_some_and(|other| other != in_file);
            if of_two || Secret::parse(in_force).is_err() {
                bail!(
                    "'pjsip show auth {number}' does not show the secret of {number} as it is, so nobody knows who has the number",
                    "if somebody edited the generated file by hand, run 'pjsip reload' in Asterisk, then apply again; otherwise this release of Asterisk hides secrets, and the portal does not work with it"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(secrets: &[(i32, &str)]) -> Secrets {
        let number = |number| ExtensionNumber::new(number).expect("a number");
        secrets.iter().map(|(n, secret)| (number(*n), (*secret).to_owned())).collect()
    }

    #[test]
    fn an_asterisk_that_hides_secrets_is_recognised() {
        let shown = |in_force: &[(i32, &str)], in_file: &[(i32, &str)]| {
            let before = Before { in_force: secrets(in_force), in_file: secrets(in_file), served: Numbers::new() };
            before.ensure_secrets_are_shown().is_ok()
        };
        let in_file = [(1000, "kedn"), (1001, "acdf")];
        for hidden in
            [[(1000, ""), (1001, "acdf")], [(1000, "<hidden>"), (1001, "<hidden>")], [(1000, "x"), (1001, "x")]]
        {
            assert!(!shown(&hidden, &in_file), "{hidden:?}");
        }
        for known in [vec![], vec![(1000, "kedn"), (1001, "acdf")], vec![(1000, "old"), (1001, "older")]] {
            assert!(shown(&known, &in_file), "{known:?}");
        }
        assert!(shown(&[(1000, "p@ss"), (1001, "acdf")], &[(1000, "p@ss"), (1001, "acdf")]), "edited by hand");
        assert!(shown(&[(1000, "same"), (1001, "same")], &[(1000, "same"), (1001, "same")]), "edited by hand");
    }
}
