//! The backup of Asterisk's own database in docs/operations.md: it takes nothing from Asterisk.

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::fixtures::{Reader, commit, sqlite_file};
use crate::steps::DATABASE_LOCKED;
use support::lab::Folder;
use support::process::run_within;
use support::{Asterisk, secs, wait_until};

#[test]
fn the_documents_backup_of_astdb_makes_no_write_of_asterisk_fail() {
    let operations = include_str!("../../docs/operations.md");
    let (_, section) = operations.split_once("## Back up Asterisk's own database\n").expect("the heading");
    let block = section.split_once("```sh\n").and_then(|(_, rest)| rest.split_once("```")).expect("a block").0;

    let (asterisk, folder) = (Asterisk::start(), Folder::new("backup"));
    let [database, copy] =
        [asterisk.etc().with_file_name("db"), folder.path().to_owned()].map(|folder| folder.join("astdb.sqlite3"));
    let backup = block.replace("/var/lib/asterisk/astdb.sqlite3", &database.display().to_string());
    let backup = backup.replace("/root/astdb.sqlite3", &copy.display().to_string());
    asterisk.rx("database put backup before it");
    commit(&asterisk);

    let failed = || asterisk.log().contains(DATABASE_LOCKED);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for turn in 0..5 {
                asterisk.rx(&format!("database put backup turn {turn}"));
                // Asterisk commits at once what comes a second after the last write.
                thread::sleep(Duration::from_millis(1100));
            }
        });
        while !writing.is_finished() {
            let output = run_within(secs(20), Command::new("sh").args(["-ec", &backup]));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(sqlite_file(&copy, "SELECT value FROM astdb WHERE key = '/backup/before'"), "it");
        }
    });
    assert!(!failed(), "{}", asterisk.log());

    let _reader = Reader::start(&asterisk, 1, 60.0, 0.0);
    asterisk.rx("database put backup turn last");
    wait_until(secs(20), "a reader makes a write of Asterisk fail", failed);
}
