//! The Debian package on a whole server: a Debian with systemd, Asterisk and PostgreSQL, each as its own user and unit.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use pbx_control_portal::help::documented;
use serde_json::Value;

use crate::contributing::in_a_developers_shell;
use crate::fixtures::{TWO_OF_ONE_NAME, account, failed_apply, id};
use support::portal::Settings;
use support::process::run_within;
use support::sipp::{Call, Called, Phones, call};
use support::{Machine, Portal, lab, secs, wait_until};

const SIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5060);
const ENDPOINTS: &str = "/etc/asterisk/pjsip.d/synergycall/generated_endpoints.conf";
const ROUTING: &str = "/etc/asterisk/extensions.d/synergycall/generated_routing.conf";
const TOKEN: &str = "0123456789abcdef";

/// What an administrator adds to Asterisk's own files. The includes are those that break pjsip.conf if they find no file.
const ASTERISKS_OWN_FILES: &str = r"
cat >>/etc/asterisk/asterisk.conf <<'END'
[files]
astctlpermissions = 0660
astctlgroup = asterisk
END
cat >>/etc/asterisk/pjsip.conf <<'END'
[transport-udp]
type = transport
protocol = udp
bind = 127.0.0.1:5060
#include pjsip.d/synergycall/generated_endpoints.conf
END
cat >>/etc/asterisk/extensions.conf <<'END'
#include extensions.d/synergycall/generated_routing.conf
END
systemctl restart asterisk
";

/// The administrator moves from SQLite to PostgreSQL, and asks for a token.
const SETTINGS: &str = r"
cd / && runuser -u postgres -- psql --quiet -c 'CREATE ROLE portal LOGIN PASSWORD $$p$$' -c 'CREATE DATABASE portal OWNER portal'
cat >>/etc/pbx-portal/pbx-portal.env <<'END'
DATABASE_URL=postgres://portal:p@127.0.0.1/portal
PORTAL_API_TOKEN=0123456789abcdef
END
systemctl restart pbx-portal
";

#[test]
fn a_server_installs_boots_crashes_upgrades_and_purges() {
    let machine = Machine::boot();
    let [first, second] = ["0.1.0-1", "0.2.0-1"].map(|version| package(&machine, version));
    debian_has_nothing_against(&machine, &first);
    its_manual_page_tells_all_settings(&machine, &first);
    its_news_are_in_it(&machine, &second);

    install(&machine, &first);
    let portal =
        Portal::prepare(&Settings::default().with("PORTAL_LISTEN", "127.0.0.1:8000").with("PORTAL_API_TOKEN", TOKEN));
    let users = main_job(&machine, &portal);
    its_sandbox_leaves_what_it_needs(&machine, &portal);
    boots_behind_a_slow_database(&machine, &portal, &users);
    is_ready_only_with_its_database(&machine);
    is_restarted_after_a_crash(&machine, &portal, &users);
    is_restarted_when_it_hangs(&machine, &portal, &users);
    is_upgraded_during_a_call(&machine, &portal, &second, &users);
    removal_leaves_the_phones_alone(&machine, &users);
    purge_leaves_empty_files(&machine);

    install(&machine, &first);
    assert_eq!(machine.inside(|| portal.users().len()), 0, "a fresh start");
    machine.inside(|| portal.apply("again"));

    machine.run("dpkg --purge --force-depends asterisk asterisk-config asterisk-modules pbx-portal");
    machine.run("rm -r /etc/asterisk; ! getent group asterisk || groupdel asterisk");
    install(&machine, &first);
    made_by_the_installation(&machine);
}

#[test]
fn the_unit_is_hardened() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/pbx-portal.service");
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--offline=true", "--threshold=20", "--no-pager"]).arg(unit);
    let output = run_within(secs(60), &mut analyze);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("Overall exposure level"), "{table}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "an exposure above 2.0:\n{table}");
}

/// Packages the binary under test, and puts it on the machine.
pub fn package(machine: &Machine, version: &str) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_pbx-portal"));
    let profile = if binary.parent().is_some_and(|folder| folder.ends_with("debug")) { "dev" } else { "release" };
    let name = format!("pbx-portal_{version}.deb");
    let file = lab::process_folder().join(&name);
    let options = format!(
        "--no-build --profile={profile} --strip --fast --quiet --deb-version={version} --output={}",
        file.display()
    );
    let mut make = Command::new("make");
    in_a_developers_shell(make.args(["--silent", "deb", &format!("DEB_OPTIONS={options}")]));
    let output = run_within(secs(600), &mut make);
    assert!(output.status.success(), "make deb: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::copy(file, machine.file(&format!("/root/{name}"))).expect("copy the package");
    format!("/root/{name}")
}

