//! A phone that has a valid secret and tries to reach a trunk, or to pass for somebody else. The trunk has no password, and a context
//! that dials it stands beside: it stays silent.

use std::net::Ipv4Addr;

use crate::fixtures::{account, host};
use crate::table::Table;
use crate::trunk::example;
use support::phone::Reply;
use support::{Asterisk, Phone, Portal, secs, wait_until};

/// A number outside, which only `[outbound]` reaches.
const OUTSIDE: &str = "0900555";

/// Three users, and a trunk that calls by the example of the documentation.
struct Exchange {
    asterisk: Asterisk,
    portal: Portal,
    alice: Phone,
    mallory: Phone,
    bob: Phone,
    trunk: Phone,
}

impl Exchange {
    fn new() -> Self {
        let (asterisk, portal) = host();
        let trunk = Phone::new(&asterisk, "trunk", "none");
        let address = trunk.address();
        asterisk.edit_config("pjsip.conf", |text| {
            format!(
                "{text}
[trunk]
type=endpoint
context=from-trunk
disallow=all
allow=ulaw
aors=trunk
identify_by=ip
[trunk]
type=aor
contact=sip:{address}
[trunk]
type=identify
endpoint=trunk
match={address}
"
            )
        });
        let from_trunk = example("Calls from a trunk, a queue or a ring group");
        let outbound = "[outbound]\nexten => _[0-9A-Za-z].,1,Dial(PJSIP/${EXTEN}@trunk)\n";
        asterisk.edit_config("extensions.conf", |text| format!("{text}\n{from_trunk}\n{outbound}"));
        let accounts =
            ["Alice", "Mallory", "Bob"].map(|name| account(&portal.create_user(name, &format!("{name}@example.com"))));
        portal.apply("suite");
        let [alice, mallory, bob] = accounts.map(|(number, secret)| Phone::new(&asterisk, &number, &secret));
        for phone in [&alice, &mallory, &bob] {
            assert_eq!(phone.register(), Some(200));
        }
        let exchange = Self { asterisk, portal, alice, mallory, bob, trunk };
        exchange.asterisk.rx(&format!("channel originate Local/{OUTSIDE}@outbound application Wait 1"));
        wait_until(secs(10), "the trunk can be reached", || exchange.trunk.take_rings() == 1);
        exchange.silent("an administrator's call");
        exchange
    }

    /// Two phones talk. Asterisk transfers nobody before.
    fn talking(&self) {
        let bridges = || self.asterisk.rx("bridge show all");
        wait_until(secs(10), "two phones talk", || bridges().split_whitespace().any(|word| word == "2"));
    }

    /// All calls have ended, and none reached the trunk.
    #[track_caller]
    fn silent(&self, what: &str) {
        let count = || self.asterisk.rx("core show channels count");
        wait_until(secs(10), &format!("no channel is left: {what}"), || count().starts_with("0 active channels"));
        // The trunk has heard everything that Asterisk sent before this answer.
        self.trunk.send(&self.trunk.prepare("OPTIONS", "x")).expect("an answer");
        assert_eq!(self.trunk.take_rings(), 0, "{what}: {}", self.trunk.last_call());
    }

    /// In a text of this test: the trunk, and the phones' numbers.
    fn fill(&self, text: &str) -> String {
        let address = self.trunk.address().to_string();
        let [alice, mallory, bob] = [&self.alice, &self.mallory, &self.bob].map(|phone| phone.number.as_str());
        text.replace("TRUNK", &address).replace("ALICE", alice).replace("MALLORY", mallory).replace("BOB", bob)
    }

    /// Who calls Mallory, and what they dial.
    fn callers(&self) -> [(&Phone, String); 2] {
        let number = &self.mallory.number;
        [(&self.alice, number.clone()), (&self.trunk, format!("4930123{number}"))]
    }
}

