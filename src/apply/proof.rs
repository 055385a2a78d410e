//! The proof: what Asterisk serves of the numbers 1000 to 1999 is the snapshot, no more and no less, option by option. Only the
//! proof makes an apply a success; "reloaded successfully" never does. `pbx-portal check` asks the same questions.
//!
//! The options come from [`render::options`], which the file is written from, too: an option that is added there is proven
//! here. Asterisk shows no `disallow`, and older releases do not show every option; what it does not show, nobody can compare.

use std::collections::BTreeMap;

use tokio::try_join;

use crate::asterisk::control::Control;
use crate::asterisk::in_force::dialplan::{FirstPriority, first_priorities};
use crate::asterisk::in_force::objects::{self, Options};
use crate::domain::{ExtensionNumber, Numbers, User, some_of};
use crate::problem::Result;
use crate::render::{self, CONTEXT, ObjectType};

/// The differences between the snapshot and what Asterisk serves, in words: what is missing, left over or different.
pub(super) type Differences = Vec<String>;

/// Compares everything that Asterisk serves with `users`. Numbers that had an owner `before` and have no user are asked for by name,
/// because a listing does not show an object that is left in a cache.
pub(super) async fn differences(control: &Control, users: &[User], before: &Numbers) -> Result<Differences> {
    let (endpoints, auths, aors, dialplan) = try_join!(
        object_differences(control, ObjectType::Endpoint, users, before),
        object_differences(control, ObjectType::Auth, users, before),
        object_differences(control, ObjectType::Aor, users, before),
        dialplan_differences(control, users)
    )?;
    Ok([endpoints, auths, aors, dialplan].into_iter().flatten().collect())
}

/// The numbers of `users`.
pub(super) fn numbers(users: &[User]) -> Numbers {
    users.iter().map(|user| user.extension.number).collect()
}

async fn object_differences(
    control: &Control,
    kind: ObjectType,
    users: &[User],
    before: &Numbers,
) -> Result<Differences> {
    let users: BTreeMap<_, _> = users.iter().map(|user| (user.extension.number, user)).collect();
    let asked: Numbers = users.keys().chain(before).copied().collect();
    let differing = |number, shown: &Options| {
        let user = users.get(&number)?;
        Some(differing_options(kind, user, shown))
    };
    let (listed, found) =
        try_join!(objects::numbers(control, kind), objects::options(control, kind, &asked, differing))?;
    let missing: Vec<_> = users.keys().copied().filter(|number| !found.contains_key(number)).collect();
    let served: Numbers = found.keys().copied().chain(listed).collect();
    let left_over = served.into_iter().filter(|number| !users.contains_key(number));

    let mut by_option: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, options) in found {
        for option in options.unwrap_or_default() {
            by_option.entry(option).or_default().push(number);
        }
    }
    let (mut found, shown) = (Differences::new(), kind.shown());
    add(&mut found, &format!("{shown}s missing"), missing);
    add(&mut found, &format!("{shown}s left over"), left_over);
    for (option, numbers) in by_option {
        add(&mut found, &format!("{shown}s with another {option}"), numbers);
    }
    Ok(found)
}

/// The options of a user's object that are shown with another value than the file's.
fn differing_options(kind: ObjectType, user: &User, shown: &Options) -> Vec<&'static str> {
    let written = render::options(kind, user);
    let differs = |(name, shown): &(&str, &str)| {
        let written = written.iter().find(|(written, _)| written == name);
        written.filter(|(name, value)| render::as_written(name, shown) != *value).map(|(name, _)| *name)
    };
    shown.iter().filter_map(differs).collect()
}

async fn dialplan_differences(control: &Control, users: &[User]) -> Result<Differences> {
    let Some(routed) = first_priorities(control).await? else {
        return Ok(vec![format!("the dialplan context {CONTEXT} missing")]);
    };
    let (wanted, mut found) = (numbers(users), Differences::new());
    let missing = wanted.iter().copied().filter(|number| !routed.contains_key(number));
    add(&mut found, "dialplan extensions missing", missing);
    let (ours, left_over): (Vec<_>, Vec<_>) = routed.iter().partition(|(number, _)| wanted.contains(number));
    let placed = |(number, row): (&ExtensionNumber, &FirstPriority)| format!("{number} ({})", row.source);
    add(&mut found, "dialplan extensions left over", left_over.into_iter().map(placed));
    let not_ours = ours.into_iter().filter(|(number, first)| !first.is_ours(&render::dial(**number)));
    add(&mut found, "dialplan extensions whose priority 1 is not ours", not_ours.map(placed));
    Ok(found)
}

/// Adds a difference, if there are any numbers.
fn add(found: &mut Differences, what: &str, numbers: impl IntoIterator<Item = impl ToString>) {
    let mut numbers = numbers.into_iter().peekable();
    if numbers.peek().is_some() {
        found.push(format!("{what}: {}", some_of(numbers)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asterisk::in_force::objects::parse_options;
    use crate::domain::{Email, Extension, Name, Secret};

    /// Of a recording of one object: the options that are not shown, and those that differ.
    fn compared(kind: ObjectType, recording: &str, user: &User) -> (Vec<&'static str>, Vec<&'static str>) {
        let written = render::options(kind, user);
        let compare = |_, shown: &Options| {
            let is_shown = |name: &&str| shown.iter().any(|(shown, _)| shown == name);
            let missing = written.iter().map(|(name, _)| *name).filter(|name| !is_shown(name)).collect();
            (missing, differing_options(kind, user, shown))
        };
        let parsed = parse_options(kind, recording, &[user.extension.number], compare).expect("a whole answer");
        parsed.into_values().next().expect("an object")
    }

    #[test]
    fn each_option_but_disallow_is_shown_and_compared() {
        let number = ExtensionNumber::new(1000).expect("a number");
        let user = User {
            id: uuid::Uuid::nil(),
            tenant_id: uuid::Uuid::nil(),
            name: Name::parse("Alice").expect("a name"),
            email: Email::parse("a@example.com").expect("an address"),
            extension: Extension { number, secret: Secret::parse("SECRET").expect("a secret") },
            created_at: time::OffsetDateTime::UNIX_EPOCH,
        };
        let recordings = [
            (ObjectType::Endpoint, include_str!("../../tests/recordings/endpoint.txt"), vec!["disallow"]),
            (ObjectType::Auth, include_str!("../../tests/recordings/auth.txt"), vec![]),
            (ObjectType::Aor, include_str!("../../tests/recordings/aor.txt"), vec![]),
        ];
        for (kind, recording, not_shown) in recordings {
            assert_eq!(compared(kind, recording, &user), (not_shown.clone(), vec![]), "{kind:?}");
            for (name, _) in render::options(kind, &user).into_iter().filter(|(name, _)| !not_shown.contains(name)) {
                let line = recording.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")));
                let line = line.expect("an option");
                let other = recording.replace(line, &format!("{line}x"));
                assert_eq!(compared(kind, &other, &user).1, [name], "{kind:?}");
            }
        }
    }
}
