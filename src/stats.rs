//! Counters and gauges of a manager.

use std::time::Duration;

use crate::mutex::Mutex;

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, FailureClass, Request, Response};

/// The counters and gauges of a manager, returned by [`LockManager::stats`](crate::LockManager::stats).
///
/// All numbers are read at one instant. Counters start at zero with the manager.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// let lock = manager.new_lock("jobs")?;
/// lock.lock()?.unlock()?;
/// let before = manager.stats();
/// let guard = lock.lock()?;
/// let after = manager.stats();
/// assert_eq!(after.acquired - before.acquired, 1);
/// assert_eq!(after.rpcs.txn - before.rpcs.txn, 1); // a free lock costs one transaction
/// # drop(guard);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Holds granted. Re-entry and clones of a guard are part of a hold and do not count.
    pub acquired: u64,
    /// Holds that ended because their last guard was dropped or unlocked.
    pub released: u64,
    /// Holds that were lost while a guard existed.
    pub lost: LossCounts,
    /// Calls that ended in [`LockError::Timeout`](crate::LockError::Timeout).
    pub timed_out: u64,
    /// Calls and [`PendingLock`](crate::PendingLock)s waiting right now (a gauge).
    pub waiting: u64,
    /// Holds right now (a gauge).
    pub held: u64,
    /// Sessions set up; more than one means that a session was lost.
    pub sessions: u64,
    /// Requests sent to etcd.
    pub rpcs: RpcCounts,
    /// Requests that failed: refused, or without an answer in time. Its `watch` is always 0, because a broken watch is
    /// reopened.
    pub rpc_failures: RpcCounts,
}

/// Lost holds by [`LossReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LossCounts {
    /// [`LossReason::SessionExpired`]
    pub session_expired: u64,
    /// [`LossReason::SessionRevoked`]
    pub session_revoked: u64,
    /// [`LossReason::ForceUnlocked`]
    pub force_unlocked: u64,
    /// [`LossReason::Closed`]
    pub closed: u64,
    /// [`LossReason::Crashed`]
    pub crashed: u64,
}

impl LossCounts {
    pub(crate) fn of(&mut self, reason: LossReason) -> &mut u64 {
        match reason {
            LossReason::SessionExpired => &mut self.session_expired,
            LossReason::SessionRevoked => &mut self.session_revoked,
            LossReason::ForceUnlocked => &mut self.force_unlocked,
            LossReason::Closed => &mut self.closed,
            LossReason::Crashed => &mut self.crashed,
        }
    }

    /// The total number of lost holds.
    pub fn total(&self) -> u64 {
        self.session_expired + self.session_revoked + self.force_unlocked + self.closed + self.crashed
    }
}

/// Requests to etcd, or failed requests, by kind. A retry counts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcCounts {
    /// Lease grants.
    pub lease_grant: u64,
    /// Lease renewals, each one message on the keep-alive stream.
    pub lease_renew: u64,
    /// Lease revocations, by [`close`](crate::LockManager::close) or by a forced unlock of a whole session.
    pub lease_revoke: u64,
    /// Queries of a lease's remaining time.
    pub lease_time_to_live: u64,
    /// Plain deletes.
    pub delete: u64,
    /// Transactions: acquires, releases, reads.
    pub txn: u64,
    /// Watches opened, each one message on the watch stream.
    pub watch: u64,
}

impl RpcCounts {
    fn of(&mut self, kind: RpcKind) -> &mut u64 {
        match kind {
            RpcKind::LeaseGrant => &mut self.lease_grant,
            RpcKind::LeaseRenew => &mut self.lease_renew,
            RpcKind::LeaseRevoke => &mut self.lease_revoke,
            RpcKind::LeaseTimeToLive => &mut self.lease_time_to_live,
            RpcKind::Delete => &mut self.delete,
            RpcKind::Txn => &mut self.txn,
        }
    }

    /// The total number of requests.
    pub fn total(&self) -> u64 {
        self.lease_grant
            + self.lease_renew
            + self.lease_revoke
            + self.lease_time_to_live
            + self.delete
            + self.txn
            + self.watch
    }
}

