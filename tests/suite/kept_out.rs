//! An apply is proven, and no phone works: each time Asterisk shows why, so the apply and `check` warn, and the remedy works as
//! typed.

use crate::fixtures::{account, host};
use crate::table::Table;
use support::portal::Settings;
use support::sipp::{Call, Called, Phones, call, register};
use support::{Asterisk, Portal};

/// Two users, whom Asterisk serves.
struct Scene {
    asterisk: Asterisk,
    portal: Portal,
    accounts: Vec<(String, String)>,
}

impl Scene {
    fn start() -> Self {
        let (asterisk, portal) = host();
        let create = |name| account(&portal.create_user(name, &format!("{name}@example.com")));
        let accounts = ["alice", "bob"].map(create).to_vec();
        let scene = Self { asterisk, portal, accounts };
        scene.is_quiet();
        scene
    }

    fn account(&self, index: usize) -> (&str, &str) {
        let (number, secret) = &self.accounts[index];
        (number, secret)
    }

    fn table(&self) -> Table {
        Table::of(&Settings::of(&self.asterisk).with("PORTAL_DATA_DIR", self.portal.data_dir().display()))
    }

    fn applies(&self) -> String {
        self.portal.apply("suite")["message"].as_str().expect("a message").to_owned()
    }

    /// An apply succeeds and says these words, and so does a check; gives the advice.
    #[track_caller]
    fn warns(&self, words: &[&str]) -> String {
        let message = self.applies();
        for word in words {
            assert!(message.contains("Warning: ") && message.contains(word), "{word:?} in {message:?}");
        }
        self.table().nothing_fails();
        self.table().says("phones", "warning", words)
    }

    #[track_caller]
    fn is_quiet(&self) {
        let message = self.applies();
        assert!(!message.contains("Warning"), "{message}");
        self.table().says("phones", "ok", &[]);
    }

    #[track_caller]
    fn registers(&self, status: u16) {
        assert_eq!(register(&self.asterisk, self.account(0)), status);
    }

    /// Changes a file, then types a command, or restarts without one.
    fn edit(&self, file: &str, edit: impl FnOnce(&str) -> String, command: &str) {
        self.asterisk.edit_config(file, edit);
        if command.is_empty() {
            self.asterisk.restart();
        } else {
            self.asterisk.rx(command);
        }
    }
}

#[test]
fn by_an_identify_that_matches_their_network() {
    let trunk = "[trunk]\ntype=endpoint\ncontext=from-trunk\n[trunk]\ntype=identify\nendpoint=trunk\nmatch=192.0.2.1\n";
    let scene = Scene::start();
    scene.edit("pjsip.conf", |text| format!("{text}{trunk}"), "pjsip reload");
    scene.is_quiet();
    scene.registers(200);
    for network in ["127.0.0.0/8", "0.0.0.0/0"] {
        scene.edit("pjsip.conf", |text| text.replace("192.0.2.1", network), "pjsip reload");
        let advice = scene.warns(&[&format!("the identify trunk matches {network}"), "for trunk", "403"]);
        assert!(advice.contains("own addresses into its match="), "{advice}");
        scene.registers(403);
        scene.edit("pjsip.conf", |text| text.replace(network, "192.0.2.1"), "pjsip reload");
        scene.registers(200);
        scene.is_quiet();
    }
    // By user name first, it takes no phone.
    let global = "[global]\ntype=global\nendpoint_identifier_order=username,ip\n";
    scene.edit("pjsip.conf", |text| format!("{global}{}", text.replace("192.0.2.1", "127.0.0.0/8")), "");
    scene.registers(200);
    scene.is_quiet();
}

#[test]
fn by_maintenance_mode() {
    let scene = Scene::start();
    scene.asterisk.rx("pjsip set maintenance on all");
    let advice = scene.warns(&["maintenance mode", "503: 1000, 1001"]);
    assert!(advice.starts_with("run 'pjsip set maintenance off all' in Asterisk"), "{advice}");
    scene.registers(503);
    scene.asterisk.rx("pjsip set maintenance off all");
    scene.registers(200);
    scene.is_quiet();
}

#[test]
fn by_authentication_without_md5() {
    let scene = Scene::start();
    let global = |algorithms| format!("[global]\ntype=global\ndefault_auth_algorithms_uas={algorithms}\n");
    scene.edit("pjsip.conf", |text| format!("{text}{}", global("SHA-256")), "pjsip reload");
    let advice = scene.warns(&["default_auth_algorithms_uas is SHA-256", "401"]);
    assert!(advice.starts_with("add MD5 to it"), "{advice}");
    scene.registers(401);
    scene.edit("pjsip.conf", |text| text.replace("=SHA-256", "=MD5,SHA-256"), "pjsip reload");
    scene.is_quiet();
    scene.edit("pjsip.conf", |text| text.replace(&global("MD5,SHA-256"), ""), "pjsip reload");
    scene.registers(200);
}

#[test]
fn by_limits_that_are_reached() {
    let scene = Scene::start();
    let (calling, called) = (scene.account(0), scene.account(1));
    let options = |limit| format!("[options]\n{limit}\n");
    for (limit, words) in [
        ("maxload = 0.0001", ["503", "maxload = 0.0001: it is "]),
        ("minmemfree = 99999999", ["503", "minmemfree = 99999999: "]),
    ] {
        scene.edit("asterisk.conf", |text| format!("{text}{}", options(limit)), "");
        let _phone = Phones::register(&scene.asterisk, &[called], Called::Answer);
        let advice = scene.warns(&words);
        assert!(advice.contains("change it in section [options] and restart Asterisk"), "{advice}");
        assert_eq!(call(&scene.asterisk, calling, called.0), 503);
        scene.edit("asterisk.conf", |text| text.replace(&options(limit), ""), "");
        assert_eq!(call(&scene.asterisk, calling, called.0), 200);
        scene.is_quiet();
    }
    scene.edit("asterisk.conf", |text| format!("{text}{}", options("maxcalls = 1")), "");
    let _phone = Phones::register(&scene.asterisk, &[called], Called::Answer);
    scene.is_quiet();
    let _call = Call::begin(&scene.asterisk, calling, called.0);
    scene.warns(&["503", "maxcalls = 1: 1 are up"]);
    assert_eq!(call(&scene.asterisk, calling, called.0), 503);
}
