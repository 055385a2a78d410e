//! Where the two generated files lie, and writing them so that nobody ever reads half a file.
//!
//! A file is [`prepare`]d: a hidden temporary file beside it is written, given owner, group and mode, and flushed to the
//! disk. It is then [`Prepared::publish`]ed: renamed over the target, and the folder flushed, so that after a crash the
//! target is either the old file or the new one, whole. A temporary file that is never published is removed, at once or,
//! if the service was killed, by the next apply.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;

use crate::apply::HostLock;

/// Where the two files lie under Asterisk's configuration folder.
#[derive(Debug, Clone)]
pub struct GeneratedFiles {
    /// `pjsip.d/synergycall/generated_endpoints.conf`.
    pub endpoints: PathBuf,
    /// `extensions.d/synergycall/generated_routing.conf`.
    pub routing: PathBuf,
}

/// The base name of the routing file: how `dialplan show` names where a line came from.
pub const ROUTING_FILE_NAME: &str = "generated_routing.conf";

impl GeneratedFiles {
    /// The two files under `config_dir`, Asterisk's configuration folder.
    #[must_use]
    pub fn under(config_dir: &Path) -> Self {
        Self {
            endpoints: config_dir.join("pjsip.d/synergycall/generated_endpoints.conf"),
            routing: config_dir.join("extensions.d/synergycall").join(ROUTING_FILE_NAME),
        }
    }

