//! One lease and all that depends on it, from its grant to its end.

use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Key, LeaseId, Request, WatchId};
use crate::mode::Mode;
use crate::name::LockName;
use crate::protocol::effects::{Effects, Purpose};
use crate::protocol::messages::QueueId;
use crate::protocol::mutants::mutant;
use crate::protocol::read::{self, Epoch};
use crate::protocol::timers::Timer;

/// One lease and all that depends on it.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Lease {
    pub(in crate::protocol) id: LeaseId,
    pub(super) ttl: Duration,
    /// The highest raft term in the answers to this session, from that to its grant on: a member that answers with a
    /// lower one has missed an election. Earlier sessions do not count, because the terms of a cluster that is restored
    /// from a backup begin low again.
    pub(super) term: u64,
    /// When all holds end unless a renewal is answered before.
    pub(super) deadline: Time,
    pub(in crate::protocol) epoch: Epoch,
    pub(super) keys: ContenderKeys,
    /// The put of the session key, while it is in flight or backing off.
    pub(super) fence: Option<Fence>,
    pub(super) watch: Option<SessionWatch>,
}

/// The sequence numbers that distinguish a session's keys of one name.
///
/// Keys are reused: etcd keeps deleted keys in its index until they are compacted, so if every acquisition had a new key,
/// each read of a name would walk over all the keys ever put there. But a key named in an unanswered request is never
/// reused: a late copy could still put or delete it. From then on, new numbers are used.
#[derive(Clone, Debug, Default)]
pub(super) struct ContenderKeys {
    /// The lowest number that may be used.
    first: u64,
    /// All numbers from this one on have never been used.
    unused: u64,
}

/// A put of the session key that begins a new epoch.
#[derive(Clone, Debug, Default)]
pub(super) struct Fence {
    pub(super) failures: u32,
    /// Queues that wait for the new epoch.
    pub(super) waiting: Vec<QueueId>,
}

/// The watch of the session key.
#[derive(Clone, Debug)]
pub(super) struct SessionWatch {
    pub(super) id: WatchId,
    /// Confirmed once; a second confirmation means that the stream was reopened and events may be missing.
    pub(super) confirmed: bool,
}

impl ContenderKeys {
    /// The lowest free number; `in_use` says whether the key of a number is still to be deleted.
    fn take(&mut self, in_use: impl Fn(u64) -> bool) -> u64 {
        let mut seq = self.first;
        while in_use(seq) && !mutant!(KeyReusedAtHandOver) {
            seq += 1;
        }
        self.unused = self.unused.max(seq + 1);
        seq
    }

    /// Stops the reuse of all numbers that have been used so far.
    pub(super) fn retire(&mut self) {
        if !mutant!(KeyReusedUnanswered) {
            self.first = self.unused;
        }
    }
}

impl Lease {
    /// A key for a new contender; `in_use` says whether a key is still to be deleted.
    pub(in crate::protocol) fn contender_key(
        &mut self,
        name: &LockName,
        mode: Mode,
        in_use: impl Fn(&Key) -> bool,
    ) -> Key {
        let id = self.id;
        let seq = self.keys.take(|seq| in_use(&name.contender_key(mode, id, seq)));
        name.contender_key(mode, id, seq)
    }

    /// Puts the session key, unless that is under way.
    pub(super) fn begin_epoch(&mut self, effects: &mut Effects) -> &mut Fence {
        if self.fence.is_none() {
            self.put_session_key(effects);
        }
        self.fence.get_or_insert_default()
    }

    /// Puts the session key, which begins a new epoch.
    pub(super) fn put_session_key(&self, effects: &mut Effects) {
        let put = read::put_session(&self.epoch.session_key, self.id);
        effects.send(Purpose::PutSession, Request::Txn(put));
    }

    /// Forgets all that is in flight for this lease.
    pub(super) fn clear(&self, effects: &mut Effects) {
        if let Some(watch) = &self.watch {
            effects.unwatch(watch.id);
        }
        forget_requests(effects);
    }
}

/// Forgets the requests and timers of a session that is over.
pub(super) fn forget_requests(effects: &mut Effects) {
    for timer in [Timer::SessionDeadline, Timer::Renew, Timer::Fence, Timer::Silence] {
        effects.timers.clear(timer);
    }
    effects.forget_requests(|purpose| {
        matches!(purpose, Purpose::Renew { .. } | Purpose::PutSession | Purpose::CheckSession)
    });
}
