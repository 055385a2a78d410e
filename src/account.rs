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

/// Looks up the name of a number. The lines of both files have the form `name:password:number:…`.
fn name_in(file: &str, id: u32) -> String {
    let id = id.to_string();
    let text = fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
        [name, _, number, ..] if number == id => Some(name.to_owned()),
        _ => None,
    });
    found.unwrap_or(id)
}
