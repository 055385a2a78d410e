//! `pbx-portal check`: each test makes a line fail on a real system, then follows the line's advice until nothing fails.

use std::fs;
use std::process::Command;

use rustix::fs::{XattrFlags, setxattr};

use crate::fixtures::{TWO_OF_ONE_NAME, account, host, id};
use crate::look_before_touching::refused;
use crate::table::{Table, between};
use support::lab::{self, Folder, User};
use support::portal::{Settings, run};
use support::sipp::{Called, Phones};
use support::{Asterisk, Portal, Postgres, asterisk, postgres};

fn settings(asterisk: &Asterisk, portal: &Portal) -> Settings {
    Settings::of(asterisk).with("PORTAL_DATA_DIR", portal.data_dir().display())
}

/// Runs an advised command as root, with the lab's users instead of those of an installed server.
fn follow(advice: &str) {
    let User(portal) = lab::PORTAL;
    let User(asterisk) = lab::ASTERISK;
    let line = advice
        .replace("-o pbx-portal", &format!("-o {portal}"))
        .replace("-g asterisk", &format!("-g {asterisk}"))
        .replace("chgrp asterisk", &format!("chgrp {asterisk}"));
    let status = Command::new("sh").args(["-ec", &line]).status().expect("run sh");
    assert!(status.success(), "{line}: {status}");
}

#[test]
fn check_finds_nothing_on_a_host_that_lacks_nothing_and_changes_nothing() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    let settings = settings(&asterisk, &portal);
    Table::of(&settings).nothing_fails();
    let files = [asterisk.endpoints_file(), asterisk.routing_file()];
    let bytes = files.each_ref().map(|file| fs::read(file).expect("a generated file"));
    let output = run(&["check"], &settings);
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{table}");
    assert!(table.starts_with("pbx-portal ") && table.contains("as user ") && table.contains("database sqlite://"));
    let lines = table.lines().filter(|line| line.starts_with("ok    ")).count();
    assert!(lines >= 12 && table.ends_with("An apply has what it needs.\n"), "{table}");
    assert_eq!(files.each_ref().map(|file| fs::read(file).expect("a generated file")), bytes, "check changes nothing");
}

#[test]
fn check_names_missing_include_lines() {
    let asterisk = Asterisk::start_with(&asterisk::Options { without_includes: true, ..asterisk::Options::default() });
    let portal = Portal::start(&Settings::of(&asterisk));
    let settings = settings(&asterisk, &portal);
    for main in ["pjsip.conf", "extensions.conf"] {
        let advice = Table::of(&settings).says("the include lines", "failure", &[main, "does not include"]);
        let line = between(&advice, "add the line '", "'");
        asterisk.edit_config(main, |text| format!("{text}\n{line}\n"));
    }
    // The lines exist now, the files do not yet.
    Table::of(&settings).says("the include lines", "ok", &[]);
    portal.apply("suite");

    // Through another included file, and by #include, which fails if the file is missing.
    let line = "#tryinclude pjsip.d/synergycall/generated_endpoints.conf";
    asterisk.edit_config("pjsip.conf", |text| text.replace(line, "#include nested.conf"));
    asterisk.write_config("nested.conf", "; by hand\n#include pjsip.d/*/generated_*.conf\n");
    Table::of(&settings).says("the include lines", "warning", &["nested.conf:2", "write #tryinclude"]);
    asterisk.write_config("nested.conf", "; by hand\n#tryinclude pjsip.d/*/generated_*.conf\n");
    Table::of(&settings).nothing_fails();
    Table::of(&settings).says("the include lines", "ok", &["nested.conf:2"]);

    asterisk.edit_config("pjsip.conf", |text| format!("#include nested.conf\n{text}"));
    let advice = Table::of(&settings).says("files included twice", "failure", &["included twice", "nested.conf:2"]);
    assert!(advice.starts_with("remove one of the two lines"), "{advice}");
    let text = "#include nothing.d/*.conf\n";
    asterisk.edit_config("pjsip.conf", |pjsip| pjsip.replacen("#include nested.conf\n", text, 1));
    let advice =
        Table::of(&settings).says("files to include", "failure", &["pjsip.conf:1: '#include nothing.d/*.conf'"]);
    assert!(advice.starts_with("write #tryinclude there, or remove the line"), "{advice}");
    asterisk.edit_config("pjsip.conf", |pjsip| pjsip.replace(text, ""));
    Table::of(&settings).nothing_fails();
}

