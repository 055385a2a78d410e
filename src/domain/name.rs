use std::sync::LazyLock;

use regex::Regex;

/// The name of a user, or of the person who triggered an apply: 1 to 255 characters of any script after trimming, without control
/// or line-breaking characters.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Name(String);

impl Name {
    /// The rule, for the API's document and for [`Name::parse`]: white space (Unicode's `White_Space`) on either side, and
    /// between it a text that neither starts nor ends with white space.
    pub const PATTERN: &str = concat!(
        r"^[\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*",
        r"[^\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]",
        r"([^\u0000-\u001f\u007f-\u009f\u2028\u2029]{0,253}",
        r"[^\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000])?",
        r"[\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*$",
    );

    /// The rule, in words.
    pub const INVALID: &str =
        "must be 1 to 255 characters, white space around it aside, without control characters or line breaks";

    /// Parses what a person typed, and trims it.
    pub(crate) fn parse(typed: &str) -> Result<Self, &'static str> {
        static RULE: LazyLock<Regex> = LazyLock::new(|| Regex::new(Name::PATTERN).expect("a pattern that compiles"));
        if RULE.is_match(typed) { Ok(Self(typed.trim().to_owned())) } else { Err(Self::INVALID) }
    }

    /// The name without white space around it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_any_script_and_trims() {
        for (typed, kept) in
            [("Alice Ångström", "Alice Ångström"), ("\t 李 小龍 \n", "李 小龍"), ("😀", "😀"), ("a\u{3000}", "a")]
        {
            assert_eq!(Name::parse(typed).expect(typed).as_str(), kept);
        }
    }

    #[test]
    fn counts_characters_not_bytes() {
        assert!(Name::parse(&"é".repeat(255)).is_ok());
        assert!(Name::parse(&"é".repeat(256)).is_err());
        assert!(Name::parse(&format!(" {} ", "é".repeat(255))).is_ok());
    }

    #[test]
    fn refuses_empty_names_controls_and_line_breaks() {
        for typed in
            ["", " ", "\u{3000}", "a\nb", "a\u{0}b", "a\u{7f}", "\u{1b}a", "a\u{85}b", "a\u{2028}b", "a\u{2029}b"]
        {
            assert!(Name::parse(typed).is_err(), "{typed:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_pattern_says_what_the_words_say(typed in "[\\PC\u{0}-\u{20}\u{85}\u{2028}\u{3000}]{0,4}") {
            let trimmed = typed.trim();
            let breaks = |c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}';
            let by_words = !trimmed.is_empty() && !trimmed.contains(breaks);
            proptest::prop_assert_eq!(Name::parse(&typed).is_ok(), by_words);
        }
    }
}
