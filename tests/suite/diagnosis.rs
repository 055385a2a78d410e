//! The likely cause of an apply that is not proven, on an Asterisk that is really in that state.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use crate::fixtures::{TWO_OF_ONE_NAME, failed_apply, host};
use crate::support::lab::{self, Folder, User};
use crate::support::portal::Settings;
use crate::support::{Asterisk, Portal};

#[test]
fn two_sections_of_one_name_and_type() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include by-hand.conf\n"));
    asterisk.write_config("by-hand.conf", TWO_OF_ONE_NAME);
    let by_hand = asterisk.etc().join("by-hand.conf");
    let place = |line| format!("{}:{line}", by_hand.display());
    failed_apply(&portal, &["auths missing: 1000", "[alice] of type=auth", &place(2), &place(7)]);
    asterisk.write_config("by-hand.conf", "");
    portal.apply("suite");
}

#[test]
fn a_folder_that_asterisk_may_not_read() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let folder = asterisk.endpoints_file().with_file_name("");
    let User(others) = lab::PORTAL;
    lab::make_dir(&folder, others, others, 0o2750);
    failed_apply(
        &portal,
        &["endpoints missing: 1000", "may not read", &folder.display().to_string(), "chgrp asterisk"],
    );
    let User(group) = lab::ASTERISK;
    // As the error says; the file follows its folder with the next apply.
    chown(&folder, None, Some(group)).expect("chgrp");
    lab::make_dir(&folder, others, group, 0o2750);
    portal.apply("suite");
}

#[test]
fn another_configuration_folder_than_asterisks_own() {
    let asterisk = Asterisk::start();
    let elsewhere = Folder::new("elsewhere");
    let copied = Command::new("cp").arg("-a").arg(asterisk.etc()).arg(elsewhere.path()).status().expect("run cp");
    assert!(copied.success());
    let wrong = elsewhere.path().join("etc");
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_CONFIG_DIR", wrong.display()));
    portal.create_user("Alice", "alice@example.com");
    let right = fs::canonicalize(asterisk.etc()).expect("a folder");
    failed_apply(
        &portal,
        &[
            "endpoints missing: 1000",
            &format!("reads its configuration from {}", right.display()),
            "ASTERISK_CONFIG_DIR",
        ],
    );
}
