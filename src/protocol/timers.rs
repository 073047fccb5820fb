//! The timers of the protocol: what is to be done at which time.

use std::collections::{BTreeSet, HashMap};

use super::messages::{ContenderId, FencedId, QueueId, Ticket};
use crate::clock::Time;
use crate::kv::LeaseId;

/// What is to be done. Each timer is set at most once; setting it again moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// End the session, unless a renewal is answered before.
    SessionDeadline,
    /// Renew the lease, or retry that.
    Renew,
    /// Retry to set up a session.
    Connect,
    /// Retry to put the session key.
    Fence,
    /// Revoke the lease of a session that is over, or retry that.
    Revoke(LeaseId),
    /// Check whether the store is silent.
    Silence,
    /// Report that the ticket has waited for its `warn_after`.
    SlowWait(Ticket),
    /// The ticket has reached its deadline or used up its retries.
    WaitLimit(Ticket),
    /// Answer the ticket that gives up, with what is known by now.
    EndGrace(Ticket),
    /// Retry the queue's write.
    Retry(QueueId),
    /// Read the position of the contender, even if its watch has reported nothing.
    Recheck(ContenderId),
    /// End the hold whose key was deleted; no other reason has been reported in time.
    AwaitLossReason(ContenderId),
    /// Watch the contender's own key, which is old enough to be worth it.
    OwnWatch(ContenderId),
    /// Retry the request of a holder, or give it up.
    Fenced(FencedId),
}

/// The timers that are set, in order of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    at: HashMap<Timer, Time>,
    order: BTreeSet<(Time, Timer)>,
}

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        self.clear(timer);
        self.at.insert(timer, at);
        self.order.insert((at, timer));
    }

    /// Returns whether it was set.
    pub(super) fn clear(&mut self, timer: Timer) -> bool {
        let at = self.at.remove(&timer);
        at.is_some_and(|at| self.order.remove(&(at, timer)))
    }

    /// Takes the next timer that is due at `now`.
    pub(super) fn take_due(&mut self, now: Time) -> Option<Timer> {
        let &(at, timer) = self.order.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }

    /// The timers in their order, without their times.
    #[cfg(test)]
    pub(super) fn sketch(&self) -> String {
        format!("{:?}", self.order.iter().map(|(_, timer)| timer).collect::<Vec<_>>())
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.order.first().map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_fires_once_at_the_last_time_set() {
        let mut timers = Timers::default();
        timers.set(Timer::Renew, Time::from_nanos(5));
        timers.set(Timer::Fence, Time::from_nanos(7));
        timers.set(Timer::Renew, Time::from_nanos(9));
        assert_eq!(timers.next(), Some(Time::from_nanos(7)));
        assert_eq!(timers.take_due(Time::from_nanos(6)), None);
        assert_eq!(timers.take_due(Time::from_nanos(10)), Some(Timer::Fence));
        assert_eq!(timers.take_due(Time::from_nanos(10)), Some(Timer::Renew));
        assert_eq!(timers.take_due(Time::from_nanos(10)), None);
        timers.set(Timer::Renew, Time::from_nanos(9));
        timers.clear(Timer::Renew);
        assert_eq!(timers.next(), None);
    }
}
