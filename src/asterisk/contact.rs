//! Where Asterisk sends the calls to a registered phone.
//!
//! The option `rewrite_contact` replaces the address in a phone's `Contact` by the one that the phone registers from. A phone can get
//! round that (each way was seen on 22.10): by a `maddr` parameter or a `Route` header in the URI, which Asterisk obeys, and by a second
//! `Contact`, which `rewrite_contact` leaves as it is. A second one is recognised only if its address is a name, or
//! one by which Asterisk knows somebody else, such as a trunk.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::in_force::rows;
use super::{Command, Control};
use crate::problem::Result;

/// SIP's own port.
const PORT: u16 = 5060;

/// The addresses by which Asterisk knows who calls (`type=identify`), each with its port or for every port.
pub type Known = BTreeSet<(IpAddr, Option<u16>)>;

/// The addresses by which Asterisk knows who calls. Networks are left out: phones may be in them.
pub async fn known(control: &Control) -> Result<Known> {
    control.listing(&[Command::IDENTIFIES], parse).await
}

/// Whether Asterisk sends calls to this contact elsewhere than to the address from which the phone registered.
pub fn leads_elsewhere(uri: &str, known: &Known) -> bool {
    let (_, uri) = uri.split_once(':').unwrap_or_default();
    let address = uri.split_once('@').map_or(uri, |(_, address)| address);
    let (address, headers) = address.split_once('?').unwrap_or((address, ""));
    let (host, parameters) = address.split_once(';').unwrap_or((address, ""));
    let has = |list: &str, separator: char, wanted: &str| {
        list.split(separator).any(|item| item.split('=').next().is_some_and(|name| name.eq_ignore_ascii_case(wanted)))
    };
    let is_known = |(ip, port): (IpAddr, Option<u16>)| {
        known.contains(&(ip, None)) || known.contains(&(ip, Some(port.unwrap_or(PORT))))
    };
    has(parameters, ';', "maddr") || has(headers, '&', "route") || ip_and_port(host).is_none_or(is_known)
}

/// An IP address with or without a port; `None` for a name.
fn ip_and_port(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let with_port = text.parse::<SocketAddr>().map(|address| (address.ip(), Some(address.port())));
    with_port.or_else(|_| text.trim_matches(['[', ']']).parse().map(|ip| (ip, None))).ok()
}

/// `None` unless the listing is complete. Below the row of an identify there is a line for each of its addresses, which the trailer
/// does not count.
fn parse(text: &str) -> Option<Known> {
    // The module that knows this command is not needed for phones.
    if text.contains("No such command") {
        return Some(Known::new());
    }
    rows(text, " Identify:  ")?;
    let hosts = text.lines().filter_map(|line| {
        let (address, bits) = line.strip_prefix("      Match: ")?.trim().rsplit_once('/')?;
        ip_and_port(address).filter(|(ip, _)| bits == if ip.is_ipv4() { "32" } else { "128" })
    });
    Some(hosts.collect())
}

#[cfg(test)]
mod tests {
    use super::super::in_force::recorded;
    use super::*;

    #[test]
    fn hosts_are_known_and_networks_are_not() {
        let known = parse(recorded!("identifies")).expect("a complete listing");
        let expected = [("192.0.2.7", None), ("127.0.0.1", Some(5070)), ("2001:db8::1", None), ("::1", Some(5070))];
        assert_eq!(known, expected.map(|(ip, port)| (ip.parse().expect("an address"), port)).into());
        let truncated: Vec<_> = recorded!("identifies").lines().filter(|line| !line.contains("trunk/alice")).collect();
        assert_eq!(parse(&truncated.join("\n")), None);
        assert_eq!(parse("No such command 'pjsip show identifies'"), Some(Known::new()));
    }

    #[test]
    fn a_contact_leads_elsewhere_or_to_the_phone() {
        let known = parse(recorded!("identifies")).expect("a complete listing");
        for (uri, elsewhere) in [
            ("sip:x@192.0.2.1:5060", false),
            ("sip:x@[2001:db8::2]:5060;transport=TCP", false),
            ("sip:192.0.2.1", false),
            ("sip:maddr=x;maddr=y?route=z@192.0.2.1:5060;x-ast-orig-host=10.0.0.1:5060", false),
            ("sip:x@192.0.2.1:5060?Subject=route", false),
            ("sip:x@127.0.0.1:5060", false),
            ("sip:x@192.0.2.1;maddr=192.0.2.2", true),
            ("sip:x@192.0.2.1;lr;MADDR=192.0.2.2", true),
            ("sip:x@192.0.2.1?Route=%3csip:192.0.2.2%3blr%3e", true),
            ("sip:x@192.0.2.1;lr?Subject=x&route=%3csip:192.0.2.2%3e", true),
            ("sip:x@example.com:5060", true),
            ("sip:x@192.0.2.7:5062", true),
            ("sip:x@127.0.0.1:5070", true),
            ("sips:x@[2001:db8::1]", true),
            ("unknown", true),
        ] {
            assert_eq!(leads_elsewhere(uri, &known), elsewhere, "{uri}");
        }
    }
}
