//! One apply at a time on a host, across processes: a lock on an empty file beside the endpoints. The kernel releases it when
//! the process that holds it ends, however it ends. Functions that write ask for a [`HostLock`].

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Result, anyhow};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;

use super::place::{GeneratedFiles, folder};
use super::rights;

/// The right to write this host's files and to make its Asterisk reload them.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

/// What to do about an error of the lock file. Removing a regular one is advised only if no apply runs: otherwise two could run at
/// once.
fn advice(error: &io::Error, folder: &Path, install: &str) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => rights::closed_above(folder).unwrap_or_else(|| {
            format!(
                "make the folders, owned by the portal's user, with: {install}; if another user owns the file and no apply runs, remove it; then apply again"
            )
        }),
        Some(Errno::PERM) => rights::group_out_of_reach(folder).unwrap_or_else(|| rights::advice(error).to_owned()),
        // A symbolic link, a folder, a pipe.
        Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
            "it is no regular file: remove it, then apply again".to_owned()
        }
        _ => rights::advice(error).to_owned(),
    }
}

impl HostLock {
    /// Takes the lock without waiting; `None` if another apply holds it. It follows no symbolic link.
    pub fn try_acquire(files: &GeneratedFiles) -> Result<Option<Self>> {
        let path = files.lock();
        let folder = folder(&path);
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).expect("an open flag fits");
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&path);
        let unusable = |error| {
            let advice = advice(&error, folder, &files.install_command());
            anyhow!("cannot use the lock file {}: {error}; {advice}", path.display())
        };
        let file = opened.map_err(&unusable)?;
        // No other user may open it: who can open it can hold the lock.
        let (own, user) = (file.metadata().map_err(&unusable)?, geteuid());
        if own.uid() == user.as_raw() && own.mode() & 0o777 != 0o600 {
            file.set_permissions(Permissions::from_mode(0o600)).map_err(&unusable)?;
        }
        // If root applies, the service's user must still be able to open it later: it gets the folder's owner, as the generated
        // files do.
        if user.is_root() {
            rights::follow_the_folder(&file, folder).map_err(&unusable)?;
        }
        match file.try_lock() {
            // The file was removed before it was locked: the next apply would lock another one.
            Ok(()) if !is_at(&file, &path) => Self::try_acquire(files),
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