/// Where a phone would like to have its calls.
const ELSEWHERE: [&str; 19] = [
    "<sip:PJSIP/0900555%40trunk@x>",
    "<sip:PJSIP%2F0900555%40trunk@x>",
    "<sip:PJSIP/trunk/sip%3A0900555%40127.0.0.1@x>",
    "<sip:PJSIP/BOB%26PJSIP/0900555%40trunk@x>",
    "<sip:Local/0900555%40outbound@x>",
    "<sip:Local%2F0900555%40outbound@x>",
    "<sip:Local/0900555%40outbound/n@x>",
    "<sip:UnicastRTP/TRUNK@x>",
    "<sip:UnicastRTP%2FTRUNK@x>",
    "<sip:0900555@x>",
    "<sip:0900555@TRUNK>",
    "<sip:0900555%40outbound@x>",
    "<sip:0900555@x;maddr=127.0.0.1>",
    "<sip:0900555@x?Route=%3Csip:TRUNK%3Blr%3E>",
    "<sip:x@x>, <sip:PJSIP/0900555%40trunk@x>",
    "<sips:0900555@TRUNK>",
    "<tel:0900555>",
    "<sip:BOB@x>",
    "<sip:MALLORY@x>",
];

#[test]
fn a_redirection_leads_nowhere() {
    let exchange = Exchange::new();
    let statuses = [
        "300 Multiple Choices",
        "301 Moved Permanently",
        "302 Moved Temporarily",
        "305 Use Proxy",
        "380 Alternative Service",
    ];
    for (caller, number) in exchange.callers() {
        let every = ELSEWHERE.iter().map(|contact| ("302 Moved Temporarily", contact));
        for (status, contact) in every.chain(statuses.map(|status| (status, &ELSEWHERE[0]))) {
            exchange.mallory.set_reply(Reply::Redirect(status, exchange.fill(contact)));
            let heard = caller.call(&number);
            // 480 if Asterisk cannot read the contact at all.
            assert!(matches!(heard, Some(486 | 480)), "{status}, {contact}: {heard:?}");
            assert_eq!((exchange.mallory.take_rings(), exchange.bob.take_rings()), (1, 0), "{status}, {contact}");
            exchange.silent(&format!("{status}, {contact}"));
        }
    }
    exchange.mallory.set_reply(Reply::Redirect(statuses[2], ELSEWHERE[0].to_owned()));
    exchange.asterisk.rx(&exchange.fill("channel originate Local/MALLORY@synergy-internal application Wait 1"));
    wait_until(secs(10), "Mallory's phone rings", || exchange.mallory.take_rings() == 1);
    exchange.silent("a call that an administrator originates");
}

/// Where a phone would like to have the other phone of its call, and how the transfer ends.
const TRANSFERS: [(&str, u16); 18] = [
    ("<sip:0900555@x>", 404),
    ("<sip:0900555@TRUNK>", 404),
    ("<sip:0900555@outbound>", 404),
    ("<sip:0900555%40outbound@x>", 404),
    ("<sip:PJSIP/0900555%40trunk@x>", 404),
    ("<sip:PJSIP%2F0900555%40trunk@x>", 404),
    ("<sip:Local/0900555%40outbound@x>", 404),
    ("<sip:s@x>", 404),
    ("<sip:h@x>", 404),
    ("<sip:_1XXX@x>", 404),
    ("<sip:BOB%26PJSIP/0900555%40trunk@x>", 404),
    ("<sip:0900555%2c1@x>", 404),
    ("<sips:0900555@TRUNK>", 404),
    ("<tel:0900555>", 400),
    ("<sip:0900555@TRUNK?Replaces=unknown%3Bto-tag%3Dx%3Bfrom-tag%3Dy>", 404),
    ("<sip:BOB@TRUNK;maddr=127.0.0.1>", 503),
    ("<sip:BOB@x?Route=%3Csip:TRUNK%3Blr%3E>", 503),
    ("<sip:BOB@x>", 503),
];

