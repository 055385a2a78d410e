//! Writes the two generated files so that nobody ever reads half a file.
//!
//! [`prepare`] writes a hidden temporary file beside the target, sets its owner, group and mode, and flushes it to the disk.
//! [`Prepared::publish`] renames it over the target, and [`flush_folder`] flushes the folder: after a crash the target is the
//! old file or the new one, whole. A temporary file that is not published is removed: when it is dropped, or, if the
//! service was killed, by the next apply.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags, accessat, statx};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::lock::HostLock;
use super::place::{GeneratedFiles, folder};
use super::rights::{self, STICKY, advice, closed_above, group_out_of_reach};

/// Looks whether both targets can be replaced: each is a regular file, or absent, in a folder that this user may write into.
///
/// # Errors
/// What is in the way, and how to mend it.
pub fn check_targets(files: &GeneratedFiles) -> Result<(), FileError> {
    for path in [&files.endpoints, &files.routing] {
        let folder = folder(path);
        let unusable = |error: io::Error| {
            let make = || format!("make it with: {}", files.install_command());
            let mend = match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT) => make(),
                Some(Errno::ACCESS) => closed_above(folder).unwrap_or_else(make),
                _ => advice(&error).to_owned(),
            };
            FileError::Folder { path: folder.to_owned(), error, mend }
        };
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => replaceable(path, &found)?,
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
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unusable(error)),
        }
        let may_write = accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        may_write.map_err(|error| unusable(error.into()))?;
        if let Some(mend) = group_out_of_reach(folder) {
            return Err(FileError::Group { path: folder.to_owned(), mend });
        }
    }
    Ok(())
}

/// Removes the temporary files of an apply that was killed.
pub fn remove_left_overs(files: &GeneratedFiles, _lock: &HostLock) -> Result<(), FileError> {
    for target in [&files.endpoints, &files.routing] {
        for path in [Stage::Quarantine, Stage::Final].map(|stage| stage.temporary(target)) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::Step { step: "removing the temporary file", path, error });
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a rename can replace a regular file, as far as its owner and attributes tell.
fn replaceable(path: &Path, file: &fs::Metadata) -> Result<(), FileError> {
    let fixed = |how| Err(FileError::Fixed { path: path.to_owned(), how });
    let user = geteuid();
    let theirs = |owner| !user.is_root() && owner != user.as_raw();
    if fs::metadata(folder(path)).is_ok_and(|f| f.mode() & STICKY != 0 && theirs(f.uid()) && theirs(file.uid())) {
        return fixed(
            "belongs to another user in a sticky folder; remove it, or clear the folder's sticky bit (chmod -t)",
        );
    }
    let Ok(found) = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) else { return Ok(()) };
    if found.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        fixed("is immutable or append-only (lsattr shows an i or an a); clear that (chattr -i -a)")
    } else if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        fixed("is a mount point; mount its folder instead")
    } else {
        Ok(())
    }
}

/// Why a file could not be written. The old file is untouched.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The target is not a regular file.
    #[error("{} is {kind}, not a regular file; move it away, then apply again", path.display())]
    NotAFile {
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// No rename can replace the target.
    #[error("{} {how}, then apply again", path.display())]
    Fixed {
        path: PathBuf,
        /// Why, and what to do.
        how: &'static str,
    },
    /// The folder cannot be used.
    #[error("cannot use the folder {}: {error}; {mend}", path.display())]
    Folder { path: PathBuf, error: io::Error, mend: String },
    /// This user may not give a file in the folder the folder's group.
    #[error("files in {} cannot get its group; {mend}", path.display())]
    Group { path: PathBuf, mend: String },
    /// A step of writing failed.
    #[error("{step} {} failed: {error}; {}", path.display(), advice(error))]
    Step { step: &'static str, path: PathBuf, error: io::Error },
}

/// A temporary file, whole and flushed, that [`Prepared::publish`] makes the target. Drop removes it.
#[derive(Debug)]
pub struct Prepared {
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

/// What a temporary file is for. There can be one of each beside a target.
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    /// The routing with the numbers that change hands at 404.
    Quarantine,
    /// The file that the apply ends with.
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

/// Writes `content` beside `target` and flushes it. The mode is 0640, the group is the folder's; so is the owner if this
/// process may change it (only root may).
///
/// # Errors
/// [`FileError`]; no temporary file is left.
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
    rights::follow_the_folder(&file, folder(target)).map_err(step("setting the group of"))?;
    file.set_permissions(fs::Permissions::from_mode(0o640)).map_err(step("setting the mode of"))?;
    file.sync_all().map_err(step("flushing"))?;
    Ok(prepared)
}

impl Prepared {
    /// Renames the temporary file over the target. Call [`flush_folder`] afterwards.
    ///
    /// # Errors
    /// [`FileError`]; the old file is still there.
    pub fn publish(mut self, _lock: &HostLock) -> Result<(), FileError> {
        let step = |error| FileError::Step { step: "renaming the temporary file to", path: self.target.clone(), error };
        fs::rename(&self.temporary, &self.target).map_err(step)?;
        self.published = true;
        Ok(())
    }
}

/// Flushes the folder of `target`, so that a rename in it survives a power cut.
pub fn flush_folder(target: &Path) -> Result<(), FileError> {
    let step = |error| FileError::Step { step: "flushing the folder of", path: target.to_owned(), error };
    File::open(folder(target)).and_then(|folder| folder.sync_all()).map_err(step)
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.published {
            // If this fails, the next apply removes it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
