//! The likely cause that a failed apply names, on a real Asterisk in that state.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use serde_json::{Value, json};

use crate::fixtures::{TWO_OF_ONE_NAME, account, failed_apply, host, id, sqlite_file};
use crate::look_before_touching::refused;
use crate::table::Table;
use support::lab::{self, Folder, User};
use support::portal::Settings;
use support::sipp::{Called, Phones};
use support::{Asterisk, Portal, asterisk};

#[test]
fn two_sections_of_one_name_and_type_are_named_with_both_places() {
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
fn a_line_that_asterisk_refuses_is_named() {
    let (asterisk, portal) = host();
    let alice = portal.create_user("Alice", "alice@example.com");
    // One in an included file does less harm.
    asterisk.write_config("harmless.conf", "[bob](nobody)\n");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#include harmless.conf\n[alice\ntype=endpoint\n"));
    failed_apply(
        &portal,
        &["endpoints missing: 1000", "pjsip.conf:", "this line has no closing ]", "all of that file"],
    );
    assert!(asterisk.log().contains("no closing ']'"), "{}", asterisk.log());
    asterisk.edit_config("pjsip.conf", |text| text.replace("[alice\n", "[alice]\n"));
    portal.apply("suite");

    // It hides the include line behind it.
    asterisk.edit_config("pjsip.conf", |text| format!("[bob\n{text}"));
    portal.delete_user(id(&alice));
    failed_apply(&portal, &["endpoints left over: 1000", "may include the generated file, but", "pjsip.conf:1 has no"]);
    asterisk.edit_config("pjsip.conf", |text| text.replacen("[bob\n", "", 1));
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");

    // Among the files of one line it hides those behind it: here, ours.
    asterisk.write_config("pjsip.d/synergycall/a.conf", "[bob](nobody)\n");
    asterisk.edit_config("pjsip.conf", |text| text.replace("generated_endpoints.conf", "*.conf"));
    portal.create_user("Bob", "bob@example.com");
    failed_apply(
        &portal,
        &["endpoints missing: 1000, 1001", "pjsip.d/synergycall/a.conf:1: this line inherits from", "the rest"],
    );
    asterisk.write_config("pjsip.d/synergycall/a.conf", "");
    portal.apply("suite");
}

#[test]
fn an_error_that_only_asterisks_own_log_shows_is_left_to_that_log() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    asterisk.edit_config("asterisk.conf", |text| format!("{text}\n[options]\nexecincludes = yes\n"));
    asterisk.restart();
    asterisk.write_config("printed.conf", TWO_OF_ONE_NAME);
    let printed = asterisk.etc().join("printed.conf");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}#exec \"cat {}\"\n", printed.display()));
    failed_apply(&portal, &["auths missing: 1000", "none was found", "Asterisk's own log (messages.log) says"]);
    assert!(asterisk.log().contains("alice"), "{}", asterisk.log());
    asterisk.write_config("printed.conf", "");
    portal.apply("suite");
}

#[test]
fn a_folder_that_asterisk_may_not_read_is_named_with_the_remedy() {
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
    // As the error says. The next apply gives the file its folder's group.
    chown(&folder, None, Some(group)).expect("chgrp");
    lab::make_dir(&folder, others, group, 0o2750);
    portal.apply("suite");
}

#[test]
fn an_asterisk_that_is_too_old_is_refused() {
    let asterisk = Asterisk::start_with(&asterisk::Options { old: true, ..asterisk::Options::default() });
    let portal = Portal::start(&Settings::of(&asterisk));
    portal.create_user("Alice", "alice@example.com");
    let answer = failed_apply(&portal, &["Asterisk 16.", "older than 22", "upgrade"]);
    assert_eq!(answer["files_written"], json!([]), "nothing is touched");
}

