//! The queues that take every SIP request outside a dialog, of every transport (`res/res_pjsip/pjsip_distributor.c`).
//!
//! Asterisk handles a REGISTER in one task of one queue, from its authentication to its row in the database. So once each queue
//! has worked off what was in it, every registration that was accepted before has its row.
//!
//! For each queue Asterisk shows how many tasks are processed and how many wait. The one that runs is in neither number, and another
//! may move from one to the other while the row is printed. So a queue has finished its earlier tasks once `processed` has grown by
//! `waiting` and [two](IN_NEITHER_COLUMN). Pings put more tasks at the end of each queue, so that this comes true for an idle
//! queue, too. The answer of a ping proves nothing: all pings wait on one condition, which the task of
//! any of them signals, and after five seconds a ping gives up with the same words.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use tokio::select;
use tokio::time::sleep;
use tracing::info;

use super::in_force::rows;
use super::{Command, Control};
use crate::problem::{Result, ensure};

/// Between two looks at the queues, which take Asterisk less than this.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// Before the next pings.
const PING_PAUSE: Duration = Duration::from_millis(100);

/// The task that runs, and one that may move while a row is printed.
const IN_NEITHER_COLUMN: u64 = 2;

/// What the queues had done and what waited in them, by what their names end with.
type Queues = BTreeMap<String, Queue>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queue {
    processed: u64,
    waiting: u64,
}

/// Waits until Asterisk has handled every SIP request outside a dialog that it had accepted before. Does not end if a queue does not
/// move: the caller gives up in time.
pub async fn work_off(control: &Control) -> Result<()> {
    let mut before = list(control).await?;
    ensure!(
        !before.is_empty(),
        "Asterisk shows no queue of SIP requests (core show taskprocessors like pjsip/distributor), so nobody knows whether it has stored every registration that it accepted",
        "look whether res_pjsip.so is running"
    );
    // The `processed` of a row may be older than its `waiting`, and so too small. That of a second listing is not.
    for (name, queue) in list(control).await? {
        before.entry(name).or_insert(queue).processed = queue.processed;
    }
    let until_worked_off = async {
        while !worked_off(&before, &list(control).await?) {
            sleep(LOOK_PAUSE).await;
        }
        Ok(())
    };
    select! {
        ended = until_worked_off => ended,
        never = keep_pinging(control, &before) => match never {},
    }
}

/// Does not end. What waited at the first listing may have been worked off before the second: then the target is more than two tasks
/// away. Pings also fail if Asterisk closes the connection or a queue does not move. More of them do no harm.
async fn keep_pinging(control: &Control, queues: &Queues) -> Infallible {
    let once: Vec<_> = queues.keys().map(|name| Command::PING_QUEUE.with(name)).collect();
    let twice = [once.clone(), once].concat();
    loop {
        if let Err(error) = control.ask(&twice).await {
            info!(%error, "the pings of Asterisk's queues failed; they are sent again");
        }
        sleep(PING_PAUSE).await;
    }
}

/// Whether each queue has done what it had to do before.
fn worked_off(before: &Queues, now: &Queues) -> bool {
    before.iter().all(|(name, before)| {
        let done_then = before.processed + before.waiting + IN_NEITHER_COLUMN;
        now.get(name).is_some_and(|now| now.processed >= done_then)
    })
}

async fn list(control: &Control) -> Result<Queues> {
    control.listing(&[Command::QUEUES], parse).await
}

/// `None` unless the listing is complete.
fn parse(text: &str) -> Option<Queues> {
    let queue = |row: &str| {
        let mut columns = row.split_whitespace();
        let name = columns.next()?.to_owned();
        let processed = columns.next()?.parse().ok()?;
        let waiting = columns.next()?.parse().ok()?;
        Some((name, Queue { processed, waiting }))
    };
    rows(text, "pjsip/distributor")?.into_iter().map(queue).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::super::in_force::recorded;
    use super::*;

    #[test]
    fn a_listing_is_complete_or_none() {
        let queues = parse(recorded!("queues")).expect("a complete listing");
        assert_eq!(queues.len(), 31);
        for lost in queues.keys().map(String::as_str).chain([" taskprocessors"]) {
            let kept = recorded!("queues").lines().filter(|line| !line.contains(lost));
            assert_eq!(parse(&kept.collect::<Vec<_>>().join("\n")), None, "without {lost}");
        }
    }

    #[test]
    fn a_queue_has_worked_off_what_was_in_it_and_what_ran() {
        let queues =
            |processed, waiting| Queues::from([("pjsip/distributor-1".to_owned(), Queue { processed, waiting })]);
        assert!(!worked_off(&queues(5, 0), &queues(6, 0)), "the ping alone may have been done before");
        assert!(worked_off(&queues(5, 0), &queues(7, 0)));
        assert!(!worked_off(&queues(5, 3), &queues(9, 1)));
        assert!(worked_off(&queues(5, 3), &queues(10, 1)));
        assert!(!worked_off(&queues(5, 0), &Queues::new()), "a queue that is gone has not answered");
    }

    /// A real queue can't be made to work off a task exactly between two listings, so this is a fake: two tasks wait at the first
    /// listing and none at the second. Then only pings move the queue.
    #[tokio::test]
    async fn a_queue_that_was_worked_off_between_two_listings_is_not_waited_for_in_vain() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).expect("make a folder");
        let listener = UnixListener::bind(folder.join("asterisk.ctl")).expect("listen");
        let asterisk = async {
            let mut queues = [(5, 2), (7, 0)].into_iter();
            let mut pings = 0;
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut commands = String::new();
                stream.read_to_string(&mut commands).await.expect("commands");
                pings += commands.matches("core ping").count();
                let (processed, waiting) = queues.next().unwrap_or((7 + pings, 0));
                let listing = format!("fake/1/22\npjsip/distributor-1 {processed} {waiting}\n1 taskprocessors\n");
                stream.write_all(listing.as_bytes()).await.expect("an answer");
            }
        };
        let control = Control::new(&folder, Duration::from_secs(5));
        select! {
            ended = work_off(&control) => ended.expect("a queue that is worked off"),
            () = asterisk => {}
            () = sleep(Duration::from_secs(20)) => panic!("it waits in vain"),
        }
        std::fs::remove_dir_all(&folder).expect("remove the folder");
    }
}
