//! Applies disturb nobody whom they do not concern: fifty phones stay registered, and calls go on, one with the phone of a user
//! who is deleted among them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fixtures::{account, evicted, host, id, registered};
use support::sipp::{Called, Phones, call};
use support::{Baresip, Portal, secs, wait_until};

const PHONES: usize = 50;
const APPLIES: usize = 20;

/// What each phone sends, in hertz.
const TONES: [u32; 4] = [440, 700, 1000, 1300];

/// Creates a user of this name and gives it.
fn create(portal: &Portal, name: &str) -> Value {
    portal.create_user(name, &format!("{name}@example.com"))
}

#[test]
fn fifty_phones_and_two_calls_survive_twenty_applies_with_changes() {
    let (asterisk, portal) = host();
    let [alice, bob, carol, dave] = ["alice", "bob", "carol", "dave"].map(|name| create(&portal, name));
    let owners: Vec<_> = (0..PHONES).map(|index| account(&create(&portal, &format!("phone{index}")))).collect();
    // These come and go.
    let mut others: Vec<_> = (0..10).map(|index| create(&portal, &format!("other{index}"))).collect();
    portal.apply("suite");

    let owners: Vec<_> = owners.iter().map(|(number, secret)| (number.as_str(), secret.as_str())).collect();
    let phones = Phones::register(&asterisk, &owners, Called::Answer);
    let phone = |user: &Value, tone| {
        let (number, secret) = account(user);
        Baresip::start(&asterisk, (&number, &secret), tone)
    };
    let [alices, bobs, carols, daves] = [(&alice, TONES[0]), (&bob, TONES[1]), (&carol, TONES[2]), (&dave, TONES[3])]
        .map(|(user, tone)| phone(user, tone));
    let talks = [(&alices, &bobs, &bob, [TONES[1], TONES[0]]), (&carols, &daves, &dave, [TONES[3], TONES[2]])];
    for (from, _, to, _) in talks {
        from.dial(&account(to).0).expect("an answer");
    }
    let both_hear = || talks.iter().all(|(from, to, _, [far, near])| from.hears(*far) && to.hears(*near));
    wait_until(secs(20), "all hear each other", both_hear);

    let staying: BTreeSet<_> = [&alice, &bob, &carol].map(|user| account(user).0).into_iter().collect();
    let staying: BTreeSet<_> =
        staying.into_iter().chain(owners.iter().map(|(number, _)| (*number).to_owned())).collect();
    let of_staying = || {
        let mut rows = registered(&asterisk);
        rows.retain(|row| row.split(';').next().is_some_and(|number| staying.contains(number)));
        rows
    };
    let before = of_staying();
    let evicted_by_an_apply = || evicted(&portal.apply("suite")).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(before.len(), PHONES + 3);

    // Dave leaves in the middle of his call, and somebody else gets his number.
    portal.delete_user(id(&dave));
    let mut freed = BTreeSet::from([account(&dave).0]);
    others.push(create(&portal, "erin"));
    let mut others_phones = Vec::new();
    for round in 0..APPLIES / 2 {
        assert_eq!(evicted_by_an_apply(), freed, "round {round}: the numbers with a new owner, and only those");
        let mut two_leave = || {
            let (number, secret) = account(&others[0]);
            others_phones.push(Phones::register(&asterisk, &[(&number, &secret)], Called::Answer));
            for user in others.drain(..2) {
                portal.delete_user(id(&user));
            }
            BTreeSet::from([number])
        };
        let left = two_leave();
        assert_eq!(evicted_by_an_apply(), left, "round {round}: the numbers that nobody has");
        freed = two_leave();
        others.extend((0..4).map(|index| create(&portal, &format!("next{round}-{index}"))));

        assert_eq!(of_staying(), before, "round {round}");
        assert!(asterisk.rx("core show channels count").contains("2 active calls"), "round {round}");
    }
    wait_until(secs(20), "all still hear each other", both_hear);
    for (number, _) in &owners {
        assert_eq!(call(&asterisk, owners[0], number), 200);
        assert!(phones.requests("INVITE", number) >= 1, "{number} rings");
    }
}
