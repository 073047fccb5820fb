//! Leases of sessions that are over, until they are revoked.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Failure, FailureClass, LeaseId, Request, Response};
use crate::protocol::effects::{Effects, Purpose};
use crate::protocol::timers::Timer;

/// The first back-off after a failed attempt.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// A lease that cannot be revoked has expired by itself this long after its TTL: etcd checks every half second, and
/// expires at most 500 leases each time.
const EXPIRY_SLACK: Duration = Duration::from_secs(2);

/// The leases to be revoked, so that their keys do not block others until the leases expire.
#[derive(Clone, Debug, Default)]
pub(super) struct Revocations(HashMap<LeaseId, Revocation>);

#[derive(Clone, Debug)]
struct Revocation {
    until: Time,
    failures: u32,
}

impl Revocations {
    /// Revokes the lease. All holds under it must have ended.
    pub(super) fn begin(&mut self, now: Time, lease: LeaseId, ttl: Duration, effects: &mut Effects) {
        self.0.insert(lease, Revocation { until: now + ttl + EXPIRY_SLACK, failures: 0 });
        self.send(lease, effects);
    }

    /// Revokes the lease after a pause, in which holders that have just lost their hold can stop.
    pub(super) fn begin_after(
        &mut self,
        now: Time,
        pause: Duration,
        (lease, ttl): (LeaseId, Duration),
        effects: &mut Effects,
    ) {
        self.0.insert(lease, Revocation { until: now + ttl + EXPIRY_SLACK, failures: 0 });
        effects.timers.set(Timer::Revoke(lease), now + pause);
    }

    /// There is nothing to revoke.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Revokes now what was to be revoked after a pause or is to be retried.
    pub(super) fn begin_all_now(&mut self, effects: &mut Effects) {
        let mut waiting: Vec<LeaseId> = self.0.keys().copied().collect();
        waiting.retain(|&lease| effects.timers.clear(Timer::Revoke(lease)));
        waiting.sort_unstable();
        for lease in waiting {
            self.send(lease, effects);
        }
    }

    pub(super) fn send(&mut self, lease: LeaseId, effects: &mut Effects) {
        if self.0.contains_key(&lease) {
            effects.send(Purpose::Revoke { lease }, Request::RevokeLease { lease });
        }
    }

    /// Returns whether this was the last attempt: the lease is gone, or cannot be revoked by us.
    pub(super) fn handle_reply(
        &mut self,
        now: Time,
        lease: LeaseId,
        reply: &Result<Response, Failure>,
        effects: &mut Effects,
    ) -> bool {
        let Some(revocation) = self.0.get_mut(&lease) else {
            return false;
        };
        if let Err(Failure { class: FailureClass::NotDone | FailureClass::Unknown, .. }) = reply
            && now < revocation.until
        {
            revocation.failures += 1;
            let pause = effects.back_off(FIRST_BACK_OFF, revocation.failures);
            effects.timers.set(Timer::Revoke(lease), now + pause);
            return false;
        }
        self.0.remove(&lease);
        true
    }
}
