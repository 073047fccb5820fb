//! The counters of the tickets.

use std::sync::Arc;
use std::time::Duration;

use crate::protocol::{Refusal, Ticket};
use crate::shared::message::Reply;
use crate::shared::tickets::Tickets;
use crate::stats::StatsCell;

#[test]
fn only_a_caller_that_still_listens_counts_as_timed_out() {
    let stats = Arc::new(StatsCell::default());
    let tickets = Tickets::new(Arc::clone(&stats));
    for (ticket, listens) in [(Ticket(1), true), (Ticket(2), false)] {
        let (outcome, receiver) = oneshot::channel();
        let receiver = Some(receiver).filter(|_| listens);
        tickets.wait(ticket, Reply { outcome, ready: None });
        tickets.refused(ticket, Refusal::Timeout { waited: Duration::from_secs(1), holder: None });
        assert_eq!(receiver.is_some_and(|receiver| receiver.recv().is_ok()), listens);
        assert_eq!(stats.snapshot().timed_out, 1, "{ticket:?}");
    }
    assert_eq!(stats.snapshot().waiting, 0);
}
