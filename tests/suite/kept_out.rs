//! An apply is proven, and no phone works: each time Asterisk shows why, so the apply and `check` warn, and the remedy works as
//! typed.

use crate::scenes::Scene;
use crate::table::Table;
use support::phone::Reply;

/// Two users, of whom nothing is to be warned.
fn quiet() -> Scene {
    let scene = Scene::new();
    is_quiet(&scene);
    scene
}

fn table(scene: &Scene) -> Table {
    Table::of(scene.portal.settings())
}

fn applies(scene: &Scene) -> String {
    scene.portal.apply("suite")["message"].as_str().expect("a message").to_owned()
}

/// An apply succeeds and says these words, and so does a check; returns the advice.
#[track_caller]
fn warns(scene: &Scene, words: &[&str]) -> String {
    let message = applies(scene);
    for word in words {
        assert!(message.contains("Warning: ") && message.contains(word), "{word:?} in {message:?}");
    }
    table(scene).nothing_fails();
    table(scene).says("phones", "warning", words)
}

#[track_caller]
fn is_quiet(scene: &Scene) {
    let message = applies(scene);
    assert!(!message.contains("Warning"), "{message}");
    table(scene).says("phones", "ok", &[]);
}

/// Changes a file, then types a command, or restarts without one.
fn edit(scene: &Scene, file: &str, edit: impl FnOnce(&str) -> String, command: &str) {
    scene.asterisk.edit_config(file, edit);
    if command.is_empty() {
        scene.asterisk.restart();
    } else {
        scene.asterisk.rx(command);
    }
}

#[test]
fn an_identify_that_matches_the_phones_network_is_warned_of() {
    let trunk = "[trunk]\ntype=endpoint\ncontext=from-trunk\n[trunk]\ntype=identify\nendpoint=trunk\nmatch=192.0.2.1\n";
    let scene = quiet();
    edit(&scene, "pjsip.conf", |text| format!("{text}{trunk}"), "pjsip reload");
    is_quiet(&scene);
    assert_eq!(scene.others[0].register(), Some(200));
    for network in ["127.0.0.0/8", "0.0.0.0/0"] {
        edit(&scene, "pjsip.conf", |text| text.replace("192.0.2.1", network), "pjsip reload");
        let advice = warns(&scene, &[&format!("the identify trunk matches {network}"), "for trunk", "403"]);
        assert!(advice.contains("own addresses into its match="), "{advice}");
        assert_eq!(scene.others[0].register(), Some(403));
        edit(&scene, "pjsip.conf", |text| text.replace(network, "192.0.2.1"), "pjsip reload");
        assert_eq!(scene.others[0].register(), Some(200));
        is_quiet(&scene);
    }
    // By user name first, it takes no phone.
    let global = "[global]\ntype=global\nendpoint_identifier_order=username,ip\n";
    edit(&scene, "pjsip.conf", |text| format!("{global}{}", text.replace("192.0.2.1", "127.0.0.0/8")), "");
    assert_eq!(scene.others[0].register(), Some(200));
    is_quiet(&scene);
}

#[test]
fn maintenance_mode_is_warned_of() {
    let scene = quiet();
    scene.asterisk.rx("pjsip set maintenance on all");
    let advice = warns(&scene, &["maintenance mode", "503: 1000, 1001"]);
    assert!(advice.starts_with("run 'pjsip set maintenance off all' in Asterisk"), "{advice}");
    assert_eq!(scene.others[0].register(), Some(503));
    scene.asterisk.rx("pjsip set maintenance off all");
    assert_eq!(scene.others[0].register(), Some(200));
    is_quiet(&scene);
}

#[test]
fn authentication_without_md5_is_warned_of() {
    let scene = quiet();
    let global = |algorithms| format!("[global]\ntype=global\ndefault_auth_algorithms_uas={algorithms}\n");
    edit(&scene, "pjsip.conf", |text| format!("{text}{}", global("SHA-256")), "pjsip reload");
    let advice = warns(&scene, &["default_auth_algorithms_uas is SHA-256", "401"]);
    assert!(advice.starts_with("add MD5 to it"), "{advice}");
    assert_eq!(scene.others[0].register(), Some(401));
    edit(&scene, "pjsip.conf", |text| text.replace("=SHA-256", "=MD5,SHA-256"), "pjsip reload");
    is_quiet(&scene);
    edit(&scene, "pjsip.conf", |text| text.replace(&global("MD5,SHA-256"), ""), "pjsip reload");
    assert_eq!(scene.others[0].register(), Some(200));
}

#[test]
fn limits_that_are_reached_are_warned_of() {
    let scene = quiet();
    let phone = scene.new_phone();
    assert_eq!(phone.register(), Some(200));
    let options = |limit| format!("[options]\n{limit}\n");
    for (limit, words) in [
        ("maxload = 0.0001", ["503", "maxload = 0.0001: it is "]),
        ("minmemfree = 99999999", ["503", "minmemfree = 99999999: "]),
    ] {
        edit(&scene, "asterisk.conf", |text| format!("{text}{}", options(limit)), "");
        let advice = warns(&scene, &words);
        assert!(advice.contains("change it in section [options] and restart Asterisk"), "{advice}");
        assert_eq!((phone.register(), scene.call()), (Some(200), Some(503)));
        edit(&scene, "asterisk.conf", |text| text.replace(&options(limit), ""), "");
        scene.rings(&phone);
        is_quiet(&scene);
    }
    edit(&scene, "asterisk.conf", |text| format!("{text}{}", options("maxcalls = 1")), "");
    is_quiet(&scene);
    phone.set_reply(Reply::Answer);
    let _call = scene.others[0].talk(&scene.number);
    warns(&scene, &["503", "maxcalls = 1: 1 are up"]);
    assert_eq!(scene.call(), Some(503));
}
