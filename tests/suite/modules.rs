//! The modules that `check` names are all that a call needs.

use crate::fixtures::{account, host};
use crate::look_before_touching::refused;
use crate::table::Table;
use support::sipp::{Call, Called, Phones};
use support::{Asterisk, Portal, secs, wait_until};

/// The modules that an apply and a check name, in their order.
fn named(asterisk: &Asterisk, portal: &Portal) -> Vec<String> {
    let table = Table::of(portal.settings());
    let advice = table.says("Asterisk's modules", "failure", &["Asterisk lacks these modules: "]);
    assert!(advice.starts_with("load them in this order (module load, and in modules.conf)"), "{advice}");
    let (_, found, _) = table.line("Asterisk's modules");
    refused(asterisk, portal, &[found]);
    let (_, modules) = found.split_once(": ").expect("a list");
    modules.split(' ').map(str::to_owned).collect()
}

/// Two phones register, and one calls the other. Waits until Asterisk has joined the two.
fn a_call_stands(asterisk: &Asterisk, portal: &Portal) {
    portal.apply("suite");
    let accounts: Vec<_> = portal.users().iter().map(account).collect();
    let accounts: Vec<_> = accounts.iter().map(|(number, secret)| (number.as_str(), secret.as_str())).collect();
    let _phones = Phones::register(asterisk, &accounts, Called::Answer);
    let _call = Call::begin(asterisk, accounts[0], accounts[1].0);
    let joined = || asterisk.rx("bridge show all").lines().any(|line| line.contains(" 2 basic "));
    wait_until(secs(10), "both phones are in one bridge", joined);
}

#[test]
fn the_modules_that_check_names_are_enough() {
    let (asterisk, portal) = host();
    for name in ["alice", "bob"] {
        portal.create_user(name, &format!("{name}@example.com"));
    }
    asterisk.write_config("modules.conf", "[modules]\nautoload=no\n");
    asterisk.restart();
    let modules = named(&asterisk, &portal);
    for module in &modules {
        let answer = asterisk.rx(&format!("module load {module}"));
        assert!(answer.contains(&format!("Loaded {module}")), "{module}: {answer}");
    }
    Table::of(portal.settings()).nothing_fails();
    a_call_stands(&asterisk, &portal);

    let conf = |modules: &[String]| format!("[modules]\nautoload=no\nload={}\n", modules.join("\nload="));
    asterisk.write_config("modules.conf", &conf(&modules));
    asterisk.restart();
    let for_some = ["codec_alaw.so", "codec_ulaw.so", "res_timing_timerfd.so"];
    Table::of(portal.settings()).says("Asterisk's modules", "warning", &for_some);
    a_call_stands(&asterisk, &portal);

    asterisk.write_config("modules.conf", &conf(&[modules, for_some.map(str::to_owned).to_vec()].concat()));
    asterisk.restart();
    Table::of(portal.settings()).says("Asterisk's modules", "ok", &[]);
    a_call_stands(&asterisk, &portal);
}

#[test]
fn without_a_bridge_no_call_would_stand() {
    let (asterisk, portal) = host();
    for module in ["bridge_native_rtp.so", "bridge_softmix.so", "bridge_simple.so"] {
        asterisk.rx(&format!("module unload -f {module}"));
    }
    assert_eq!(named(&asterisk, &portal), ["bridge_simple.so"]);
    assert!(asterisk.rx("module load bridge_simple.so").contains("Loaded"));
    for name in ["alice", "bob"] {
        portal.create_user(name, &format!("{name}@example.com"));
    }
    a_call_stands(&asterisk, &portal);
}
