//! A model of the part of etcd that the library uses, without I/O, threads, a clock or randomness.
//!
//! It answers as one healthy member of a cluster would, request by request, and notifies watchers in the order of
//! history. It does not model what can go wrong between a client and a cluster (delays, losses, partitions, when the
//! leader notices an expired lease): its caller decides that. Time is an argument.
//!
//! A differential test compares it with a real etcd. Where releases of etcd differ, the model follows the newest, and
//! its comments say so.

mod keys;
mod leases;
mod refusal;
mod span;
#[cfg(test)]
mod tests;
mod txn;
mod watches;

use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Answer, Failure, Key, LeaseId, Request, Response, Revision, Span, WatchSpec};
#[cfg(test)]
use crate::kv::{Range, RangeResult};

use keys::{FIRST_REVISION, Keys};
use leases::Leases;
use refusal::{check_key, denied, lease_gone, no_space, refused};
use watches::Watches;

pub(crate) use watches::{Notice, Watcher};

/// etcd refuses a longer TTL (`MaxLeaseTTL`, in seconds: about 285 years).
const MAX_TTL: Duration = Duration::from_secs(9_000_000_000);

/// A model of one etcd.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    limits: Limits,
    term: u64,
    space: Space,
    denied: Option<Span>,
    keys: Keys,
    leases: Leases,
    watches: Watches,
}

/// Whether etcd's database is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Enough,
    /// The NOSPACE alarm is on: leases and puts are refused.
    Full,
    /// The alarm is about to be raised: leases and puts are executed, and then refused in the same words.
    FoundOutAfterwards,
}

/// Limits set by etcd's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `--max-txn-ops`.
    pub(crate) max_txn_ops: usize,
    /// A shorter TTL is raised to this: 1.5 election timeouts, in whole seconds.
    pub(crate) min_ttl: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_txn_ops: 128, min_ttl: Duration::from_secs(2) }
    }
}

impl Model {
    /// An empty etcd with its default limits.
    pub(crate) fn new() -> Self {
        Self::with(Limits::default(), FIRST_REVISION)
    }

    /// An empty etcd with these limits, whose history starts at `revision`.
    pub(crate) fn with(limits: Limits, revision: Revision) -> Self {
        Self {
            limits,
            term: 1,
            space: Space::Enough,
            denied: None,
            keys: Keys::starting_at(revision),
            leases: Leases::new(),
            watches: Watches::default(),
        }
    }

    /// Executes one request.
    pub(crate) fn execute(&mut self, now: Time, request: &Request) -> Result<Response, Failure> {
        let answer = match request {
            Request::GrantLease { ttl } => self.grant(now, *ttl)?,
            Request::RenewLease { lease } => self.renew(now, *lease)?,
            Request::RevokeLease { lease } => self.revoke(*lease)?,
            Request::LeaseTimeToLive { lease } => {
                Answer::LeaseTimeToLive { remaining: self.leases.remaining(now, *lease) }
            }
            Request::Delete { key } => self.delete_one(key)?,
            Request::Txn(txn) => Answer::Txn(self.txn(txn)?),
        };
        Ok(Response { revision: self.revision(), term: self.term, answer })
    }

    /// etcd counts TTLs in whole seconds, and raises those below its minimum.
    fn grant(&mut self, now: Time, ttl: Duration) -> Result<Answer, Failure> {
        if self.space == Space::Full {
            return Err(no_space());
        }
        let whole = Duration::from_secs(ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)));
        if whole > MAX_TTL {
            return Err(refused("etcdserver: too large lease TTL"));
        }
        let ttl = whole.max(self.limits.min_ttl);
        let lease = self.leases.grant(now, ttl);
        if self.space == Space::FoundOutAfterwards {
            Err(no_space())
        } else {
            Ok(Answer::LeaseGranted { lease, ttl })
        }
    }

    /// In etcd the renewal of an expired lease waits until the lease is revoked, and is then refused. Here the lease
    /// ends at once, which clients cannot distinguish.
    fn renew(&mut self, now: Time, lease: LeaseId) -> Result<Answer, Failure> {
        self.check_keys_of(lease)?;
        if self.leases.is_due(now, lease) {
            self.expire_lease(lease);
        }
        self.leases.renew(now, lease).map(|ttl| Answer::LeaseRenewed { ttl }).ok_or_else(lease_gone)
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<Answer, Failure> {
        self.check_keys_of(lease)?;
        if self.expire_lease(lease) { Ok(Answer::LeaseRevoked) } else { Err(lease_gone()) }
    }

    fn delete_one(&mut self, key: &Key) -> Result<Answer, Failure> {
        check_key(key)?;
        if self.denied.as_ref().is_some_and(|span| span.contains(key)) {
            return Err(denied());
        }
        let count = self.delete(key);
        self.commit();
        Ok(Answer::Deleted { count })
    }

    /// Renewing or revoking a lease requires permission for all its keys. (Renewing only since 3.4.42, 3.5.28 and
    /// 3.6.9.)
    fn check_keys_of(&self, lease: LeaseId) -> Result<(), Failure> {
        match &self.denied {
            Some(span) if self.leases.keys(lease).any(|key| span.contains(key)) => Err(denied()),
            _ => Ok(()),
        }
    }

    /// Commits all writes since the last commit as one revision, if there were any.
    fn commit(&mut self) {
        if self.keys.commit() {
            for change in self.keys.changes_from(self.keys.revision()) {
                self.watches.tell(change);
            }
        }
    }
}

