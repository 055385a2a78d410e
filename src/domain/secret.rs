use std::fmt;

use super::Invalid;

/// Letters and digits that people do not confuse: one case, no 0 and o, 1 and l and i, 2 and z, 5 and s,
/// 8 and b, 9 and g and q, u and v.
const ALPHABET: &[u8; LETTERS as usize] = b"acdefhjkmnprtwxy34679";

/// The length of the alphabet.
const LETTERS: u8 = 21;

/// In letters: 30 of 21 make 131 bits.
const LENGTH: usize = 30;

/// The password that a phone registers with: letters and digits only, so that it is safe in a configuration file
/// and on a phone's keypad. `Debug` does not show it; JSON does: only the answers of the API have one in them.
#[derive(Clone, PartialEq, Eq, serde::Serialize)]
pub struct Secret(String);

impl Secret {
    /// A new secret of at least 128 bits from the operating system's generator.
    ///
    /// # Panics
    /// If the operating system gives no random bytes: nothing else would be safe.
    #[must_use]
    pub fn generate() -> Self {
        // The largest multiple of the alphabet's length that fits a byte. Larger bytes would make some letters likelier than others.
        const FAIR: u8 = u8::MAX - u8::MAX % LETTERS;
        let mut secret = String::with_capacity(LENGTH);
        let mut bytes = [0; LENGTH];
        while secret.len() < LENGTH {
            getrandom::fill(&mut bytes).expect("random bytes from the operating system");
            let letters = bytes.iter().filter(|b| **b < FAIR).map(|b| ALPHABET[usize::from(*b % LETTERS)]);
            secret.extend(letters.map(char::from).take(LENGTH - secret.len()));
        }
        Self(secret)
    }

    /// Parses a secret from the database.
    ///
    /// # Errors
    /// [`Invalid`] if it has other characters than letters and digits: the service did not make it.
    pub fn parse(stored: &str) -> Result<Self, Invalid> {
        if !stored.is_empty() && stored.len() <= 64 && stored.bytes().all(|b| b.is_ascii_alphanumeric()) {
            Ok(Self(stored.to_owned()))
        } else {
            Err(Invalid("must be 1 to 64 ASCII letters and digits"))
        }
    }

    /// The secret itself: for the generated file, the API's answer and the proof, never for a log.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_128_bits_of_letters_that_are_not_mistaken() {
        assert!(f64::from(LETTERS).log2() * f64::from(u8::try_from(LENGTH).expect("a length")) >= 128.0);
        let secrets: std::collections::HashSet<_> = (0..1000).map(|_| Secret::generate().0).collect();
        assert_eq!(secrets.len(), 1000);
        assert!(secrets.iter().all(|s| s.len() == LENGTH && s.bytes().all(|b| ALPHABET.contains(&b))));
        let used: std::collections::HashSet<_> = secrets.iter().flat_map(|s| s.bytes()).collect();
        assert_eq!(used.len(), ALPHABET.len(), "every letter occurs");
    }

    #[test]
    fn is_not_shown_by_debug() {
        let secret = Secret::generate();
        assert!(!format!("{secret:?}").contains(secret.reveal()));
    }
}
