//! How many requests are in flight at a time.

use std::collections::VecDeque;

use crate::clock::Time;
use crate::kv::Request;
use crate::protocol::RequestId;

/// Maximum requests in flight, lease requests not counted. Enough for etcd to carry out many with one commit; few enough not
/// to delay the renewals, which share the connection: beside 10,000 reads sent at once the slowest renewal took 300 ms, with
/// this limit 90 ms.
const IN_FLIGHT: usize = 128;

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// When it must be answered.
    pub(super) until: Time,
    /// It is sent at once, however many are in flight.
    pub(super) urgent: bool,
}

/// Limits the requests in flight and queues the rest in order. Lease requests bypass it: a new session must not wait for the
/// hanging requests of the one before.
///
/// Writes are sent in a few batches and never reach the limit. Reads do, because each queue sends its own, and all queues
/// read at once after the watch stream was reopened.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    in_flight: usize,
    queued: VecDeque<Outgoing>,
    /// No queued request is overdue before this. Reads have less time than writes, so the earliest need not be the first in
    /// the queue. It may be too early, if the request has been sent since.
    soonest: Option<Time>,
}

impl Inflight {
    /// The request, if it may be sent now; otherwise it is queued.
    pub(super) fn admit(&mut self, outgoing: Outgoing) -> Option<Outgoing> {
        if outgoing.urgent {
            return Some(outgoing);
        }
        if self.in_flight < IN_FLIGHT {
            self.in_flight += 1;
            return Some(outgoing);
        }
        self.soonest = self.soonest.into_iter().chain([outgoing.until]).min();
        self.queued.push_back(outgoing);
        None
    }

    /// A counted request was answered. Returns the next one to send.
    pub(super) fn answered(&mut self) -> Option<Outgoing> {
        let next = self.queued.pop_front();
        if next.is_none() {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        next
    }

    /// When a queued request may be overdue.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.soonest.filter(|_| !self.queued.is_empty())
    }

    /// Takes out the requests whose time ran out in the queue.
    pub(super) fn take_overdue(&mut self, now: Time) -> Vec<Outgoing> {
        // Every turn of the loop asks, and there can be thousands.
        if self.next_timeout().is_none_or(|soonest| soonest > now) {
            return Vec::new();
        }
        let is_overdue = |outgoing: &Outgoing| outgoing.until <= now;
        let (overdue, queued): (VecDeque<_>, _) =
            std::mem::take(&mut self.queued).into_iter().partition(is_overdue);
        self.queued = queued;
        self.soonest = self.queued.iter().map(|outgoing| outgoing.until).min();
        overdue.into()
    }

    /// Takes out all queued requests.
    pub(super) fn take_queued(&mut self) -> Vec<Outgoing> {
        self.soonest = None;
        std::mem::take(&mut self.queued).into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn txn(id: u64) -> Outgoing {
        let until = Time::default() + Duration::from_secs(id);
        Outgoing { id: RequestId(id), request: Request::Txn(Default::default()), until, urgent: false }
    }

    #[test]
    fn a_flood_is_let_through_bit_by_bit_and_in_order() {
        let mut inflight = Inflight::default();
        let admitted = (0..1000).filter(|&id| inflight.admit(txn(id)).is_some()).count();
        assert_eq!(admitted, IN_FLIGHT);
        let rest: Vec<u64> = std::iter::from_fn(|| inflight.answered()).map(|next| next.id.0).collect();
        assert_eq!(rest, (IN_FLIGHT as u64..1000).collect::<Vec<_>>());
        (1..IN_FLIGHT).for_each(|_| assert!(inflight.answered().is_none()));
        assert_eq!(inflight.in_flight, 0);
    }

    #[test]
    fn requests_taken_out_are_not_sent_any_more() {
        let mut inflight = Inflight::default();
        (0..1000).for_each(|id| drop(inflight.admit(txn(id))));
        assert_eq!(inflight.take_queued().len(), 1000 - IN_FLIGHT);
        assert!(inflight.answered().is_none());
        assert!(inflight.admit(txn(1000)).is_some());
    }

    #[test]
    fn a_request_whose_time_runs_out_in_the_queue_is_given_back() {
        let mut inflight = Inflight::default();
        (0..IN_FLIGHT as u64 + 3).for_each(|id| drop(inflight.admit(txn(id))));
        let first = Time::default() + Duration::from_secs(IN_FLIGHT as u64);
        assert_eq!(inflight.next_timeout(), Some(first));
        assert!(inflight.take_overdue(first.saturating_sub(Duration::from_millis(1))).is_empty());
        let ids = |taken: Vec<Outgoing>| taken.iter().map(|outgoing| outgoing.id.0).collect::<Vec<_>>();
        let later = first + Duration::from_secs(1);
        assert_eq!(ids(inflight.take_overdue(later)), [IN_FLIGHT as u64, IN_FLIGHT as u64 + 1]);
        assert_eq!(ids(inflight.answered().into_iter().collect()), [IN_FLIGHT as u64 + 2]);
        assert_eq!(inflight.next_timeout(), None);
    }

    #[test]
    fn a_request_with_less_time_is_given_back_before_earlier_ones() {
        let mut inflight = Inflight::default();
        (0..IN_FLIGHT as u64).for_each(|id| drop(inflight.admit(txn(id))));
        assert!([1005, 1002, 1005, 1002, 1009].into_iter().all(|id| inflight.admit(txn(id)).is_none()));
        let ids = |taken: Vec<Outgoing>| taken.iter().map(|outgoing| outgoing.id.0).collect::<Vec<_>>();
        for (soonest, overdue) in [(1002, [1002, 1002]), (1005, [1005, 1005])] {
            let soonest = Time::default() + Duration::from_secs(soonest);
            assert_eq!(inflight.next_timeout(), Some(soonest));
            assert_eq!(ids(inflight.take_overdue(soonest)), overdue);
        }
        assert_eq!(ids(inflight.answered().into_iter().collect()), [1009]);
        assert_eq!(inflight.next_timeout(), None);
    }

    #[test]
    fn urgent_requests_pass_a_flood_and_do_not_count() {
        let mut inflight = Inflight::default();
        (0..IN_FLIGHT as u64 - 1).for_each(|id| drop(inflight.admit(txn(id))));
        assert!(inflight.admit(Outgoing { urgent: true, ..txn(1000) }).is_some());
        assert!(inflight.admit(txn(1001)).is_some());
        assert!(inflight.admit(txn(1002)).is_none());
        assert!(inflight.admit(Outgoing { urgent: true, ..txn(1003) }).is_some());
    }
}