#[test]
fn check_names_what_is_wrong_with_the_two_folders() {
    let (asterisk, portal) = host();
    let settings = settings(&asterisk, &portal);
    let folder = asterisk.endpoints_file().with_file_name("");
    let shown = folder.to_string_lossy().trim_end_matches('/').to_owned();
    let (User(owner), User(asterisks)) = (lab::PORTAL, lab::ASTERISK);

    fs::remove_dir(&folder).expect("remove a folder");
    let advice = Table::of(&settings).says("the two folders", "failure", &[&shown]);
    follow(between(&format!("{advice}\n"), "make it with: ", "\n"));
    Table::of(&settings).nothing_fails();

    lab::make_dir(&folder, owner, 0, 0o755);
    let advice = Table::of(&settings).says("the two folders", "failure", &[&shown, "cannot get its group"]);
    follow(between(&advice, "(", ")"));
    Table::of(&settings).nothing_fails();

    lab::make_dir(&folder, 0, 0, 0o755);
    let advice = Table::of(&settings).says("the two folders", "failure", &["cannot use the folder ", &shown]);
    follow(between(&format!("{advice}\n"), "make it with: ", "\n"));
    Table::of(&settings).nothing_fails();

    lab::make_dir(&folder, owner, asterisks, 0o2777);
    let advice =
        Table::of(&settings).says("the two folders", "warning", &["every user of this machine may write in ", &shown]);
    follow(between(&format!("{advice}\n"), "close it with: ", "\n"));
    Table::of(&settings).says("the two folders", "ok", &[]);

    lab::make_dir(&asterisk.etc(), asterisks, asterisks, 0o740);
    let etc = asterisk.etc().display().to_string();
    let advice = Table::of(&settings).says("the two folders", "failure", &["Permission denied", &shown]);
    assert!(advice.contains(&format!("may not enter {etc}: ")), "{advice}");
    follow(between(&advice, "(", ")"));
    Table::of(&settings).nothing_fails();
    portal.apply("suite");
}

#[test]
fn check_names_what_is_in_the_way_in_the_two_folders() {
    let (asterisk, portal) = host();
    let settings = settings(&asterisk, &portal);
    let folder = asterisk.endpoints_file().with_file_name("");
    let User(asterisks) = lab::ASTERISK;
    let lock = folder.join(".pbx-portal.lock");
    fs::create_dir(&lock).expect("make a folder");
    Table::of(&settings).says(
        "the two folders",
        "failure",
        &["cannot use the lock file ", "it is no regular file: remove it"],
    );
    fs::remove_dir(&lock).expect("remove it");
    fs::write(&lock, "").expect("root's lock file");
    let words = ["cannot use the lock file ", "and no apply runs, remove it"];
    Table::of(&settings).says("the two folders", "failure", &words);
    fs::remove_file(&lock).expect("remove it");
    Table::of(&settings).nothing_fails();

    lab::make_dir(&folder, 0, asterisks, 0o3770);
    fs::write(asterisk.endpoints_file(), "").expect("root's endpoints");
    let words = ["generated_endpoints.conf belongs to another user", "chmod -t"];
    Table::of(&settings).says("the two folders", "failure", &words);
    follow(&format!("chmod -t {}", folder.display()));
    fs::remove_file(asterisk.endpoints_file()).expect("remove it");
    Table::of(&settings).nothing_fails();
    portal.apply("suite");
}

#[test]
fn check_names_files_that_asterisk_or_the_portal_may_not_read() {
    let (asterisk, portal) = host();
    let settings = settings(&asterisk, &portal);
    let folder = asterisk.endpoints_file().with_file_name("");
    let shown = folder.to_string_lossy().trim_end_matches('/').to_owned();
    let User(owner) = lab::PORTAL;
    lab::make_dir(&folder, owner, owner, 0o2750);
    let advice = Table::of(&settings).says("Asterisk may read the files", "failure", &["may not read", &shown]);
    follow(between(&advice, "(", ")"));
    Table::of(&settings).nothing_fails();

    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include private.conf\n"));
    asterisk.write_config("private.conf", "");
    let private = asterisk.etc().join("private.conf");
    follow(&format!("chmod 600 {}", private.display()));
    let words = ["cannot read ", "private.conf"];
    let advice = Table::of(&settings).says("Asterisk's configuration files", "failure", &words);
    assert!(advice.contains("chgrp asterisk and chmod g+r"), "{advice}");
    follow(&format!("chgrp asterisk {private}; chmod g+r {private}", private = private.display()));
    Table::of(&settings).nothing_fails();
    portal.apply("suite");
}

