//! What a queue asks of the store next: keys that must go, a contender that wants in.

use super::waiter::Waiter;
use super::{Cx, Progress, Queue};
use crate::clock::Time;
use crate::kv::{Failure, Key, Revision};
use crate::protocol::contender::{Contender, Stage};
use crate::protocol::effects::Outbox;
use crate::protocol::mutants::mutant;
use crate::protocol::read::Guard;
use crate::protocol::write::{Deletion, Entry, Step};
use crate::protocol::{Acquire, Refusal, Ticket};
use crate::value::ContenderValue;

/// The step of a queue that is in flight.
#[derive(Clone, Debug)]
pub(super) struct SentStep {
    pub(super) epoch: Revision,
    pub(super) sent: Time,
    pub(super) deletes: Vec<SentDelete>,
    pub(super) entering: bool,
    /// The tries that waited when it was sent: its answer speaks for them, not for those that come later.
    pub(super) tries: Vec<Ticket>,
}

#[derive(Clone, Debug)]
pub(super) struct SentDelete {
    pub(super) key: Key,
    /// No request can bring the key back after this delete.
    pub(super) for_good: bool,
}

impl SentStep {
    pub(super) fn deletes(&self, key: &Key) -> bool {
        self.deletes.iter().any(|delete| delete.key == *key)
    }
}

impl Queue {
    /// Gives up a contender that nobody here has a use for. One that holds for somebody stays; one whose request is in
    /// flight stays until the answer is here.
    pub(super) fn drop_unwanted_contender(&mut self, cx: &mut Cx<'_>) {
        let in_flight = matches!(&self.step, Progress::InFlight(sent) if sent.entering);
        let Some(contender) = &self.contender else {
            return;
        };
        if self.is_wanted(contender) {
            return;
        }
        match contender.stage {
            Stage::Held(_) => {}
            Stage::Entering if in_flight => {}
            Stage::Entering if contender.dirty.is_none() => self.forget_contender(cx),
            Stage::Entering | Stage::Queued(_) => self.discard_contender(Vec::new(), cx),
        }
    }

    /// Whether somebody waits who may use this contender: a try must not join the queue, so one that queues is of no
    /// use to it.
    pub(super) fn is_wanted(&self, contender: &Contender) -> bool {
        let may_use = |waiter: &Waiter| waiter.patience.try_only == contender.try_only;
        contender.hold().is_some() || self.waiters.iter().any(may_use)
    }

    /// A key that a delayed request could still bring back is deleted for good only under a later epoch than that
    /// request's.
    pub(super) fn fence_debris(&mut self, cx: &mut Cx<'_>) {
        let epoch = cx.session.tenure().map(|tenure| tenure.guard.epoch);
        if epoch.is_some_and(|epoch| !self.debris.iter().all(|debris| debris.is_fenced(epoch))) {
            cx.session.fence(self.id, cx.out);
        }
    }

    /// The store refuses the epoch under which a key of ours could be deleted for good. A try cannot be decided while
    /// that key may come back.
    pub(in crate::protocol) fn fence_refused(&mut self, failure: &Failure, cx: &mut Cx<'_>) {
        self.waiters.retain(|waiter| {
            if waiter.patience.try_only {
                cx.out.refuse(waiter.ticket, Refusal::Failed(failure.clone()));
            }
            !waiter.patience.try_only
        });
    }

    /// Whether this queue is to be asked for a step soon, and was not already.
    pub(in crate::protocol) fn enlist(&mut self) -> bool {
        let wanted = match self.contender.as_ref().map(Contender::is_entering) {
            None => !self.waiters.is_empty(),
            Some(entering) => entering,
        };
        let wanted = matches!(self.step, Progress::Idle) && (wanted || !self.debris.is_empty());
        wanted && !std::mem::replace(&mut self.enlisted, true)
    }

    /// At most so many operations are in its next step, if a batch takes `most`.
    pub(in crate::protocol) fn operations_within(&self, most: usize) -> usize {
        (self.debris.len() + 1).min(most)
    }

    /// Its next step must have a request of its own, because a batch with it was refused.
    pub(in crate::protocol) fn goes_alone(&self, epoch: Revision) -> bool {
        self.alone || self.debris.iter().any(|debris| debris.goes_alone(epoch))
    }

    /// The step that the state calls for now, of at most `most` operations; it is then in flight.
    pub(in crate::protocol) fn take_step(
        &mut self,
        guard: &Guard,
        most: usize,
        cx: &mut Cx<'_>,
    ) -> Option<Step> {
        self.enlisted = false;
        if !matches!(self.step, Progress::Idle) {
            return None;
        }
        let (deletes, sent) = self.take_deletes(guard, most);
        // A second copy of a delete that compares nothing would end a later hold under the same key.
        if deletes.iter().any(|delete| delete.created.is_none()) && !mutant!(KeyReusedAfterPlainDelete) {
            cx.session.retire_keys();
        }
        let room = deletes.len() < most || mutant!(DeletesNotCut);
        // A plain delete cannot be part of a transaction; the lock is handed over after it.
        let room = room && !self.debris.iter().any(|debris| debris.goes_alone(guard.epoch));
        let entry = if room { self.take_entry(cx) } else { None };
        if deletes.is_empty() && entry.is_none() {
            return None;
        }
        let tries = self.waiters.iter().filter(|waiter| waiter.patience.try_only);
        self.step = Progress::InFlight(SentStep {
            epoch: guard.epoch,
            sent: cx.now,
            deletes: sent,
            entering: entry.is_some(),
            tries: tries.map(|waiter| waiter.ticket).collect(),
        });
        Some(Step { queue: self.id, deletes, entry })
    }

    fn take_deletes(&self, guard: &Guard, most: usize) -> (Vec<Deletion>, Vec<SentDelete>) {
        // What is refused in a batch goes one by one.
        let most = if self.goes_alone(guard.epoch) { 1 } else { most };
        let most = if mutant!(DeletesNotCut) { usize::MAX } else { most };
        let due = self.debris.iter().filter(|debris| debris.is_due(guard.epoch)).take(most);
        due.map(|debris| {
            let sent = SentDelete { key: debris.key.clone(), for_good: debris.is_fenced(guard.epoch) };
            (debris.deletion(guard.epoch), sent)
        })
        .unzip()
    }

    /// The contender that wants in, made now if there is none.
    fn take_entry(&mut self, cx: &mut Cx<'_>) -> Option<Entry> {
        let tenure = cx.session.tenure()?;
        if let (None, Some(front)) = (&self.contender, self.waiters.front()) {
            let try_only = front.patience.try_only;
            // etcd evaluates a transaction's compares before its deletes, so a try would find our own key.
            if try_only && !self.debris.is_empty() && !mutant!(TryBesideOwnDelete) {
                return None;
            }
            let key =
                tenure.contender_key(&self.name, |key| self.debris.iter().any(|debris| debris.key == *key));
            let value = contender_value(front, cx.now, cx.out);
            self.contender = Some(Contender::new(key, value, tenure.lease, try_only));
        }
        let contender = self.contender.as_ref().filter(|contender| contender.is_entering())?;
        Some(Entry {
            name: self.name.clone(),
            key: contender.key.clone(),
            value: contender.value.clone(),
            lease: contender.lease,
            try_only: contender.try_only,
        })
    }
}

fn contender_value(front: &Acquire, now: Time, out: &Outbox) -> Vec<u8> {
    // The caller's wall clock when it asked, and the time it has waited here since.
    let created_at = front.asked_at + now.since(front.since);
    let thread = front.thread.to_string();
    ContenderValue::new(&out.config.owner, &thread, out.config.pid, created_at).encode()
}
