//! Why this process cannot use a file or folder, and what an administrator can do about it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups};

use crate::account::group_name;

/// The setgid bit of a folder's mode.
const SETGID: u32 = 0o2000;
/// The sticky bit of a folder's mode.
pub const STICKY: u32 = 0o1000;

/// What to do about an error of a file operation.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
        return "it or its folder is immutable or append-only (lsattr -d shows an i or an a; chattr -i -a clears that), or another user owns the file and the folder is sticky; then apply again";
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "its folder must belong to the portal's user, with mode 2750 and the group asterisk; then apply again"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space on its disk, then apply again",
        io::ErrorKind::ReadOnlyFilesystem => {
            "its file system is read-only: mount it writable, or if only the service's unit forbids it, allow the folder there (systemctl edit pbx-portal: ReadWritePaths=, then restart it); then apply again"
        }
        io::ErrorKind::IsADirectory => "it is a folder: move it away, then apply again",
        _ => "look at its disk (dmesg), then apply again",
    }
}

/// If a folder above `path` is closed to this user: which one, the topmost, and how to open it.
pub(crate) fn closed_above(path: &Path) -> Option<String> {
    let mut folders: Vec<_> = path.ancestors().skip(1).collect();
    folders.reverse();
    let closed = |folder: &&Path| accessat(CWD, *folder, Access::EXEC_OK, AtFlags::EACCESS) == Err(Errno::ACCESS);
    let folder = folders.into_iter().find(closed)?;
    let found = fs::metadata(folder).ok()?;
    let (group, folder) = (found.gid(), folder.display());
    let enter = if found.mode() & 0o010 == 0 { format!("chmod g+x {folder}") } else { String::new() };
    let let_in = match group {
        0 => format!("give it a group of that user (chgrp asterisk {folder}; chmod g+x {folder})"),
        _ if is_in(group) => format!("let its group enter it ({enter})"),
        _ => {
            let group = group_name(group);
            let also = if enter.is_empty() { enter } else { format!(" and let the group enter it ({enter})") };
            format!("add that user to its group (usermod -aG {group} pbx-portal){also}, then restart the portal")
        }
    };
    Some(format!("the portal's user may not enter {folder}: {let_in}, then apply again"))
}

/// If this user cannot give files in `folder` the folder's group: what to do. Asterisk could not read them.
pub(crate) fn group_out_of_reach(folder: &Path) -> Option<String> {
    let found = fs::metadata(folder).ok()?;
    let writable = accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    if !writable || found.mode() & SETGID != 0 || is_in(found.gid()) || geteuid().is_root() {
        return None;
    }
    let (group, folder) = (group_name(found.gid()), folder.display());
    Some(format!(
        "it is not setgid, and the portal's user is not in its group {group}: set both (chgrp asterisk {folder}; chmod g+s {folder}), or add that user to the group and restart the portal, then apply again"
    ))
}

/// Whether this process is in a group.
fn is_in(group: u32) -> bool {
    getegid().as_raw() == group || getgroups().is_ok_and(|groups| groups.iter().any(|g| g.as_raw() == group))
}

/// Gives a file its folder's group, and its folder's owner if this process may.
pub fn follow_the_folder(file: &File, folder: &Path) -> io::Result<()> {
    let (folder, own) = (fs::metadata(folder)?, file.metadata()?);
    if own.gid() != folder.gid() {
        fchown(file, None, Some(folder.gid()))?;
    }
    if own.uid() != folder.uid() {
        match fchown(file, Some(folder.uid()), None) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