#[test]
fn a_folder_that_an_access_list_opens_to_asterisk_is_not_taken_for_closed() {
    let (asterisk, portal) = host();
    let folder = asterisk.endpoints_file().with_file_name("");
    let User(owner) = lab::PORTAL;
    lab::make_dir(&folder, owner, owner, 0o2750);
    // user::rwx, user:asterisk:r-x, group::---, mask::r-x, other::---, in the kernel's own form.
    let User(reader) = lab::ASTERISK;
    let entries = [(1, 7, u32::MAX), (2, 5, reader), (4, 0, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, user) in entries {
        list.extend([u16::to_le_bytes(tag), u16::to_le_bytes(rights)].concat());
        list.extend(u32::to_le_bytes(user));
    }
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        setxattr(&folder, name, &list, XattrFlags::empty()).expect("set an access list");
    }
    portal.create_user("Alice", "alice@example.com");
    Table::of(&settings(&asterisk, &portal)).nothing_fails();
    portal.apply("suite");
    assert_eq!(asterisk.endpoints(), ["1000"]);
}

#[test]
fn check_names_foreign_sections_and_priorities_and_a_context_that_nothing_leads_to() {
    let (asterisk, portal) = host();
    let settings = settings(&asterisk, &portal);
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include hand.conf\n"));
    asterisk.write_config("hand.conf", TWO_OF_ONE_NAME);
    let advice = Table::of(&settings).says("sections of one name and type", "failure", &["hand.conf:7", "hand.conf:2"]);
    assert!(advice.contains("rename or remove it"), "{advice}");
    asterisk.write_config("hand.conf", "\n[1000](+type=endpoint)\ncontext=other\n");
    let advice = Table::of(&settings).says("the numbers 1000 to 1999", "failure", &["hand.conf:2", "1000"]);
    assert!(advice.contains("rename or remove it"), "{advice}");
    // Asterisk takes these.
    let own = "[t](!)\ntype=endpoint\n[alice](t)\ntype=endpoint\n[Alice]\ntype=endpoint\n[1000]\ntype=identify\nendpoint=alice\n[1000](+type=identify)\nmatch=192.0.2.1\n";
    asterisk.write_config("hand.conf", own);
    Table::of(&settings).nothing_fails();
    portal.apply("suite");
    for name in ["alice", "Alice"] {
        assert!(asterisk.endpoints().contains(&name.to_owned()), "{:?}", asterisk.endpoints());
    }
    // The rest of such a file is not read; of the main file, nothing is.
    asterisk.write_config("hand.conf", "[bob](nobody)\ntype=endpoint\n[1000]\ntype=endpoint\n");
    let advice = Table::of(&settings).says("lines that Asterisk refuses", "failure", &["hand.conf:1", "the rest"]);
    assert!(advice.contains("fix the line"), "{advice}");
    portal.apply("suite");
    asterisk.write_config("hand.conf", "");
    let sound = fs::read_to_string(asterisk.etc().join("pjsip.conf")).expect("pjsip.conf");
    asterisk.write_config("pjsip.conf", &format!("{sound}[bob\n"));
    let line = format!("pjsip.conf:{}", sound.lines().count() + 1);
    Table::of(&settings).says("lines that Asterisk refuses", "failure", &[&line, "no closing ]"]);
    asterisk.write_config("pjsip.conf", &sound);
    Table::of(&settings).nothing_fails();

    asterisk.write_config("pjsip_wizard.conf", "[1500]\ntype=wizard\n");
    Table::of(&settings).says("the numbers 1000 to 1999", "failure", &["pjsip_wizard.conf:1", "wizard 1500"]);
    asterisk.write_config("pjsip_wizard.conf", "");
    asterisk.write_config("sorcery.conf", "[res_pjsip]\ncontact=memory\n");
    let advice = Table::of(&settings).says("mappings elsewhere", "failure", &["sorcery.conf:2", "memory"]);
    assert!(advice.starts_with("remove the line and restart Asterisk"), "{advice}");
    asterisk.write_config("sorcery.conf", "[res_pjsip]\n");
    Table::of(&settings).nothing_fails();

    // A reload of ours does not remove what AEL defines.
    asterisk.write_config("extensions.ael", "context synergy-internal {\n 1777 => { NoOp(); };\n};\n");
    asterisk.rx("module load pbx_ael.so");
    let words = ["priority 1 of extension 1777", "not from a file", "remove it there"];
    Table::of(&settings).says("where routing comes from", "failure", &words);
    refused(&asterisk, &portal, &words);
    asterisk.write_config("extensions.ael", "context other {\n 1777 => { NoOp(); };\n};\n");
    asterisk.rx("module reload pbx_ael.so");
    Table::of(&settings).nothing_fails();

    asterisk.edit_config("extensions.conf", |text| format!("{text}[synergy-internal](+)\nexten => _1XXX,1,NoOp()\n"));
    let line = fs::read_to_string(asterisk.etc().join("extensions.conf")).expect("the dialplan").lines().count() - 1;
    Table::of(&settings).says("the dialplan context", "ok", &[&format!("extensions.conf:{line}")]);
    Table::of(&settings).nothing_fails();
}

