//! The proof: what Asterisk serves of the numbers 1000 to 1999 is the snapshot, no more and no less, option by option. Only the
//! proof makes an apply a success; "reloaded successfully" never does. `pbx-portal check` asks the same questions.
//!
//! The options come from [`render::options`], which the file is written from, too: an option that is added there is proven
//! here. Asterisk shows no `disallow`, and older releases do not show every option; what it does not show, nobody can compare.

use std::collections::BTreeMap;

use tokio::try_join;

use crate::asterisk::Control;
use crate::asterisk::in_force::dialplan::{FirstPriority, first_priorities};
use crate::asterisk::in_force::objects::{self, Options};
use crate::domain::{ExtensionNumber, Numbers, User, numbers_of, some_of};
use crate::problem::Result;
use crate::render::{self, CONTEXT, ObjectType};

/// Compares everything that Asterisk serves with `users`, and returns in words what is missing, left over or different. Numbers that
/// had an owner `before` and have no user are asked for by name, because a listing does not show an object that is left in a cache.
pub(super) async fn differences(control: &Control, users: &[User], before: &Numbers) -> Result<Vec<String>> {
    let (endpoints, auths, aors, dialplan) = try_join!(
        object_differences(control, ObjectType::Endpoint, users, before),
        object_differences(control, ObjectType::Auth, users, before),
        object_differences(control, ObjectType::Aor, users, before),
        dialplan_differences(control, users)
    )?;
    Ok([endpoints, auths, aors, dialplan].concat())
}

async fn object_differences(
    control: &Control,
    kind: ObjectType,
    users: &[User],
    before: &Numbers,
) -> Result<Vec<String>> {
    let by_number: BTreeMap<_, _> = users.iter().map(|user| (user.extension.number, user)).collect();
    let asked: Numbers = by_number.keys().chain(before).copied().collect();
    // `None` for an object without a user.
    let compare = |number, in_force: &Options| by_number.get(&number).map(|user| other_values(kind, user, in_force));
    let (listed, compared) =
        try_join!(objects::numbers(control, kind), objects::options(control, kind, &asked, compare))?;
    let missing = by_number.keys().filter(|number| !compared.contains_key(number));
    let served: Numbers = compared.keys().copied().chain(listed).collect();
    let left_over = served.iter().filter(|number| !by_number.contains_key(number));

    let mut by_option: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, options) in &compared {
        for option in options.iter().flatten() {
            by_option.entry(option).or_default().push(number);
        }
    }
    let object = kind.label();
    let missing = in_words(&format!("{object}s missing"), missing);
    let left_over = in_words(&format!("{object}s left over"), left_over);
    let other =
        by_option.into_iter().map(|(option, numbers)| in_words(&format!("{object}s with another {option}"), numbers));
    Ok([missing, left_over].into_iter().chain(other).flatten().collect())
}

/// The options of a user's object that are in force with another value than the file's.
fn other_values(kind: ObjectType, user: &User, in_force: &Options) -> Vec<&'static str> {
    let mut written = render::options(kind, user);
    written.retain(|(name, wanted)| {
        in_force.iter().any(|(shown, value)| shown == name && render::as_written(name, value) != *wanted)
    });
    written.into_iter().map(|(name, _)| name).collect()
}

async fn dialplan_differences(control: &Control, users: &[User]) -> Result<Vec<String>> {
    let Some(routed) = first_priorities(control).await? else {
        return Ok(vec![format!("the dialplan context {CONTEXT} missing")]);
    };
    let wanted = numbers_of(users);
    let missing = wanted.iter().filter(|number| !routed.contains_key(number));
    let (expected, left_over): (Vec<_>, Vec<_>) = routed.iter().partition(|(number, _)| wanted.contains(number));
    let replaced = expected.into_iter().filter(|(number, first)| !first.is_ours(&render::dial(**number)));
    let with_source = |(number, first): (&ExtensionNumber, &FirstPriority)| format!("{number} ({})", first.source);
    let found = [
        in_words("dialplan extensions missing", missing),
        in_words("dialplan extensions left over", left_over.into_iter().map(with_source)),
        in_words("dialplan extensions whose priority 1 is not ours", replaced.map(with_source)),
    ];
    Ok(found.into_iter().flatten().collect())
}

/// What differs, and of which numbers, if there are any.
fn in_words(what: &str, numbers: impl IntoIterator<Item = impl ToString>) -> Option<String> {
    let mut numbers = numbers.into_iter().peekable();
    numbers.peek()?;
    Some(format!("{what}: {}", some_of(numbers)))
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
            (missing, other_values(kind, user, shown))
        };
        let parsed = parse_options(kind, recording, &[user.extension.number], compare).expect("a complete answer");
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
