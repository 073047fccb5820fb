//! Which write a queue sends next: deletes of stale keys, the put of a contender.

use super::sent::{SentDelete, SentWrite};
use super::waiter::Waiter;
use super::{Context, Queue, WriteState};
use crate::kv::{Failure, Revision};
use crate::protocol::contender::Contender;
use crate::protocol::contender::origin::Origin;
use crate::protocol::messages::Refusal;
use crate::protocol::mutants::mutant;
use crate::protocol::read::Epoch;
use crate::protocol::write::{ContenderPut, Deletion, Write};

impl Queue {
    /// Discards a contender that no waiter can use. One that holds the lock stays, and one whose put is in flight stays
    /// until that is answered.
    pub(super) fn drop_unwanted_contender(&mut self, cx: &mut Context<'_>) {
        let in_flight = matches!(&self.write, WriteState::InFlight(sent) if sent.puts_contender);
        let Some(contender) = &self.contender else {
            return;
        };
        if self.is_wanted(contender) {
            return;
        }
        if !contender.is_entering() {
            self.discard_contender(Vec::new(), cx);
        } else if !in_flight {
            self.forget_contender(cx);
        }
    }

    /// Whether the contender holds the lock, or a waiter can use it. A try must not join the queue, so it cannot use a
    /// contender that was put for another waiter, nor the other way round.
    pub(super) fn is_wanted(&self, contender: &Contender) -> bool {
        let may_use = |waiter: &Waiter| waiter.limits.try_only == contender.is_try();
        contender.held().is_some() || self.waiters.iter().any(may_use)
    }

    /// A key that a delayed request could still put can be deleted for good only under a later epoch; asks for one.
    pub(super) fn fence_stale_keys(&mut self, cx: &mut Context<'_>) {
        let epoch = cx.session.lease().map(|lease| lease.epoch.revision);
        if epoch.is_some_and(|epoch| !self.stale_keys.iter().all(|stale| stale.is_fenced(epoch))) {
            cx.session.fence(self.id, cx.effects);
        }
    }

    /// The store refuses to put the session key, so the epoch cannot change and a stale key of ours may reappear. While
    /// that is so, no try can be decided.
    pub(in crate::protocol) fn fence_refused(&mut self, failure: &Failure, cx: &mut Context<'_>) {
        self.waiters.retain(|waiter| {
            if waiter.limits.try_only {
                cx.effects.refuse(waiter.ticket, Refusal::Failed(failure.clone()));
            }
            !waiter.limits.try_only
        });
    }

    /// Whether to add this queue to the list of those that have a write to send. At most once until it is taken.
    pub(in crate::protocol) fn enlist(&mut self) -> bool {
        let wanted = match self.contender.as_ref().map(Contender::is_entering) {
            None => !self.waiters.is_empty(),
            Some(puts_contender) => puts_contender,
        };
        let wanted = matches!(self.write, WriteState::Idle) && (wanted || !self.stale_keys.is_empty());
        wanted && !std::mem::replace(&mut self.enlisted, true)
    }

    /// An upper limit of the operations of its next write, in a batch of at most `most`.
    pub(in crate::protocol) fn operations_within(&self, most: usize) -> usize {
        (self.stale_keys.len() + 1).min(most)
    }

    /// Its next write must be a request of its own.
    pub(in crate::protocol) fn must_go_alone(&self, epoch: Revision) -> bool {
        self.alone || self.stale_keys.iter().any(|stale| stale.must_go_alone(epoch))
    }

    /// The write that the state calls for now, of at most `most` operations; the queue regards it as sent.
    pub(in crate::protocol) fn take_write(
        &mut self,
        epoch: &Epoch,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Option<Write> {
        self.enlisted = false;
        if !matches!(self.write, WriteState::Idle) {
            return None;
        }
        let (deletes, sent) = self.take_deletes(epoch, most);
        // A second copy of a delete without a compare would end a later hold with the same key.
        if deletes.iter().any(|delete| delete.created.is_none()) && !mutant!(KeyReusedAfterPlainDelete) {
            cx.session.retire_keys();
        }
        let room = deletes.len() < most || mutant!(DeletesNotCut);
        // A plain delete cannot be part of a transaction, so the put has to follow in another request.
        let room = room && !self.stale_keys.iter().any(|stale| stale.must_go_alone(epoch.revision));
        let put = if room { self.take_put(cx) } else { None };
        if deletes.is_empty() && put.is_none() {
            return None;
        }
        let tries = self.waiters.iter().filter(|waiter| waiter.limits.try_only);
        self.write = WriteState::InFlight(SentWrite {
            epoch: epoch.revision,
            sent: cx.now,
            deletes: sent,
            puts_contender: put.is_some(),
            tries: tries.map(|waiter| waiter.ticket).collect(),
        });
        Some(Write { queue: self.id, deletes, put })
    }

    fn take_deletes(&self, epoch: &Epoch, most: usize) -> (Vec<Deletion>, Vec<SentDelete>) {
        // Deletes that were refused in a batch are sent one by one.
        let most = if self.must_go_alone(epoch.revision) { 1 } else { most };
        let most = if mutant!(DeletesNotCut) { usize::MAX } else { most };
        let due = self.stale_keys.iter().filter(|stale| stale.is_due(epoch.revision)).take(most);
        due.map(|stale| {
            let sent = SentDelete { key: stale.key.clone(), for_good: stale.is_fenced(epoch.revision) };
            (stale.deletion(epoch.revision), sent)
        })
        .unzip()
    }

    /// The put of the contender, which is created now if there is none.
    fn take_put(&mut self, cx: &mut Context<'_>) -> Option<ContenderPut> {
        let lease = cx.session.lease()?;
        if let (None, Some(front)) = (&self.contender, self.waiters.front()) {
            let try_only = front.limits.try_only;
            // etcd evaluates a transaction's compares before its deletes, so the try would find our own stale key.
            if try_only && !self.stale_keys.is_empty() && !mutant!(TryBesideOwnDelete) {
                return None;
            }
            let key =
                lease.contender_key(&self.name, |key| self.stale_keys.iter().any(|stale| stale.key == *key));
            let origin = Origin::of(front, cx.now);
            self.contender = Some(Contender::new(key, origin, lease.id, try_only));
        }
        self.contender.as_ref()?.put(&self.name, &cx.effects.config)
    }
}
