//! What makes an apply refuse to begin: it writes nothing, reloads nothing and evicts nobody, and its error names the place.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::fixtures::{Database, account, failed_apply, host, left_overs, registrations};
use crate::scenes::Scene;
use support::lab::{self, User};
use support::portal::Settings;
use support::sipp::{Called, Phones, call};
use support::{Asterisk, Portal, asterisk, strace};

/// An apply that must fail with these words and change nothing.
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
fn foreign_sections_and_priorities_are_refused() {
    let (asterisk, portal) = host();
    let (number, secret) = account(&portal.create_user("Alice", "alice@example.com"));
    portal.apply("suite");
    let _phone = Phones::register(&asterisk, &[(&number, &secret)], Called::Answer);

    let pjsip = [
        ("[1000]\ntype=endpoint\n", "endpoint 1000"),
        ("[1500]\ntype = auth ; by hand\n", "auth 1500"),
        ("[tmpl](!)\nTYPE=aor\n[1999](tmpl)\n", "AOR 1999"),
        ("[1000](+type=endpoint)\ncontext=other\n", "addition to section 1000"),
        ("[1500](+)\ncontext=other\n", "addition to section 1500"),
        (";-- a \\;-- b --; [1000]\ntype=aor\n", "AOR 1000"),
    ];
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include {{none,hand*}}.conf\n"));
    for (text, what) in pjsip {
        asterisk.write_config("hand-written.conf", &format!("; by hand\n{text}"));
        let line = if text.contains("(!)") { 4 } else { 2 };
        refused(&asterisk, &portal, &[what, &format!("{}:{line}", asterisk.etc().join("hand-written.conf").display())]);
    }
    asterisk.write_config("hand-written.conf", "");

    asterisk.write_config("pjsip_wizard.conf", "[1500](!)\ntype=wizard\n[1501](1500)\n");
    refused(&asterisk, &portal, &["wizard 1501", "pjsip_wizard.conf:3", "rename or remove it"]);
    asterisk.write_config("pjsip_wizard.conf", "[1500](!)\ntype=wizard\n[alice](1500)\n");

    asterisk.edit_config("extensions.conf", |text| format!("{text}#include more.conf\n"));
    for text in ["exten => 1000,1,NoOp()", "exten = 1700,1(start),NoOp()", "exten => 1700,hint,SIP/x\nsame => 1,NoOp()"]
    {
        asterisk.write_config("more.conf", &format!("[synergy-internal]\n{text}\n"));
        let line = 1 + text.lines().count();
        refused(&asterisk, &portal, &["priority 1", &format!("{}:{line}", asterisk.etc().join("more.conf").display())]);
    }
    assert_eq!(registrations(&asterisk, &number), 1, "nobody was evicted");

    asterisk.write_config(
        "more.conf",
        "[synergy-internal](!)\nexten => 1000,1,NoOp()\n--;\n[synergy-internal]\nexten => 1000,1,NoOp()\n",
    );
    portal.apply("suite");

    asterisk.write_config("more.conf", "[Synergy-Internal](+)\nexten => 1000,1,NoOp()\n");
    refused(&asterisk, &portal, &["priority 1", &format!("{}:2", asterisk.etc().join("more.conf").display())]);

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
    // Asterisk reads the file, and skips the folder.
    asterisk.write_config("pjsip.d/own.conf", "[bob]\ntype=endpoint\n");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include pjsip.d/*\n#include {{none,also}}.conf\n"));
    asterisk.write_config("also.conf", "");
    assert_eq!(portal.apply("suite")["users_applied"].as_u64(), Some(1));
    assert_eq!(portal.apply("suite")["users_applied"].as_u64(), Some(1));
    assert!(asterisk.endpoints().contains(&"bob".to_owned()), "{:?}", asterisk.endpoints());
}

#[test]
fn targets_that_are_not_regular_files_are_refused() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let elsewhere = asterisk.etc().join("elsewhere.conf");
    asterisk.write_config("elsewhere.conf", "[elsewhere]\n");
    for target in [asterisk.endpoints_file(), asterisk.routing_file()] {
        let name = target.display();
        fs::create_dir(&target).expect("make a folder");
        refused(&asterisk, &portal, &[&format!("{name} is a folder, not a regular file; move it away")]);
        fs::remove_dir(&target).expect("remove the folder");
        symlink(&elsewhere, &target).expect("make a link");
        refused(&asterisk, &portal, &[&format!("{name} is a symbolic link")]);
        assert_eq!(fs::read_to_string(&elsewhere).expect("the link's target"), "[elsewhere]\n");
        fs::remove_file(&target).expect("remove the link");
    }
    portal.apply("suite");
}

#[test]
fn registrations_that_asterisk_keeps_outside_its_own_database_are_refused() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    for contact in [
        "contact = memory",
        "contact/initialize=realtime,ps_contacts",
        "contact=astdb,elsewhere",
        // Asterisk trims no blank: this family is called " registrar".
        "contact=astdb, registrar",
    ] {
        asterisk.write_config("sorcery.conf", &format!("[tmpl](!)\n{contact}\n[res_pjsip](tmpl)\nendpoint=memory\n"));
        refused(
            &asterisk,
            &portal,
            &["sorcery.conf:2", "an old phone would ring", "remove the line and restart Asterisk"],
        );
    }
    asterisk.write_config("sorcery.conf", HARMLESS);
    asterisk.restart();
    portal.apply("suite");
}

/// Asterisk maps nothing of ours elsewhere because of these.
const HARMLESS: &str = "
[res_pjsip](!)
endpoint=memory
[Res_PJSIP]
contact=astdb,registrar
endpoint=memory
endpoint=config,pjsip.conf,criteria=type=endpoint
endpoint=config,pjsip_old.conf,criteria=type=endpoint
identify/cache=memory_cache,object_lifetime_maximum=600
AOR=memory
[res_pjsip]
auth=memory
[res_pjsip_pubsub]
endpoint=memory
[res_pjsip_registrar]
contact=memory
";

#[test]
fn a_cache_of_what_asterisk_reads_in_its_files_is_refused() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    let options =
        ["object_lifetime_maximum=1800", "expire_on_reload=yes,object_lifetime_maximum=1800", "full_backend_cache=yes"];
    let sections = ["res_pjsip", "res_pjsip_pubsub", "acl"];
    for (index, kind) in ["endpoint", "auth", "aor", "contact"].into_iter().enumerate() {
        let line = format!("{kind}/cache = memory_cache,{}", options[index % 3]);
        asterisk.write_config("sorcery.conf", &format!("[{}]\n{line}\n", sections[index % 3]));
        let words = [&format!("sorcery.conf:2: '{line}'"), "a deleted user's phone", "remove the line and restart"];
        refused(&asterisk, &portal, &words);
    }
}

#[test]
fn an_include_that_matches_no_file_is_refused() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    for (main, pattern) in
        [("pjsip.conf", "nothing/*.conf"), ("extensions.conf", "none.conf"), ("pjsip.conf", "db.d/*")]
    {
        let sound = fs::read_to_string(asterisk.etc().join(main)).expect("a configuration file");
        asterisk.write_config(main, &format!("#include {pattern}\n{sound}"));
        let words =
            [&format!("{main}:1: '#include {pattern}' finds no file"), "write #tryinclude there, or remove the line"];
        refused(&asterisk, &portal, &words);
        asterisk.write_config(main, &format!("#tryinclude {pattern}\n{sound}"));
        portal.apply("suite");
        asterisk.write_config(main, &sound);
        // A folder is no file.
        fs::create_dir_all(asterisk.etc().join("db.d/folder")).expect("make a folder");
    }

    // Our files need not exist before the first apply.
    for (main, file) in [("pjsip.conf", asterisk.endpoints_file()), ("extensions.conf", asterisk.routing_file())] {
        asterisk.edit_config(main, |text| text.replace("#tryinclude", "#include"));
        fs::remove_file(file).expect("remove a generated file");
    }
    portal.apply("suite");
}

#[test]
fn a_generated_file_that_is_included_twice_is_refused() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    for (main, line) in
        [("pjsip.conf", "#tryinclude pjsip.d/*/*.conf"), ("extensions.conf", "#tryinclude extensions.d/*/g*")]
    {
        let sound = fs::read_to_string(asterisk.etc().join(main)).expect("a configuration file");
        asterisk.write_config(main, &format!("{line}\n{sound}"));
        let first = format!("{main}:1 ");
        let second = 2 + sound.lines().position(|line| line.starts_with("#tryinclude")).expect("an include line");
        let second = format!("{main}:{second}; remove one of the two lines");
        refused(&asterisk, &portal, &["is included twice", &first, &second]);
        // A file that includes it once, but is included twice.
        asterisk.write_config("around.conf", line);
        asterisk.write_config(main, &format!("#include around.conf\n#include around.conf\n{sound}"));
        refused(&asterisk, &portal, &["is included twice", "around.conf is included twice itself"]);
        asterisk.write_config(main, &sound);
        portal.apply("suite");
    }
}

