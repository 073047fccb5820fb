//! One lease and what hangs on it, from its grant to its end.

use std::time::Duration;

use super::QueueId;
use super::mutants::mutant;
use super::outbox::{Outbox, Purpose};
use super::requests::{self, Guard};
use super::timers::Timer;
use crate::clock::Time;
use crate::name::LockName;
use crate::store::{Key, LeaseId, Request, WatchId};

/// One lease and all that hangs on it.
#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) lease: LeaseId,
    pub(super) ttl: Duration,
    /// When everything held is given up unless a renewal is answered before.
    pub(super) deadline: Time,
    pub(super) guard: Guard,
    /// Numbers the contenders of this session.
    pub(super) next_seq: u64,
    /// The put of the session key that is in flight.
    pub(super) fence: Option<Fence>,
    pub(super) watch: Option<SessionWatch>,
}

#[derive(Debug, Default)]
pub(super) struct Fence {
    pub(super) failures: u32,
    /// Queues that wait for a later epoch.
    pub(super) waiting: Vec<QueueId>,
}

#[derive(Debug)]
pub(super) struct SessionWatch {
    pub(super) id: WatchId,
    /// The watch stood once: standing again means that something may have been missed in between.
    pub(super) stood: bool,
}

impl Tenure {
    /// A key never used before, also where it replaces another (`handing_over`).
    pub(super) fn next_contender_key(&mut self, name: &LockName, handing_over: bool) -> Key {
        let reuse = match handing_over {
            true => mutant!(KeyReusedAtHandOver),
            false => mutant!(KeyReusedAfterRelease),
        };
        if !reuse {
            self.next_seq += 1;
        }
        name.contender_key(self.lease, self.next_seq)
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
    for timer in [Timer::SessionDeadline, Timer::Renew, Timer::Fence] {
        out.timers.clear(timer);
    }
    out.forget_requests(|purpose| {
        matches!(purpose, Purpose::Renew { .. } | Purpose::PutSession | Purpose::CheckSession)
    });
}
