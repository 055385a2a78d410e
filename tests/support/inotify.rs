//! Who writes where: inotify on a tree of folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// Sees every write in a tree of folders.
pub struct Observer {
    inotify: OwnedFd,
    folders: BTreeMap<i32, PathBuf>,
}

impl Observer {
    /// Looks at this folder, and at all that are in it now.
    pub fn of(tree: &Path) -> Self {
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
        let writes =
            WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::MOVE | WatchFlags::DELETE;
        let mut folders = BTreeMap::new();
        let mut left = vec![tree.to_owned()];
        while let Some(folder) = left.pop() {
            folders.insert(add_watch(&inotify, &folder, writes).expect("watch a folder"), folder.clone());
            left.extend(
                fs::read_dir(&folder)
                    .expect("list")
                    .map(|entry| entry.expect("list").path())
                    .filter(|path| path.is_dir()),
            );
        }
        Self { inotify, folders }
    }

    /// Every path that was written to since the last call.
    pub fn written(&self) -> BTreeSet<PathBuf> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut written = BTreeSet::new();
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            written.insert(self.folders[&event.wd()].join(name));
        }
        written
    }
}
