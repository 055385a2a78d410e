//! The backup of Asterisk's own database in docs/operations.md: it takes nothing from Asterisk.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::{SetWhenDropped, sqlite_file};
use support::lab::Folder;
use support::process::run_within;
use support::{Asterisk, secs};

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
    thread::sleep(secs(2));

    let failed = || asterisk.log().contains("database is locked");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ended = SetWhenDropped(&done);
        // Asterisk commits at once what comes a second after the last write.
        scope.spawn(|| {
            for turn in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                asterisk.rx(&format!("database put backup turn {turn}"));
                thread::sleep(Duration::from_millis(1100));
            }
        });
        let end = Instant::now() + secs(6);
        while Instant::now() < end {
            let output = run_within(secs(20), Command::new("sh").args(["-ec", &backup]));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(sqlite_file(&copy, "SELECT value FROM astdb WHERE key = '/backup/before'"), "it");
        }
        assert!(!failed(), "{}", asterisk.log());

        let reader = "BEGIN; SELECT count(*) FROM astdb;";
        run_within(secs(20), Command::new("sqlite3").arg(&database).args([reader, ".shell sleep 4"]));
        assert!(failed(), "a reader makes a write of Asterisk fail");
    });
}
