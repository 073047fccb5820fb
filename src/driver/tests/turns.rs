//! Requests queued because the maximum number is in flight.

use super::*;
use crate::clock::Clock;
use crate::protocol::Config;
use crate::shared::mailbox::{Mailbox, mailbox};

/// Receives whether the session could be set up.
type Started = crossbeam_channel::Receiver<Result<(), LockError>>;

/// A driver with more requests than may be in flight, none of which is ever answered.
fn crowded() -> (Driver<MemoryClient>, Mailbox, Started) {
    let root = Root::parse("/test").unwrap();
    let settings =
        Settings { root: root.clone(), request_timeout: SOON, close_timeout: SOON, clock: Clock::default() };
    let config = Config {
        root,
        owner: String::new(),
        pid: 1,
        ttl: SOON,
        safety_margin: MS,
        request_timeout: SOON,
        writes_in_flight: 1,
        seed: 1,
    };
    let (mailbox, inbox) = mailbox(&Arc::default());
    let now = Clock::default().now();
    let (ready, started) = crossbeam_channel::bounded(1);
    let startup = Startup::new(ready, now + SOON * 2);
    let (store, report) = (MemoryClient::new(&MemoryCluster::new()), Arc::new(Report::new()));
    let mut driver = Driver::new(store, Protocol::new(config), settings, inbox, report, Some(startup));
    for id in 0..1000 {
        let request = Request::Txn(Default::default());
        let id = RequestId(u64::MAX - id);
        driver.inflight.admit(inflight::Outgoing { id, request, until: now + SOON, urgent: false });
    }
    (driver, mailbox, started)
}

/// No store answers in this test, yet a queued request fails in time.
#[tokio::test]
async fn a_queued_request_that_is_never_sent_fails_within_its_timeout() {
    let (mut driver, _mailbox, _started) = crowded();
    let now = Clock::default().now();
    assert!(driver.pause(now) <= SOON, "the loop wakes in time");
    driver.look_at_the_clock(now + SOON);
    assert_eq!(driver.inflight.next_timeout(), None);
}

/// As after the loss of a session whose requests are still unanswered.
#[tokio::test]
async fn a_session_comes_up_while_the_maximum_of_requests_is_in_flight() {
    let (driver, _mailbox, started) = crowded();
    let up = async {
        while started.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        over = driver.run() => panic!("{over:?}"),
        () = up => started.try_recv().unwrap().unwrap(),
        () = tokio::time::sleep(SOON / 4) => panic!("the request for the session is queued"),
    }
}
