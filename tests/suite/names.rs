//! Whatever a person types as a name: Asterisk reads exactly the sections that it should, runs nothing of it, and a called
//! phone shows the person.
//!
//! What Asterisk does with a caller ID's name on the wire: it goes into the `From` of the INVITE in double quotes, as UTF-8.

use std::fmt::Write as _;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::fixtures::{account, host, sqlite, without_asterisk};
use support::Portal;
use support::sipp::{Called, Phones, call};

/// Everything that means something to Asterisk, to SIP, to a shell or to a display. `FILE` must never be made.
const NASTY: [&str; 30] = [
    "#include pjsip.conf",
    "#exec touch FILE",
    "#tryinclude /etc/passwd",
    "${SHELL(touch FILE)}",
    "$[1+1]",
    "`touch FILE`; touch FILE",
    "$(touch FILE)",
    "]\\n[1000]",
    "[general](!)",
    "[1000](+type=endpoint)",
    "; a comment",
    ";-- a block",
    "--; its end",
    "O'Brien \"Bob\" \\",
    "\\\"",
    "=> x",
    "a=b",
    "Smith, John (CEO) <1234>",
    "\" <666>",
    "<sip:evil@example.com>;tag=x",
    "100% %s %n %41",
    "&|!?*@:/",
    "~^`_{}",
    "\u{202e}right to left\u{202c}",
    "\u{200f}שלום\u{200e}",
    "👩\u{200d}👩\u{200d}👧\u{200d}👦 👍🏽",
    "e\u{301}\u{301}\u{301}",
    "\u{feff}\u{fffe}",
    "李小龍 ภาษาไทย हिन्दी",
    "\u{10ffff}",
];

/// Names of any make: arbitrary characters, nasty pieces with anything around them, 255 of anything.
fn names() -> impl Strategy<Value = String> {
    let nasty = || select(&NASTY[..]).prop_map(str::to_owned);
    let sign =
        || select(&['"', '\\', ';', '$', '{', '}', '<', '>', '[', ']', '#', '(', ')', ',', '%', '=', '\'', ' '][..]);
    let character = || any::<char>().prop_filter("no name has it", |character| !character.is_control());
    let piece = prop_oneof![3 => nasty(), 2 => "\\PC{0,20}", 2 => vec(sign(), 1..10).prop_map(String::from_iter), 1 => vec(character(), 0..10).prop_map(String::from_iter)];
    prop_oneof![
        4 => vec(piece, 1..5).prop_map(|pieces| pieces.concat()),
        1 => vec(character(), 255).prop_map(String::from_iter),
        1 => character().prop_map(|character| character.to_string().repeat(255)),
        1 => nasty().prop_map(|nasty| nasty.repeat(20)),
        1 => "[a-zé李😀]{60,90}",
    ]
    .prop_map(|name| name.chars().take(255).collect())
}

/// What is left of a person's name: everything but eight signs, cut to 79 bytes between two characters.
fn expected(name: &str, number: &str) -> String {
    let mut shown = String::new();
    for character in name.trim().chars().filter(|character| !"\"\\;${}<>".contains(*character)) {
        if shown.len() + character.len_utf8() > 79 {
            break;
        }
        shown.push(character);
    }
    if shown.trim().is_empty() { number.to_owned() } else { shown.trim().to_owned() }
}

/// A user with a name that an earlier release accepted.
fn stored(portal: &Portal, name: &str, email: &str) -> Value {
    portal.create_user("Anybody", email);
    let name = name.replace('\'', "''");
    sqlite(portal, &format!("UPDATE users SET name = '{name}' WHERE email = '{email}'"));
    portal.users().into_iter().find(|user| user["email"] == email).expect("the user is listed")
}

