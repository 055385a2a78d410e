//! Names of users and groups, for messages that an administrator can follow.

use std::fs;

use rustix::process::geteuid;

/// The user that this process runs as: its name, or its number if `/etc/passwd` does not list it.
pub fn user_name() -> String {
    name_in("/etc/passwd", geteuid().as_raw())
}

/// The name of a group, or its number if `/etc/group` does not list it.
pub fn group_name(group: u32) -> String {
    name_in("/etc/group", group)
}

/// Both files have lines of the form `name:password:number:…`.
fn name_in(file: &str, id: u32) -> String {
    let id = id.to_string();
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&id.as_str()));
    found.and_then(|fields| fields.first().map(|name| (*name).to_owned())).unwrap_or(id)
}
