//! A faithful model of the part of etcd that the library uses, without I/O, threads, a clock or chance.
//!
//! It answers as one healthy member of a cluster would, request by request, and tells watchers in the order of
//! history. What can go wrong between a client and a cluster (delays, losses, partitions, when exactly the leader
//! notices that a lease is due) is not in it: that is for the world around the model to decide. Time is an argument.
//!
//! A test holds it against a real etcd; where releases differ, the model does what the newest does, and says so.

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

/// etcd refuses a longer TTL (`MaxLeaseTTL`, in seconds: some 285 years).
const MAX_TTL: Duration = Duration::from_secs(9_000_000_000);

/// One etcd.
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

/// Whether etcd's space is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Enough,
    /// The alarm is on: leases and puts are refused.
    Full,
    /// The alarm is about to be raised: leases and puts are refused in the same words, after they were carried out.
    FoundOutAfterwards,
}

/// What is set where etcd is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `--max-txn-ops`.
    pub(crate) max_txn_ops: usize,
    /// A shorter TTL is raised to this: one and a half election timeouts, in whole seconds.
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

    /// An empty etcd that has these limits, and a history that nobody needs any more.
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

    /// Carries out one request.
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

    /// etcd counts a TTL in whole seconds, and raises one that no leader could keep.
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

    /// The renewal of a lease that is due waits in etcd until the lease is revoked, and is then refused. Here the
    /// lease ends at once, which to everybody looks the same.
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

    /// Who renews or revokes a lease needs permission for all its keys. (For renewing: since 3.4.42, 3.5.28, 3.6.9.)
    fn check_keys_of(&self, lease: LeaseId) -> Result<(), Failure> {
        match &self.denied {
            Some(span) if self.leases.keys(lease).any(|key| span.contains(key)) => Err(denied()),
            _ => Ok(()),
        }
    }

    /// Makes one revision of all that was written since the last, if anything was.
    fn commit(&mut self) {
        if self.keys.commit() {
            for change in self.keys.changes_from(self.keys.revision()) {
                self.watches.tell(change);
            }
        }
    }
}

/// What the world around decides.
impl Model {
    /// When the first lease will be due, or was. It does not end by itself.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.leases.next_due()
    }

    /// Ends every lease that is due, one after the other, and says which.
    pub(crate) fn expire_due(&mut self, now: Time) -> Vec<LeaseId> {
        let due = self.leases.due(now);
        for &lease in &due {
            self.expire_lease(lease);
        }
        due
    }

    /// Ends the lease now, due or not: its keys go in the order of their names, all in one revision. A lease without
    /// keys makes no revision. `false`: there is no such lease.
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

    /// Forgets the history before this revision.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), Failure> {
        self.keys.compact(revision)
    }
}

/// Watches, and looking at the whole from outside.
impl Model {
    /// Opens a watch and answers with the revision at which it was opened: the model's own.
    ///
    /// From a past revision on, what happened since comes first; if that is compacted away, [`Notice::Compacted`] is
    /// all that comes. etcd looks at the past only on its next 100 ms tick; when a notice arrives is the world's to
    /// decide.
    pub(crate) fn watch(&mut self, spec: &WatchSpec) -> Result<(Watcher, Revision), Failure> {
        if self.denied.as_ref().is_some_and(|span| spec.span.overlaps(span)) {
            return Err(denied());
        }
        let watcher = self.watches.open(spec, &self.keys)?;
        Ok((watcher, self.revision()))
    }

    /// Closes a watch; no notice of it will follow.
    pub(crate) fn unwatch(&mut self, watcher: Watcher) {
        self.watches.close(watcher);
    }

    /// The next thing that some watcher is to be told. For each watcher, deletions come in the order of history.
    pub(crate) fn poll_notice(&mut self) -> Option<(Watcher, Notice)> {
        self.watches.next_notice()
    }

    /// The last committed revision.
    pub(crate) fn revision(&self) -> Revision {
        self.keys.revision()
    }

    /// Before this revision the history is forgotten; 0: it is all there.
    pub(crate) fn compacted(&self) -> Revision {
        self.keys.compacted()
    }

    /// The leases that have not ended.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.ids()
    }
}

/// What only tests make happen or look at.
#[cfg(test)]
impl Model {
    /// What a new leader does: every lease has its full TTL from now, also one that was due.
    pub(crate) fn extend_all_leases(&mut self, now: Time) {
        self.leases.renew_all(now);
    }

    /// The raft term that answers carry from now on.
    pub(crate) fn set_term(&mut self, term: u64) {
        self.term = term;
    }

    /// The NOSPACE alarm. While it is on, leases and puts are refused; deletions, reads and renewals go on.
    ///
    /// A transaction with a put is refused whichever branch would run. (Nested puts count since 3.5.33, 3.6.14,
    /// 3.7.1; before, and in 3.4, a transaction whose puts are all nested gets through.)
    pub(crate) fn set_no_space(&mut self, no_space: bool) {
        self.space = if no_space { Space::Full } else { Space::Enough };
    }

    pub(crate) fn set_space(&mut self, space: Space) {
        self.space = space;
    }

    pub(crate) fn space(&self) -> Space {
        self.space
    }

    /// Ends the first lease that is due, and says which.
    pub(crate) fn expire_first(&mut self, now: Time) -> Option<LeaseId> {
        let lease = self.leases.due(now).into_iter().next()?;
        self.expire_lease(lease).then_some(lease)
    }

    /// Takes the permission to read, write or watch any key of the span; `None` gives it back.
    ///
    /// A transaction is refused if any part of it, in whichever branch, touches the span. (Nested parts count since
    /// 3.4.42, 3.5.28, 3.6.9.) Watches that are open go on.
    pub(crate) fn deny(&mut self, span: Option<Span>) {
        self.denied = span;
    }

    /// Reads keys without a request.
    pub(crate) fn read(&self, range: &Range) -> Result<RangeResult, Failure> {
        self.keys.check_readable(range.at_revision)?;
        Ok(self.keys.range(range))
    }
}
