//! Writes the two generated files so that nobody ever reads half a file.
//!
//! [`prepare`] writes a hidden temporary file beside the target, sets its owner, group and mode, and flushes it to the disk.
//! [`Prepared::publish`] renames it over the target, and [`flush_folder`] flushes the folder: after a crash the target is the
//! old file or the new one, complete. A temporary file that is not published is removed: when it is dropped, or, if the
//! service was killed, by the next apply.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::generated::{GeneratedFiles, folder};
use super::lock::HostLock;
use super::rights::{self, advice};
use crate::problem::{Problem, Result};

/// Removes the temporary files of an apply that was killed.
pub fn remove_left_overs(_lock: &HostLock, files: &GeneratedFiles) -> Result<()> {
    for target in files.both() {
        for path in [Stage::TakeAway, Stage::Final].map(|stage| stage.temporary(target)) {
            let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
            fs::remove_file(&path).or_else(absent).map_err(failed("removing the temporary file", &path))?;
        }
    }
    Ok(())
}

fn failed(step: &str, path: &Path) -> impl FnOnce(io::Error) -> Problem {
    move |error| Problem {
        what: format!("{step} {} failed: {error}", path.display()),
        remedy: advice(&error).to_owned(),
    }
}

/// A temporary file, complete and flushed, that [`Prepared::publish`] makes the target. Drop removes it.
#[derive(Debug)]
pub struct Prepared {
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

/// What a temporary file is for. There can be one of each beside a target.
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    /// The endpoints without the numbers that change hands.
    TakeAway,
    /// The file that the apply ends with.
    Final,
}

impl Stage {
    fn temporary(self, target: &Path) -> PathBuf {
        let name = target.file_name().expect("a target is a file in a folder").to_string_lossy();
        let stage = match self {
            Self::TakeAway => "take-away",
            Self::Final => "final",
        };
        folder(target).join(format!(".{name}.{stage}.tmp"))
    }
}

/// Writes `content` beside `target` and flushes it. The mode is 0640, the group is the folder's; so is the owner if this
/// process may change it (only root may). If it fails, no temporary file is left.
pub fn prepare(_lock: &HostLock, target: &Path, stage: Stage, content: &str) -> Result<Prepared> {
    let temporary = stage.temporary(target);
    let step = |step| failed(step, &temporary);
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
    /// Renames the temporary file over the target, and returns the target: call [`flush_folder`] afterwards. If it fails, the old
    /// file is still there.
    pub fn publish(mut self, _lock: &HostLock) -> Result<PathBuf> {
        fs::rename(&self.temporary, &self.target).map_err(failed("renaming the temporary file to", &self.target))?;
        self.published = true;
        Ok(self.target.clone())
    }
}

/// Flushes the folder of `target`, so that a rename in it survives a power cut.
pub fn flush_folder(target: &Path) -> Result<()> {
    File::open(folder(target)).and_then(|folder| folder.sync_all()).map_err(failed("flushing the folder of", target))
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.published {
            // If this fails, the next apply removes it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
