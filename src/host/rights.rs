//! Why this process cannot use a file or folder, and what an administrator can do about it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Mode, StatxAttributes, StatxFlags, accessat, statx};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups};

use super::generated::{GeneratedFiles, folder};
use crate::account::group_name;
use crate::problem::{Problem, Result, bail, ensure};

/// Fails unless both targets can be replaced: each is a regular file, or absent, in a folder that this user may write into.
pub fn check_targets(files: &GeneratedFiles) -> Result<()> {
    let [endpoints, routing] = files.both().map(|file| folder(file).display());
    let make = format!("make it with: install -d -o pbx-portal -g asterisk -m 2750 {endpoints} {routing}");
    files.both().into_iter().try_for_each(|path| check_target(path, &make))
}

/// `make` says how to make both folders.
fn check_target(path: &Path, make: &str) -> Result<()> {
    let folder = folder(path);
    let unusable = |error: io::Error| {
        let remedy = match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => make.to_owned(),
            Some(Errno::ACCESS) => closed_above(folder).unwrap_or_else(|| make.to_owned()),
            _ => advice(&error).to_owned(),
        };
        Problem { what: format!("cannot use the folder {}: {error}", folder.display()), remedy }
    };
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => replaceable(path, &found)?,
        Ok(found) => {
            let kind = match found.file_type() {
                kind if kind.is_dir() => "a folder",
                kind if kind.is_symlink() => "a symbolic link",
                _ => "a special file",
            };
            let path = path.display();
            bail!("{path} is {kind}, not a regular file", "move it away");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(error)),
    }
    let may_write = accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    may_write.map_err(|error| unusable(error.into()))?;
    group_in_reach(folder)
}

/// Fails if no rename can replace a regular file, as far as its owner and attributes tell.
fn replaceable(path: &Path, file: &fs::Metadata) -> Result<()> {
    let user = geteuid();
    let theirs = |owner| !user.is_root() && owner != user.as_raw();
    let keeps = |folder: fs::Metadata| folder.mode() & Mode::SVTX.bits() != 0 && theirs(folder.uid());
    let is_kept = theirs(file.uid()) && fs::metadata(folder(path)).is_ok_and(keeps);
    let attributes = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()).map(|found| found.stx_attributes);
    let attributes = attributes.unwrap_or(StatxAttributes::empty());
    let path = path.display();
    ensure!(
        !is_kept,
        "{path} belongs to another user in a sticky folder",
        "remove it, or clear the folder's sticky bit (chmod -t)"
    );
    ensure!(
        !attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND),
        "{path} is immutable or append-only (lsattr shows an i or an a)",
        "clear that (chattr -i -a)"
    );
    ensure!(!attributes.contains(StatxAttributes::MOUNT_ROOT), "{path} is a mount point", "mount its folder instead");
    Ok(())
}

/// What to do about an error of a file operation.
pub fn advice(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => {
            "it or its folder is immutable or append-only (lsattr -d shows an i or an a; chattr -i -a clears that), or another user owns the file and the folder is sticky"
        }
        Some(Errno::ACCESS) => "its folder must belong to the portal's user, with mode 2750 and the group asterisk",
        Some(Errno::NOSPC | Errno::DQUOT) => "free space on its disk",
        Some(Errno::ROFS) => {
            "its file system is read-only: mount it writable, or if only the service's unit forbids it, allow the folder there (systemctl edit pbx-portal: ReadWritePaths=, then restart it)"
        }
        Some(Errno::ISDIR) => "it is a folder: move it away",
        _ => "look at its disk (dmesg)",
    }
}

/// The error of a file that cannot be read, so that nobody knows what Asterisk would make of it.
pub fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "it is missing: make it, or set ASTERISK_CONFIG_DIR to Asterisk's own folder".to_owned()
        }
        io::ErrorKind::PermissionDenied => closed_above(path).unwrap_or_else(|| {
            "it is part of Asterisk's configuration: make it readable for the portal's user (by its group, say: chgrp asterisk and chmod g+r)".to_owned()
        }),
        io::ErrorKind::InvalidInput => "put a file in its place, or remove the line that includes it".to_owned(),
        _ => advice(error).to_owned(),
    };
    Problem { what: format!("cannot read {}: {error}", path.display()), remedy }
}

/// If a folder above `path` is closed to this user: which one, the topmost, and how to open it.
pub fn closed_above(path: &Path) -> Option<String> {
    let closed = |folder: &&Path| accessat(CWD, *folder, Access::EXEC_OK, AtFlags::EACCESS) == Err(Errno::ACCESS);
    let folder = path.ancestors().skip(1).filter(closed).last()?;
    let found = fs::metadata(folder).ok()?;
    let group = found.gid();
    let folder = folder.display();
    let let_in = match group {
        _ if found.uid() == geteuid().as_raw() => format!("let its owner enter it (chmod u+x {folder})"),
        0 => format!("give it a group of that user (chgrp asterisk {folder}; chmod g+x {folder})"),
        _ if is_in(group) => format!("let its group enter it (chmod g+x {folder})"),
        _ => format!(
            "add that user to its group, and let the group enter it (usermod -aG {} pbx-portal; chmod g+x {folder}), then restart the portal",
            group_name(group)
        ),
    };
    Some(format!("the portal's user may not enter {folder}: {let_in}"))
}

/// Fails if this user cannot give files in `folder` the folder's group: Asterisk could not read them.
fn group_in_reach(folder: &Path) -> Result<()> {
    let Ok(found) = fs::metadata(folder) else { return Ok(()) };
    if found.mode() & Mode::SGID.bits() != 0 || is_in(found.gid()) || geteuid().is_root() {
        return Ok(());
    }
    let folder = folder.display();
    let group = group_name(found.gid());
    bail!(
        "files in {folder} cannot get its group",
        "it is not setgid, and the portal's user is not in its group {group}: set both (chgrp asterisk {folder}; chmod g+s {folder}), or add that user to the group and restart the portal"
    )
}

fn is_in(group: u32) -> bool {
    getegid().as_raw() == group || getgroups().is_ok_and(|groups| groups.iter().any(|g| g.as_raw() == group))
}

/// Gives a file its folder's group, and its folder's owner if this process may.
pub fn follow_the_folder(file: &File, folder: &Path) -> io::Result<()> {
    let folder = fs::metadata(folder)?;
    let own = file.metadata()?;
    if own.gid() != folder.gid() {
        fchown(file, None, Some(folder.gid()))?;
    }
    if own.uid() != folder.uid()
        && let Err(error) = fchown(file, Some(folder.uid()), None)
        && error.kind() != io::ErrorKind::PermissionDenied
    {
        return Err(error);
    }
    Ok(())
}
