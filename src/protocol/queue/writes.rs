//! Which write a queue sends next: deletes of stale keys, the put of a contender.

use super::sent::{SentDelete, SentWrite};
use super::{Context, Queue, WriteState};
use crate::kv::{Failure, Key, Revision};
use crate::mode::Mode;
use crate::protocol::contender::Contender;
use crate::protocol::contender::origin::Origin;
use crate::protocol::contender::stale_key::StaleKey;
use crate::protocol::messages::{ContenderId, Refusal};
use crate::protocol::mutants::mutant;
use crate::protocol::put::ContenderPut;
use crate::protocol::read::Epoch;
use crate::protocol::write::{Deletion, Write};

/// How many operations at most the look of a write's puts takes, in addition to those of the puts.
pub(super) const LOOK_OPERATIONS: usize = 2;

impl Queue {
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
        let wanted = self.put_operations > 0 || !self.stale_keys.is_empty();
        let wanted = matches!(self.write, WriteState::Idle) && wanted;
        wanted && !std::mem::replace(&mut self.enlisted, true)
    }

    /// An upper limit of the operations of its next write, in a batch of at most `most`.
    pub(in crate::protocol) fn operations_within(&self, most: usize) -> usize {
        (self.stale_keys.len() + self.put_operations.max(1)).min(most)
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
        let room = deletes.len() + self.put_operations.min(1 + LOOK_OPERATIONS) <= most;
        let room = room || deletes.is_empty() || mutant!(DeletesNotCut);
        // A plain delete cannot be part of a transaction, so the put has to follow in another request.
        let room = room && !self.stale_keys.iter().any(|stale| stale.must_go_alone(epoch.revision));
        let most_left = most.saturating_sub(deletes.len());
        let puts = if room { self.take_puts(epoch, most_left, cx) } else { Vec::new() };
        if deletes.is_empty() && puts.is_empty() {
            return None;
        }
        let tries = self.waiters.iter().filter(|waiter| waiter.limits.try_only);
        self.write = WriteState::InFlight(SentWrite {
            epoch: epoch.revision,
            sent: cx.now,
            deletes: sent,
            puts: puts.iter().map(|&(id, _)| id).collect(),
            tries: tries.map(|waiter| waiter.ticket).collect(),
        });
        let puts = puts.into_iter().map(|(_, put)| put).collect();
        Some(Write { queue: self.id, deletes, puts })
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

    /// The puts of contenders, which are created now for waiters without one: the first one in the order of arrival, and
    /// if that is shared, all shared ones right behind it whose keys follow in the same order. A try is put alone, because
    /// etcd decides the compares of all of them before it puts the first. With them, the write has at most `most` operations.
    fn take_puts(
        &mut self,
        epoch: &Epoch,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Vec<(ContenderId, ContenderPut)> {
        let mut puts: Vec<(ContenderId, ContenderPut)> = Vec::new();
        let places = self.places();
        for place in places {
            if !self.is_to_be_put(&place) {
                continue;
            }
            let waiter = &self.waiters[place.waiter];
            let joins = waiter.mode == Mode::Shared && !waiter.limits.try_only;
            if !puts.is_empty() && (!joins || puts.len() + LOOK_OPERATIONS >= most) {
                break;
            }
            let id = place.contender.or_else(|| self.new_contender(place.waiter, epoch.revision, cx));
            let Some((id, put)) =
                id.and_then(|id| Some((id, self.contender(id)?.put(&self.name, &cx.effects.config)?)))
            else {
                break;
            };
            // Those of one write are looked at together, and have one create revision, so that their keys order them.
            if puts.last().is_some_and(|(_, last)| last.look != put.look || last.key > put.key) {
                break;
            }
            puts.push((id, put));
            if !joins {
                break;
            }
        }
        puts
    }

    /// A new contender for this waiter, unless it has to wait for our own keys to be deleted.
    fn new_contender(&mut self, waiter: usize, epoch: Revision, cx: &mut Context<'_>) -> Option<ContenderId> {
        let waiter = &self.waiters[waiter];
        let (mode, try_only) = (waiter.mode, waiter.limits.try_only);
        // etcd evaluates a transaction's compares before its deletes, so an exclusive try would find our own stale key.
        // Those of other modes look again after the deletes.
        let in_the_way = |stale: &StaleKey| mode == Mode::Exclusive || !stale.is_due(epoch);
        if try_only && self.stale_keys.iter().any(in_the_way) && !mutant!(TryBesideOwnDelete) {
            return None;
        }
        let in_use = |key: &Key| {
            self.stale_keys.iter().any(|stale| stale.key == *key)
                || self.contenders.iter().any(|contender| contender.key() == key)
        };
        let lease = cx.session.lease()?;
        let key = lease.contender_key(&self.name, mode, in_use);
        let lease = lease.id;
        let id = ContenderId { queue: self.id, number: cx.effects.next_id() };
        let origin = Origin::of(waiter, cx.now);
        // Nearly always it is the only one of its name, and a manager may hold many names.
        if self.contenders.is_empty() {
            self.contenders.reserve_exact(1);
        }
        self.contenders.push(Contender::new(id, key, origin, lease, mode, try_only));
        Some(id)
    }
}
