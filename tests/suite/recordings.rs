//! What Asterisk prints, kept in `tests/recordings` for the tests of the parsers: each file begins with the command that made
//! it. They are made, on a real Asterisk, by `PBX_RECORD=1 cargo test --test suite recordings::`; otherwise they are compared
//! with what it prints now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

use crate::fixtures::{account, host};
use support::manager::Manager;
use support::process::Process;
use support::sipp::{Called, Phones};
use support::{Asterisk, Phone, secs, wait_until};

/// An administrator's own, beside ours.
const PJSIP: &str = "
[alice]
type=endpoint
auth=alice
aors=alice
[alice]
type=auth
auth_type=userpass
username=bob
password=x
[alice]
type=aor
max_contacts=2
[trunk]
type=identify
endpoint=alice
match=192.0.2.7
match=198.51.100.0/24
match=127.0.0.1:5070
match=2001:db8::1
match=[::1]:5070
[header]
type=identify
endpoint=alice
match_header=X-Trunk: 1
[1500/extra]
type=endpoint
[2000]
type=endpoint
aors=alice
";
const EXTENSIONS: &str = "
[more]
exten => 1777,1,Wait(300)
[synergy-internal](+)
exten => 1000,hint,PJSIP/1000
exten => _1XXX,1,NoOp(x)
exten => 1002/1000,1,NoOp(y)
exten => 1000,3,NoOp(z)
include => more
";

#[test]
fn recordings_are_what_asterisk_prints() {
    let (asterisk, portal) = host();
    let none = [
        ("no-endpoints", "pjsip show endpoints like ^1[0-9][0-9][0-9]$"),
        ("no-registrations", "database show registrar/contact"),
        ("no-contacts", "pjsip show contacts like ^1[0-9][0-9][0-9][;/]"),
        ("no-context", "dialplan show synergy-internal"),
    ];
    record(&asterisk, &none);
    portal.apply("suite");
    record(&asterisk, &[("empty-context", "dialplan show synergy-internal")]);

    let accounts = ["Alice", "Bob"].map(|name| account(&portal.create_user(name, &format!("{name}@example.com"))));
    asterisk.edit_config("pjsip.conf", |text| format!("{text}{PJSIP}"));
    asterisk.edit_config("extensions.conf", |text| format!("{text}{EXTENSIONS}"));
    portal.apply("suite");
    let accounts = accounts.each_ref().map(|(number, secret)| (number.as_str(), secret.as_str()));
    let _phones = Phones::register(&asterisk, &accounts, Called::Answer);
    asterisk.rx("dialplan add extension 1600,1,NoOp,x into synergy-internal");
    let other = format!("alice;@{}", "0123456789abcdef".repeat(2));
    asterisk.rx(&format!(
        r#"database put registrar/contact {other} "{{\"uri\":\"sip:alice@127.0.0.1:9\",\"expiration_time\":\"4102444800\",\"user_agent\":\"/registrar/contact/1002;@0123456789abcdef0123456789abcdef: {{}}\"}}""#
    ));
    let watcher = Phone::new(&asterisk, accounts[0].0, accounts[0].1);
    assert_eq!(watcher.subscribe("1000"), Some(200));
    record(
        &asterisk,
        &[
            ("endpoints", "pjsip show endpoints like ^1[0-9][0-9][0-9]$"),
            ("endpoint", "pjsip show endpoint 1000"),
            ("auths", "pjsip show auths like ^1[0-9][0-9][0-9]$"),
            ("aor", "pjsip show aor 1000"),
            ("identifies", "pjsip show identifies"),
            ("aors", "pjsip show aors like ^1[0-9][0-9][0-9]$"),
            ("transports", "pjsip show transports"),
            ("registrations", "database show registrar/contact"),
            ("contacts", "pjsip show contacts like ^1[0-9][0-9][0-9][;/]"),
            ("subscriptions", "pjsip show subscriptions inbound"),
            ("queues", "core show taskprocessors like pjsip/distributor"),
            ("dialplan", "dialplan show synergy-internal"),
            ("auth", "pjsip show auth 1000"),
            ("no-auth", "pjsip show auth 1999"),
            ("booted", "core waitfullybooted"),
            ("modules", "module show like app_d"),
            ("a-module-that-does-not-run", "module show like func_odbc"),
        ],
    );

    asterisk.rx("channel originate Local/1777@more application Wait 300");
    let log = asterisk.etc().join("stop.log");
    let _stopping = Process::start(Command::new(asterisk.bin()).args(["-rx", "core stop gracefully"]), &log);
    wait_until(secs(10), "Asterisk is shutting down", || asterisk.rx("core show uptime").contains("during shutdown"));
    record(&asterisk, &[("shutting-down", "core waitfullybooted")]);
    asterisk.rx("core abort shutdown");
    asterisk.write_config("cli_permissions.conf", "[general]\ndefault_perm=deny\n");
    asterisk.rx("cli reload permissions");
    record(&asterisk, &[("not-permitted", "core waitfullybooted")]);
}

