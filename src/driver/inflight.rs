//! How much is asked of the store at a time.

use std::collections::VecDeque;

use crate::clock::Time;
use crate::kv::Request;
use crate::protocol::RequestId;

/// Requests in flight. Enough for the store to carry out many with one commit; few enough that the session's renewals,
/// which share the connection, are never held up behind ten thousand callers who ask at once.
const IN_FLIGHT: usize = 128;

/// A request on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// When it must be answered.
    pub(super) until: Time,
    /// It goes at once, however many are in flight.
    pub(super) urgent: bool,
}

/// Lets so many requests through and keeps the others, in their order. What is about the session is never kept: the next
/// one must not wait until what hangs of the one before it is given up.
///
/// Locks and releases leave in a few batches and never fill it. Reads do: each queue has its own, and when the watch stream
/// was opened anew all of them read at once.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    in_flight: usize,
    kept: VecDeque<Outgoing>,
    /// No kept request is overdue earlier. A look has less time than a step, so it need not be the first; this may be too
    /// early, as that of a request which has left meanwhile.
    soonest: Option<Time>,
}

impl Inflight {
    /// The request, if it may go now.
    pub(super) fn admit(&mut self, outgoing: Outgoing) -> Option<Outgoing> {
        if outgoing.urgent {
            return Some(outgoing);
        }
        if self.in_flight < IN_FLIGHT {
            self.in_flight += 1;
            return Some(outgoing);
        }
        self.soonest = self.soonest.into_iter().chain([outgoing.until]).min();
        self.kept.push_back(outgoing);
        None
    }

    /// A request that counted was answered: what may go in its place.
    pub(super) fn answered(&mut self) -> Option<Outgoing> {
        let next = self.kept.pop_front();
        if next.is_none() {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        next
    }

    /// When something that was kept may be overdue.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.soonest.filter(|_| !self.kept.is_empty())
    }

    /// Takes out what was kept for all of its time.
    pub(super) fn take_overdue(&mut self, now: Time) -> Vec<Outgoing> {
        // Every turn of the loop asks, and there can be thousands.
        if self.next_timeout().is_none_or(|soonest| soonest > now) {
            return Vec::new();
        }
        let is_overdue = |kept: &Outgoing| kept.until <= now;
        let (overdue, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.kept).into_iter().partition(is_overdue);
        self.kept = kept;
        self.soonest = self.kept.iter().map(|kept| kept.until).min();
        overdue.into()
    }

    /// Takes out what has not gone yet.
    pub(super) fn take_kept(&mut self) -> Vec<Outgoing> {
        self.soonest = None;
        std::mem::take(&mut self.kept).into()
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
    fn what_was_taken_out_does_not_go_any_more() {
        let mut inflight = Inflight::default();
        (0..1000).for_each(|id| drop(inflight.admit(txn(id))));
        assert_eq!(inflight.take_kept().len(), 1000 - IN_FLIGHT);
        assert!(inflight.answered().is_none());
        assert!(inflight.admit(txn(1000)).is_some());
    }

    #[test]
    fn what_is_kept_for_all_of_its_time_is_given_back() {
        let mut inflight = Inflight::default();
        (0..IN_FLIGHT as u64 + 3).for_each(|id| drop(inflight.admit(txn(id))));
        let first = Time::default() + Duration::from_secs(IN_FLIGHT as u64);
        assert_eq!(inflight.next_timeout(), Some(first));
        assert!(inflight.take_overdue(first.saturating_sub(Duration::from_millis(1))).is_empty());
        let ids = |taken: Vec<Outgoing>| taken.iter().map(|kept| kept.id.0).collect::<Vec<_>>();
        let later = first + Duration::from_secs(1);
        assert_eq!(ids(inflight.take_overdue(later)), [IN_FLIGHT as u64, IN_FLIGHT as u64 + 1]);
        assert_eq!(ids(inflight.answered().into_iter().collect()), [IN_FLIGHT as u64 + 2]);
        assert_eq!(inflight.next_timeout(), None);
    }

    #[test]
    fn what_has_less_time_is_given_back_before_what_was_kept_earlier() {
        let mut inflight = Inflight::default();
        (0..IN_FLIGHT as u64).for_each(|id| drop(inflight.admit(txn(id))));
        assert!([1005, 1002, 1005, 1002, 1009].into_iter().all(|id| inflight.admit(txn(id)).is_none()));
        let ids = |taken: Vec<Outgoing>| taken.iter().map(|kept| kept.id.0).collect::<Vec<_>>();
        for (soonest, overdue) in [(1002, [1002, 1002]), (1005, [1005, 1005])] {
            let soonest = Time::default() + Duration::from_secs(soonest);
            assert_eq!(inflight.next_timeout(), Some(soonest));
            assert_eq!(ids(inflight.take_overdue(soonest)), overdue);
        }
        assert_eq!(ids(inflight.answered().into_iter().collect()), [1009]);
        assert_eq!(inflight.next_timeout(), None);
    }

    #[test]
    fn what_is_urgent_passes_a_flood_and_takes_nobodys_place() {
        let mut inflight = Inflight::default();
        (0..IN_FLIGHT as u64 - 1).for_each(|id| drop(inflight.admit(txn(id))));
        assert!(inflight.admit(Outgoing { urgent: true, ..txn(1000) }).is_some());
        assert!(inflight.admit(txn(1001)).is_some());
        assert!(inflight.admit(txn(1002)).is_none());
        assert!(inflight.admit(Outgoing { urgent: true, ..txn(1003) }).is_some());
    }
}
