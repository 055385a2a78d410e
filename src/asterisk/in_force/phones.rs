//! What keeps phones out although every value is in force, as far as Asterisk shows it: without this, an administrator would see
//! nothing but a phone's 401, 403 or 503. An apply succeeds all the same, and warns.
//!
//! A release that does not know one of the questions keeps no phone out by it.

use std::net::IpAddr;

use rustix::system::sysinfo;

use super::rows;
use crate::asterisk::control::value;
use crate::asterisk::{Command, Control};
use crate::domain::{ExtensionNumber, some_of};
use crate::problem::{Problem, Result, problem};

const QUESTIONS: [Command; 5] =
    [Command::SETTINGS, Command::CALLS, Command::PJSIP_SETTINGS, Command::IDENTIFIES, Command::MAINTENANCE];

/// All that keeps phones out.
pub async fn kept_out(control: &Control) -> Result<Vec<Problem>> {
    let mut found = Vec::new();
    if !control.listing(&[Command::TRANSPORTS], has_transport).await? {
        found.push(problem!(
            "Asterisk has no transport, so no phone can reach it",
            "add a section of type=transport to pjsip.conf, then restart Asterisk"
        ));
    }
    let answers = control.ask(&QUESTIONS).await?;
    found.extend([maintenance(&answers), algorithms(&answers), identify(&answers)].into_iter().flatten());
    found.extend(limits(&answers));
    Ok(found)
}

/// `None` unless the listing is complete.
pub(super) fn has_transport(text: &str) -> Option<bool> {
    rows(text, "Transport:  ").map(|transports| !transports.is_empty())
}

fn maintenance(answers: &str) -> Option<Problem> {
    let numbers =
        answers.lines().filter_map(|line| ExtensionNumber::parse(line.trim().strip_suffix(" ON")?.trim_end()));
    let numbers: Vec<_> = numbers.collect();
    (!numbers.is_empty()).then(|| {
        let numbers = some_of(numbers);
        problem!(
            "Asterisk keeps these numbers in maintenance mode and answers their phones with 503: {numbers}",
            "run 'pjsip set maintenance off all' in Asterisk, or 'off' with one of them"
        )
    })
}

fn algorithms(answers: &str) -> Option<Problem> {
    let name = "default_auth_algorithms_uas";
    let known = value(answers, name)?;
    (!known.split(',').any(|algorithm| algorithm.trim().eq_ignore_ascii_case("MD5"))).then(|| {
        problem!(
            "{name} is {known}, so Asterisk answers a phone that knows MD5 alone, as most do, with 401",
            "add MD5 to it (pjsip.conf, type=global), then run 'pjsip reload' in Asterisk"
        )
    })
}

/// A request from an address that an identify matches is the identify's endpoint's, whatever its user name.
fn identify(answers: &str) -> Option<Problem> {
    let order: Vec<_> = value(answers, "endpoint_identifier_order")?.split(',').map(str::trim).collect();
    let at = |name| order.iter().position(|identifier| *identifier == name);
    // What is not in the order comes last.
    if at("ip").is_none() || at("username").is_some() && at("username") < at("ip") {
        return None;
    }
    let mut row = "";
    for line in answers.lines().map(str::trim) {
        if let Some(identify) = line.strip_prefix("Identify:  ") {
            row = identify;
        } else if let Some(network) = line.strip_prefix("Match: ").filter(|network| may_hold_phones(network)) {
            let (name, endpoint) = row.rsplit_once('/').unwrap_or((row, ""));
            return Some(problem!(
                "the identify {name} matches {network}, so if phones are in there, Asterisk takes them for {endpoint} and answers their REGISTER with 403",
                "write only that endpoint's own addresses into its match= (pjsip.conf, type=identify), then run 'pjsip reload' in Asterisk"
            ));
        }
    }
    None
}

/// Whether a network is wide, or a private one of more than a few addresses.
fn may_hold_phones(network: &str) -> bool {
    let Some((address, bits)) = network.split_once('/') else { return false };
    let (Ok(address), Ok(bits)) = (address.parse(), bits.parse::<u32>()) else { return false };
    let (private, all_bits) = match address {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            (ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared, 32)
        }
        IpAddr::V6(ip) => (ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local(), 128),
    };
    bits < 8 || private && bits + 4 <= all_bits
}

/// The limits of asterisk.conf that are reached right now, as `increase_call_count` of `main/pbx.c` compares them.
#[expect(clippy::cast_precision_loss, reason = "loads and sizes that a limit is compared with")]
fn limits(answers: &str) -> Vec<Problem> {
    let number = |text: &str| text.split_whitespace().next()?.parse::<f64>().ok().filter(|limit| *limit > 0.0);
    let limit = |name| number(value(answers, name)?);
    // `1 of 2 max active calls (50.00% of capacity)`
    let calls = answers.lines().find(|line| line.contains(" max active call")).and_then(number).unwrap_or_default();
    // Not from /proc, of which the service's unit shows only the processes. Asterisk asks the kernel, too.
    let now = sysinfo();
    let load = now.loads[0] as f64 / 65536.0;
    let free = (now.freeram + now.bufferram) as f64 * f64::from(now.mem_unit) / 1024.0 / 1024.0;
    let reached = [
        limit("Maximum calls").filter(|most| calls >= *most).map(|most| format!("maxcalls = {most}: {calls} are up")),
        limit("Maximum load average")
            .filter(|most| load >= *most)
            .map(|most| format!("maxload = {most}: it is {load}")),
        limit("Minimum free memory")
            .filter(|least| free < *least)
            .map(|least| format!("minmemfree = {least}: {free:.0} MB are free")),
    ];
    let problem = |limit| {
        problem!(
            "Asterisk answers calls with 503, because a limit of asterisk.conf is reached, {limit}",
            "wait until it is not, or change it in section [options] and restart Asterisk"
        )
    };
    reached.into_iter().flatten().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::super::recorded;
    use super::*;

    #[test]
    fn transports_are_some_or_none() {
        assert_eq!(has_transport(recorded!("transports")), Some(true));
        assert_eq!(has_transport(recorded!("no-endpoints")), Some(false));
    }

    #[test]
    fn a_trunks_own_addresses_hold_no_phones() {
        for network in
            ["192.0.2.1/32", "203.0.113.0/24", "10.1.2.3/32", "10.1.2.0/30", "2001:db8::/32", "!10.0.0.0/8", "x"]
        {
            assert!(!may_hold_phones(network), "{network}");
        }
        for network in ["0.0.0.0/0", "::/0", "10.0.0.0/8", "192.168.1.0/24", "100.64.0.0/10", "fd00::/64"] {
            assert!(may_hold_phones(network), "{network}");
        }
    }
}
