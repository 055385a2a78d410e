use std::fmt;

use super::Invalid;

/// An extension of the pool: 1000 to 1999. A user's endpoint, auth and AOR have it as their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct ExtensionNumber(u16);

impl ExtensionNumber {
    /// The rule, in words.
    pub const INVALID: Invalid = Invalid("must be a number from 1000 to 1999");

    /// Parses exactly four digits that are a number of the pool.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let four_digits = text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit());
        four_digits.then(|| text.parse::<i64>().ok()).flatten().and_then(|n| Self::try_from(n).ok())
    }

    /// The number itself.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for ExtensionNumber {
    type Error = Invalid;

    fn try_from(number: i64) -> Result<Self, Invalid> {
        u16::try_from(number).ok().filter(|n| (1000..=1999).contains(n)).map(Self).ok_or(Self::INVALID)
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
        assert_eq!(ExtensionNumber::parse("1000").map(ExtensionNumber::get), Some(1000));
        assert_eq!(ExtensionNumber::parse("1999").map(ExtensionNumber::get), Some(1999));
        for other in ["", "999", "2000", "01000", "+100", "1000 ", "1000/1000", "１000"] {
            assert_eq!(ExtensionNumber::parse(other), None, "{other:?}");
        }
    }
}
