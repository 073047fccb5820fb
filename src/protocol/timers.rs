//! When the protocol wants to be woken, and what for.

use std::collections::{BTreeSet, HashMap};

use super::{QueueId, Ticket};
use crate::clock::Time;
use crate::kv::LeaseId;

/// One thing to do at a time. Each is set at most once; setting it again moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// The session is over unless a renewal was answered before.
    SessionDeadline,
    /// Renew the lease, or try again to.
    Renew,
    /// Try again to set up a session.
    Connect,
    /// Try again to put the session key.
    Fence,
    /// Try again to revoke a lease that is not used any more.
    Revoke(LeaseId),
    /// Look whether the store is silent.
    Silence,
    /// The ticket has waited so long that somebody should know.
    SlowWait(Ticket),
    /// The ticket waits no longer.
    Patience(Ticket),
    /// The departing ticket gets its answer, complete or not.
    Depart(Ticket),
    /// Try the queue's step again.
    Retry(QueueId),
    /// Look where our contender stands, whatever the watch says.
    Fallback(QueueId),
    /// The contender is old enough to be worth a watch of its own.
    OwnWatch(QueueId),
}

/// The set timers, in order of time.
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

    /// True if it was set.
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