#[test]
fn any_missing_module_is_refused() {
    let leaves = [
        "app_dial.so",
        "bridge_simple.so",
        "chan_pjsip.so",
        "func_logic.so",
        "pbx_config.so",
        "res_pjsip_authenticator_digest.so",
        "res_pjsip_endpoint_identifier_user.so",
        "res_pjsip_nat.so",
        "res_pjsip_registrar.so",
        "res_pjsip_sdp_rtp.so",
        "res_rtp_asterisk.so",
    ];
    // Asterisk does not start without res_sorcery_config.so and res_sorcery_memory.so.
    let roots =
        ["res_pjproject.so", "res_pjsip.so", "res_pjsip_pubsub.so", "res_pjsip_session.so", "res_sorcery_astdb.so"];
    for missing in [&leaves[..], &roots] {
        let modules = format!("noload={}\n", missing.join("\nnoload="));
        let asterisk = Asterisk::start_with(&asterisk::Options { modules, ..asterisk::Options::default() });
        let portal = Portal::start(&Settings::of(&asterisk));
        portal.create_user("Alice", "alice@example.com");
        refused(&asterisk, &portal, missing);
    }
}

#[test]
fn a_control_socket_that_refuses_the_portal_is_told_from_a_portal_without_a_file_handle() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    let without_handles = ["-f", "-e", "trace=socket", "-e", "inject=socket:error=EMFILE"];
    strace::under(portal.pid(), &without_handles, || {
        refused(
            &asterisk,
            &portal,
            &["can't be reached", "no file handle is left: raise the portal's limit (LimitNOFILE="],
        );
    });
    asterisk.edit_config("asterisk.conf", |text| text.replace("astctlpermissions = 0660", "astctlpermissions = 0600"));
    asterisk.restart();
    refused(&asterisk, &portal, &["refuses the portal's user", "astctlpermissions = 0660", "astctlgroup"]);
    // The socket is not what is closed.
    let run_dir = asterisk.run_dir();
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o700)).expect("chmod");
    let closed = format!("may not enter {}: ", run_dir.display());
    refused(&asterisk, &portal, &["refuses the portal's user", &closed, "chmod g+x"]);
}

