//! What the events of its contender mean for a queue.

use super::{Context, Queue};
use crate::error::LossReason;
use crate::kv::{Failure, Response, Revision};
use crate::protocol::contender::origin::HeldKeys;
use crate::protocol::contender::stale_key::StaleKey;
use crate::protocol::contender::{Contender, Fact, Held, Surroundings, Unread};
use crate::protocol::messages::{Action, HoldId, Refusal, Ticket};
use crate::protocol::mutants::mutant;
use crate::protocol::session::Verdict;
use crate::protocol::timers::Timer;

impl Queue {
    /// Passes an event to the contender, if there is one, and acts on what that says.
    pub(in crate::protocol) fn contend(
        &mut self,
        cx: &mut Context<'_>,
        event: impl FnOnce(&mut Contender, &mut Surroundings<'_>) -> Fact,
    ) {
        if let Some(fact) = self.ask_contender(cx, event) {
            self.act_on(fact, cx);
        }
    }

    pub(super) fn ask_contender<T>(
        &mut self,
        cx: &mut Context<'_>,
        question: impl FnOnce(&mut Contender, &mut Surroundings<'_>) -> T,
    ) -> Option<T> {
        let contender = self.contender.as_mut()?;
        let epoch = cx.session.lease().map(|lease| &lease.epoch);
        let mut surroundings =
            Surroundings { queue: self.id, name: &self.name, now: cx.now, epoch, effects: cx.effects };
        Some(question(contender, &mut surroundings))
    }

    fn act_on(&mut self, fact: Fact, cx: &mut Context<'_>) {
        match fact {
            Fact::Nothing => {}
            Fact::Admitted { token, as_of } => self.grant(token, as_of, cx),
            Fact::Gone => {
                self.lose_hold(LossReason::ForceUnlocked, cx.effects);
                self.replace_deleted_key(cx);
            }
        }
    }

    /// The contender has the lock as of this revision; the first waiter is granted it.
    fn grant(&mut self, token: Revision, as_of: Revision, cx: &mut Context<'_>) {
        let id = HoldId(cx.effects.next_id());
        let front = self.waiters.front().map(|waiter| (waiter.ticket, waiter.note.clone()));
        let Some((ticket, note)) = front else {
            // All waiters have given up meanwhile.
            if let Some(contender) = self.contender.take() {
                self.stale_keys
                    .push(StaleKey { created: Some(token), ..contender.into_stale_key(self.id, cx.effects) });
            }
            return;
        };
        let held = Held::new(id, ticket, token, as_of);
        let Some(key) = self.ask_contender(cx, |contender, cx| contender.hold(held, cx)) else {
            return;
        };
        self.waiters.pop_front();
        if self.contender.as_mut().is_some_and(|contender| contender.adopt_note(note.as_ref())) {
            cx.effects.notes.push((ticket, note));
        }
        cx.effects.timers.clear(Timer::WaitLimit(ticket));
        cx.effects.timers.clear(Timer::SlowWait(ticket));
        cx.effects.act(Action::Grant { ticket, hold: id, name: self.name.clone(), key, token });
        self.refuse_tries(|_| true, cx);
    }

    /// What is in etcd for the hold of this ticket.
    pub(in crate::protocol) fn held_keys(&self, ticket: Ticket) -> Option<HeldKeys> {
        self.contender.as_ref()?.held_keys(ticket)
    }

    /// An answer to a request of the holder showed that a key of the hold does not exist any more.
    pub(in crate::protocol) fn hold_gone(&mut self, ticket: Ticket, cx: &mut Context<'_>) {
        if self.held_keys(ticket).is_some() {
            self.act_on(Fact::Gone, cx);
        }
    }

    /// The read of the contender's position was answered, or failed.
    pub(in crate::protocol) fn position_answered(
        &mut self,
        reply: Result<Response, Failure>,
        cx: &mut Context<'_>,
    ) -> Verdict {
        match self.ask_contender(cx, |contender, cx| contender.position_answered(reply, cx)) {
            None => {}
            Some(Ok(fact)) => {
                self.failures = 0;
                self.last_failure = None;
                self.act_on(fact, cx);
            }
            Some(Err(Unread::Failed(failure))) => self.position_unread(failure, cx),
            Some(Err(Unread::EpochChanged { session })) => {
                let verdict = cx.session.handle_stale_epoch(session);
                if verdict == Verdict::Nothing {
                    self.ask_contender(cx, Contender::check_position);
                }
                return verdict;
            }
        }
        Verdict::Nothing
    }

    /// The contender's position could not be read.
    fn position_unread(&mut self, failure: Failure, cx: &mut Context<'_>) {
        let held = self.contender.as_ref().is_some_and(|contender| contender.held().is_some());
        if failure.is_final() && !held {
            self.refuse_waiters(&Refusal::Failed(failure), cx);
            return;
        }
        let pause = self.back_off(failure, cx);
        self.ask_contender(cx, |contender, cx| contender.check_position_after(pause, cx));
    }

    /// The next contender has another key, because whoever deleted this one may delete it again. This key is deleted
    /// once more: the report may have been wrong, and a key left behind would block the lock.
    fn replace_deleted_key(&mut self, cx: &mut Context<'_>) {
        cx.session.retire_keys();
        if mutant!(DeletedKeyForgotten) {
            self.forget_contender(cx);
        } else {
            self.discard_contender(Vec::new(), cx);
        }
    }
}