#[test]
fn check_names_why_asterisk_cannot_be_asked() {
    let (asterisk, portal) = host();
    let settings = settings(&asterisk, &portal);

    asterisk.stop();
    let down = Table::of(&settings);
    let advice = down.says("Asterisk", "failure", &["Asterisk is not running"]);
    assert!(advice.contains("systemctl start asterisk"), "{advice}");
    down.says("Asterisk's modules", "unknown", &[]);
    down.says("the next apply", "unknown", &[]);

    asterisk.edit_config("asterisk.conf", |text| text.replace("astctlpermissions = 0660", "astctlpermissions = 0600"));
    asterisk.boot();
    let advice = Table::of(&settings).says("Asterisk", "failure", &["refuses the portal's user"]);
    let (permissions, group) = (between(&advice, "set ", " and "), between(&advice, "and ", " to a group"));
    assert_eq!((permissions, group), ("astctlpermissions = 0660", "astctlgroup"));
    asterisk.edit_config("asterisk.conf", |text| text.replace("astctlpermissions = 0600", permissions));
    asterisk.restart();
    Table::of(&settings).nothing_fails();

    asterisk.rx("module unload func_logic.so");
    let advice = Table::of(&settings).says("Asterisk's modules", "failure", &["func_logic.so"]);
    assert!(advice.contains("module load"), "{advice}");
    asterisk.rx("module load func_logic.so");
    Table::of(&settings).nothing_fails();

    let elsewhere = Folder::new("elsewhere");
    let copied = Command::new("cp").arg("-a").arg(asterisk.etc()).arg(elsewhere.path()).status().expect("run cp");
    assert!(copied.success());
    let wrong = settings.clone().with("ASTERISK_CONFIG_DIR", elsewhere.path().join("etc").display());
    let wrong = Table::of(&wrong);
    let advice = wrong.says("Asterisk's configuration folder", "failure", &["set ASTERISK_CONFIG_DIR"]);
    assert_eq!(advice, "set ASTERISK_CONFIG_DIR to it");
    let (_, found, _) = wrong.line("Asterisk's configuration folder");
    let right = settings.with("ASTERISK_CONFIG_DIR", between(found, "its configuration from ", ", not"));
    Table::of(&right).nothing_fails();
}

#[test]
fn check_has_one_line_for_each_cause_and_skips_what_depends_on_it() {
    let (nothing, folder) = (Settings::default(), Folder::new("etc"));
    let nothing = nothing.with("ASTERISK_RUN_DIR", "/nonexistent").with("PORTAL_DATA_DIR", folder.path().display());
    let no_folder = Table::of(&nothing.clone().with("ASTERISK_CONFIG_DIR", "/nonexistent/asterisk"));
    assert_eq!(no_folder.failures().len(), 2, "Asterisk does not run, and its folder is missing: {no_folder:?}");
    let mend = no_folder.says("the configuration folder", "failure", &["/nonexistent/asterisk", "No such file"]);
    assert_eq!(mend, "set ASTERISK_CONFIG_DIR to Asterisk's own");

    let empty = Table::of(&nothing.with("ASTERISK_CONFIG_DIR", folder.path().display()));
    assert_eq!(empty.failures().len(), 3, "the two folders and pjsip.conf are missing too: {empty:?}");
    empty.says("the two folders", "failure", &["No such file", "install -d"]);
    empty.says("Asterisk's configuration files", "failure", &["pjsip.conf", "No such file"]);
    for what in
        ["files to include", "the include lines", "the numbers 1000 to 1999", "Asterisk's modules", "the next apply"]
    {
        empty.says(what, "unknown", &[]);
    }
}

