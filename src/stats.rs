//! Counters and gauges of a manager.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use std::time::Duration;

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, FailureClass, Request, Response};

/// What a manager has done so far, and what it holds right now; from [`LockManager::stats`](crate::LockManager::stats).
///
/// Each number is exact, but the numbers are read one after another: while other threads work they may not add up.
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
    /// Holds granted. Re-entry and clones of a guard are part of a hold, not holds of their own.
    pub acquired: u64,
    /// Holds that ended because their last guard went.
    pub released: u64,
    /// Holds that ended although a guard was still there.
    pub lost: LossCounts,
    /// Calls that ended in [`LockError::Timeout`](crate::LockError::Timeout).
    pub timed_out: u64,
    /// Calls and [`PendingLock`](crate::PendingLock)s that wait right now.
    pub waiting: u64,
    /// Holds right now.
    pub held: u64,
    /// Sessions that stood; more than one means that one was lost.
    pub sessions: u64,
    /// Requests sent to etcd.
    pub rpcs: RpcCounts,
    /// Those of them that failed: without an answer in time, or refused. Its `watch` is always 0, since a watch that breaks
    /// is opened anew.
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
    /// All lost holds.
    pub fn total(&self) -> u64 {
        self.session_expired + self.session_revoked + self.force_unlocked + self.closed + self.crashed
    }
}

/// Requests to etcd by kind, or those that failed. A repeated attempt counts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcCounts {
    /// New leases asked for.
    pub lease_grant: u64,
    /// Renewals, each a message on the one keep-alive stream.
    pub lease_renew: u64,
    /// Leases revoked, by [`close`](crate::LockManager::close) or by a forced unlock of a whole session.
    pub lease_revoke: u64,
    /// Questions how long a lease still has.
    pub lease_time_to_live: u64,
    /// Plain deletes.
    pub delete: u64,
    /// Transactions: acquires, releases, reads.
    pub txn: u64,
    /// Watches opened, each a message on the one watch stream.
    pub watch: u64,
}

impl RpcCounts {
    /// All requests.
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

/// What [`Stats`] is read from; counted on the I/O thread, where things are done.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) acquired: AtomicU64,
    pub(crate) released: AtomicU64,
    pub(crate) timed_out: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) held: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) watches: AtomicU64,
    lost: Lost,
    rpcs: Rpcs,
    rpc_failures: Rpcs,
    /// When etcd answered last, in nanoseconds of the clock; 0: never.
    answered: AtomicU64,
}

#[derive(Debug, Default)]
struct Lost {
    session_expired: AtomicU64,
    session_revoked: AtomicU64,
    force_unlocked: AtomicU64,
    closed: AtomicU64,
    crashed: AtomicU64,
}

#[derive(Debug, Default)]
struct Rpcs {
    lease_grant: AtomicU64,
    lease_renew: AtomicU64,
    lease_revoke: AtomicU64,
    lease_time_to_live: AtomicU64,
    delete: AtomicU64,
    txn: AtomicU64,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Counters {
    pub(crate) fn count_lost(&self, reason: LossReason) {
        count(match reason {
            LossReason::SessionExpired => &self.lost.session_expired,
            LossReason::SessionRevoked => &self.lost.session_revoked,
            LossReason::ForceUnlocked => &self.lost.force_unlocked,
            LossReason::Closed => &self.lost.closed,
            LossReason::Crashed => &self.lost.crashed,
        });
    }

    /// Counts a request, and returns how its failure is counted.
    pub(crate) fn count_request(&self, request: &Request) -> RpcKind {
        let kind = RpcKind::of(request);
        count(self.rpcs.of(kind));
        kind
    }

    /// A request was answered, or has failed. A refusal is an answer; no leader and no connection are none.
    pub(crate) fn count_reply(&self, now: Time, kind: RpcKind, reply: &Result<Response, Failure>) {
        if reply.is_err() {
            count(self.rpc_failures.of(kind));
        }
        let silent =
            |failure: &Failure| matches!(failure.class, FailureClass::NotDone | FailureClass::Unknown);
        if !reply.as_ref().is_err_and(silent) {
            self.answered.fetch_max(now.as_nanos(), Relaxed);
        }
    }

    /// How long ago etcd answered last; `None`: never yet.
    pub(crate) fn last_answer(&self, now: Time) -> Option<Duration> {
        let answered = self.answered.load(Relaxed);
        (answered > 0).then(|| now.since(Time::from_nanos(answered)))
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            acquired: get(&self.acquired),
            released: get(&self.released),
            lost: LossCounts {
                session_expired: get(&self.lost.session_expired),
                session_revoked: get(&self.lost.session_revoked),
                force_unlocked: get(&self.lost.force_unlocked),
                closed: get(&self.lost.closed),
                crashed: get(&self.lost.crashed),
            },
            timed_out: get(&self.timed_out),
            waiting: get(&self.waiting),
            held: get(&self.held),
            sessions: get(&self.sessions),
            rpcs: self.rpcs.snapshot(get(&self.watches)),
            rpc_failures: self.rpc_failures.snapshot(0),
        }
    }
}

