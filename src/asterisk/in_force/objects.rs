//! The endpoints, auths and AORs in force.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{number_of, numbers_in};
use crate::asterisk::{Command, Control};
use crate::domain::{ExtensionNumber, Numbers};
use crate::problem::Result;
use crate::render::ObjectType;

/// The options of one object with their values, as `pjsip show endpoint 1000` shows them.
pub type Options<'t> = [(&'t str, &'t str)];

/// How many objects are asked about on one connection: a megabyte, at most.
const AT_ONCE: usize = 100;

/// How many connections ask about the objects of one type. Asterisk answers each by a thread of its own, so while one answer is
/// read, it writes the others.
const CONNECTIONS: usize = 3;

/// How Asterisk is asked for the objects of one type.
pub(super) struct Asked {
    one: Command,
    all: Command,
    /// The beginning of a line that names one.
    pub(super) heading: &'static str,
}

pub(super) fn asked(kind: ObjectType) -> Asked {
    match kind {
        ObjectType::Endpoint => Asked { one: Command::ENDPOINT, all: Command::ENDPOINTS, heading: " Endpoint:  " },
        ObjectType::Auth => Asked { one: Command::AUTH, all: Command::AUTHS, heading: "     Auth:  " },
        ObjectType::Aor => Asked { one: Command::AOR, all: Command::AORS, heading: "      Aor:  " },
    }
}

/// The numbers 1000 to 1999 that have an object of this type, from a listing.
pub async fn numbers(control: &Control, kind: ObjectType) -> Result<Numbers> {
    let Asked { all, heading, .. } = asked(kind);
    control.listing(&[all], |text| numbers_in(text, heading)).await
}

/// What `each` makes of the options of the objects of this type; a number without such an object is left out.
pub async fn options<T>(
    control: &Control,
    kind: ObjectType,
    numbers: &Numbers,
    each: impl Fn(ExtensionNumber, &Options) -> T,
) -> Result<BTreeMap<ExtensionNumber, T>> {
    let Asked { one, .. } = asked(kind);
    let numbers: Vec<_> = numbers.iter().copied().collect();
    let ask = async |some: &[ExtensionNumber]| {
        let commands: Vec<_> = some.iter().map(|number| one.with(number)).collect();
        control.listing(&commands, |text| parse_options(kind, text, some, &each)).await
    };
    stream::iter(numbers.chunks(AT_ONCE)).map(ask).buffer_unordered(CONNECTIONS).try_concat().await
}

/// The ones of `numbers` that have an object of any type, asked by name. A listing does not show what stands in a cache alone.
pub async fn by_name(control: &Control, numbers: &Numbers) -> Result<Numbers> {
    let mut found = Numbers::new();
    for kind in ObjectType::ALL {
        found.extend(options(control, kind, numbers, |_, _| ()).await?.into_keys());
    }
    Ok(found)
}

/// The secrets in force of `numbers`; a number without an auth is left out.
pub async fn secrets(control: &Control, numbers: &Numbers) -> Result<BTreeMap<ExtensionNumber, String>> {
    let password = |_, options: &Options| {
        let password = options.iter().find(|(name, _)| *name == "password");
        password.map(|(_, value)| (*value).to_owned()).unwrap_or_default()
    };
    options(control, ObjectType::Auth, numbers, password).await
}

/// `None` unless there is a complete answer for each of `numbers`, in their order: a line that names the object, and below a heading
/// and a rule its options, which an empty line ends; or that there is no such object.
pub(crate) fn parse_options<T>(
    kind: ObjectType,
    text: &str,
    numbers: &[ExtensionNumber],
    each: impl Fn(ExtensionNumber, &Options) -> T,
) -> Option<BTreeMap<ExtensionNumber, T>> {
    let Asked { heading, .. } = asked(kind);
    let mut parsed = BTreeMap::new();
    let mut lines = text.lines();
    for &number in numbers {
        let absent = format!("Unable to find object {number}.");
        let named = |line: &str| line.strip_prefix(heading).and_then(number_of) == Some(number);
        if lines.find(|line| *line == absent || named(line))? == absent {
            continue;
        }
        lines.find(|line| line.starts_with(" ParameterName "))?;
        lines.next()?; // the rule
        let mut options = Vec::new();
        loop {
            let line = lines.next()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            options.push((name.trim_ascii(), value.strip_prefix(' ')?));
        }
        parsed.insert(number, each(number, &options));
    }
    Some(parsed)
}

#[cfg(test)]
mod tests {
    use super::super::recorded;
    use super::*;

    fn number(number: i32) -> ExtensionNumber {
        ExtensionNumber::new(number).expect("a number")
    }

    #[test]
    fn the_numbers_that_have_an_object() {
        let both = Numbers::from([1000, 1001].map(number));
        let parsed = |kind, text| numbers_in(text, asked(kind).heading);
        assert_eq!(parsed(ObjectType::Endpoint, recorded!("endpoints")), Some(both.clone()));
        assert_eq!(parsed(ObjectType::Auth, recorded!("auths")), Some(both.clone()));
        assert_eq!(parsed(ObjectType::Aor, recorded!("aors")), Some(both));
        assert_eq!(parsed(ObjectType::Endpoint, recorded!("no-endpoints")), Some(Numbers::new()));
    }

    #[test]
    fn the_options_of_each_that_has_an_object() {
        let three = [1000, 1001, 1999].map(number);
        let text = [recorded!("auth"), &recorded!("auth").replace("1000", "1001"), recorded!("no-auth")].concat();
        let value =
            |options: &Options, name| options.iter().find(|option| option.0 == name).expect("an option").1.to_owned();
        let user = |_, options: &Options| [value(options, "username"), value(options, "password")].join(":");
        let parse = |text: &str| parse_options(ObjectType::Auth, text, &three, user);
        let users = [(number(1000), "1000:SECRET".to_owned()), (number(1001), "1001:SECRET".to_owned())];
        assert_eq!(parse(&text), Some(BTreeMap::from(users)));
        for end in 0..text.trim_end().len() {
            assert_eq!(parse(&text[..end]), None, "an answer that ends after {end} bytes is not complete");
        }
        let context = |_, options: &Options| value(options, "context");
        let contexts = parse_options(ObjectType::Endpoint, recorded!("endpoint"), &three[..1], context);
        assert_eq!(contexts, Some(BTreeMap::from([(number(1000), "synergy-internal".to_owned())])));
    }
}