/// Each recording has files, the first of which is `main.conf`, and what Asterisk reads in them.
#[test]
fn recordings_of_configuration_files_are_what_asterisk_reads() {
    const READS: &str = "### Asterisk reads\n";
    let (asterisk, _portal) = host();
    let (mut manager, _port) = Manager::connect(&asterisk);
    for recording in fs::read_dir(folder().join("configuration")).expect("the recordings") {
        let path = recording.expect("a recording").path();
        let kept = fs::read_to_string(&path).expect("a text");
        let files = kept.split_once(READS).map_or(kept.as_str(), |(files, _)| files);
        let files: Vec<_> = files.split("### ").skip(1).map(|file| file.split_once('\n').expect("a name")).collect();
        for (name, text) in &files {
            asterisk.write_config(name, text);
        }
        let answer = manager.ask("Action: GetConfig\r\nFilename: main.conf\r\nFilter: TEMPLATES=include");
        let mut reads = Vec::new();
        for (key, value) in answer.iter().filter_map(|line| line.split_once(": ")) {
            match key.split('-').next() {
                Some("Category") => reads.push(format!("[{value}]")),
                Some("IsTemplate") => reads.last_mut().expect("its section").push_str("(!)"),
                Some("Line" | "Message") => reads.push(value.to_owned()),
                _ => {}
            }
        }
        for (name, _) in &files {
            fs::remove_file(asterisk.etc().join(name)).expect("remove a file");
        }
        let files: Vec<_> = files.iter().map(|(name, text)| format!("### {name}\n{text}")).collect();
        let text = format!("{}{READS}{}\n", files.concat(), reads.join("\n"));
        if std::env::var_os("PBX_RECORD").is_some() {
            fs::write(&path, &text).expect("write a recording");
        }
        assert_eq!(text, fs::read_to_string(&path).expect("a recording"), "{}: record it again", path.display());
    }
}

fn record(asterisk: &Asterisk, commands: &[(&str, &str)]) {
    let anew = std::env::var_os("PBX_RECORD").is_some();
    let secret = Regex::new("(?m)(^ password +: ).*$").expect("a regex");
    for (name, command) in commands {
        let text = format!("$ asterisk -rx '{command}'\n{}", asterisk.rx(command));
        // A secret is in no file.
        let text = secret.replace(&text, "${1}SECRET").into_owned();
        if anew {
            fs::create_dir_all(folder()).expect("make the folder of recordings");
            fs::write(folder().join(format!("{name}.txt")), &text).expect("write a recording");
        }
        let kept = fs::read_to_string(folder().join(format!("{name}.txt"))).expect("a recording");
        assert_eq!(form(&text), form(&kept), "{name}: record it again, and look at the parsers' tests");
    }
}

/// A text without what differs from run to run: identifiers, ports, times, whether a phone has answered yet.
fn form(text: &str) -> Vec<String> {
    let hexadecimal = Regex::new("[0-9a-f]{10,32}").expect("a regex");
    let number = Regex::new(r"-?nan|[0-9]+(\.[0-9]+)?").expect("a regex");
    let state = Regex::new("Avail|NonQual|Unknown").expect("a regex");
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| hexadecimal.replace_all(line, "#").into_owned())
        .map(|line| state.replace_all(&number.replace_all(&line, "#"), "?").into_owned())
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    // Registrations stand in the order of their keys, which are digests.
    lines.sort();
    lines
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}