#[test]
fn a_transfer_reaches_the_numbers_of_its_own_context() {
    let exchange = Exchange::new();
    let mallory = &exchange.mallory;
    mallory.set_reply(Reply::Answer);
    exchange.alice.set_reply(Reply::Answer);
    for (refer_to, expected) in TRANSFERS {
        let refer_to = exchange.fill(refer_to);
        // Bob is busy: 503 says that the transfer was tried.
        let rings = usize::from(expected == 503);
        for (caller, number) in exchange.callers() {
            let call = caller.talk(&number);
            exchange.talking();
            assert_eq!(mallory.transfer(&mallory.answered(), &refer_to), Some(expected), "{refer_to}, called");
            assert_eq!(exchange.bob.take_rings(), rings, "{refer_to}, called");
            caller.hang_up(&call);
            exchange.silent(&format!("{refer_to}, called"));
        }
        let call = mallory.talk(&exchange.alice.number);
        exchange.talking();
        assert_eq!(mallory.transfer(&call, &refer_to), Some(expected), "{refer_to}, calling");
        assert_eq!(exchange.bob.take_rings(), rings, "{refer_to}, calling");
        mallory.hang_up(&call);
        exchange.silent(&format!("{refer_to}, calling"));
    }
}

#[test]
fn a_call_that_replaces_another_dials_nobody() {
    let exchange = Exchange::new();
    let mallory = &exchange.mallory;
    mallory.set_reply(Reply::Answer);
    for (caller, number) in exchange.callers() {
        let call = caller.talk(&number);
        exchange.talking();
        let own = mallory.answered().as_replaces();
        for (replaced, name, expected) in [
            ("unknown;to-tag=x;from-tag=y", exchange.bob.number.as_str(), 481),
            ("unknown;to-tag=x;from-tag=y", OUTSIDE, 404),
            (own.as_str(), OUTSIDE, 404),
            (own.as_str(), exchange.bob.number.as_str(), 200),
        ] {
            let mut request = mallory.prepare("INVITE", name);
            request.add(&format!("Replaces: {replaced}"));
            assert_eq!(mallory.send(&request), Some(expected), "{replaced}, {name}");
            assert_eq!(exchange.bob.take_rings(), 0, "{replaced}, {name}");
        }
        caller.hang_up(&call);
        exchange.silent("a replaced call");
    }
}

/// Names that a phone may call, and what it hears.
const NAMES: [(&str, u16); 24] = [
    (OUTSIDE, 404),
    ("s", 404),
    ("h", 404),
    ("i", 404),
    ("t", 404),
    ("o", 404),
    ("_1XXX", 404),
    ("_X.", 404),
    ("BOB%26ALICE", 404),
    ("BOB%2c1", 404),
    ("BOB,1", 404),
    ("BOB/n", 404),
    ("BOB;x=y", 404),
    ("PJSIP/0900555%40trunk", 404),
    ("PJSIP%2F0900555%40trunk", 404),
    ("Local/0900555%40outbound", 404),
    ("0900555%40outbound", 404),
    ("%24%7BEXTEN%7D", 404),
    ("external_replaces", 404),
    ("parkedcalls", 404),
    ("700", 404),
    ("+1002", 404),
    ("*81002", 404),
    ("*8", 403), // picking up a call: nobody is in its group
];

#[test]
fn an_odd_name_reaches_nobody() {
    let exchange = Exchange::new();
    for (name, expected) in NAMES {
        let name = exchange.fill(name);
        assert_eq!(exchange.mallory.call(&name), Some(expected), "{name}");
        assert_eq!((exchange.alice.take_rings(), exchange.bob.take_rings()), (0, 0), "{name}");
        // From the trunk, the last four digits count.
        let heard = exchange.trunk.call(&name);
        assert!(matches!(heard, Some(404 | 403 | 486)), "{name}, from the trunk: {heard:?}");
        exchange.silent(&name);
        exchange.alice.take_rings();
        exchange.bob.take_rings();
    }
}