#[test]
fn a_closed_folder_above_the_files_is_named() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    let (User(owner), User(portals), User(others)) = (lab::ASTERISK, lab::PORTAL, lab::BROWSER);
    let (etc, pjsip_d) = (asterisk.etc(), asterisk.etc().join("pjsip.d"));
    let entered = |folder: &Path| format!("may not enter {}: ", folder.display());
    for folder in [&etc, &pjsip_d, &etc.join("extensions.d")] {
        lab::make_dir(folder, owner, others, 0o750);
        let group = format!("usermod -aG {others} pbx-portal; chmod g+x {}), then restart", folder.display());
        refused(&asterisk, &portal, &[&entered(folder), &group]);
        lab::make_dir(folder, owner, owner, 0o740);
        refused(&asterisk, &portal, &[&entered(folder), &format!("(chmod g+x {})", folder.display())]);
        lab::make_dir(folder, portals, owner, 0o670);
        refused(&asterisk, &portal, &[&entered(folder), &format!("(chmod u+x {})", folder.display())]);
        lab::make_dir(folder, owner, 0, 0o750);
        refused(&asterisk, &portal, &[&entered(folder), &format!("chgrp asterisk {}", folder.display())]);
        lab::make_dir(folder, owner, owner, 0o750);
    }
    // A folder of another included file.
    let private = etc.join("private");
    lab::make_dir(&private, owner, owner, 0o700);
    asterisk.write_config("private/more.conf", "[alice]\ntype=endpoint\n");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include private/more.conf\n"));
    refused(&asterisk, &portal, &["cannot read ", "private/more.conf", &entered(&private)]);
    lab::make_dir(&private, owner, owner, 0o750);
    portal.apply("suite");
}