    /// The lock file beside the endpoints: who holds its lock may write.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        folder(&self.endpoints).join(".pbx-portal.lock")
    }

    /// The command that makes the two folders, for an error message. The service itself never makes them.
    #[must_use]
    pub fn install_command(&self) -> String {
        format!(
            "install -d -o pbx-portal -g asterisk -m 2750 {} {}",
            folder(&self.endpoints).display(),
            folder(&self.routing).display()
        )
    }

    /// Looks at both targets: each is a regular file that can be replaced, or absent, in a folder that is there.
    ///
    /// # Errors
    /// What is in the way, and how to mend it.
    pub fn check_targets(&self) -> Result<(), FileError> {
        for path in [&self.endpoints, &self.routing] {
            match fs::symlink_metadata(path) {
                Ok(found) if found.is_file() => replaceable(path)?,
                Ok(found) => {
                    let kind = if found.is_dir() {
                        "a folder"
                    } else if found.is_symlink() {
                        "a symbolic link"
                    } else {
                        "a special file"
                    };
                    return Err(FileError::NotAFile { path: path.clone(), kind });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::metadata(folder(path)) {
                    Ok(_) => {}
                    Err(error) => {
                        return Err(FileError::Folder {
                            path: folder(path).to_owned(),
                            error,
                            install: self.install_command(),
                        });
                    }
                },
                Err(error) => {
                    return Err(FileError::Folder {
                        path: folder(path).to_owned(),
                        error,
                        install: self.install_command(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Removes the temporary files that an apply left which was killed.
    ///
    /// # Errors
    /// [`FileError::Step`].
    pub fn remove_left_overs(&self, _lock: &HostLock) -> Result<(), FileError> {
        for target in [&self.endpoints, &self.routing] {
            for path in [Stage::Quarantine, Stage::Final].map(|stage| stage.temporary(target)) {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(FileError::Step { step: "removing the left-over", path, error });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether a rename over a regular file can succeed, as far as its attributes tell; where there are none, it may.
fn replaceable(path: &Path) -> Result<(), FileError> {
    let Ok(found) = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) else { return Ok(()) };
    let fixed = |how| Err(FileError::Fixed { path: path.to_owned(), how });
    if found.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        fixed("is immutable or append-only (lsattr shows an i or an a): take that away (chattr -i -a)")
    } else if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        fixed("is mounted there by itself: mount its folder instead")
    } else {
        Ok(())
    }
}

/// Why a file could not be written. The old file is untouched.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Something else stands where the file belongs.
    #[error("{} is {kind}, not a regular file: move it away, then apply again", path.display())]
    NotAFile {
        /// Where.
        path: PathBuf,
        /// What stands there.
        kind: &'static str,
    },
    /// A file that no rename can replace.
    #[error("{} {how}, then apply again", path.display())]
    Fixed {
        /// Which.
        path: PathBuf,
        /// What keeps it, and what to do.
        how: &'static str,
    },
    /// The folder cannot be used.
    #[error("the folder {} can't be used: {error}; make it with: {install}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
        /// The command that makes it.
        install: String,
    },
    /// A step of writing failed.
    #[error("{step} {} failed: {error}; {}", path.display(), advice(error))]
    Step {
        /// Which step.
        step: &'static str,
        /// Of which file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What to do about an error of the kernel's at a file.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
        return "it or its folder is immutable or append-only (lsattr -d shows an i or an a; chattr -i -a takes that away), or the folder is sticky and the file somebody else's; then apply again";
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "its folder must belong to the portal's user, with mode 2750 and the group asterisk; then apply again"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space on its disk, then apply again",
        io::ErrorKind::ReadOnlyFilesystem => "its file system is read-only: mount it writable, then apply again",
        io::ErrorKind::IsADirectory => "it is a folder: move it away, then apply again",
        _ => "look at its disk (dmesg), then apply again",
    }
}

/// A temporary file, whole and flushed, that [`Prepared::publish`] makes the target. Dropped, it is removed.
#[derive(Debug)]
pub struct Prepared {
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

/// What a temporary file is for: one of each can lie beside a target.
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    /// Without the numbers that change hands.
    Quarantine,
    /// With everything.
    Final,
}

impl Stage {
    fn temporary(self, target: &Path) -> PathBuf {
        let name = target.file_name().expect("a target is a file in a folder").to_string_lossy();
        let stage = match self {
            Self::Quarantine => "quarantine",
            Self::Final => "final",
        };
        folder(target).join(format!(".{name}.{stage}.tmp"))
    }
}

/// Writes `content` beside `target` and flushes it. Mode 0640; the group is the folder's; so is the owner where that is
/// permitted (root may; others stay the owner themselves).
///
/// # Errors
/// [`FileError`]; nothing is left behind.
pub fn prepare(_lock: &HostLock, target: &Path, stage: Stage, content: &str) -> Result<Prepared, FileError> {
    let temporary = stage.temporary(target);
    let step = |step| {
        let path = temporary.clone();
        move |error| FileError::Step { step, path, error }
    };
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary).map_err(step("creating"))?;
    let prepared = Prepared { temporary: temporary.clone(), target: target.to_owned(), published: false };
    file.write_all(content.as_bytes()).map_err(step("writing"))?;
    follow_the_folder(&file, folder(target)).map_err(step("giving the folder's group to"))?;
    file.set_permissions(fs::Permissions::from_mode(0o640)).map_err(step("setting the mode of"))?;
    file.sync_all().map_err(step("flushing"))?;
    Ok(prepared)
}

/// Gives a file of ours its folder's group, and its owner where that is permitted.
///
/// # Errors
/// What the kernel said.
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

impl Prepared {
    /// Renames the temporary file over the target; [`flush_folder`] makes it outlast a power cut.
    ///
    /// # Errors
    /// [`FileError`]; the old file is in place.
    pub fn publish(mut self, _lock: &HostLock) -> Result<(), FileError> {
        let step = |error| FileError::Step { step: "renaming the temporary file to", path: self.target.clone(), error };
        fs::rename(&self.temporary, &self.target).map_err(step)?;
        self.published = true;
        Ok(())
    }
}

/// Flushes the folder of `target`, so that a rename in it outlasts a power cut.
///
/// # Errors
/// [`FileError`].
pub fn flush_folder(target: &Path) -> Result<(), FileError> {
    let step = |error| FileError::Step { step: "flushing the folder of", path: target.to_owned(), error };
    File::open(folder(target)).and_then(|folder| folder.sync_all()).map_err(step)
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done about a failure here; the next apply removes it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().expect("a generated file lies in a folder")
}
