//! What an apply refuses before it writes: nothing is written, nothing reloaded, nobody evicted, and the error names the
//! place.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::fixtures::{account, failed_apply, host, left_overs, registrations};
use crate::support::sipp::{Called, Phones};
use crate::support::{Asterisk, Portal};

/// Applies, which must fail with these words and leave everything as it is.
pub fn refused(asterisk: &Asterisk, portal: &Portal, words: &[&str]) {
    let files = [asterisk.endpoints_file(), asterisk.routing_file()];
    let before = files.each_ref().map(|file| fs::read(file).ok());
    let reloaded = |text: String| text.lines().find(|line| line.contains("Last reload time")).map(str::to_owned);
    let reload_before = reloaded(asterisk.rx("core show settings"));
    let answer = failed_apply(portal, words);
    assert_eq!(answer["files_written"], json!([]), "{answer}");
    assert_eq!(answer["reload_results"], json!({"pjsip_reload": null, "dialplan_reload": null}));
    assert_eq!(files.each_ref().map(|file| fs::read(file).ok()), before, "the files are untouched");
    assert_eq!(reloaded(asterisk.rx("core show settings")), reload_before, "Asterisk is not reloaded");
    assert_eq!(left_overs(asterisk), [""; 0], "no temporary file is left");
}

#[test]
fn foreign_sections_and_priorities() {
    let (asterisk, portal) = host();
    let (number, secret) = account(&portal.create_user("Alice", "alice@example.com"));
    portal.apply("suite");
    let _phone = Phones::register(&asterisk, &[(&number, &secret)], Called::Answer);

    let pjsip = [
        ("[1000]\ntype=endpoint\n", "endpoint 1000"),
        ("[1500]\ntype = auth ; by hand\n", "auth 1500"),
        ("[tmpl](!)\nTYPE=aor\n[1999](tmpl)\n", "AOR 1999"),
        ("[1000](+type=endpoint)\ncontext=other\n", "addition to section 1000"),
    ];
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include hand*.conf\n"));
    for (text, what) in pjsip {
        asterisk.write_config("hand-written.conf", &format!("; by hand\n{text}"));
        let line = if text.contains("(!)") { 4 } else { 2 };
        refused(&asterisk, &portal, &[what, &format!("{}:{line}", asterisk.etc().join("hand-written.conf").display())]);
    }
    asterisk.write_config("hand-written.conf", "");

    asterisk.edit_config("extensions.conf", |text| format!("{text}#include more.conf\n"));
    for text in ["exten => 1000,1,NoOp()", "exten = 1700,1(start),NoOp()", "exten => 1700,hint,SIP/x\nsame => 1,NoOp()"]
    {
        asterisk.write_config("more.conf", &format!("[synergy-internal]\n{text}\n"));
        let line = 1 + text.lines().count();
        refused(&asterisk, &portal, &["priority 1", &format!("{}:{line}", asterisk.etc().join("more.conf").display())]);
    }
    assert_eq!(registrations(&asterisk, &number), 1, "nobody was evicted");

    asterisk.write_config("more.conf", "[by-hand](!)\nexten => 1000,1,NoOp()\n[synergy-internal](by-hand)\n");
    refused(&asterisk, &portal, &["priority 1", &format!("{}:2", asterisk.etc().join("more.conf").display())]);

    asterisk.write_config("more.conf", "");
    portal.apply("suite");
}

#[test]
fn an_administrators_own_additions_are_no_failure() {
    let (asterisk, portal) = host();
    let user = portal.create_user("Alice", "alice@example.com");
    asterisk.edit_config("pjsip.conf", |text| {
        let long = "a".repeat(60);
        format!("{text}\n[2000]\ntype=endpoint\n[alice]\ntype=endpoint\n[1500/extra]\ntype=endpoint\n[{long}]\ntype=endpoint\n[1000]\ntype=identify\nendpoint=alice\nmatch=192.0.2.1\n")
    });
    let number = account(&user).0;
    asterisk.edit_config("extensions.conf", |text| {
        format!(
            "{text}\n[more]\nexten => 1777,1,NoOp()\n[synergy-internal](+)\nautohints=yes\nexten => {number},hint,PJSIP/{number}\n\
             exten => _1XXX,1,NoOp()\nexten => 1002/1000,1,NoOp()\nexten => {number},3,NoOp()\ninclude => more\n"
        )
    });
    assert_eq!(portal.apply("suite")["users_applied"].as_u64(), Some(1));
    assert_eq!(portal.apply("suite")["users_applied"].as_u64(), Some(1));
}

#[test]
fn targets_that_are_no_files() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let (target, elsewhere) = (asterisk.routing_file(), asterisk.etc().join("elsewhere.conf"));
    fs::create_dir(&target).expect("make a folder");
    refused(&asterisk, &portal, &["generated_routing.conf is a folder"]);
    fs::remove_dir(&target).expect("remove the folder");
    asterisk.write_config("elsewhere.conf", "[elsewhere]\n");
    symlink(&elsewhere, &target).expect("make a link");
    refused(&asterisk, &portal, &["generated_routing.conf is a symbolic link"]);
    assert_eq!(fs::read_to_string(&elsewhere).expect("the link's target"), "[elsewhere]\n");
    fs::remove_file(&target).expect("remove the link");
    portal.apply("suite");
}

#[test]
fn a_file_that_cant_be_read_and_a_module_that_is_missing() {
    use std::os::unix::fs::PermissionsExt as _;
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include private.conf\n"));
    asterisk.write_config("private.conf", "");
    let private = asterisk.etc().join("private.conf");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).expect("close a file");
    refused(&asterisk, &portal, &["private.conf can't be read"]);
    fs::set_permissions(&private, fs::Permissions::from_mode(0o640)).expect("open a file");

    asterisk.rx("module unload func_pjsip_endpoint.so");
    refused(&asterisk, &portal, &["func_pjsip_endpoint.so"]);
    asterisk.rx("module load func_pjsip_endpoint.so");
    portal.apply("suite");
}

#[test]
fn folders_that_are_not_there() {
    let (asterisk, portal) = host();
    let folder = asterisk.endpoints_file().parent().expect("a folder").to_owned();
    fs::remove_dir(&folder).expect("remove the folder");
    refused(&asterisk, &portal, &["install -d -o pbx-portal -g asterisk -m 2750", &folder.display().to_string()]);
}