/// What a request is counted as.
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

impl Rpcs {
    fn of(&self, kind: RpcKind) -> &AtomicU64 {
        match kind {
            RpcKind::LeaseGrant => &self.lease_grant,
            RpcKind::LeaseRenew => &self.lease_renew,
            RpcKind::LeaseRevoke => &self.lease_revoke,
            RpcKind::LeaseTimeToLive => &self.lease_time_to_live,
            RpcKind::Delete => &self.delete,
            RpcKind::Txn => &self.txn,
        }
    }

    fn snapshot(&self, watch: u64) -> RpcCounts {
        let get = |kind| self.of(kind).load(Relaxed);
        RpcCounts {
            lease_grant: get(RpcKind::LeaseGrant),
            lease_renew: get(RpcKind::LeaseRenew),
            lease_revoke: get(RpcKind::LeaseRevoke),
            lease_time_to_live: get(RpcKind::LeaseTimeToLive),
            delete: get(RpcKind::Delete),
            txn: get(RpcKind::Txn),
            watch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_and_every_request_has_its_own_counter() {
        let counters = Counters::default();
        for reason in [
            LossReason::SessionExpired,
            LossReason::SessionRevoked,
            LossReason::ForceUnlocked,
            LossReason::Closed,
            LossReason::Crashed,
        ] {
            counters.count_lost(reason);
        }
        counters.count_request(&Request::RenewLease { lease: 1 });
        counters.count_request(&Request::Txn(Default::default()));
        counters.count_request(&Request::Txn(Default::default()));
        let stats = counters.snapshot();
        let each =
            LossCounts { session_expired: 1, session_revoked: 1, force_unlocked: 1, closed: 1, crashed: 1 };
        assert_eq!(stats.lost, each);
        assert_eq!(stats.lost.total(), 5);
        assert_eq!((stats.rpcs.lease_renew, stats.rpcs.txn, stats.rpcs.total()), (1, 2, 3));
        assert_eq!(stats.rpc_failures, RpcCounts::default());
    }

    #[test]
    fn a_failure_counts_by_kind_and_only_what_etcd_said_is_an_answer() {
        let counters = Counters::default();
        let at = |secs| Time::default() + Duration::from_secs(secs);
        assert_eq!(counters.last_answer(at(1)), None);
        let renewal = counters.count_request(&Request::RenewLease { lease: 1 });
        let fail =
            |at, class| counters.count_reply(at, renewal, &Err(Failure::new(class, "as the test wants")));
        fail(at(2), FailureClass::NotDone);
        fail(at(3), FailureClass::Unknown);
        assert_eq!(counters.last_answer(at(4)), None);
        fail(at(5), FailureClass::PermissionDenied);
        assert_eq!(counters.last_answer(at(7)), Some(Duration::from_secs(2)));
        let failures = counters.snapshot().rpc_failures;
        assert_eq!((failures.lease_renew, failures.total()), (3, 3));
    }
}
