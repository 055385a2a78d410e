//! A server whose Asterisk was built by hand: under `/usr/local`, running as root or as a user of its own, without a group. The
//! commands of docs/operations.md lead from there to a phone that rings.

use std::net::SocketAddr;

use crate::fixtures::account;
use crate::operations::commands;
use crate::package::package;
use support::portal::Settings;
use support::{Machine, Phone, Portal};

/// Of the section; the test of all other commands leaves it to this one.
pub const HEADING: &str = "Asterisk built from source";

/// What `make install`, `make samples` and a unit leave behind, made out of Debian's packages. The program takes its directories
/// from the configuration that it was built for; here a script names that.
const BUILT: &str = r#"
systemctl stop asterisk
mkdir -p /usr/local/lib/asterisk /usr/local/var/run/asterisk /usr/local/var/lib /usr/local/var/log/asterisk
cp -a /usr/lib/*/asterisk/modules /usr/local/lib/asterisk
cp -a /usr/lib/*/libasterisk* /usr/local/lib || true
cp /usr/sbin/asterisk /usr/local/lib/asterisk/asterisk
cp -a /usr/share/asterisk /usr/local/var/lib/asterisk
cp -a /etc/asterisk /usr/local/etc/asterisk
chown -R root:root /usr/local
dpkg --purge --force-depends asterisk asterisk-config asterisk-modules
rm -rf /etc/asterisk
! getent passwd asterisk || userdel asterisk
! getent group asterisk || groupdel asterisk
ldconfig
cat >/usr/local/etc/asterisk/asterisk.conf <<'END'
[directories]
astetcdir => /usr/local/etc/asterisk
astmoddir => /usr/local/lib/asterisk/modules
astvarlibdir => /usr/local/var/lib/asterisk
astdbdir => /usr/local/var/lib/asterisk
astkeydir => /usr/local/var/lib/asterisk
astdatadir => /usr/local/var/lib/asterisk
astspooldir => /usr/local/var/spool/asterisk
astrundir => /usr/local/var/run/asterisk
astlogdir => /usr/local/var/log/asterisk
END
cat >>/usr/local/etc/asterisk/pjsip.conf <<'END'
[transport-udp]
type = transport
protocol = udp
bind = 127.0.0.1:5060
END
cat >/usr/local/sbin/asterisk <<'END'
#!/bin/sh
exec /usr/local/lib/asterisk/asterisk -C /usr/local/etc/asterisk/asterisk.conf "$@"
END
chmod 755 /usr/local/sbin/asterisk
cat >/etc/systemd/system/asterisk.service <<'END'
[Service]
Type=notify
NotifyAccess=all
ExecStart=/usr/local/sbin/asterisk -f
END
systemctl daemon-reload
systemctl start asterisk
"#;

/// Makes this Asterisk run as a user of its own.
const AS_ITS_OWN_USER: &str = r"
systemctl stop asterisk
useradd --system --user-group tel
chown -R tel:tel /usr/local/var
sed -i 's|asterisk -f|asterisk -U tel -f|' /etc/systemd/system/asterisk.service
systemctl daemon-reload
";

/// What the section tells for such a user.
const JOIN_THE_GROUP: &str = "usermod --append --groups asterisk NAME";

#[test]
fn phones_of_an_asterisk_from_source_ring_after_the_commands_as_written() {
    let machine = Machine::boot();
    let package = package(&machine, "0.1.0-1");
    machine.run(BUILT);
    machine.run(&format!("dpkg --install {package}"));
    let blocks: Vec<_> = commands("docs/operations.md").into_iter().filter(|block| block.heading == HEADING).collect();
    assert_eq!(blocks.len(), 2);
    let printed: Vec<_> = blocks.iter().map(|block| machine.run(&block.text)).collect();
    its_phones_ring(&machine, "root", &printed[1]);

    machine.run(AS_ITS_OWN_USER);
    assert!(include_str!("../../docs/operations.md").contains(JOIN_THE_GROUP));
    machine.run(&JOIN_THE_GROUP.replace("NAME", "tel"));
    let (_, restart) = blocks[1].text.split_once("\nsystemctl restart").expect("the last commands");
    let printed = machine.run(&format!("systemctl restart{restart}"));
    its_phones_ring(&machine, "tel", &printed);
}

fn its_phones_ring(machine: &Machine, user: &str, check: &str) {
    assert!(check.contains("An apply has what it needs."), "{check}");
    assert_eq!(machine.run("ps -o user= -C asterisk | sort -u"), user);
    let portal = Portal::prepare(&Settings::default().with("PORTAL_LISTEN", "127.0.0.1:8000"));
    machine.inside(|| {
        let [phone, caller] = ["called", "caller"].map(|name| {
            let (number, secret) = account(&portal.create_user(name, &format!("{name}-{user}@example.com")));
            Phone::new(SocketAddr::from(([127, 0, 0, 1], 5060)), &number, &secret)
        });
        portal.apply("suite");
        assert_eq!(phone.register(), Some(200));
        assert_eq!((caller.call(&phone.number), phone.take_rings()), (Some(486), 1));
    });
}
