//! What the help text and the manual page say beside the flags.

use clap::{Args as _, CommandFactory as _};

use super::{Command, Settings};

/// The command line's definition; its help texts show all settings, the secrets among them.
#[must_use]
pub fn definition() -> clap::Command {
    let table = |title: &str, rows: [(&str, &str); 3], width| {
        let rows = rows.map(|(left, right)| format!("\n  {left:<width$}  {right}"));
        format!("\n\n{title}:{}", rows.concat())
    };
    let setting = |[name, default, meaning]: [String; 3]| format!("\n  {name:<28}  {meaning} [default: {default}]");
    let settings = documented().into_iter().map(setting).collect::<Vec<_>>().concat();
    let (examples, statuses) = (table("Examples", EXAMPLES, 41), table("Exit status", EXIT_STATUS, 1));
    let help = format!("Environment:\n  {PRECEDENCE}{settings}{examples}{statuses}");
    Command::command().after_help(help.clone()).mut_subcommand("serve", |serve| serve.after_help(help))
}

/// The two settings that are not flags: name, default, meaning.
const SECRETS: [[&str; 3]; 2] = [
    [
        "DATABASE_URL",
        "sqlite:// in the data directory",
        "postgres://… or sqlite://…; secret: environment or ./.env only",
    ],
    ["PORTAL_API_TOKEN", "none", "If set, requests need 'Authorization: Bearer …'; secret: environment or ./.env only"],
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

/// All settings, from the flags' own definitions: name, default (in words if it depends on the system), meaning.
#[must_use]
pub fn documented() -> Vec<[String; 3]> {
    let flags = Settings::augment_args(clap::Command::new("serve"));
    let flags = flags.get_arguments().filter_map(|flag| {
        let name = flag.get_env()?.to_string_lossy().into_owned();
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        let (meaning, in_words) = help.split_once(" [default: ").unwrap_or((&help, ""));
        let value = flag.get_default_values().first().filter(|_| !flag.is_hide_default_value_set());
        let default = value.map_or(in_words.trim_end_matches(']').into(), |value| value.to_string_lossy());
        Some([name, default.into_owned(), meaning.to_owned()])
    });
    SECRETS.map(|secret| secret.map(str::to_owned)).into_iter().chain(flags).collect()
}

/// Which source of a setting comes first.
pub const PRECEDENCE: &str = "A flag comes before the environment, and the environment before ./.env.";