/// Events that the model's caller decides.
impl Model {
    /// When the first lease expires, or has expired. It does not end by itself.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.leases.next_due()
    }

    /// Ends every lease that is due, one after the other, and returns them.
    pub(crate) fn expire_due(&mut self, now: Time) -> Vec<LeaseId> {
        let due = self.leases.due(now);
        for &lease in &due {
            self.expire_lease(lease);
        }
        due
    }

    /// Ends the lease, whether it is due or not: its keys are deleted in the order of their names, in one revision. A
    /// lease without keys makes no revision. Returns `false` if there is no such lease.
    pub(crate) fn expire_lease(&mut self, lease: LeaseId) -> bool {
        let Some(keys) = self.leases.remove(lease) else {
            return false;
        };
        for key in &keys {
            self.delete(key);
        }
        self.commit();
        true
    }

    /// Compacts the history before this revision.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), Failure> {
        self.keys.compact(revision)
    }
}

/// Watches, and queries about the whole model.
impl Model {
    /// Opens a watch, and returns the revision at which it was opened, which is the model's current one.
    ///
    /// A watch from a past revision first reports the deletions since then; if that revision was compacted, it reports
    /// only [`Notice::Compacted`]. etcd serves the past on its next 100 ms tick; here the caller decides when a notice
    /// arrives.
    pub(crate) fn watch(&mut self, spec: &WatchSpec) -> Result<(Watcher, Revision), Failure> {
        if self.denied.as_ref().is_some_and(|span| spec.span.overlaps(span)) {
            return Err(denied());
        }
        let watcher = self.watches.open(spec, &self.keys)?;
        Ok((watcher, self.revision()))
    }

    /// Closes a watch; it reports no more notices.
    pub(crate) fn unwatch(&mut self, watcher: Watcher) {
        self.watches.close(watcher);
    }

    /// The next notice for any watcher. Each watcher gets deletions in the order of history.
    pub(crate) fn poll_notice(&mut self) -> Option<(Watcher, Notice)> {
        self.watches.next_notice()
    }

    /// The last committed revision.
    pub(crate) fn revision(&self) -> Revision {
        self.keys.revision()
    }

    /// The revision before which the history was compacted; 0: never compacted.
    pub(crate) fn compacted(&self) -> Revision {
        self.keys.compacted()
    }

    /// The leases that have not ended.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.ids()
    }
}

/// For tests only.
#[cfg(test)]
impl Model {
    /// Acts as a new leader: every lease gets its full TTL from now on, those that were due included.
    pub(crate) fn extend_all_leases(&mut self, now: Time) {
        self.leases.renew_all(now);
    }

    /// Sets the raft term of future answers.
    pub(crate) fn set_term(&mut self, term: u64) {
        self.term = term;
    }

    /// Sets the NOSPACE alarm. While it is on, leases and puts are refused; deletions, reads and renewals work.
    ///
    /// A transaction with a put in any branch is refused. (Nested puts count since 3.5.33, 3.6.14 and 3.7.1; before,
    /// and in 3.4, a transaction whose puts are all nested is executed.)
    pub(crate) fn set_no_space(&mut self, no_space: bool) {
        self.space = if no_space { Space::Full } else { Space::Enough };
    }

    pub(crate) fn set_space(&mut self, space: Space) {
        self.space = space;
    }

    pub(crate) fn space(&self) -> Space {
        self.space
    }

    /// Ends the first lease that is due, and returns it.
    pub(crate) fn expire_first(&mut self, now: Time) -> Option<LeaseId> {
        let lease = self.leases.due(now).into_iter().next()?;
        self.expire_lease(lease).then_some(lease)
    }

    /// Removes the permission to read, write or watch any key of the span; `None` restores it.
    ///
    /// A transaction is refused if any part of it, in any branch, touches the span. (Nested parts count since 3.4.42,
    /// 3.5.28 and 3.6.9.) Open watches continue.
    pub(crate) fn deny(&mut self, span: Option<Span>) {
        self.denied = span;
    }

    /// Reads keys without a request.
    pub(crate) fn read(&self, range: &Range) -> Result<RangeResult, Failure> {
        self.keys.check_readable(range.at_revision)?;
        Ok(self.keys.range(range))
    }
}