#[test]
fn no_transport_is_a_warning() {
    let asterisk = Asterisk::start_with(&asterisk::Options { without_transport: true, ..asterisk::Options::default() });
    let portal = Portal::start(&Settings::of(&asterisk));
    let (number, secret) = account(&portal.create_user("Alice", "alice@example.com"));
    let message = |answer: Value| answer["message"].as_str().expect("a message").to_owned();
    let warned = message(portal.apply("suite"));
    assert!(warned.contains("Warning: Asterisk has no transport"), "{warned}");
    assert!(
        portal.log().lines().any(|line| line.contains("WARN") && line.contains("no transport")),
        "{}",
        portal.log()
    );

    // As the warning says, add a transport.
    let bind = asterisk.sip();
    asterisk.edit_config("pjsip.conf", |text| {
        format!("[transport-udp]\ntype=transport\nprotocol=udp\nbind={bind}\n\n{text}")
    });
    asterisk.restart();
    let _phone = Phones::register(&asterisk, &[(&number, &secret)], Called::Answer);
    assert!(!message(portal.apply("suite")).contains("Warning"));
}

#[test]
fn another_configuration_folder_than_asterisks_own_is_named() {
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

#[test]
fn an_include_that_finds_no_file_is_named_as_why_a_module_does_not_run() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let mains = ["pjsip.conf", "extensions.conf"];
    for main in mains {
        asterisk.edit_config(main, |text| text.replace("#tryinclude", "#include"));
    }
    asterisk.restart();
    let module = "module load pbx_config.so";
    assert!(asterisk.rx(module).contains("failed"), "as the cause is there yet");
    let words = [
        "pjsip.conf:",
        "'#include pjsip.d/synergycall/generated_endpoints.conf'",
        "extensions.conf:3: '#include extensions.d/synergycall/generated_routing.conf' finds no file",
        "write #tryinclude there, or remove the line, then load pbx_config.so (module load)",
    ];
    refused(&asterisk, &portal, &words);
    for main in mains {
        asterisk.edit_config(main, |text| text.replace("#include", "#tryinclude"));
    }
    assert!(asterisk.rx(module).contains("Loaded"));
    portal.apply("suite");
}

#[test]
fn a_refused_line_is_named_as_why_a_module_does_not_run() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    asterisk.edit_config("extensions.conf", |text| format!("{text}[more\n"));
    asterisk.restart();
    refused(&asterisk, &portal, &["extensions.conf:4: this line has no closing ]", "fix the line"]);
    asterisk.edit_config("extensions.conf", |text| text.replace("[more\n", "[more]\n"));
    // Now nothing but the module is missing.
    refused(&asterisk, &portal, &["Asterisk lacks these modules: pbx_config.so; load them"]);
    assert!(asterisk.rx("module load pbx_config.so").contains("Loaded"));
    portal.apply("suite");
}

#[test]
fn a_file_that_asterisk_may_not_read_is_named_as_why_a_module_does_not_run() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let (file, User(portals), User(asterisks)) = (asterisk.etc().join("extensions.conf"), lab::PORTAL, lab::ASTERISK);
    chown(&file, Some(portals), Some(portals)).expect("chown");
    asterisk.restart();
    let shown = file.display();
    refused(
        &asterisk,
        &portal,
        &[&format!("may not read {shown}; "), &format!("(chgrp asterisk {shown}; chmod g+rX ")],
    );
    chown(&file, None, Some(asterisks)).expect("chgrp");
    asterisk.restart();
    portal.apply("suite");
}

#[test]
fn an_include_line_below_a_comment_that_never_ends_is_named() {
    let (asterisk, portal) = host();
    for (index, (main, comment, line, why, fixed)) in [
        (
            "pjsip.conf",
            ";-- of the\n; former ;-- system --;\n",
            1,
            BEGINS,
            ";-- of the\n; former ;-- system --;\n--;\n",
        ),
        ("extensions.conf", ";-- a --; ;-- b\n", 1, BEGINS, ";-- a --; ;-- b --;\n"),
        ("pjsip.conf", "[old]\n--;\n", 2, ENDS, "[old]\n"),
    ]
    .into_iter()
    .enumerate()
    {
        portal.create_user("Alice", &format!("alice.{index}@example.com"));
        let sound = fs::read_to_string(asterisk.etc().join(main)).expect("a configuration file");
        asterisk.write_config(main, &format!("{comment}{sound}"));
        failed_apply(&portal, &["may include the generated file, but", &format!("{main}:{line} {why}")]);
        asterisk.write_config(main, &format!("{fixed}{sound}"));
        portal.apply("suite");
        asterisk.write_config(main, &sound);
    }
    // It hides something else.
    asterisk.edit_config("pjsip.conf", |text| format!("{text};-- old\n[alice]\n"));
    portal.create_user("Bob", "bob@example.com");
    portal.apply("suite");
    Table::of(&of(&asterisk, &portal)).says(
        "lines that Asterisk refuses",
        "warning",
        &[BEGINS, "write --; where it ends"],
    );
}

