//! The commands that the portal runs in Asterisk, and what `cli_permissions.conf` says about them.
//!
//! With `default_perm=deny`, Asterisk runs a command only if a `permit=` line for the user begins it. It looks at the whole
//! line that was typed, before it looks at the arguments.

use crate::account::user_name;

/// All commands that the portal runs. A test fails if one is missing or not used.
///
/// First how `cli_permissions.conf` permits it, and no other: every line that the portal sends begins with one of these. Then a form
/// of it that changes nothing, to find out whether it is permitted: it lacks an argument, or has one too many. `module reload` has
/// none that leaves no trace: only an apply finds out.
pub const COMMANDS: [(&str, Option<&str>); 23] = [
    ("core ping taskprocessor", Some("core ping taskprocessor")),
    ("core show calls", Some("core show calls none none")),
    ("core show config mappings", Some("core show config mappings none")),
    ("core show settings", Some("core show settings")),
    ("core show taskprocessors like pjsip/distributor", Some("core show taskprocessors like pjsip/distributor")),
    ("core waitfullybooted", Some("core waitfullybooted")),
    ("database query", Some("database query")),
    ("database show registrar/contact", Some("database show registrar/contact none none")),
    ("dialplan reload", Some("dialplan reload none")),
    ("dialplan show", Some("dialplan show none none")),
    ("module reload pbx_config.so", None),
    ("module reload res_pjsip.so", None),
    ("module show", Some("module show like none")),
    // Without an argument it reloads; the harmless one is another command whose name begins the same.
    ("pjsip reload", Some("pjsip reload qualify aor")),
    ("pjsip show aor", Some("pjsip show aor")),
    ("pjsip show auth", Some("pjsip show auth")),
    ("pjsip show contacts", Some("pjsip show contacts like none")),
    ("pjsip show endpoint", Some("pjsip show endpoint")),
    ("pjsip show identifies", Some("pjsip show identifies like none")),
    ("pjsip show maintenance", Some("pjsip show maintenance none")),
    ("pjsip show settings", Some("pjsip show settings")),
    ("pjsip show subscriptions inbound", Some("pjsip show subscriptions inbound none none")),
    ("pjsip show transports", Some("pjsip show transports like none")),
];

/// Whether a line begins with one of [`COMMANDS`].
pub fn is_listed(line: &str) -> bool {
    COMMANDS.iter().any(|(permit, _)| line.starts_with(permit))
}

/// The lines of `cli_permissions.conf` that let the portal's user run what the portal needs, and nothing more.
pub fn lines_to_add() -> String {
    let permits = COMMANDS.map(|(permit, _)| format!(", permit={permit}"));
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
        for (permit, harmless) in COMMANDS {
            assert!(harmless.is_none_or(|harmless| harmless.starts_with(permit)), "{permit}");
            assert!(sources.contains(&format!("\"{permit}")), "nothing runs {permit}: remove it from the list");
        }
    }
}
