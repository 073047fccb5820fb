//! One lease and what hangs on it, from its grant to its end.

use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Key, LeaseId, Request, WatchId};
use crate::name::LockName;
use crate::protocol::QueueId;
use crate::protocol::effects::{Outbox, Purpose};
use crate::protocol::mutants::mutant;
use crate::protocol::read::{self, Guard};
use crate::protocol::timers::Timer;

/// One lease and all that hangs on it.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Tenure {
    pub(in crate::protocol) lease: LeaseId,
    pub(in crate::protocol) ttl: Duration,
    /// The highest raft term in this session's answers, from the grant's own on: a member that answers with a lower one
    /// has missed an election. A cluster that was restored from a backup begins again with a low one, so what earlier
    /// sessions saw does not count.
    pub(in crate::protocol) term: u64,
    /// When everything held is given up unless a renewal is answered before.
    pub(in crate::protocol) deadline: Time,
    pub(in crate::protocol) guard: Guard,
    pub(in crate::protocol) keys: ContenderKeys,
    /// The put of the session key that is in flight.
    pub(in crate::protocol) fence: Option<Fence>,
    pub(in crate::protocol) watch: Option<SessionWatch>,
}

/// The sequence numbers that tell a session's keys of one name apart.
///
/// A key is used again. etcd keeps deleted keys in its index until they are compacted, so with a new key for every
/// acquisition each read of a name would pass all that were ever put there. But no key is used again that a request
/// without an answer names: a copy of it could still put or delete that key. From then on all numbers are new ones.
#[derive(Clone, Debug, Default)]
pub(in crate::protocol) struct ContenderKeys {
    /// The lowest one that may be used.
    first: u64,
    /// Above all that were used.
    unused: u64,
}

#[derive(Clone, Debug, Default)]
pub(in crate::protocol) struct Fence {
    pub(in crate::protocol) failures: u32,
    /// Queues that wait for a later epoch.
    pub(in crate::protocol) waiting: Vec<QueueId>,
}

#[derive(Clone, Debug)]
pub(in crate::protocol) struct SessionWatch {
    pub(in crate::protocol) id: WatchId,
    /// The watch stood once: standing again means that something may have been missed in between.
    pub(in crate::protocol) stood: bool,
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
    pub(in crate::protocol) fn retire(&mut self) {
        if !mutant!(KeyReusedUnanswered) {
            self.first = self.unused;
        }
    }
}

impl Tenure {
    /// A key for a new contender, none of those that are still to be deleted.
    pub(in crate::protocol) fn contender_key(
        &mut self,
        name: &LockName,
        in_use: impl Fn(&Key) -> bool,
    ) -> Key {
        let lease = self.lease;
        let seq = self.keys.take(|seq| in_use(&name.contender_key(lease, seq)));
        name.contender_key(lease, seq)
    }

    /// Makes a new epoch.
    pub(in crate::protocol) fn put_session_key(&self, out: &mut Outbox) {
        let put = read::put_session(&self.guard.session_key, self.lease);
        out.send(Purpose::PutSession, Request::Txn(put));
    }

    /// Nothing that is under way for this lease matters any more.
    pub(in crate::protocol) fn clear(&self, out: &mut Outbox) {
        if let Some(watch) = &self.watch {
            out.unwatch(watch.id);
        }
        forget_requests(out);
    }
}

/// Nothing that was under way for a session matters to the next.
pub(in crate::protocol) fn forget_requests(out: &mut Outbox) {
    for timer in [Timer::SessionDeadline, Timer::Renew, Timer::Fence, Timer::Silence] {
        out.timers.clear(timer);
    }
    out.forget_requests(|purpose| {
        matches!(purpose, Purpose::Renew { .. } | Purpose::PutSession | Purpose::CheckSession)
    });
}
