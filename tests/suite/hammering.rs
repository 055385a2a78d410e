//! The old owner's phone registers some fifty times a second and its number is called without pause, before, during and after
//! the apply that gives the number to somebody else.

use crate::fixtures::{account, host, id, registrations};
use crate::support::sipp::{Caller, HAMMERING_AT_ONCE, Phones};
use crate::support::{secs, wait_until};

/// Each user makes the reloads, and so the time in which something could go wrong, longer.
const OTHER_USERS: usize = 200;

#[test]
fn the_old_phone_never_rings_for_the_new_owner() {
    let (asterisk, portal) = host();
    let caller = account(&portal.create_user("Caller", "caller@example.com"));
    let mut owner = portal.create_user("Owner", "owner@example.com");
    for index in 0..OTHER_USERS {
        portal.create_user("Other", &format!("other{index}@example.com"));
    }
    portal.apply("suite");
    for round in 0..5 {
        let (number, secret) = account(&owner);
        let phone = Phones::hammer(&asterisk, (&number, &secret));
        let caller = Caller::start(&asterisk, (&caller.0, &caller.1), &number);
        wait_until(secs(20), "the owner's phone rings", || phone.requests("INVITE", &number) >= 3);

        portal.delete_user(id(&owner));
        owner = portal.create_user("Next", &format!("next{round}@example.com"));
        assert_eq!(account(&owner).0, number);
        let evicted = &portal.apply("suite")["registrations_evicted"];
        let (rung, tried) = (phone.requests("INVITE", &number), phone.registrations().len());
        assert!(evicted.to_string().contains(&number), "{evicted}");

        caller.wait_for_calls(10);
        wait_until(secs(20), "the old phone goes on", || phone.registrations().len() >= tried + 50);
        let later = phone.registrations().split_off(tried + HAMMERING_AT_ONCE);
        assert!(later.iter().all(|accepted| !accepted), "it is refused each time: {later:?}");
        assert_eq!(registrations(&asterisk, &number), 0);
        assert_eq!(phone.requests("INVITE", &number), rung, "no call after the apply rings it");
        // One call at a time: what rang the phone has ended when the next call is refused.
        let calls = caller.calls();
        let refused = calls.iter().position(|(_, status)| [404, 480].contains(status)).expect("a refused call");
        let arrivals = phone.arrivals("INVITE", &number);
        assert!(arrivals.iter().all(|at| *at < calls[refused].0), "after {:?} it rings: {arrivals:?}", calls[refused]);
        // A challenge from before the reload is stale after it (401); a phone that is not SIPp answers the new one.
        let later: Vec<_> = calls[refused..].iter().map(|(_, status)| *status).collect();
        assert!(later.iter().all(|status| [401, 404, 480].contains(status)), "{later:?}");
        assert_eq!(later.last(), Some(&480), "routed again");
    }
}
