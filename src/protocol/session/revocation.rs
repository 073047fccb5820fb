//! Leases of sessions that are over, on their way out.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Failure, FailureClass, LeaseId, Request, Response};
use crate::protocol::effects::{Outbox, Purpose};
use crate::protocol::timers::Timer;

/// First pause after a failed attempt.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// A lease that cannot be revoked has expired by itself this long after its TTL: etcd notices within half a second,
/// and deletes at most 500 leases in each.
const EXPIRY_SLACK: Duration = Duration::from_secs(2);

/// The leases being revoked, so that their keys are in nobody's way until they would expire.
#[derive(Clone, Debug, Default)]
pub(super) struct Revocations(HashMap<LeaseId, Revocation>);

#[derive(Clone, Debug)]
struct Revocation {
    until: Time,
    failures: u32,
}

impl Revocations {
    /// Begins to revoke. Every hold under the lease must be over.
    pub(super) fn begin(&mut self, now: Time, lease: LeaseId, ttl: Duration, out: &mut Outbox) {
        self.0.insert(lease, Revocation { until: now + ttl + EXPIRY_SLACK, failures: 0 });
        self.send(lease, out);
    }

    /// Will begin to revoke after a while: a holder that was just told of its loss has that long to stop.
    pub(super) fn begin_after(
        &mut self,
        now: Time,
        pause: Duration,
        (lease, ttl): (LeaseId, Duration),
        out: &mut Outbox,
    ) {
        self.0.insert(lease, Revocation { until: now + ttl + EXPIRY_SLACK, failures: 0 });
        out.timers.set(Timer::Revoke(lease), now + pause);
    }

    /// Nothing is left to revoke.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nobody has to be given time any more: what was to be revoked later is revoked now.
    pub(super) fn hurry(&mut self, out: &mut Outbox) {
        let mut waiting: Vec<LeaseId> = self.0.keys().copied().collect();
        waiting.retain(|&lease| out.timers.clear(Timer::Revoke(lease)));
        waiting.sort_unstable();
        for lease in waiting {
            self.send(lease, out);
        }
    }

    pub(super) fn send(&mut self, lease: LeaseId, out: &mut Outbox) {
        if self.0.contains_key(&lease) {
            out.send(Purpose::Revoke { lease }, Request::RevokeLease { lease });
        }
    }

    /// Whether the lease is done with: gone, or not to be revoked by us.
    pub(super) fn handle_reply(
        &mut self,
        now: Time,
        lease: LeaseId,
        reply: &Result<Response, Failure>,
        out: &mut Outbox,
    ) -> bool {
        let Some(revocation) = self.0.get_mut(&lease) else {
            return false;
        };
        if let Err(Failure { class: FailureClass::NotDone | FailureClass::Unknown, .. }) = reply
            && now < revocation.until
        {
            revocation.failures += 1;
            let pause = out.back_off(FIRST_BACK_OFF, revocation.failures);
            out.timers.set(Timer::Revoke(lease), now + pause);
            return false;
        }
        self.0.remove(&lease);
        true
    }
}
