//! Signals that would end the service at once: it ends as on SIGTERM instead, or not at all if it was started to ignore them.

use std::os::unix::process::ExitStatusExt as _;
use std::thread;

use crate::fixtures::{host, try_apply, without_asterisk};
use support::process::Signal;
use support::{Portal, secs, wait_until};

#[test]
fn each_signal_lets_an_apply_end_and_is_named_in_the_log() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    for (signal, name) in [
        (Signal::HUP, "SIGHUP"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::INT, "SIGINT"),
        (Signal::TERM, "SIGTERM"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
    ] {
        asterisk.signal(Signal::STOP);
        let begun = portal.log().matches("apply begins").count();
        thread::scope(|scope| {
            let apply = scope.spawn(|| try_apply(&portal));
            wait_until(secs(10), "the apply begins", || portal.log().matches("apply begins").count() > begun);
            portal.signal(signal);
            let stopping = format!("stopping; an apply that runs goes on to its end signal=\"{name}\"");
            wait_until(secs(10), name, || portal.log().contains(&stopping) || portal.ended().is_some());
            asterisk.signal(Signal::CONT);
            let answer = apply.join().expect("an answer");
            assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        });
        wait_until(secs(30), "the service ends", || portal.ended().is_some());
        let status = portal.ended().expect("it has ended");
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{name}");
        portal.boot();
    }
}

#[test]
fn signals_that_the_service_was_started_to_ignore_do_not_end_it() {
    let portal = Portal::prepare(&without_asterisk());
    portal.boot_through(&["nohup"]);
    portal.signal(Signal::HUP);
    assert_eq!(portal.users().len(), 0, "it serves");
    assert!(portal.stop().success());
    portal.boot_through(&["sh", "-c", "trap '' INT QUIT; exec \"$@\"", "sh"]);
    let logged = portal.log().len();
    for signal in [Signal::INT, Signal::QUIT] {
        portal.signal(signal);
    }
    assert_eq!(portal.users().len(), 0, "it serves");
    portal.signal(Signal::HUP);
    wait_until(secs(30), "it ends", || portal.ended().is_some_and(|status| status.success()));
    assert!(portal.log()[logged..].contains("signal=\"SIGHUP\""), "{}", portal.log());
}
