use std::sync::LazyLock;

use regex::Regex;

/// An e-mail address by the grammar of the HTML standard's `<input type=email>`, at most 255 characters, kept as typed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Email(String);

impl Email {
    /// The HTML standard's grammar of a valid e-mail address: ASCII only.
    pub const PATTERN: &str = r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$";

    /// The rule, in words.
    pub const INVALID: &str = "must be an e-mail address such as alice@example.com, at most 255 characters, ASCII only";

    /// The longest address, in characters.
    pub const MAX_LENGTH: usize = 255;

    /// Parses what a person typed.
    pub(crate) fn parse(typed: &str) -> Result<Self, &'static str> {
        static RULE: LazyLock<Regex> = LazyLock::new(|| Regex::new(Email::PATTERN).expect("a pattern that compiles"));
        let valid = typed.len() <= Self::MAX_LENGTH && RULE.is_match(typed);
        valid.then(|| Self(typed.to_owned())).ok_or(Self::INVALID)
    }

    /// The address as typed.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_html_standard() {
        for good in ["alice@example.com", "A.b+c@x", "!#$%&'*+/=?^_`{|}~-@a-b.c", &format!("{}@x", "a".repeat(253))] {
            assert_eq!(Email::parse(good).expect(good).as_str(), good);
        }
        let long = format!("{}@x", "a".repeat(254));
        let label = format!("a@{}", "x".repeat(64));
        let mistyped = ["", "alice", "@x", "a@", "a@-x", "a@x-", "a@x..y", "a b@x", " a@x", "a@x\n", "é@x", "a@é"];
        for bad in mistyped.into_iter().chain([long.as_str(), &label]) {
            assert!(Email::parse(bad).is_err(), "{bad:?}");
        }
    }
}
