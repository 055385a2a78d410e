//! Which numbers change hands: Asterisk may keep a registration of them that is not their owner's. A number that nobody has counts,
//! too, because a registration outlives its user. The rule is one sentence:
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

pub(super) type Secrets = BTreeMap<ExtensionNumber, String>;

/// Who has our numbers before an apply.
pub(super) struct Owners {
    /// The secrets in force of the snapshot's numbers.
    in_force: Secrets,
    /// Of each number that has a section in our file: its secret there, also if somebody edited it; empty if it has none.
    pub(super) in_file: Secrets,
}

impl Owners {
    /// Reads the secrets in our file: from `main` if Asterisk includes the file, otherwise from the disk. A missing file is an empty one.
    /// Fails if Asterisk does not show the secrets in force as they are.
    pub(super) fn new(pbx: &Pbx, main: &MainFiles, in_force: Secrets) -> Result<Self> {
        let path = &pbx.files.endpoints;
        let files = main.pjsip.names_of(path);
        let ours = |section: &&Section| files.contains(&section.place.file);
        let mut sections: Vec<_> = main.pjsip.sections.iter().filter(ours).collect();
        let not_included;
        if sections.is_empty() {
            not_included = Config::read_if_there(&pbx.config_dir, path)?;
            sections.extend(&not_included.sections);
        }
        let mut owners = Self { in_force, in_file: Secrets::new() };
        for section in sections {
            let Some(number) = ExtensionNumber::parse(&section.name) else { continue };
            let secret = owners.in_file.entry(number).or_default();
            if let Some(password) = section.values("password").last() {
                password.clone_into(secret);
            }
        }
        owners.ensure_secrets_are_shown()?;
        Ok(owners)
    }

    /// How many numbers are in our file, if they are several and no user has kept one.
    pub(super) fn all_are_gone(&self, users: &[User]) -> Option<usize> {
        let is_kept = |user: &User| {
            self.in_file.get(&user.extension.number).is_some_and(|secret| secret == user.extension.secret.reveal())
        };
        Some(self.in_file.len()).filter(|former| *former > 1 && !users.iter().any(is_kept))
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

    /// Fails if Asterisk masks secrets: then every number would change hands in every apply. A secret in force is a mask if it does not
    /// have the form of ours, or if two numbers share it whose secrets in our file differ. Skips numbers whose secret in our file was
    /// edited by hand.
    fn ensure_secrets_are_shown(&self) -> Result<()> {
        let mut in_file_of: BTreeMap<&str, &str> = BTreeMap::new();
        for (number, in_force) in &self.in_force {
            let Some(in_file) = self.in_file.get(number).filter(|secret| Secret::parse(secret).is_ok()) else {
                continue;
            };
            let is_shared = in_file_of.insert(in_force, in_file).is_some_and(|other| other != in_file);
            if is_shared || Secret::parse(in_force).is_err() {
                bail!(
                    "'pjsip show auth {number}' does not show the secret of {number} as it is, so nobody knows who has the number",
                    "if somebody edited the generated file by hand, run 'pjsip reload' in Asterisk; otherwise this release of Asterisk hides secrets, and the portal does not work with it"
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
            let owners = Owners { in_force: secrets(in_force), in_file: secrets(in_file) };
            owners.ensure_secrets_are_shown().is_ok()
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
