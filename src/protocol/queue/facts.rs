//! What the events of its contenders mean for a queue.

use super::{Context, Queue};
use crate::error::LossReason;
use crate::kv::{Failure, Response, Revision};
use crate::protocol::contender::origin::HeldKeys;
use crate::protocol::contender::stale_key::StaleKey;
use crate::protocol::contender::{Contender, Fact, Held, Surroundings, Unread};
use crate::protocol::messages::{Action, ContenderId, HoldId, Refusal, Ticket};
use crate::protocol::mutants::mutant;
use crate::protocol::session::Verdict;
use crate::protocol::timers::Timer;

impl Queue {
    /// Passes an event to a contender, if it still stands, and acts on what that says.
    pub(in crate::protocol) fn contend(
        &mut self,
        id: ContenderId,
        cx: &mut Context<'_>,
        event: impl FnOnce(&mut Contender, &mut Surroundings<'_>) -> Fact,
    ) {
        if let Some(fact) = self.ask_contender(id, cx, event) {
            self.act_on(id, fact, cx);
        }
    }

    /// All events that arrived together are handled.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) {
        let queued = self.contenders.iter().filter(|contender| contender.is_queued());
        for id in queued.map(Contender::id).collect::<Vec<_>>() {
            self.contend(id, cx, |contender, _| contender.settle());
        }
    }

    pub(in crate::protocol) fn stream_reopened(&mut self, cx: &mut Context<'_>) {
        for id in self.contenders.iter().map(Contender::id).collect::<Vec<_>>() {
            self.contend(id, cx, Contender::stream_reopened);
        }
    }

    pub(super) fn ask_contender<T>(
        &mut self,
        id: ContenderId,
        cx: &mut Context<'_>,
        question: impl FnOnce(&mut Contender, &mut Surroundings<'_>) -> T,
    ) -> Option<T> {
        let contender = self.contenders.iter_mut().find(|contender| contender.id() == id)?;
        let epoch = cx.session.lease().map(|lease| &lease.epoch);
        let mut surroundings = Surroundings { name: &self.name, now: cx.now, epoch, effects: cx.effects };
        Some(question(contender, &mut surroundings))
    }

    fn act_on(&mut self, id: ContenderId, fact: Fact, cx: &mut Context<'_>) {
        match fact {
            Fact::Nothing => {}
            Fact::Admitted { token, as_of } => self.grant(id, token, as_of, cx),
            Fact::Gone => {
                self.lose_hold(id, LossReason::ForceUnlocked, cx.effects);
                self.replace_deleted_key(id, cx);
            }
        }
    }

    /// The contender has the lock as of this revision; the waiter that it stands for is granted it.
    fn grant(&mut self, contender: ContenderId, token: Revision, as_of: Revision, cx: &mut Context<'_>) {
        let id = HoldId(cx.effects.next_id());
        let Some(at) = self.waiter_of(contender) else {
            // All that it could stand for have given up meanwhile.
            if let Some(contender) = self.take_contender(contender) {
                self.stale_keys
                    .push(StaleKey { created: Some(token), ..contender.into_stale_key(cx.effects) });
            }
            return;
        };
        let ticket = self.waiters[at].ticket;
        let held = Held::new(id, ticket, token, as_of);
        let Some(key) = self.ask_contender(contender, cx, |contender, cx| contender.hold(held, cx)) else {
            return;
        };
        self.waiters.remove(at);
        cx.effects.timers.clear(Timer::WaitLimit(ticket));
        cx.effects.timers.clear(Timer::SlowWait(ticket));
        cx.effects.act(Action::Grant { ticket, hold: id, name: self.name.clone(), key, token });
        let load = self.held_load();
        self.refuse_tries(|waiter| !load.admits(waiter.mode), cx);
    }

    /// What is in etcd for the hold of this ticket.
    pub(in crate::protocol) fn held_keys(&self, ticket: Ticket) -> Option<HeldKeys> {
        self.contenders.iter().find_map(|contender| contender.held_keys(ticket))
    }

    /// An answer to a request of the holder showed that a key of the hold does not exist any more.
    pub(in crate::protocol) fn hold_gone(&mut self, ticket: Ticket, cx: &mut Context<'_>) {
        let holder = self.contenders.iter().find(|contender| contender.held_keys(ticket).is_some());
        if let Some(id) = holder.map(Contender::id) {
            self.act_on(id, Fact::Gone, cx);
        }
    }

    /// The read of the contender's position was answered, or failed.
    pub(in crate::protocol) fn position_answered(
        &mut self,
        id: ContenderId,
        reply: Result<Response, Failure>,
        cx: &mut Context<'_>,
    ) -> Verdict {
        match self.ask_contender(id, cx, |contender, cx| contender.position_answered(reply, cx)) {
            None => {}
            Some(Ok(fact)) => {
                self.failures = 0;
                self.last_failure = None;
                self.act_on(id, fact, cx);
            }
            Some(Err(Unread::Failed(failure))) => self.position_unread(id, failure, cx),
            Some(Err(Unread::EpochChanged { session })) => {
                let verdict = cx.session.handle_stale_epoch(session);
                if verdict == Verdict::Nothing {
                    self.ask_contender(id, cx, Contender::check_position);
                }
                return verdict;
            }
        }
        Verdict::Nothing
    }

    /// The contender's position could not be read.
    fn position_unread(&mut self, id: ContenderId, failure: Failure, cx: &mut Context<'_>) {
        let held = self.contender(id).is_some_and(|contender| contender.held().is_some());
        if failure.is_final() && !held {
            self.refuse_waiters(&Refusal::Failed(failure), cx);
            return;
        }
        let pause = self.back_off(failure, cx);
        self.ask_contender(id, cx, |contender, cx| contender.check_position_after(pause, cx));
    }

    /// The next contender has another key, because whoever deleted this one may delete it again. This key is deleted
    /// once more: the report may have been wrong, and a key left behind would block the lock.
    fn replace_deleted_key(&mut self, id: ContenderId, cx: &mut Context<'_>) {
        cx.session.retire_keys();
        if mutant!(DeletedKeyForgotten) {
            self.forget_contender(id, cx);
        } else {
            self.discard_contender(id, Vec::new(), cx);
        }
    }
}
