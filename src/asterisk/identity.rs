//! Which Asterisk answers, by `core show settings`.

/// The command that shows it.
pub const COMMAND: &str = "core show settings";

/// Equal in all answers of one running Asterisk.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// New at each start of Asterisk.
    uuid: String,
    /// The folder that it reads its configuration from.
    pub config_dir: String,
}

impl Identity {
    /// Reads the answer to [`COMMAND`]; `None` if it is not whole.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        Some(Self { uuid: value("PBX UUID")?, config_dir: value("Configuration directory")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_from_what_asterisk_prints() {
        let uuid = "  PBX UUID:                    298a98e9-58be-46b4-8180-cc9809e5a8cb\n";
        let config_dir = "  Configuration directory:     /etc/asterisk\n";
        let identity = Identity::parse(&[uuid, config_dir].concat()).expect("a whole answer");
        assert_eq!((identity.uuid.len(), identity.config_dir.as_str()), (36, "/etc/asterisk"));
        assert_eq!((Identity::parse(uuid), Identity::parse(config_dir)), (None, None));
    }
}
