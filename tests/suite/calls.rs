//! A caller hears the truth, and nothing but calls makes a phone ring.

use crate::fixtures::{account, host};
use support::sipp::{Called, Phones, call, message};

#[test]
fn a_caller_hears_whether_a_number_is_busy_absent_silent_or_unknown() {
    let (asterisk, portal) = host();
    let accounts = ["caller", "busy", "absent", "silent"]
        .map(|name| account(&portal.create_user(name, &format!("{name}@example.com"))));
    let [caller, busy, absent, silent] = accounts.each_ref().map(|(number, secret)| (number.as_str(), secret.as_str()));
    portal.apply("suite");
    let busy_phone = Phones::register(&asterisk, &[busy], Called::Busy);
    let silent_phone = Phones::register(&asterisk, &[silent], Called::Ring);

    assert_eq!(call(&asterisk, caller, busy.0), 486, "busy");
    assert_eq!(call(&asterisk, caller, absent.0), 480, "no phone is registered");
    assert_eq!(call(&asterisk, caller, "1999"), 404, "nobody has this number");
    assert_eq!(call(&asterisk, caller, silent.0), 480, "nobody answers");
    assert_eq!((busy_phone.requests("INVITE", busy.0), silent_phone.requests("INVITE", silent.0)), (1, 1));

    assert_eq!(message(&asterisk, caller, silent.0), 404, "a text message is for nobody");
    assert_eq!(silent_phone.requests("INVITE", silent.0), 1, "and rings no phone");
}
