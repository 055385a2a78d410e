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
    /// The secrets in our file, also if somebody edited it.
    pub(super) in_file: Secrets,
    /// The numbers that have an auth in force.
    pub(super) served: Numbers,
    /// The numbers that have a section in our file.
    pub(super) sections: Numbers,
}

impl Before {
    /// Uses our file as Asterisk reads it in `main`. If Asterisk does not, reads it directly; a missing one counts as empty. Fails if
    /// Asterisk does not show the secrets in force as they are.
    pub(super) fn new(pbx: &Pbx, main: &MainFiles, in_force: Secrets, served: Numbers) -> Result<Self> {
        let mut before = Self { in_force, in_file: Secrets::new(), served, sections: Numbers::new() };
        let path = &pbx.files.endpoints;
        let files = main.pjsip.included(path);
        let ours = |section: &&Section| files.contains(&section.place.file);
        if main.pjsip.sections.iter().any(|section| ours(&section)) {
            main.pjsip.sections.iter().filter(ours).for_each(|section| before.take(section));
        } else {
            Config::read_if_there(&pbx.config_dir, path)?.sections.iter().for_each(|section| before.take(section));
        }
        before.ensure_secrets_are_shown()?;
        Ok(before)
    }

    fn take(&mut self, section: &Section) {
        let Some(number) = ExtensionNumber::parse(&section.name) else { return };
        self.sections.insert(number);
        if let Some(secret) = section.values("password").last() {
            self.in_file.insert(number, secret.to_owned());
        }
    }

    /// The numbers that had an owner.
    pub(super) fn had_an_owner(&self) -> Numbers {
        &self.served | &self.sections
    }

    /// The numbers of `users` that change hands.
    pub(super) fn changing_hands(&self, users: &[User]) -> Numbers {
        let changes = |user: &&User| {
            let number = user.extension.number;
            let owner = self.in_force.get(&number).or(self.in_file.get(&number));
            owner.is_none_or(|secret| secret != user.extension.secret.reveal())
        };
        users.iter().filter(changes).map(|user| user.extension.number).collect()
    }

    /// If Asterisk masked the secrets, every number would change hands in every apply. A masked one has not the form of ours, or is
    /// equal for two numbers to which our file gives different secrets.
    fn ensure_secrets_are_shown(&self) -> Result<()> {
        let mut numbers: BTreeMap<&str, ExtensionNumber> = BTreeMap::new();
        for (number, shown) in &self.in_force {
            let Some(written) = self.in_file.get(number).filter(|written| Secret::parse(written).is_ok()) else {
                continue;
            };
            let twin = numbers.insert(shown, *number).filter(|twin| self.in_file[twin] != *written);
            if twin.is_some() || Secret::parse(shown).is_err() {
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
            let before = Before {
                in_force: secrets(in_force),
                in_file: secrets(in_file),
                served: Numbers::new(),
                sections: Numbers::new(),
            };
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