/// The statistics of a manager. Written by the I/O thread, by the watchdog when it ends holds, and by the thread that
/// closes the manager if the I/O thread hangs.
#[derive(Debug, Default)]
pub(crate) struct StatsCell(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    stats: Stats,
    /// When the last answer of etcd arrived.
    answered: Option<Time>,
}

impl StatsCell {
    pub(crate) fn record(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.0.lock().stats);
    }

    /// Counts a request, and returns the kind under which its failure is counted.
    pub(crate) fn count_request(&self, request: &Request) -> RpcKind {
        let kind = RpcKind::of(request);
        self.record(|stats| *stats.rpcs.of(kind) += 1);
        kind
    }

    /// Records the outcome of a request. A refusal is an answer; "no leader" and a broken connection are not.
    pub(crate) fn count_reply(&self, now: Time, kind: RpcKind, reply: &Result<Response, Failure>) {
        let silent =
            |failure: &Failure| matches!(failure.class, FailureClass::NotDone | FailureClass::Unknown);
        let mut recorded = self.0.lock();
        if reply.is_err() {
            *recorded.stats.rpc_failures.of(kind) += 1;
        }
        if !reply.as_ref().is_err_and(silent) {
            recorded.answered = recorded.answered.max(Some(now));
        }
    }

    /// How long ago the last answer arrived; `None` if there was none yet.
    pub(crate) fn last_answer(&self, now: Time) -> Option<Duration> {
        self.0.lock().answered.map(|answered| now.since(answered))
    }

    pub(crate) fn snapshot(&self) -> Stats {
        self.0.lock().stats
    }
}

/// The kind under which a request is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RpcKind {
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    LeaseTimeToLive,
    Delete,
    Txn,
}

impl RpcKind {
    fn of(request: &Request) -> Self {
        match request {
            Request::GrantLease { .. } => Self::LeaseGrant,
            Request::RenewLease { .. } => Self::LeaseRenew,
            Request::RevokeLease { .. } => Self::LeaseRevoke,
            Request::LeaseTimeToLive { .. } => Self::LeaseTimeToLive,
            Request::Delete { .. } => Self::Delete,
            Request::Txn(_) => Self::Txn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_and_every_request_has_its_own_counter() {
        let cell = StatsCell::default();
        for reason in [
            LossReason::SessionExpired,
            LossReason::SessionRevoked,
            LossReason::ForceUnlocked,
            LossReason::Closed,
            LossReason::Crashed,
        ] {
            cell.record(|stats| *stats.lost.of(reason) += 1);
        }
        cell.count_request(&Request::RenewLease { lease: 1 });
        cell.count_request(&Request::Txn(Default::default()));
        cell.count_request(&Request::Txn(Default::default()));
        let stats = cell.snapshot();
        let each =
            LossCounts { session_expired: 1, session_revoked: 1, force_unlocked: 1, closed: 1, crashed: 1 };
        assert_eq!(stats.lost, each);
        assert_eq!(stats.lost.total(), 5);
        assert_eq!((stats.rpcs.lease_renew, stats.rpcs.txn, stats.rpcs.total()), (1, 2, 3));
        assert_eq!(stats.rpc_failures, RpcCounts::default());
    }

    #[test]
    fn failures_count_by_kind_and_only_a_refusal_counts_as_an_answer() {
        let cell = StatsCell::default();
        let at = |secs| Time::default() + Duration::from_secs(secs);
        assert_eq!(cell.last_answer(at(1)), None);
        let renewal = cell.count_request(&Request::RenewLease { lease: 1 });
        let fail = |at, class| cell.count_reply(at, renewal, &Err(Failure::new(class, "as the test wants")));
        fail(at(2), FailureClass::NotDone);
        fail(at(3), FailureClass::Unknown);
        assert_eq!(cell.last_answer(at(4)), None);
        fail(at(5), FailureClass::PermissionDenied);
        assert_eq!(cell.last_answer(at(7)), Some(Duration::from_secs(2)));
        let failures = cell.snapshot().rpc_failures;
        assert_eq!((failures.lease_renew, failures.total()), (3, 3));
    }
}
