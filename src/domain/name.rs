use std::sync::LazyLock;

use regex::Regex;

/// The name of a user, or of the person who triggered an apply: 1 to 255 characters of any script after trimming, without control
/// or line-breaking characters.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Name(String);

/// White space: Unicode's `White_Space`.
macro_rules! white {
    () => {
        r"\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    };
}

/// What no new name has: controls, line breaks, what is invisible and joins nothing, what turns the text around.
macro_rules! refused {
    () => {
        r"\u0000-\u001f\u007f-\u009f\u200b\u2028-\u202e\u2060-\u206f"
    };
}

/// Characters that show nothing by themselves: marks of pasted Hebrew and Arabic, what joins letters or emoji, fillers.
macro_rules! invisible {
    () => {
        r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0"
    };
}

impl Name {
    /// The rule for a new name, for the API's document and for [`Name::parse`]: white space on either side, and between it a text that
    /// neither starts nor ends with white space, and starts with a visible character, or with one after up to three invisible ones.
    pub const PATTERN: &str = concat!(
        concat!("^[", white!(), "]*(?:"),
        concat!("[^", refused!(), white!(), invisible!(), "]"),
        concat!("(?:[^", refused!(), "]{0,253}[^", refused!(), white!(), "])?"),
        concat!("|[", invisible!(), "]{1,3}[^", refused!(), white!(), invisible!(), "]"),
        concat!("(?:[^", refused!(), "]{0,250}[^", refused!(), white!(), "])?"),
        concat!(")[", white!(), "]*$"),
    );

    /// The rule for a new name, in words.
    pub const INVALID: &str = "must be 1 to 255 characters, white space around it aside, without control characters, line breaks, invisible characters, or characters that turn the text around";

    /// The rule for a stored name, in words: any earlier release accepted such a name.
    const NOT_STORED: &str =
        "must be 1 to 255 characters, white space around it aside, without control characters or line breaks";

    /// Parses what a person typed, and trims it.
    pub(crate) fn parse(typed: &str) -> Result<Self, &'static str> {
        static RULE: LazyLock<Regex> = LazyLock::new(|| Regex::new(Name::PATTERN).expect("a pattern that compiles"));
        if RULE.is_match(typed) { Ok(Self(typed.trim().to_owned())) } else { Err(Self::INVALID) }
    }

    /// Parses a name of the database, which an earlier release may have accepted by a rule that was less strict.
    pub(crate) fn stored(name: &str) -> Result<Self, &'static str> {
        let name = name.trim();
        let breaks = |c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}';
        let valid = (1..=255).contains(&name.chars().count()) && !name.contains(breaks);
        if valid { Ok(Self(name.to_owned())) } else { Err(Self::NOT_STORED) }
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

    #[test]
    fn refuses_what_nobody_sees_and_what_turns_the_text_around_but_in_stored_names() {
        for typed in [
            "\u{200b}",
            "a\u{200b}b",
            "\u{2060}",
            "a\u{2060}",
            "\u{2064}a",
            "\u{202e}abc\u{202c}",
            "a\u{202a}b",
            "\u{2066}a\u{2069}",
            "a\u{206f}b",
            "\u{200e}",
            "\u{200f}\u{200f}",
            "\u{feff}",
            "\u{3164}",
            "\u{2800}",
            "\u{200d}\u{fe0f}",
            " \u{200e} ",
            "\u{ad}",
        ] {
            assert!(Name::parse(typed).is_err(), "{typed:?}");
            assert_eq!(Name::stored(typed).expect(typed).as_str(), typed.trim());
        }
        for typed in [
            "\u{200f}שלום\u{200e}",
            "\u{61c}سلام",
            "نمی\u{200c}خواهم",
            "👩\u{200d}👩\u{200d}👧",
            "❤\u{fe0f}",
            "C++\u{200e}",
            "e\u{301}",
        ] {
            assert_eq!(Name::parse(typed).expect(typed).as_str(), typed);
        }
        let marked = format!("\u{200f}{}", "é".repeat(252));
        assert!(Name::parse(&marked).is_ok());
        assert!(Name::stored(&"é".repeat(255)).is_ok() && Name::stored(&"é".repeat(256)).is_err());
        assert!(Name::stored("").is_err() && Name::stored("a\nb").is_err());
    }

    proptest::proptest! {
        #[test]
        fn the_pattern_says_what_the_words_say(typed in "[\\PC\u{0}-\u{20}\u{85}\u{200b}-\u{200f}\u{2028}-\u{202e}\u{2060}-\u{206f}\u{3000}\u{feff}]{0,4}") {
            let trimmed = typed.trim();
            let refused = |c: char| {
                c.is_control() || matches!(c, '\u{200b}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
            };
            let invisible = |c: char| {
                matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
                    | '\u{200c}'..='\u{200f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}')
            };
            let begins = trimmed.trim_start_matches(invisible).chars().next().is_some_and(|c| !c.is_whitespace());
            let by_words = begins && !trimmed.contains(refused) && trimmed.chars().take_while(|c| invisible(*c)).count() < 4;
            proptest::prop_assert_eq!(Name::parse(&typed).is_ok(), by_words);
            if by_words {
                proptest::prop_assert_eq!(Name::stored(&typed), Name::parse(&typed));
            }
        }
    }
}
