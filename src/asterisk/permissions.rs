//! The commands that the portal runs in Asterisk, and what `cli_permissions.conf` says about them.
//!
//! With `default_perm=deny`, Asterisk runs a command only if a `permit=` line for the user begins it. It looks at the whole
//! line that was typed, before it looks at the arguments.

use crate::account::user_name;

/// A command that the portal runs.
pub struct Command {
    /// How `cli_permissions.conf` permits it, and no other: every line that the portal sends begins with one of these.
    pub permit: &'static str,
    /// A form of it that changes nothing, to find out whether it is permitted: it lacks an argument, or has one too many.
    /// `module reload` has none; the portal runs it only if Asterisk has no `pjsip reload`.
    pub harmless: Option<&'static str>,
}

/// All of them. A test fails if one is missing or not used.
pub const COMMANDS: [Command; 17] = [
    Command { permit: "core show settings", harmless: Some("core show settings") },
    Command { permit: "core waitfullybooted", harmless: Some("core waitfullybooted") },
    Command { permit: "database del registrar/contact", harmless: Some("database del registrar/contact") },
    Command { permit: "database deltree pbx-portal", harmless: Some("database deltree pbx-portal none none") },
    Command { permit: "database put pbx-portal", harmless: Some("database put pbx-portal") },
    Command { permit: "database put registrar/contact", harmless: Some("database put registrar/contact") },
    Command { permit: "database show pbx-portal", harmless: Some("database show pbx-portal none none") },
    Command { permit: "database show registrar/contact", harmless: Some("database show registrar/contact none none") },
    Command { permit: "dialplan reload", harmless: Some("dialplan reload none") },
    Command { permit: "dialplan show", harmless: Some("dialplan show none none") },
    Command { permit: "module reload res_pjsip.so", harmless: None },
    Command { permit: "module show", harmless: Some("module show like none") },
    // Without an argument it reloads; the harmless one is another command whose name begins the same.
    Command { permit: "pjsip reload", harmless: Some("pjsip reload qualify aor") },
    Command { permit: "pjsip show aor", harmless: Some("pjsip show aor") },
    Command { permit: "pjsip show auth", harmless: Some("pjsip show auth") },
    Command { permit: "pjsip show endpoint", harmless: Some("pjsip show endpoint") },
    Command { permit: "pjsip show transports", harmless: Some("pjsip show transports like none") },
];

/// Whether a line begins with one of [`COMMANDS`].
pub fn is_listed(line: &str) -> bool {
    COMMANDS.iter().any(|command| line.starts_with(command.permit))
}

/// The lines of `cli_permissions.conf` that let the portal's user run what the portal needs, and nothing more.
pub fn lines_to_add() -> String {
    let permits = COMMANDS.map(|command| format!(", permit={}", command.permit));
    format!("[{}]{}", user_name(), permits.concat())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The text of all files below a folder, but this one.
    fn sources(folder: &Path) -> String {
        let entries = fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path());
        let text = |path: std::path::PathBuf| match path.is_dir() {
            true => sources(&path),
            false if path.ends_with("permissions.rs") => String::new(),
            false => fs::read_to_string(path).expect("a source file"),
        };
        entries.map(text).collect()
    }

    #[test]
    fn no_command_is_listed_that_the_portal_does_not_run() {
        let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        for Command { permit, harmless } in COMMANDS {
            assert!(harmless.is_none_or(|harmless| harmless.starts_with(permit)), "{permit}");
            assert!(sources.contains(&format!("\"{permit}")), "nothing runs {permit}: remove it from the list");
        }
    }
}
