//! The package's maintainer scripts run as root in a folder that Debian gives to Asterisk's user. Whatever that user does there
//! meanwhile, they change nothing elsewhere.

use support::machine::run_unbooted;
use support::secs;

/// `postinst` and `postrm`, in turns, under attack.
const RACE: &str = include_str!("maintainer_scripts.sh");

#[test]
fn maintainer_scripts_follow_no_link_that_asterisks_user_puts_in_their_way() {
    let output = run_unbooted(secs(300), &format!("TURNS=20\n{RACE}"));
    let [said, complained] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && said.ends_with("20 turns\n"), "{said}{complained}");
    assert_eq!(said, "20 turns\n", "{complained}");
}

#[test]
fn maintainer_scripts_make_what_is_missing_and_leave_what_exists_as_it_is() {
    let output = run_unbooted(secs(120), MISSING);
    let [said, complained] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{said}{complained}");
    let given = "root:asterisk 750 pjsip.d\npbx-portal:asterisk 2750 pjsip.d/synergycall\npbx-portal:asterisk 640 pjsip.d/synergycall/generated_endpoints.conf\n";
    let theirs = "daemon:daemon 777 pjsip.d\npbx-portal:daemon 2700 pjsip.d/synergycall\nroot:root 600 pjsip.d/synergycall/generated_endpoints.conf\n";
    let purged = "root:asterisk 750 pjsip.d\nroot:asterisk 2750 pjsip.d/synergycall\nroot:asterisk 640 pjsip.d/synergycall/generated_endpoints.conf\n";
    assert_eq!(said, [given, given, given, theirs, "link\n", "root:daemon\n", purged, given].concat(), "{complained}");
}

/// Prints what there is after each step: everything missing, a folder missing, a file missing, everything there and different, a link
/// of the administrator's, a file of settings with another group, a purge, and another installation.
const MISSING: &str = r#"
cp /mnt/packaging/sysusers.conf /usr/lib/sysusers.d/pbx-portal.conf
install -D -m 640 /mnt/.env.example /etc/pbx-portal/pbx-portal.env
cd /etc/asterisk
configure() { sh /mnt/packaging/postinst configure >&2; [ -z "$(ls -d .pbx* */.pbx* 2>/dev/null)" ]; }
what() { stat -c '%U:%G %a %n' pjsip.d pjsip.d/synergycall pjsip.d/synergycall/*; }
configure
what
rm -r pjsip.d/synergycall
configure
what
rm pjsip.d/synergycall/generated_endpoints.conf
configure
what
chown daemon:daemon pjsip.d
chmod 777 pjsip.d
chgrp daemon pjsip.d/synergycall
chmod 700 pjsip.d/synergycall
chown root:root pjsip.d/synergycall/*
chmod 600 pjsip.d/synergycall/*
configure
what
mv pjsip.d /srv
ln -s /srv/pjsip.d
configure
stat -c %F pjsip.d | sed 's/symbolic //'
[ -e /srv/pjsip.d/synergycall ]
chgrp daemon /etc/pbx-portal/pbx-portal.env
configure
stat -c %U:%G /etc/pbx-portal/pbx-portal.env
rm -r pjsip.d extensions.d
configure
for name in .pbx-portal.lock .generated_old; do runuser -u pbx-portal -- touch pjsip.d/synergycall/$name; done
sh /mnt/packaging/postrm purge >&2
what
[ -z "$(ls pjsip.d/synergycall/.[a-z]* 2>/dev/null)" ]
[ -z "$(grep -v '^;' pjsip.d/synergycall/generated_endpoints.conf extensions.d/synergycall/generated_routing.conf)" ]
! getent passwd pbx-portal >&2
install -D -m 640 /mnt/.env.example /etc/pbx-portal/pbx-portal.env
configure
what
"#;
