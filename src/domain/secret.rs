/// Letters and digits that people do not confuse: one case, no 0 and o, 1 and l and i, 2 and z, 5 and s,
/// 8 and b, 9 and g and q, u and v.
const ALPHABET: &[u8; 16] = b"acdefhjkmnprtwxy";

/// In letters: 32 of 16 make 128 bits.
const LENGTH: usize = 32;

/// The password that a phone registers with: letters and digits only, so that it is safe in a configuration file
/// and on a phone's keypad. It has no `Debug`. Only the API's answers have it in their JSON.
#[derive(Clone, PartialEq, Eq, serde::Serialize)]
pub struct Secret(String);

impl Secret {
    /// A new secret from the operating system's generator. Panics without it: nothing else would be safe.
    pub fn generate() -> Self {
        let mut bytes = [0; LENGTH];
        getrandom::fill(&mut bytes).expect("random bytes from the operating system");
        // 16 divides 256, so each letter is as likely as any other.
        Self(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 16)])).collect())
    }

    /// Parses a secret from the database. One with other characters was not made by the service.
    pub fn parse(stored: &str) -> Result<Self, &'static str> {
        let valid = (1..=64).contains(&stored.len()) && stored.bytes().all(|byte| byte.is_ascii_alphanumeric());
        valid.then(|| Self(stored.to_owned())).ok_or("must be 1 to 64 ASCII letters and digits")
    }

    /// The secret itself: for the generated file, the API's answer and the proof, never for a log.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_128_bits_of_letters_that_are_not_mistaken() {
        let secrets: std::collections::HashSet<_> = (0..1000).map(|_| Secret::generate().0).collect();
        assert_eq!(secrets.len(), 1000);
        assert!(secrets.iter().all(|s| s.len() == LENGTH && s.bytes().all(|b| ALPHABET.contains(&b))));
        let used: std::collections::HashSet<_> = secrets.iter().flat_map(|s| s.bytes()).collect();
        assert_eq!(used.len(), ALPHABET.len(), "every letter occurs");
    }
}
