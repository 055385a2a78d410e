//! One apply at a time on a host, across processes: a lock on an empty file beside the endpoints. The kernel releases it when
//! the process that holds it ends, however it ends. Functions that write ask for a [`HostLock`].

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;

use super::generated::{GeneratedFiles, folder};
use super::rights;
use crate::problem::{Problem, Result};

/// The right to write this host's files and to make its Asterisk reload them.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

impl HostLock {
    /// Takes the lock without waiting; `None` if another apply holds it.
    pub fn try_acquire(files: &GeneratedFiles) -> Result<Option<Self>> {
        let unusable = |error| unusable(&error, files);
        let path = files.lock();
        let file = open(files, true).map_err(unusable)?;
        // If root applies, the service's user must still be able to open it later: it gets the folder's owner, as the generated files do.
        if geteuid().is_root() {
            rights::follow_the_folder(&file, folder(&path)).map_err(unusable)?;
        }
        match file.try_lock() {
            // The file was removed before it was locked: the next apply would lock another one.
            Ok(()) if !is_at(&file, &path) => Self::try_acquire(files),
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }

    /// Fails if this user cannot take the lock. Makes no file.
    pub fn check(files: &GeneratedFiles) -> Result<()> {
        match open(files, false) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(&error, files)),
            _ => Ok(()),
        }
    }
}

/// Opens the lock file, which no other user may open: who can open it can hold the lock. Follows no symbolic link, and waits for no pipe.
fn open(files: &GeneratedFiles, create: bool) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).expect("an open flag fits");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(create).truncate(false).mode(0o600).custom_flags(flags).open(files.lock())?;
    let own = file.metadata()?;
    if create && own.uid() == geteuid().as_raw() && own.mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// The error of the lock file: what is wrong with the folders, or else with the file. Removing a regular one is advised only if no
/// apply runs: otherwise two could run at once.
fn unusable(error: &io::Error, files: &GeneratedFiles) -> Problem {
    if let Err(of_the_folders) = rights::check_targets(files) {
        return of_the_folders;
    }
    let remedy = match Errno::from_io_error(error) {
        Some(Errno::ACCESS) => {
            "the portal's user may not write it: if another user owns the file and no apply runs, remove it"
        }
        // A symbolic link, a folder, a pipe.
        Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => "it is no regular file: remove it",
        _ => rights::advice(error),
    };
    Problem { what: format!("cannot use the lock file {}: {error}", files.lock().display()), remedy: remedy.to_owned() }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
