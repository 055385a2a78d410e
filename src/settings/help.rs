//! What the help text and the manual page say beside the flags.

use std::fmt::Display;

use clap::{Args as _, CommandFactory as _};

use super::command::{Command, Settings};

/// The command line's definition; its help texts show all settings, the secrets among them.
#[must_use]
pub fn definition() -> clap::Command {
    let help = format!(
        "Environment:\n  {PRECEDENCE}{}\n\nExamples:{}\n\nExit status:{}",
        table(documented(), 28),
        table(EXAMPLES, 41),
        table(EXIT_STATUS, 1)
    );
    Command::command().after_help(help.clone()).mut_subcommand("serve", |serve| serve.after_help(help))
}

fn table<T: Display, M: Display>(rows: impl IntoIterator<Item = (T, M)>, width: usize) -> String {
    let rows = rows.into_iter().map(|(term, meaning)| format!("\n  {term:<width$}  {meaning}"));
    rows.collect::<Vec<_>>().concat()
}

/// The two settings that are not flags, with their meaning.
const SECRETS: [(&str, &str); 2] = [
    (
        "DATABASE_URL",
        "postgres://… or sqlite://…; environment or ./.env only [default: sqlite:// in the data directory]",
    ),
    ("PORTAL_API_TOKEN", "If set, requests need 'Authorization: Bearer …'; environment or ./.env only [default: none]"),
];

/// Commands as an administrator types them, with what they do.
pub const EXAMPLES: [(&str, &str); 3] = [
    ("pbx-portal check", "Show what is missing; for the package, run it in /etc/pbx-portal as the user pbx-portal"),
    ("pbx-portal serve --listen 127.0.0.1:9000", "Serve on another port"),
    ("LOG_FORMAT=json pbx-portal", "Serve, with log lines for a collector"),
];

/// The exit statuses, with what they mean.
pub const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "Success"),
    ("1", "The service could not start, or 'check' found a problem"),
    ("2", "A setting or an argument is invalid"),
];

/// All settings, with their meaning and their default. What is a flag comes from the flag's own definition.
pub fn documented() -> impl Iterator<Item = (String, String)> {
    let flags = Settings::augment_args(clap::Command::new("serve"));
    let flags = flags.get_arguments().filter_map(|flag| {
        let meaning = flag.get_help()?.to_string();
        // The help text itself describes a hidden default, which depends on the system.
        let default = flag.get_default_values().first().filter(|_| !flag.is_hide_default_value_set());
        let default = default.map(|value| format!(" [default: {}]", value.display()));
        Some((flag.get_env()?.display().to_string(), meaning + &default.unwrap_or_default()))
    });
    let flags: Vec<_> = flags.collect();
    SECRETS.map(|(name, meaning)| (name.to_owned(), meaning.to_owned())).into_iter().chain(flags)
}

/// Whether the service has a setting of this name.
pub(super) fn is_setting(name: &str) -> bool {
    documented().any(|(setting, _)| setting == name)
}

/// Which source of a setting comes first.
pub const PRECEDENCE: &str = "A flag comes before the environment, and the environment before ./.env.";