/// What a phone says about itself, in the headers of an INVITE.
const FORGED: [&str; 14] = [
    "Diversion: <sip:0900555@x>;reason=unconditional",
    "History-Info: <sip:0900555@x>;index=1",
    "P-Asserted-Identity: \"0900555\" <sip:0900555@x>",
    "P-Preferred-Identity: <sip:0900555@x>",
    "P-Called-Party-ID: <sip:0900555@x>",
    "Remote-Party-ID: <sip:0900555@x>;party=calling",
    "Referred-By: <sip:0900555@x>",
    "Reply-To: <sip:0900555@x>",
    "Contact: <sip:0900555@TRUNK>",
    "Join: 0900555;to-tag=x;from-tag=y",
    "Alert-Info: <http://0900555>",
    "Call-Info: <sip:0900555@x>;answer-after=0",
    "X-Transfer-Context: 0900555",
    "Route: <sip:0900555@TRUNK;lr>",
];

#[test]
fn what_a_phone_says_of_itself_reaches_nobody() {
    let exchange = Exchange::new();
    let Exchange { mallory, alice, .. } = &exchange;
    for header in FORGED {
        let mut request = mallory.prepare("INVITE", &alice.number);
        request.add(&exchange.fill(header));
        assert_eq!((mallory.send(&request), alice.take_rings()), (Some(486), 1), "{header}");
        let invite = alice.last_call();
        let from = format!("\r\nFrom: \"Mallory\" <sip:{}@", mallory.number);
        assert!(invite.contains(&from) && !invite.contains("0900555"), "{header}: {invite}");
        exchange.silent(header);
    }
    for (from, expected) in [
        ("\"0900555\" <sip:MALLORY@x>", 486),
        ("<sip:ALICE@x>", 401),
        ("<sip:trunk@x>", 401),
        ("<sip:trunk@TRUNK>", 401),
        ("<sip:0900555@x>", 401),
        ("<tel:0900555>", 401),
        ("<sip:anonymous@anonymous.invalid>", 401),
    ] {
        let mut request = mallory.prepare("INVITE", &alice.number);
        let tag = request.from.split_once(";tag=").expect("a tag").1;
        request.from = format!("{};tag={tag}", exchange.fill(from));
        let rings = usize::from(expected == 486);
        assert_eq!((mallory.send(&request), alice.take_rings()), (Some(expected), rings), "{from}");
        assert!(!alice.last_call().contains("0900555"), "{from}: {}", alice.last_call());
        exchange.silent(from);
    }
}

/// Requests outside a call, with their names and further headers, and what the phone hears.
const OTHERS: [(&str, &str, &str, u16); 19] = [
    ("REGISTER", "ALICE", "", 404),
    ("REGISTER", "trunk", "", 404),
    ("REFER", "ALICE", "Refer-To: <sip:0900555@x>", 501),
    ("REFER", OUTSIDE, "Refer-To: <sip:1000@x>", 501),
    ("MESSAGE", "ALICE", "", 404),
    ("MESSAGE", OUTSIDE, "", 404),
    ("SUBSCRIBE", "ALICE", "Event: presence\r\nExpires: 60", 404),
    ("SUBSCRIBE", "ALICE", "Event: dialog\r\nExpires: 60", 404),
    ("SUBSCRIBE", "ALICE", "Event: message-summary\r\nExpires: 60", 404),
    ("SUBSCRIBE", "ALICE", "Event: reg\r\nExpires: 60", 489),
    ("SUBSCRIBE", OUTSIDE, "Event: refer\r\nExpires: 60", 489),
    ("PUBLISH", "ALICE", "Event: presence\r\nExpires: 60", 489),
    ("PUBLISH", "ALICE", "Event: asterisk-devicestate\r\nExpires: 60", 400),
    ("NOTIFY", "ALICE", "Event: check-sync\r\nSubscription-State: active", 501),
    ("INFO", "ALICE", "", 501),
    ("UPDATE", "ALICE", "", 501),
    ("BYE", "ALICE", "", 481),
    ("OPTIONS", OUTSIDE, "", 404),
    ("OPTIONS", "ALICE", "", 200),
];