#[test]
fn a_new_name_shows_something_in_the_direction_of_its_script_and_a_stored_one_may_not() {
    let portal = Portal::start(&without_asterisk());
    let refused = [
        "\u{200b}",
        "Zero\u{200b}width",
        "\u{2060}",
        "\u{202e}ecilA\u{202c}",
        "\u{2066}Alice\u{2069}",
        "\u{200e}\u{200f}",
        "\u{3164}",
    ];
    for (index, name) in refused.into_iter().enumerate() {
        let email = format!("{index}@example.com");
        for (path, field, body) in [
            ("/users", "name", json!({"name": name, "email": email})),
            ("/apply", "triggered_by", json!({"triggered_by": name})),
        ] {
            let answer = portal.request("POST", path, Some(&body));
            assert_eq!(
                (answer.status, &answer.json["details"][0]["field"]),
                (400, &json!(field)),
                "{name:?}: {}",
                answer.text
            );
            assert!(answer.text.contains("invisible characters"), "{}", answer.text);
        }
        assert_eq!(stored(&portal, name, &email)["name"], name);
    }
    for (index, name) in
        ["\u{200f}שלום\u{200e}", "\u{61c}سلام", "نمی\u{200c}خواهم", "👩\u{200d}👩\u{200d}👧", "❤\u{fe0f} Alice"]
            .into_iter()
            .enumerate()
    {
        assert_eq!(portal.create_user(name, &format!("pasted{index}@example.com"))["name"], name);
    }
}

#[test]
fn whatever_is_typed_is_what_a_called_phone_shows_and_nothing_else() {
    let (asterisk, portal) = host();
    let made = asterisk.run_dir().join("made");
    let mut runner = TestRunner::deterministic();
    let mut typed: Vec<String> = NASTY.map(str::to_owned).into();
    typed.extend(["Alice Ångström".to_owned(), "é".repeat(255), "\"".repeat(255), "a".repeat(255), "\";\"".to_owned()]);
    let fixed = typed.len();
    typed.extend((0..350).map(|_| names().new_tree(&mut runner).expect("a name").current()));

    // (number, secret, what is shown) of each name that is accepted.
    let mut people = Vec::new();
    for (index, name) in typed.iter().enumerate() {
        let name = name.replace("FILE", &made.display().to_string());
        let body = json!({"name": name, "email": format!("{index}@example.com")});
        let answer = portal.request("POST", "/users", Some(&body));
        if answer.status == 201 {
            let (number, secret) = account(&answer.json);
            let shown = expected(answer.json["name"].as_str().expect("a name"), &number);
            people.push((number, secret, shown));
        } else if index >= fixed {
            assert_eq!(answer.status, 400, "{name:?}: {}", answer.text);
        } else {
            // An earlier release accepted it.
            assert!(answer.status == 400 && name.contains('\u{202e}'), "{name:?}: {}", answer.text);
            let (number, secret) = account(&stored(&portal, &name, &format!("{index}@example.com")));
            people.push((number.clone(), secret, expected(&name, &number)));
        }
    }
    assert!(people.len() > 300, "{} names are too few", people.len());
    portal.apply("suite");

    let numbers: Vec<_> = people.iter().map(|(number, ..)| number.clone()).collect();
    assert_eq!(asterisk.endpoints(), numbers, "exactly these endpoints");
    assert_eq!(asterisk.routed(), numbers, "exactly these extensions");
    for (number, _, shown) in &people {
        let in_force =
            asterisk.rx(&format!("dialplan eval function AST_SORCERY(res_pjsip,endpoint,{number},callerid)"));
        assert!(in_force.contains(&format!("Result: \"{shown}\" <{number}>\n")), "{shown:?}: {in_force:?}");
    }

    let (number, secret, _) = &people[fixed + 1];
    let called = Phones::register(&asterisk, &[(number, secret)], Called::Answer);
    let callers: Vec<_> = people[..fixed].iter().chain(people[fixed + 2..].iter().step_by(20)).collect();
    thread::scope(|scope| {
        for some in callers.chunks(callers.len().div_ceil(4)) {
            let (asterisk, called) = (&asterisk, number);
            scope.spawn(move || {
                for (number, secret, _) in some {
                    assert_eq!(call(asterisk, (number, secret), called), 200);
                }
            });
        }
    });
    let shown_by_the_phone = called.callers();
    let mut wrong = String::new();
    for (number, _, shown) in callers {
        let from = format!("\"{shown}\" <sip:{number}@");
        if !shown_by_the_phone.iter().any(|caller| caller.starts_with(&from)) {
            let instead: Vec<_> =
                shown_by_the_phone.iter().filter(|caller| caller.contains(&format!("<sip:{number}@"))).collect();
            writeln!(wrong, "{from:?}, but {instead:?}").expect("writing to a string");
        }
    }
    assert_eq!(wrong, "");
    assert!(!made.exists(), "nothing of a name was run");
}