#[test]
fn check_names_an_old_asterisk_and_a_missing_transport() {
    let old = Asterisk::start_with(&asterisk::Options { old: true, ..asterisk::Options::default() });
    Table::of(&Settings::of(&old)).says("Asterisk", "failure", &["Asterisk 16.", "older than 22", "upgrade"]);
    let deaf = Asterisk::start_with(&asterisk::Options { without_transport: true, ..asterisk::Options::default() });
    Table::of(&Settings::of(&deaf)).says("phones", "warning", &["no phone can reach it", "type=transport"]);
}

#[test]
fn check_names_wrong_settings_and_a_database_that_cannot_be_used() {
    let asterisk = Asterisk::start();
    let data = Folder::new("data");
    let settings = Settings::of(&asterisk).with("PORTAL_DATA_DIR", data.path().display());
    Table::of(&settings).says("the database", "warning", &["there is no ", "pbx-portal migrate"]);
    assert!(!data.path().join("portal.db").exists(), "check makes no file");

    let open = settings.clone().with("PORTAL_LISTEN", "0.0.0.0:8000");
    let advice =
        Table::of(&open).says("the settings", "failure", &["PORTAL_LISTEN", "PORTAL_ALLOW_UNAUTHENTICATED=true"]);
    assert!(advice.contains("set PORTAL_API_TOKEN"), "{advice}");
    let allowed = open.clone().with("PORTAL_ALLOW_UNAUTHENTICATED", "true");
    Table::of(&allowed).says("the settings", "warning", &["without a token", "set PORTAL_API_TOKEN"]);
    Table::of(&open.with("PORTAL_API_TOKEN", "0123456789abcdef0123456789abcdef")).says("the settings", "ok", &[]);
    Table::of(&settings.clone().with("PORTAL_API_TOKEN", "hunter2")).says("the settings", "warning", &["openssl rand"]);
    for (name, value) in [("PORTAL_LISTEN", "127.0.0.1:99999"), ("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml")] {
        Table::of(&settings.clone().with(name, value)).says("the settings", "failure", &[name]);
    }
    for usage in [&["check", "--jsno"][..], &["--host", "check", "--listen", "x"]] {
        let output = run(usage, &Settings::default());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{usage:?} asks for no report");
    }

    let cluster = Postgres::start(&postgres::Options::default());
    let url = cluster.new_database();
    let settings = Settings::of(&asterisk).with("DATABASE_URL", &url);
    Table::of(&settings).says("the database", "warning", &["PostgreSQL", "no tables yet", "pbx-portal migrate"]);
    assert!(run(&["migrate"], &settings).status.success());
    let table = Table::of(&settings);
    table.nothing_fails();
    table.says("the database", "ok", &["PostgreSQL", "schema 1001"]);
    assert!(!table.json.to_string().contains("portal:portal"), "no password: {}", table.json);
    postgres::psql(&url, "UPDATE _sqlx_migrations SET version = 2001");
    Table::of(&settings).says("the database", "failure", &["major version 2", "install the release"]);
    postgres::psql(&url, "UPDATE _sqlx_migrations SET version = 1001");
    cluster.stop();
    Table::of(&settings).says("the database", "failure", &["can't be used: 127.0.0.1:", "that its server is running"]);
    cluster.boot();
    Table::of(&settings).nothing_fails();
}

#[test]
fn check_names_changes_that_are_not_applied_yet() {
    let (asterisk, portal) = host();
    let settings = settings(&asterisk, &portal);
    let users = ["a", "b", "c"].map(|name| portal.create_user(name, &format!("{name}@example.com")));
    Table::of(&settings).says("the next apply", "warning", &["endpoints missing: 1000, 1001, 1002", "POST /apply"]);
    portal.apply("suite");
    Table::of(&settings).says("the next apply", "ok", &["changes nothing"]);

    let accounts = [0, 1].map(|index| account(&users[index]));
    let accounts = accounts.each_ref().map(|(number, secret)| (number.as_str(), secret.as_str()));
    let _phones = Phones::register(&asterisk, &accounts, Called::Answer);
    for user in &users[..2] {
        portal.delete_user(id(user));
    }
    portal.create_user("d", "d@example.com");
    let table = Table::of(&settings);
    table.says("the next apply", "warning", &["endpoints left over: 1001", "another password: 1000"]);
    table.says("old registrations", "warning", &["1000, 1001", "POST /apply"]);
    assert_eq!(portal.apply("suite")["registrations_evicted"].as_array().map(Vec::len), Some(2));
    let table = Table::of(&settings);
    table.says("the next apply", "ok", &["changes nothing"]);
    table.says("old registrations", "ok", &[]);
}
