use std::fmt;

/// An extension of the pool: 1000 to 1999. A user's endpoint, auth and AOR have it as their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct ExtensionNumber(u16);

impl ExtensionNumber {
    /// The rule, in words.
    pub const INVALID: &str = "must be a number from 1000 to 1999";

    pub fn new(number: i32) -> Option<Self> {
        u16::try_from(number).ok().filter(|n| (1000..=1999).contains(n)).map(Self)
    }

    /// Parses exactly four digits that are a number of the pool.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|_| text.len() == 4).and_then(Self::new)
    }
}

impl fmt::Display for ExtensionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pool() {
        assert_eq!(ExtensionNumber::parse("1000"), Some(ExtensionNumber(1000)));
        assert_eq!(ExtensionNumber::parse("1999"), Some(ExtensionNumber(1999)));
        for other in ["", "999", "2000", "01000", "+100", "1000 ", "1000/1000", "１000"] {
            assert_eq!(ExtensionNumber::parse(other), None, "{other:?}");
        }
    }
}
