//! What others do to the two folders and to the files in them. An apply replaces what it can; otherwise it changes nothing and
//! says what is in the way and what to do.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixtures::{failed_apply, host, left_overs};
use crate::look_before_touching::refused;
use support::lab::{self, User, make_dir};
use support::portal::Settings;
use support::{Asterisk, Portal};

/// A change to the system. Drop undoes it, also after a panic.
pub struct Done {
    undo: Command,
}

impl Done {
    fn by(command: &[&str], undo: &[&str]) -> Self {
        let [mut command, undo] = [command, undo].map(|words| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        });
        let status = command.status().expect("run a tool of the system");
        assert!(status.success(), "{command:?}: {status}");
        Self { undo }
    }

    pub fn immutable(path: &Path) -> Self {
        let path = path.to_str().expect("UTF-8");
        Self::by(&["chattr", "+i", path], &["chattr", "-i", path])
    }

    /// A disk of 32 KiB, mounted over a folder.
    fn small_disk(folder: &Path) -> Self {
        let (User(portal), User(asterisk)) = (lab::PORTAL, lab::ASTERISK);
        let options = format!("size=32k,mode=2750,uid={portal},gid={asterisk}");
        let folder = folder.to_str().expect("UTF-8");
        Self::by(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", folder], &["umount", folder])
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        let status = self.undo.status().expect("run a tool of the system");
        assert!(status.success() || std::thread::panicking(), "{:?}: {status}", self.undo);
    }
}

/// The folders of the endpoints and of the routing.
fn folders(asterisk: &Asterisk) -> [PathBuf; 2] {
    [asterisk.endpoints_file(), asterisk.routing_file()].map(|file| file.parent().expect("a folder").to_owned())
}

/// An apply that must replace both files, whoever owned them.
fn replaced(asterisk: &Asterisk, portal: &Portal) {
    portal.apply("suite");
    let (User(owner), User(group)) = (lab::PORTAL, lab::ASTERISK);
    for file in [asterisk.endpoints_file(), asterisk.routing_file()] {
        let found = fs::symlink_metadata(&file).expect("a generated file");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777, found.nlink()), (owner, group, 0o640, 1));
    }
    assert_eq!(left_overs(asterisk), [""; 0]);
}

#[test]
fn a_file_that_is_read_only_or_of_another_owner_is_replaced() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    let (endpoints, routing) = (asterisk.endpoints_file(), asterisk.routing_file());
    let (User(theirs), mode) = (lab::ASTERISK, Permissions::from_mode);

    fs::set_permissions(&endpoints, mode(0o400)).expect("chmod");
    fs::set_permissions(&routing, mode(0o444)).expect("chmod");
    replaced(&asterisk, &portal);
    chown(&endpoints, Some(0), None).expect("chown");
    chown(&routing, Some(theirs), None).expect("chown");
    replaced(&asterisk, &portal);
    // A hard link to another file: the apply must not write into that file.
    let elsewhere = asterisk.etc().join("elsewhere.conf");
    asterisk.write_config("elsewhere.conf", "[elsewhere]\n");
    fs::remove_file(&routing).expect("remove the routing");
    fs::hard_link(&elsewhere, &routing).expect("make a link");
    replaced(&asterisk, &portal);
    assert_eq!(fs::read_to_string(&elsewhere).expect("the other file"), "[elsewhere]\n");

    // An apply must read the former file to decide which numbers change hands.
    chown(&endpoints, Some(0), Some(0)).expect("chown");
    fs::set_permissions(&endpoints, mode(0o600)).expect("chmod");
    let name = endpoints.display().to_string();
    refused(&asterisk, &portal, &[&name, "Permission denied", "make it readable for the portal's user"]);
    fs::set_permissions(&endpoints, mode(0o604)).expect("chmod");
    replaced(&asterisk, &portal);
}

#[test]
fn an_immutable_file_or_folder_is_named_with_the_remedy() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    for path in folders(&asterisk) {
        let _immutable = Done::immutable(&path);
        let folder = path.display().to_string();
        refused(&asterisk, &portal, &[&folder, "Operation not permitted", "lsattr -d", "chattr -i"]);
    }
    for path in [asterisk.endpoints_file(), asterisk.routing_file()] {
        let _immutable = Done::immutable(&path);
        refused(&asterisk, &portal, &[&path.display().to_string(), "is immutable", "chattr -i"]);
    }
    let (routing, copy) = (asterisk.routing_file(), asterisk.etc().join("copy.conf"));
    fs::copy(&routing, &copy).expect("copy the routing");
    {
        let paths = [&copy, &routing].map(|path| path.to_str().expect("UTF-8"));
        let _mounted = Done::by(&["mount", "--bind", paths[0], paths[1]], &["umount", paths[1]]);
        refused(&asterisk, &portal, &[paths[1], "is a mount point; mount its folder instead"]);
    }
    let [first, _] = folders(&asterisk);
    fs::remove_file(first.join(".pbx-portal.lock")).expect("remove the lock file");
    {
        let _immutable = Done::immutable(&first);
        refused(&asterisk, &portal, &["cannot use the folder ", "lsattr -d", "chattr -i"]);
    }
    replaced(&asterisk, &portal);
}

