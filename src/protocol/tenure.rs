//! One lease and what hangs on it, from its grant to its end.

use std::time::Duration;

use super::QueueId;
use super::mutants::mutant;
use super::outbox::{Outbox, Purpose};
use super::requests::{self, Guard};
use super::timers::Timer;
use crate::clock::Time;
use crate::kv::{Key, LeaseId, Request, WatchId};
use crate::name::LockName;

/// One lease and all that hangs on it.
#[derive(Clone, Debug)]
pub(super) struct Tenure {
    pub(super) lease: LeaseId,
    pub(super) ttl: Duration,
    /// The highest raft term in this session's answers, from the grant's own on: a member that answers with a lower one
    /// has missed an election. A cluster that was restored from a backup begins again with a low one, so what earlier
    /// sessions saw does not count.
    pub(super) term: u64,
    /// When everything held is given up unless a renewal is answered before.
    pub(super) deadline: Time,
    pub(super) guard: Guard,
    pub(super) keys: ContenderKeys,
    /// The put of the session key that is in flight.
    pub(super) fence: Option<Fence>,
    pub(super) watch: Option<SessionWatch>,
}

/// The sequence numbers that tell a session's keys of one name apart.
///
/// A key is used again. etcd keeps deleted keys in its index until they are compacted, so with a new key for every
/// acquisition each read of a name would pass all that were ever put there. But no key is used again that a request
/// without an answer names: a copy of it could still put or delete that key. From then on all numbers are new ones.
#[derive(Clone, Debug, Default)]
pub(super) struct ContenderKeys {
    /// The lowest one that may be used.
    first: u64,
    /// Above all that were used.
    unused: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Fence {
    pub(super) failures: u32,
    /// Queues that wait for a later epoch.
    pub(super) waiting: Vec<QueueId>,
}

#[derive(Clone, Debug)]
pub(super) struct SessionWatch {
    pub(super) id: WatchId,
    /// The watch stood once: standing again means that something may have been missed in between.
    pub(super) stood: bool,
}

impl ContenderKeys {
    /// The lowest free number; `in_use` tells of those whose keys are still to be deleted.
    fn take(&mut self, in_use: impl Fn(u64) -> bool) -> u64 {
        let mut seq = self.first;
        while in_use(seq) && !mutant!(KeyReusedAtHandOver) {
            seq += 1;
        }
        self.unused = self.unused.max(seq + 1);
        seq
    }

    /// There was no answer to a request that names keys.
    pub(super) fn retire(&mut self) {
        if !mutant!(KeyReusedUnanswered) {
            self.first = self.unused;
        }
    }
}

impl Tenure {
    /// A key for a new contender, none of those that are still to be deleted.
    pub(super) fn contender_key(&mut self, name: &LockName, in_use: impl Fn(&Key) -> bool) -> Key {
        let lease = self.lease;
        let seq = self.keys.take(|seq| in_use(&name.contender_key(lease, seq)));
        name.contender_key(lease, seq)
    }

    /// Makes a new epoch.
    pub(super) fn put_session_key(&self, out: &mut Outbox) {
        let put = requests::put_session(&self.guard.session_key, self.lease);
        out.send(Purpose::PutSession, Request::Txn(put));
    }

    /// Nothing that is under way for this lease matters any more.
    pub(super) fn clear(&self, out: &mut Outbox) {
        if let Some(watch) = &self.watch {
            out.unwatch(watch.id);
        }
        forget_requests(out);
    }
}

/// Nothing that was under way for a session matters to the next.
pub(super) fn forget_requests(out: &mut Outbox) {
    for timer in [Timer::SessionDeadline, Timer::Renew, Timer::Fence, Timer::Silence] {
        out.timers.clear(timer);
    }
    out.forget_requests(|purpose| {
        matches!(purpose, Purpose::Renew { .. } | Purpose::PutSession | Purpose::CheckSession)
    });
}