#[test]
fn a_file_that_cannot_be_read_and_a_missing_module_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include private.conf\n"));
    asterisk.write_config("private.conf", "");
    let private = asterisk.etc().join("private.conf");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).expect("close a file");
    refused(&asterisk, &portal, &["cannot read ", "private.conf"]);
    fs::set_permissions(&private, fs::Permissions::from_mode(0o640)).expect("open a file");

    let (dialplan, away) = (asterisk.etc().join("extensions.conf"), asterisk.etc().join("away"));
    fs::rename(&dialplan, &away).expect("move the dialplan away");
    refused(&asterisk, &portal, &["cannot read ", "extensions.conf: No such file", "; it is missing: make it"]);
    fs::rename(&away, &dialplan).expect("move it back");

    asterisk.rx("module unload func_logic.so");
    refused(&asterisk, &portal, &["func_logic.so"]);
    asterisk.rx("module load func_logic.so");
    portal.apply("suite");
}

#[test]
fn an_extensions_lua_does_not_win_over_ours() {
    let (asterisk, portal) = host();
    let accounts = ["alice", "bob"].map(|name| account(&portal.create_user(name, &format!("{name}@example.com"))));
    let accounts = accounts.each_ref().map(|(number, secret)| (number.as_str(), secret.as_str()));
    let lua = "extensions = { [\"synergy-internal\"] = { [\"1001\"] = function() app.hangup(17) end } }\n";
    asterisk.write_config("extensions.lua", lua);
    assert!(asterisk.rx("module load pbx_lua.so").contains("Loaded"));
    portal.apply("suite");
    assert!(asterisk.rx("dialplan show synergy-internal").contains("'Lua/'"));
    let phones = Phones::register(&asterisk, &accounts, Called::Answer);
    assert_eq!((call(&asterisk, accounts[0], "1001"), phones.requests("INVITE", "1001")), (200, 1));
    portal.apply("suite");
}

#[test]
fn a_pipe_among_the_files_holds_nobody_up() {
    let (asterisk, portal) = host();
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#tryinclude pipe.conf\n"));
    let pipe = asterisk.etc().join("pipe.conf");
    let made = Command::new("mkfifo").arg("--mode=644").arg(&pipe).status().expect("run mkfifo");
    assert!(made.success());
    // Asterisk does not read it either.
    portal.apply("suite");
    fs::rename(&pipe, asterisk.etc().join("sorcery.conf")).expect("another name");
    refused(&asterisk, &portal, &["sorcery.conf", "it is no regular file"]);
}

/// PostgreSQL stores no NUL.
#[test]
fn a_nul_in_a_line_that_is_quoted_leaves_a_complete_audit_row() {
    let scene = Scene::at(Asterisk::start()).on(Database::Postgres).begin();
    scene.asterisk.write_config("sorcery.conf", "[res_pjsip]\nendpoint/cache=memory_cache,\0x\n");
    refused(&scene.asterisk, &scene.portal, &["memory_cache", "keeps a copy"]);
    assert!(scene.row().contains("keeps a copy"), "{}", scene.row());
}

#[test]
fn missing_folders_are_named() {
    let (asterisk, portal) = host();
    // The second holds the lock file too.
    for file in [asterisk.routing_file(), asterisk.endpoints_file()] {
        let folder = file.parent().expect("a folder");
        fs::remove_dir_all(folder).expect("remove the folder");
        let install = "install -d -o pbx-portal -g asterisk -m 2750";
        refused(&asterisk, &portal, &[&folder.display().to_string(), "No such file", install]);
        let (User(owner), User(group)) = (lab::PORTAL, lab::ASTERISK);
        lab::make_dir(folder, owner, group, 0o2750);
    }
    portal.apply("suite");
}
