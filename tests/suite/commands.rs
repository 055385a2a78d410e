//! Commands that Asterisk does not run for the portal, an `ASTERISK_BIN` that does not reach the right Asterisk, and what an
//! apply does to a command that an administrator ran.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixtures::{account, failed_apply, host, script};
use crate::look_before_touching::refused;
use crate::table::{Table, between};
use support::lab::{self, Folder, User};
use support::portal::{Settings, portal_command};
use support::process::{Process, command_as, run_within};
use support::sipp::register;
use support::{Asterisk, Portal, asterisk, secs, wait_until};

/// Runs a command where `/etc/passwd` is another file: `cli_permissions.conf` takes only users that have a name.
fn with_passwd(passwd: &Path, command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/passwd && exec "$@""#]).arg(passwd);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// An Asterisk that runs only permitted commands, on a machine where the portal's user is called `pbx-portal`.
struct Restricted {
    asterisk: Asterisk,
    portal: Portal,
    folder: Folder,
    passwd: PathBuf,
    _process: Process,
}

const DENIED: &str = "[general]\ndefault_perm=deny\n[root]\npermit=all\n";

impl Restricted {
    fn start() -> Self {
        let (asterisk, portal) = host();
        let folder = Folder::new("passwd");
        let User(user) = lab::PORTAL;
        let passwd = folder.path().join("passwd");
        let users = fs::read_to_string("/etc/passwd").expect("the users of this machine");
        fs::write(&passwd, format!("{users}pbx-portal:x:{user}:{user}::/:/bin/false\n")).expect("write the users");
        asterisk.write_config("cli_permissions.conf", DENIED);
        asterisk.stop();
        let mut serve = command_as(lab::ASTERISK, &[], asterisk.bin());
        let mut serve = with_passwd(&passwd, serve.arg("-f").current_dir(asterisk.etc()));
        let process = Process::start(&mut serve, &folder.path().join("console"));
        asterisk.wait_booted();
        Self { asterisk, portal, folder, passwd, _process: process }
    }

    /// `pbx-portal check`, as the user with that name.
    fn check(&self) -> Table {
        let mut check = portal_command(self.portal.settings(), self.folder.path());
        run_within(secs(60), &mut with_passwd(&self.passwd, check.args(["check", "--json"]))).into()
    }

    fn permit(&self, lines: &[&str]) {
        self.asterisk.write_config("cli_permissions.conf", &format!("{DENIED}{}\n", lines.join("\n")));
        self.asterisk.rx("cli reload permissions");
    }
}

#[test]
fn cli_permissions_that_deny_commands_are_named_with_the_lines_to_add() {
    let scene = Restricted::start();
    scene.portal.create_user("Alice", "alice@example.com");
    let words = ["does not let the portal's user run 'core waitfullybooted'", "cli_permissions.conf"];
    refused(&scene.asterisk, &scene.portal, &words);
    let advice = scene.check().says("Asterisk", "failure", &words);
    scene.check().says("the permission to run commands", "unknown", &[]);

    // As the advice says.
    let lines: Vec<_> =
        between(&advice, "these lines to it: ", "; then run 'cli reload permissions'").split(", ").collect();
    assert_eq!(lines[0], "[pbx-portal]");
    scene.permit(&lines);
    scene.check().nothing_fails();
    scene.portal.apply("suite");

    // Each line is needed, and an apply finds out before it writes anything.
    for missing in &lines[1..] {
        let (_, command) = missing.split_once('=').expect("permit=a command");
        let others: Vec<_> = lines.iter().copied().filter(|line| line != missing).collect();
        scene.permit(&others);
        if command.starts_with("module reload ") {
            // The portal runs these two only if Asterisk takes no other command for a reload.
            scene.check().nothing_fails();
        } else {
            let words = [format!("does not let the portal's user run '{command}")];
            refused(&scene.asterisk, &scene.portal, &[&words[0]]);
            let table = scene.check();
            assert!(table.failures().iter().any(|failure| failure.contains(&words[0])), "{table:?}");
        }
    }
    scene.permit(&lines);
    scene.portal.apply("suite");
}

/// An Asterisk with a call that lasts five minutes: a graceful shutdown waits for its end.
fn with_a_call() -> Asterisk {
    let extensions = "[calls]\nexten => 1,1,Answer()\n same => n,Wait(300)\n".to_owned();
    let asterisk = Asterisk::start_with(&asterisk::Options { extensions, ..asterisk::Options::default() });
    asterisk.rx("channel originate Local/1@calls application Wait 300");
    asterisk
}

#[test]
fn a_shutdown_that_waits_for_calls_is_named_with_the_remedy() {
    let asterisk = with_a_call();
    let portal = Portal::start(&Settings::of(&asterisk));
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    let log = asterisk.etc().join("../log/stop");
    for stop in ["core stop gracefully", "core restart gracefully"] {
        // This command ends with the shutdown.
        let _stopping = Process::start(Command::new(asterisk.bin()).args(["-rx", stop]), &log);
        wait_until(secs(10), stop, || asterisk.rx("core waitfullybooted").contains("during shutdown"));
        let words = ["Asterisk is shutting down", "wait until its calls have ended", "'core abort shutdown'"];
        refused(&asterisk, &portal, &words);
        Table::of(portal.settings()).says("Asterisk", "failure", &words);
        asterisk.rx("core abort shutdown");
        portal.apply("suite");
    }
    // These let commands run until the last call has ended.
    for stop in ["core stop when convenient", "core restart when convenient"] {
        let _stopping = Process::start(Command::new(asterisk.bin()).args(["-rx", stop]), &log);
        portal.apply("suite");
        asterisk.rx("core abort shutdown");
    }
}

#[test]
fn a_shutdown_that_begins_during_an_apply_is_named_too() {
    let asterisk = with_a_call();
    let folder = Folder::new("script");
    let (source, program) = (folder.path().join("source"), folder.path().join("asterisk"));
    let install = |line: &str| {
        let real = asterisk.bin();
        let script = format!("#!/bin/sh\nreal={}\n{line}\nexec \"$real\" \"$@\"\n", real.display());
        fs::write(&source, script).expect("write a script");
        lab::install_program(&source, &program);
    };
    install(
        "[ \"$2\" = 'pjsip reload' ] && { \"$real\" -rx 'core stop gracefully' >/dev/null 2>&1 & until \"$real\" -rx 'core waitfullybooted' | grep -q 'during shutdown'; do sleep 0.02; done; }",
    );
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    portal.create_user("Alice", "alice@example.com");
    failed_apply(&portal, &["Asterisk is shutting down", "'core abort shutdown'"]);
    asterisk.rx("core abort shutdown");
    install("");
    portal.apply("suite");
}

#[test]
fn an_asterisk_bin_that_does_not_reach_this_asterisk_is_named() {
    let (asterisk, other, folder) = (Asterisk::start(), Asterisk::start(), Folder::new("bin"));
    let not_executable = folder.path().join("asterisk");
    fs::write(&not_executable, "").expect("write a file");
    let (elsewhere, not_executable) = (other.bin().display().to_string(), not_executable.display().to_string());
    for (program, words) in [
        ("/nonexistent/asterisk", ["cannot start /nonexistent/asterisk", "No such file", "set ASTERISK_BIN"]),
        (&not_executable, ["cannot start ", "Permission denied", "set ASTERISK_BIN"]),
        ("/bin/true", ["/bin/true -rx", "did not print Asterisk's settings", "set ASTERISK_BIN"]),
        ("/bin/false", ["/bin/false -rx", "exit status: 1", "ASTERISK_BIN"]),
        (&elsewhere, [&elsewhere, "reaches another Asterisk than the control socket", "set ASTERISK_BIN"]),
    ] {
        let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program));
        portal.create_user("Alice", "alice@example.com");
        refused(&asterisk, &portal, &words);
        let settings = portal.settings().clone();
        Table::of(&settings).says("the asterisk command", "failure", &words);
        Table::of(&settings.with("ASTERISK_BIN", asterisk.bin().display())).nothing_fails();
    }
}