#[test]
fn a_folder_of_another_owner_is_named_with_the_remedy() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    let (User(owner), User(group)) = (lab::PORTAL, lab::ASTERISK);
    for file in [asterisk.endpoints_file(), asterisk.routing_file()] {
        let path = file.parent().expect("a folder");
        let folder = path.display().to_string();
        make_dir(path, 0, group, 0o2750);
        refused(&asterisk, &portal, &[&folder, "Permission denied", "make it with: install -d -o pbx-portal"]);
        make_dir(path, 0, 0, 0o700);
        refused(&asterisk, &portal, &[&folder, "Permission denied", "install -d -o pbx-portal"]);
        // Another user's file in a sticky folder.
        make_dir(path, 0, group, 0o3770);
        chown(&file, Some(0), None).expect("chown");
        refused(&asterisk, &portal, &[&file.display().to_string(), "sticky folder; remove it", "chmod -t"]);
        // The portal may not give files in the folder the folder's group, the lock file included.
        make_dir(path, owner, 0, 0o755);
        for _ in 0..2 {
            refused(&asterisk, &portal, &[&folder, "not in its group root", &format!("chmod g+s {folder}")]);
            let _ = fs::remove_file(path.join(".pbx-portal.lock"));
        }
        make_dir(path, owner, group, 0o2750);
    }
    replaced(&asterisk, &portal);
}

#[test]
fn a_full_disk_and_a_read_only_one_are_named_with_the_remedy() {
    let (asterisk, portal) = host();
    let disks = folders(&asterisk).map(|folder| (Done::small_disk(&folder), folder));
    let mut users = 0..;
    let mut create = || {
        let number = users.next().expect("a number");
        portal.create_user("User", &format!("user{number}@example.com"));
    };
    create();
    portal.apply("suite");
    for (_, folder) in &disks {
        let filler = folder.join("filler");
        create();
        assert!(fs::write(&filler, vec![0; 1 << 20]).is_err(), "the disk is full");
        let name = folder.display().to_string();
        refused(&asterisk, &portal, &[&name, "No space left on device", "free space on its disk"]);
        fs::remove_file(filler).expect("free space");
        replaced(&asterisk, &portal);

        create();
        let remount = |how| ["mount", "-o", how, folder.to_str().expect("UTF-8")];
        {
            let _read_only = Done::by(&remount("remount,ro"), &remount("remount,rw"));
            refused(&asterisk, &portal, &[&name, "Read-only file system", "mount it writable"]);
        }
        replaced(&asterisk, &portal);
    }
}

#[test]
fn something_else_at_the_path_of_the_lock_or_of_a_temporary_file_is_never_followed() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    let [folder, _] = folders(&asterisk);
    let lock = folder.join(".pbx-portal.lock");
    let elsewhere = asterisk.etc().join("elsewhere.conf");
    let untouched = || assert_eq!(fs::read_to_string(&elsewhere).expect("a file elsewhere"), "[elsewhere]\n");
    asterisk.write_config("elsewhere.conf", "[elsewhere]\n");
    let lock_is_refused = |words: &[&str]| {
        refused(&asterisk, &portal, &[&["cannot use the lock file "], words].concat());
    };

    fs::remove_file(&lock).expect("remove the lock file");
    fs::write(&lock, "").expect("root's lock file");
    fs::set_permissions(&lock, Permissions::from_mode(0o600)).expect("chmod");
    lock_is_refused(&["Permission denied", "another user owns the file and no apply runs, remove it"]);
    fs::remove_file(&lock).expect("remove root's");
    let roots = Portal::prepare(&Settings::of(&asterisk));
    roots.boot_as_root();
    roots.apply("suite");
    drop(roots);
    portal.apply("suite");
    fs::remove_file(&lock).expect("remove the lock file");
    symlink(&elsewhere, &lock).expect("make a link");
    lock_is_refused(&["it is no regular file: remove it"]);
    untouched();
    fs::remove_file(&lock).expect("remove the link");
    fs::create_dir(&lock).expect("make a folder");
    lock_is_refused(&["it is no regular file: remove it"]);
    fs::remove_dir(&lock).expect("remove the folder");
    let status = Command::new("mkfifo").args(["-m", "666"]).arg(&lock).status().expect("run mkfifo");
    assert!(status.success());
    lock_is_refused(&["it is no regular file: remove it"]);
    fs::remove_file(&lock).expect("remove the pipe");
    replaced(&asterisk, &portal);

    let temporary = folder.join(".generated_endpoints.conf.final.tmp");
    symlink(&elsewhere, &temporary).expect("make a link");
    replaced(&asterisk, &portal);
    untouched();
    fs::write(&temporary, "root's").expect("root's temporary file");
    replaced(&asterisk, &portal);
    fs::create_dir(&temporary).expect("make a folder");
    failed_apply(&portal, &[".generated_endpoints.conf.final.tmp", "it is a folder: move it away"]);
    fs::remove_dir(&temporary).expect("remove the folder");
    replaced(&asterisk, &portal);
}