const BEGINS: &str = "begins a comment that never ends, so Asterisk does not read what follows";
const ENDS: &str = "ends a comment that never began, so Asterisk does not read what follows; remove the --;";

/// Of a `check` beside this portal.
fn of(asterisk: &Asterisk, portal: &Portal) -> Settings {
    Settings::of(asterisk).with("PORTAL_DATA_DIR", portal.data_dir().display())
}

#[test]
fn a_control_socket_of_another_name_is_found() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    asterisk.edit_config("asterisk.conf", |text| format!("{text}astctl = pbx.ctl\n"));
    asterisk.stop();
    asterisk.begin_to_boot();
    asterisk.wait_booted();
    let there = format!("something does on {}", asterisk.run_dir().join("pbx.ctl").display());
    failed_apply(&portal, &["asterisk.ctl", &there, "a line astctl, remove it and restart Asterisk"]);
    asterisk.edit_config("asterisk.conf", |text| text.replace("astctl = pbx.ctl\n", ""));
    asterisk.restart();
    portal.apply("suite");
}

/// The user's objects, and what `sorcery.conf` maps elsewhere: the first line that matters, and what makes it right.
#[test]
fn objects_that_asterisk_reads_elsewhere_are_named() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let own = |kind: &str| format!("{kind} = config,pjsip.conf,criteria=type={kind}");
    let old = |kind: &str| format!("{kind} = config,pjsip_old.conf,criteria=type={kind}");
    for kind in ["endpoint", "auth", "aor"] {
        asterisk.write_config("sorcery.conf", &format!("[res_pjsip]\n{}\n{}\n", old(kind), own(kind)));
        asterisk.restart();
        let place = format!("sorcery.conf:2: '{}'", old(kind));
        let above = format!("remove the line, or write '{}' above it, and restart Asterisk", own(kind));
        refused(&asterisk, &portal, &[&place, "none of the generated ones", &above]);
        asterisk.write_config("sorcery.conf", &format!("[res_pjsip]\n{}\n{}\n", own(kind), old(kind)));
        asterisk.restart();
        portal.apply("suite");
    }
    // Asterisk does not know this family, so PJSIP does not start.
    asterisk.write_config("sorcery.conf", "[res_pjsip]\nendpoint=realtime,ps_endpoints\n");
    asterisk.restart();
    let words =
        ["sorcery.conf:2: 'endpoint = realtime,ps_endpoints' keeps res_pjsip.so from starting", "remove the line"];
    refused(&asterisk, &portal, &words);
    asterisk.write_config("sorcery.conf", "[res_pjsip]\n");
    asterisk.restart();
    portal.apply("suite");
}

#[test]
fn a_file_that_asterisk_reads_from_a_database_is_named() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let database = asterisk.run_dir().join("own.db");
    let User(owner) = lab::ASTERISK;
    let table =
        "id INTEGER PRIMARY KEY, cat_metric INT, var_metric INT, commented INT, filename, category, var_name, var_val";
    sqlite_file(&database, &format!("CREATE TABLE ast_config ({table})"));
    chown(&database, Some(owner), Some(owner)).expect("chown");
    asterisk.write_config("res_config_sqlite3.conf", &format!("[own]\ndbfile = {}\n", database.display()));
    for file in ["pjsip.conf", "extensions.conf"] {
        asterisk.write_config("extconfig.conf", &format!("[settings]\n{file} => sqlite3,own,ast_config\n"));
        asterisk.restart();
        let there = format!("from a database what should come from a file: {file} (sqlite3)");
        failed_apply(&portal, &[&there, "remove the line from extconfig.conf and restart Asterisk"]);
        Table::of(&of(&asterisk, &portal)).says("files from a database", "failure", &[&there]);
    }
    asterisk.write_config("extconfig.conf", "[settings]\n");
    asterisk.restart();
    portal.apply("suite");
}