/// `lintian` finds nothing but what an override in the package gives a reason for.
fn debian_has_nothing_against(machine: &Machine, package: &str) {
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error,warning", "--allow-root", "--tag-display-limit", "0"]).arg(machine.file(package));
    let output = run_within(secs(120), &mut lintian);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn its_manual_page_tells_all_settings(machine: &Machine, package: &str) {
    let show = format!("dpkg-deb --fsys-tarfile {package} | tar -xOf - ./usr/share/man/man1/pbx-portal.1.gz | gunzip");
    let page = machine.run(&show).replace("\\-", "-").replace("\\(aq", "'");
    assert_eq!(documented().count(), 12);
    for (name, meaning) in documented() {
        assert!(meaning.ends_with(']') && meaning.contains(" [default: "), "{name}: {meaning}");
        let entry = format!(".TP\n\\fB{name}\\fR\n{meaning}\n");
        assert!(page.contains(&entry), "{entry} in {page}");
    }
}

/// `apt-listchanges` shows them before an upgrade.
fn its_news_are_in_it(machine: &Machine, package: &str) {
    let show =
        format!("dpkg-deb --fsys-tarfile {package} | tar -xOf - ./usr/share/doc/pbx-portal/NEWS.Debian.gz | gunzip");
    assert_eq!(machine.run(&show), include_str!("../../packaging/NEWS").trim());
}

fn install(machine: &Machine, package: &str) {
    machine.run(&format!("apt-get install --yes {package}"));
    assert_eq!(machine.run("systemctl is-active pbx-portal; systemctl is-enabled pbx-portal"), "active\nenabled");
    assert_eq!(machine.run("id -nG pbx-portal"), "pbx-portal asterisk");
}

/// Nothing of it is open to others; an apply keeps it so.
fn made_by_the_installation(machine: &Machine) {
    for (path, expected) in [
        ("/etc/pbx-portal/pbx-portal.env", "root:pbx-portal 640"),
        ("/etc/asterisk/pjsip.d/synergycall", "pbx-portal:asterisk 2750"),
        ("/etc/asterisk/extensions.d/synergycall", "pbx-portal:asterisk 2750"),
        (ENDPOINTS, "pbx-portal:asterisk 640"),
        (ROUTING, "pbx-portal:asterisk 640"),
        ("/var/lib/pbx-portal", "pbx-portal:pbx-portal 700"),
        ("/var/lib/pbx-portal/portal.db", "pbx-portal:pbx-portal 600"),
    ] {
        assert_eq!(machine.run(&format!("stat -c '%U:%G %a' {path}")), expected, "{path}");
    }
}

/// From a fresh installation to a call; gives the users.
fn main_job(machine: &Machine, portal: &Portal) -> Vec<Value> {
    made_by_the_installation(machine);
    machine.run(ASTERISKS_OWN_FILES);
    assert!(asterisk(machine, "pjsip show transports").contains("transport-udp"), "the empty files are valid");
    machine.run(SETTINGS);
    // Another command finds the same settings.
    machine.run("cd /etc/pbx-portal && runuser -u pbx-portal -- pbx-portal migrate");

    let users = machine.inside(|| {
        let users = ["alice", "bob"].map(|name| portal.create_user(name, &format!("{name}@example.com")));
        portal.apply("suite");
        users.to_vec()
    });
    calls(machine, &users);
    made_by_the_installation(machine);
    users
}

/// To follow the group of a folder that does not hand it on, and to tell why an apply is not proven.
fn its_sandbox_leaves_what_it_needs(machine: &Machine, portal: &Portal) {
    machine.run("chmod g-s /etc/asterisk/pjsip.d/synergycall");
    machine.inside(|| portal.apply("suite"));
    assert_eq!(machine.run(&format!("stat -c '%U:%G %a' {ENDPOINTS}")), "pbx-portal:asterisk 640");
    machine.run("chmod 2750 /etc/asterisk/pjsip.d/synergycall");

    machine.run(
        "cp --preserve=all /etc/asterisk/pjsip.conf /root
         install -o asterisk -g asterisk -m 600 /dev/null /etc/asterisk/private.conf
         echo '#tryinclude private.conf' >>/etc/asterisk/pjsip.conf",
    );
    machine.inside(|| failed_apply(portal, &["/etc/asterisk/private.conf"]));
    machine.run("rm /etc/asterisk/private.conf");

    // An Asterisk without -G has further groups, and may read the folder through one: only /proc tells that.
    machine.run(
        r"mkdir /etc/systemd/system/asterisk.service.d
         printf '[Service]\nExecStart=\nExecStart=/usr/sbin/asterisk -f -U asterisk\n' \
             >/etc/systemd/system/asterisk.service.d/groups.conf
         systemctl daemon-reload
         systemctl restart asterisk
         chgrp dialout /etc/asterisk/pjsip.d/synergycall",
    );
    std::fs::write(machine.file("/root/twice.conf"), TWO_OF_ONE_NAME).expect("write a file of the machine");
    machine.run("cat /root/twice.conf >>/etc/asterisk/pjsip.conf");
    machine.inside(|| {
        let user = portal.create_user("carol", "carol@example.com");
        failed_apply(portal, &["auths missing: 1002", "a second [alice] of type=auth"]);
        portal.delete_user(id(&user));
    });
    machine.run(
        "chgrp asterisk /etc/asterisk/pjsip.d/synergycall
         cp --preserve=all /root/pjsip.conf /etc/asterisk
         rm -r /etc/systemd/system/asterisk.service.d
         systemctl daemon-reload
         systemctl restart asterisk",
    );
    machine.inside(|| portal.apply("suite"));
}

fn boots_behind_a_slow_database(machine: &Machine, portal: &Portal, users: &[Value]) {
    machine.run(
        "mkdir /etc/systemd/system/postgresql@.service.d
         printf '[Service]\nExecStartPre=sleep 4\n' >/etc/systemd/system/postgresql@.service.d/slow.conf",
    );
    machine.reboot();
    let when = |property: &str, unit: &str| -> u64 {
        machine.run(&format!("systemctl show --value --property={property} {unit}")).parse().expect("microseconds")
    };
    let database = when("ActiveEnterTimestampMonotonic", "postgresql@*-main.service");
    assert!(database - when("InactiveExitTimestampMonotonic", "postgresql@*-main.service") >= 4_000_000, "it was slow");
    assert!(database < when("ExecMainStartTimestampMonotonic", "pbx-portal"), "the portal starts after its database");
    assert_eq!(machine.inside(|| portal.users()), users);
    calls(machine, users);
    machine.run("rm -r /etc/systemd/system/postgresql@.service.d; systemctl daemon-reload");
}

fn is_ready_only_with_its_database(machine: &Machine) {
    machine.run("systemctl stop postgresql 'postgresql@*'; systemctl restart --no-block pbx-portal");
    let waits = "journalctl --unit=pbx-portal --boot | grep --count \"database can't be used yet\"";
    wait_until(secs(30), "the portal waits for its database", || machine.try_run(waits).status.success());
    assert_eq!(machine.run("systemctl is-active pbx-portal || true"), "activating");
    machine.run("systemctl start postgresql");
    wait_until(secs(60), "the portal is ready", || machine.try_run("systemctl is-active pbx-portal").status.success());
}

fn is_restarted_after_a_crash(machine: &Machine, portal: &Portal, users: &[Value]) {
    is_restarted_after(machine, "KILL");
    // It ends by itself then, and is restarted all the same.
    is_restarted_after(machine, "HUP");
    machine.inside(|| {
        assert_eq!(portal.users(), users);
        portal.apply("suite");
    });
}

/// The unit's minute is too long for a test.
fn is_restarted_when_it_hangs(machine: &Machine, portal: &Portal, users: &[Value]) {
    assert_eq!(machine.run("systemctl show --value --property=WatchdogUSec pbx-portal"), "1min");
    machine.run(
        "mkdir /etc/systemd/system/pbx-portal.service.d
         printf '[Service]\nWatchdogSec=2\n' >/etc/systemd/system/pbx-portal.service.d/watchdog.conf
         systemctl daemon-reload; systemctl restart pbx-portal",
    );
    is_restarted_after(machine, "STOP");
    machine.run("journalctl --unit=pbx-portal --boot | grep 'Watchdog timeout (limit 2s)!'");
    assert_eq!(machine.inside(|| portal.users()), users);
    machine
        .run("rm -r /etc/systemd/system/pbx-portal.service.d; systemctl daemon-reload; systemctl restart pbx-portal");
}

fn is_restarted_after(machine: &Machine, signal: &str) {
    let former = main_pid(machine);
    machine.run(&format!("kill -{signal} {former}"));
    wait_until(secs(60), "systemd has restarted the portal", || {
        ![former.as_str(), "0"].contains(&main_pid(machine).as_str())
            && machine.try_run("systemctl is-active pbx-portal").status.success()
    });
}

fn is_upgraded_during_a_call(machine: &Machine, portal: &Portal, package: &str, users: &[Value]) {
    let (alice, bob) = (account(&users[0]), account(&users[1]));
    let former = main_pid(machine);
    let settings = machine.run("cat /etc/pbx-portal/pbx-portal.env");
    let phone = machine.inside(|| Phones::register(SIP, &[(&bob.0, &bob.1)], Called::Answer));
    let call = machine.inside(|| Call::begin(SIP, (&alice.0, &alice.1), &bob.0));
    // The name of a channel is unique; its time is not the same each time.
    let channels =
        || machine.run("asterisk -rx 'core show channels concise' | sed -n '/^PJSIP/p' | cut -d! -f1,5 | sort");
    let before = channels();
    assert_eq!(before.lines().filter(|channel| channel.ends_with("!Up")).count(), 2, "{before}");

    machine.run(&format!("apt-get install --yes {package}"));
    assert_eq!(channels(), before, "the call goes on");
    assert_eq!(machine.run("dpkg-query --show --showformat='${Version}' pbx-portal"), "0.2.0-1");
    let serving = main_pid(machine);
    assert_ne!(serving, former);
    assert_eq!(machine.run(&format!("readlink /proc/{serving}/exe")), "/usr/bin/pbx-portal", "the new one serves");
    assert_eq!(machine.run("cat /etc/pbx-portal/pbx-portal.env"), settings);
    assert_eq!(machine.run("stat -c '%U:%G %a' /etc/pbx-portal/pbx-portal.env"), "root:pbx-portal 640");
    machine.inside(|| {
        assert_eq!(portal.users(), users);
        portal.apply("suite");
    });
    assert_eq!(channels(), before, "an apply does not end it either");
    asterisk(machine, "channel request hangup all");
    wait_until(secs(20), "the call has ended", || channels().is_empty());
    drop((call, phone));
}

fn removal_leaves_the_phones_alone(machine: &Machine, users: &[Value]) {
    let files = || machine.run(&format!("cat {ENDPOINTS} {ROUTING}"));
    let before = files();
    machine.run("apt-get remove --yes pbx-portal");
    assert_ne!(machine.run("systemctl is-active pbx-portal || true"), "active");
    assert_eq!(files(), before);
    machine.run("systemctl restart asterisk");
    calls(machine, users);
}

fn purge_leaves_empty_files(machine: &Machine) {
    machine.run("apt-get purge --yes pbx-portal");
    assert_eq!(machine.run(&format!("grep -v '^;' {ENDPOINTS} {ROUTING} || true")), "", "nothing but a comment");
    assert_eq!(machine.run("ls -A /etc/asterisk/*.d/synergycall | grep ^[.] || true"), "", "nor a hidden file");
    assert_eq!(machine.run(&format!("stat -c %U:%G {ENDPOINTS} {ROUTING}")), "root:asterisk\nroot:asterisk");
    machine.run("systemctl restart asterisk");
    assert!(asterisk(machine, "pjsip show transports").contains("transport-udp"), "both are still valid");
    assert!(asterisk(machine, "pjsip show endpoints").contains("No objects found"));
    assert!(asterisk(machine, "dialplan show synergy-internal").contains("There is no existence"));
    for gone in ["/etc/pbx-portal", "/var/lib/pbx-portal", "/usr/bin/pbx-portal"] {
        machine.run(&format!("! [ -e {gone} ]"));
    }
    assert_eq!(machine.run("getent passwd pbx-portal || getent group pbx-portal || true"), "");
}

/// Bob's phone registers, and answers Alice's call.
#[track_caller]
fn calls(machine: &Machine, users: &[Value]) {
    let (alice, bob) = (account(&users[0]), account(&users[1]));
    machine.inside(|| {
        let phone = Phones::register(SIP, &[(&bob.0, &bob.1)], Called::Answer);
        assert_eq!(call(SIP, (&alice.0, &alice.1), &bob.0), 200);
        assert_eq!(phone.requests("INVITE", &bob.0), 1);
    });
}

fn asterisk(machine: &Machine, command: &str) -> String {
    machine.run(&format!("asterisk -rx 'core waitfullybooted' >/dev/null; asterisk -rx '{command}'"))
}

fn main_pid(machine: &Machine) -> String {
    machine.run("systemctl show --value --property=MainPID pbx-portal")
}