#[test]
fn an_apply_keeps_pjsip_set_logger_on() {
    let (asterisk, portal) = host();
    asterisk.write_config("logger.conf", "[logfiles]\nsip.log => verbose\n");
    asterisk.rx("logger reload");
    asterisk.rx("pjsip set logger on");
    let (number, secret) = account(&portal.create_user("Alice", "alice@example.com"));
    portal.apply("suite");
    assert_eq!(register(&asterisk, (&number, &secret)), 200);
    let log = asterisk.etc().join("../log/sip.log");
    wait_until(secs(5), "the registration is logged", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("REGISTER sip:"))
    });
}

#[test]
fn a_reload_that_is_an_alias_of_another_command_is_noticed() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    let alias = |lines: &str| {
        asterisk.write_config("cli_aliases.conf", &format!("[general]\ntemplate=own\n[own]\n{lines}"));
        asterisk.restart();
    };
    alias("pjsip reload=core show uptime\ndialplan reload=core show uptime\n");
    let answer = portal.apply("suite");
    for (reload, command) in [("pjsip_reload", "res_pjsip.so "), ("dialplan_reload", "pbx_config.so'")] {
        let ran = answer["reload_results"][reload]["command"].as_str().expect("a command");
        assert!(ran.contains(&format!("-rx 'module reload {command}")), "{ran}");
    }

    portal.create_user("Bob", "bob@example.com");
    alias("dialplan reload=core show uptime\nmodule reload pbx_config.so=core show uptime\n");
    let words = ["-rx 'module reload pbx_config.so' reloaded nothing, but printed 'System uptime", "cli_aliases.conf"];
    failed_apply(&portal, &words);
    // As the error says.
    asterisk.write_config("cli_aliases.conf", "[general]\ntemplate=own\n[own]\n");
    asterisk.rx("module reload res_clialiases.so");
    portal.apply("suite");
}

#[test]
fn a_wrapper_that_fails_on_an_unknown_command_does_not_stop_an_apply() {
    let options = asterisk::Options { without_cli_aliases: true, ..asterisk::Options::default() };
    let (asterisk, folder) = (Asterisk::start_with(&options), Folder::new("wrapper"));
    let body = "\"$asterisk\" \"$@\" >\"$here/$$\"; cat \"$here/$$\"; ! grep -q 'No such command' \"$here/$$\"\n";
    let wrapper = script(&asterisk, &folder, body);
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", wrapper.display()));
    portal.create_user("Alice", "alice@example.com");
    let answer = portal.apply("suite");
    let ran = answer["reload_results"]["pjsip_reload"]["command"].as_str().expect("a command");
    assert!(ran.contains("-rx 'module reload res_pjsip.so "), "{ran}");
}
