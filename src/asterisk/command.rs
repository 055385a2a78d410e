//! The commands that the portal runs in Asterisk, and what `cli_permissions.conf` says about them.

use std::borrow::Cow;
use std::fmt::Display;

use crate::account::user_name;

/// A command for Asterisk. Only this file makes one from a text, so the portal runs nothing that it does not ask permission for.
#[derive(Debug, Clone)]
pub struct Command(Cow<'static, str>);

/// Each group has the beginning that `permit=` names, what follows it in a command that changes nothing, and its commands, each as what
/// follows the beginning.
macro_rules! commands {
    ($($permit:literal $(harmless $harmless:literal)? { $($(#[$about:meta])* $name:ident $($rest:literal)?),+ })+) => {
        impl Command {
            $($($(#[$about])* pub const $name: Self = Self(Cow::Borrowed(concat!($permit $(, $rest)?)));)+)+

            /// One command of each group, which changes nothing: its answer shows whether Asterisk permits the group.
            pub const HARMLESS: &[Self] = &[$($(Self(Cow::Borrowed(concat!($permit, $harmless))),)?)+];
        }

        const PERMITS: &[&str] = &[$($permit),+];
    };
}

// With `default_perm=deny`, Asterisk runs a command only if a `permit=` line for the user begins it. It looks at the complete line
// before it looks at the arguments, so a harmless command lacks an argument, or has one too many. `module reload` has no harmless
// form: only an apply finds out. A command that nobody uses is a warning of the compiler; a group has no other commands than these.
commands! {
    "core ping taskprocessor" harmless "" { PING_QUEUE " pjsip/distributor" }
    "core show calls" harmless " none none" { CALLS }
    "core show config mappings" harmless " none" { CONFIG_MAPPINGS }
    "core show settings" harmless "" { SETTINGS }
    "core show taskprocessors like pjsip/distributor" harmless "" { QUEUES }
    "core waitfullybooted" harmless "" { WAIT_FULLY_BOOTED }
    "database query" harmless "" { QUERY " " }
    "database show registrar/contact" harmless " none none" { REGISTRATIONS }
    "dialplan reload" harmless " none" { RELOAD_DIALPLAN }
    "dialplan show" harmless " none none" { DIALPLAN " " }
    "module reload pbx_config.so" { RELOAD_DIALPLAN_MODULE }
    "module reload res_pjsip.so" {
        /// The endpoints, auths and AORs alone: the first module that [`Self::RELOAD_PJSIP`] reloads.
        RELOAD_OBJECTS,
        /// What [`Self::RELOAD_PJSIP`] is an alias for (`cli_aliases.conf` of Asterisk 22).
        RELOAD_PJSIP_MODULES " res_pjsip_authenticator_digest.so res_pjsip_endpoint_identifier_ip.so res_pjsip_mwi.so res_pjsip_notify.so res_pjsip_outbound_publish.so res_pjsip_publish_asterisk.so res_pjsip_outbound_registration.so",
        /// No module has this name, so nothing is reloaded, and Asterisk only says whether another reload is running. It also says
        /// from then on that its last reload was just now, so only an apply sends it.
        RELOAD_NOTHING ".none"
    }
    "module show" harmless " like none" { MODULES }
    // Without an argument it reloads; the harmless one is another command whose name begins in the same way.
    "pjsip reload" harmless " qualify aor" { RELOAD_PJSIP }
    // The listings have a pattern, because thousands of other objects would take a second.
    "pjsip show aor" harmless "" { AOR " ", AORS "s like ^1[0-9][0-9][0-9]$" }
    "pjsip show auth" harmless "" { AUTH " ", AUTHS "s like ^1[0-9][0-9][0-9]$" }
    "pjsip show contacts" harmless " like none" { CONTACTS " like ^1[0-9][0-9][0-9][;/]" }
    "pjsip show endpoint" harmless "" { ENDPOINT " ", ENDPOINTS "s like ^1[0-9][0-9][0-9]$" }
    "pjsip show identifies" harmless " like none" { IDENTIFIES }
    "pjsip show maintenance" harmless " none" { MAINTENANCE }
    "pjsip show settings" harmless "" { PJSIP_SETTINGS }
    "pjsip show subscriptions inbound" harmless " none none" { SUBSCRIPTIONS }
    "pjsip show transports" harmless " like none" { TRANSPORTS }
}

impl Command {
    /// The command with a text directly behind it.
    pub fn with(&self, parameter: impl Display) -> Self {
        Self(format!("{}{parameter}", self.0).into())
    }

    /// The line that Asterisk receives.
    pub fn line(&self) -> &str {
        &self.0
    }
}

/// The lines of `cli_permissions.conf` that let the portal's user run what the portal needs, and nothing more.
pub fn lines_to_add() -> String {
    format!("[{}], permit={}", user_name(), PERMITS.join(", permit="))
}