#[test]
fn requests_outside_a_call_reach_nobody() {
    let exchange = Exchange::new();
    for (method, name, headers, expected) in OTHERS {
        let mut request = exchange.mallory.prepare(method, &exchange.fill(name));
        request.add(headers);
        assert_eq!(exchange.mallory.send(&request), Some(expected), "{method} {name}");
        assert_eq!((exchange.alice.take_rings(), exchange.bob.take_rings()), (0, 0), "{method} {name}");
        exchange.silent(method);
    }
}

/// What a phone registers, and whether Asterisk calls it elsewhere then: at the trunk, or at HOST.
const REGISTERED: [(&str, bool); 23] = [
    ("<sip:MALLORY@OWN>", false),
    ("<sip:0900555@TRUNK>", false),
    ("<sip:x;maddr=HOST@OWN>", false),
    ("<sip:x@OWN>;maddr=HOST", false),
    ("<sip:x@OWN;transport=tcp>", false),
    ("<sip:x@OWN;x-ast-orig-host=TRUNK>", false),
    ("<sip:x@OWN?Subject=Route>", false),
    ("<sip:x@OWN?Record-Route=%3Csip:TRUNK%3Blr%3E>", false),
    ("<sip:x@OWN?Contact=%3Csip:TRUNK%3E>", false),
    ("<sip:x@OWN?Via=SIP/2.0/UDP%20TRUNK>", false),
    ("<sip:MALLORY@OWN>\r\nPath: <sip:TRUNK;lr>\r\nSupported: path", false),
    ("<sip:MALLORY@OWN>\r\nRecord-Route: <sip:TRUNK;lr>", false),
    ("<sip:0900555@TRUNK>\r\nRecord-Route: <sip:TRUNK;lr>", false),
    ("<sip:0900555@OWN;maddr=HOST>", true),
    ("<sip:0900555@OWN;lr;MADDR=HOST>", true),
    ("<sip:0900555@OWN;m%61ddr=HOST>", true),
    ("<sip:0900555@OWN?Route=%3Csip:TRUNK%3Blr%3E>", true),
    ("<sip:0900555@OWN?r%6Fute=%3Csip:TRUNK%3Blr%3E>", true),
    ("<sip:0900555@OWN?Route=%3Csip:TRUNK%3E>", true),
    ("<sip:0900555@OWN?Subject=x&Route=%3Csip:TRUNK%3Blr%3E>", true),
    ("<sip:x@x>;expires=0, <sip:0900555@TRUNK>", true),
    ("<sip:x@x>;expires=0\r\nContact: <sip:0900555@TRUNK>", true),
    ("<sip:x@x>;expires=0, <sip:0900555@localhost:PORT>", true),
];

#[test]
fn check_names_a_registration_that_leads_elsewhere() {
    let exchange = Exchange::new();
    let Exchange { mallory, alice, trunk, .. } = &exchange;
    let own = mallory.address();
    let host = Phone::new_at((Ipv4Addr::new(127, 0, 0, 2), own.port()).into(), &exchange.asterisk, "host", "none");
    for (contact, elsewhere) in REGISTERED {
        // Asterisk takes some of them for one and the same contact, and would keep the first.
        assert_eq!(mallory.register_at("*\r\nExpires: 0"), Some(200));
        let contact = exchange.fill(contact).replace("OWN", &own.to_string()).replace("HOST", "127.0.0.2");
        let contact = contact.replace("PORT", &trunk.address().port().to_string());
        assert_eq!(mallory.register_at(&contact), Some(200), "{contact}");
        assert_eq!(alice.call(&mallory.number), Some(486), "{contact}");
        let rang = (mallory.take_rings(), trunk.take_rings() + host.take_rings());
        assert_eq!(rang, if elsewhere { (0, 1) } else { (1, 0) }, "{contact}");

        let (state, words) = if elsewhere { ("warning", mallory.number.as_str()) } else { ("ok", "at the phones") };
        let table = Table::of(exchange.portal.settings());
        table.says("where calls to phones end", state, &[words, if elsewhere { "(sip:0900555@" } else { "" }]);
        table.nothing_fails();
    }
}
