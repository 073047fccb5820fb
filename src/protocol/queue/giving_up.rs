//! Tickets that have given up: their key is deleted, and their answer names the holder of the lock.

use std::time::Duration;

use super::sent::SentHolderRead;
use super::waiter::{Contention, GiveUpReason, GivingUp};
use super::{Context, Queue};
use crate::kv::{Failure, FailureClass, Request, Response};
use crate::protocol::effects::Purpose;
use crate::protocol::messages::{Action, CurrentHolder, Refusal, Ticket};
use crate::protocol::read;
use crate::protocol::timers::Timer;

/// How long a ticket that has given up waits for the deletion of its key and the name of the holder: a few round trips.
/// A call must not exceed its own limit by more than 50 ms.
const GRACE: Duration = Duration::from_millis(30);

impl Queue {
    /// The ticket has reached its deadline or used up its retries.
    pub(in crate::protocol) fn reach_wait_limit(&mut self, ticket: Ticket, cx: &mut Context<'_>) {
        let Some(at) = self.waiters.iter().position(|waiter| waiter.ticket == ticket) else {
            return;
        };
        let contention = self.contention(at);
        let Some(waiter) = self.waiters.remove(at) else {
            return;
        };
        let (limits, since, mode) = (waiter.limits, waiter.since, waiter.mode);
        if limits.try_only {
            let failure = self.why_unavailable(cx);
            cx.effects.refuse(ticket, Refusal::Unavailable(failure));
            return;
        }
        let timed_out = limits.deadline.is_some_and(|deadline| deadline <= cx.now);
        let reason = if timed_out { GiveUpReason::Deadline } else { GiveUpReason::Budget };
        self.give_up(GivingUp { ticket, since, mode, reason, contention, holder_read: None }, cx);
    }

    pub(super) fn give_up(&mut self, giving_up: GivingUp, cx: &mut Context<'_>) {
        cx.effects.tickets.insert(giving_up.ticket, self.id);
        cx.effects.timers.set(Timer::EndGrace(giving_up.ticket), cx.now + GRACE);
        if giving_up.wants_holder() {
            self.read_holder(cx);
        }
        self.giving_up.push(giving_up);
    }

    /// Reads the holder of the lock; at most one such read is in flight.
    fn read_holder(&mut self, cx: &mut Context<'_>) {
        if self.sent_holder_read.is_none() {
            let lease = cx.session.lease().map(|lease| lease.id);
            self.sent_holder_read = Some(SentHolderRead { sent: cx.now, lease });
            cx.effects.send(Purpose::ReadHolder(self.id), Request::Txn(read::holder(&self.name)));
        }
    }

    pub(in crate::protocol) fn handle_holder_read(
        &mut self,
        reply: Result<Response, Failure>,
        cx: &mut Context<'_>,
    ) {
        let Some(SentHolderRead { sent, lease }) = self.sent_holder_read.take() else {
            return;
        };
        let holder_read = reply.map(|response| read::holder_answer(response.answer).unwrap_or_default());
        // A first key of this manager that has no hold is about to be deleted, so it is not a holder. The session may have
        // ended since the read was sent.
        let own_leases = [lease, cx.session.lease().map(|lease| lease.id)];
        let stays = |holder: &CurrentHolder| {
            let held = self.contenders.iter().any(|own| own.holds(&holder.kv));
            !own_leases.contains(&Some(holder.kv.lease)) || held
        };
        let holder_read = holder_read.map(|holder| holder.filter(stays));
        for giving_up in self.giving_up.iter_mut().filter(|giving_up| giving_up.wants_holder()) {
            // A read sent before the call says nothing about its wait.
            if giving_up.since <= sent {
                giving_up.holder_read = Some(holder_read.clone());
            }
        }
        if self.giving_up.iter().any(GivingUp::wants_holder) {
            self.read_holder(cx);
        }
        self.report_slow_waits(holder_read.as_ref().ok().and_then(Option::as_ref), cx);
    }

    /// Answers the tickets whose key is deleted and whose holder is known.
    pub(super) fn answer_given_up(&mut self, cx: &mut Context<'_>) {
        // The key of a hold that was released is not one of theirs.
        let key_gone =
            !self.in_flight_for_nobody && self.stale_keys.iter().all(|stale| stale.released.is_some());
        let (done, waiting) = std::mem::take(&mut self.giving_up)
            .into_iter()
            .partition(|giving_up| key_gone && !giving_up.wants_holder());
        self.giving_up = waiting;
        let done: Vec<GivingUp> = done;
        for giving_up in done {
            self.answer(giving_up, cx);
        }
    }

    /// The grace period is over: answers the ticket with what is known.
    pub(in crate::protocol) fn end_grace(&mut self, ticket: Ticket, cx: &mut Context<'_>) {
        if let Some(at) = self.giving_up.iter().position(|giving_up| giving_up.ticket == ticket) {
            let giving_up = self.giving_up.remove(at);
            self.answer(giving_up, cx);
        }
    }

    fn answer(&self, giving_up: GivingUp, cx: &mut Context<'_>) {
        if let GiveUpReason::Cancelled = giving_up.reason {
            cx.effects.refuse(giving_up.ticket, Refusal::Cancelled);
            return;
        }
        let keeps_out = |holder: &CurrentHolder| giving_up.is_kept_out_by(holder);
        let held = match (giving_up.contention, giving_up.holder_read.clone()) {
            (_, Some(Ok(Some(holder)))) if keeps_out(&holder) => Ok(Some(holder)),
            (Contention::HeldHere, Some(Ok(holder))) => Ok(holder),
            (Contention::HeldHere, _) => Ok(None),
            (_, Some(Err(failure))) => Err(failure),
            // A holder that leaves room for it is one of several.
            (Contention::Contended | Contention::LocalWaiters, Some(Ok(holder))) => {
                cx.effects.contact.trouble(cx.now).map_or(Ok(holder), Err)
            }
            (Contention::Contended, None) => cx.effects.contact.trouble(cx.now).map_or(Ok(None), Err),
            (Contention::Unknown, Some(Ok(_)) | None) | (Contention::LocalWaiters, None) => {
                Err(self.why_unavailable(cx))
            }
        };
        let GivingUp { ticket, since, reason, .. } = giving_up;
        let refusal = match (held, reason) {
            (Err(failure), _) => Refusal::Unavailable(failure),
            (Ok(holder), GiveUpReason::Deadline) => Refusal::Timeout { waited: cx.now.since(since), holder },
            (Ok(holder), _) => Refusal::AlreadyHeld { holder },
        };
        cx.effects.refuse(ticket, refusal);
    }

    /// What is known about others that keep out the waiter with this index.
    fn contention(&self, at: usize) -> Contention {
        let since = self.waiters.get(at).map(|waiter| waiter.since);
        let local = self.waiters.get(at).is_some_and(|waiter| waiter.came_behind);
        let kept_out = self.waiters.get(at).is_some_and(|waiter| waiter.kept_out);
        let mode = self.waiters.get(at).map(|waiter| waiter.mode).unwrap_or_default();
        if !self.held_load().admits(mode) {
            return Contention::HeldHere;
        }
        // A read sent before this ticket's call says nothing about its wait.
        let before = self.places().into_iter().filter(|place| place.waiter <= at);
        let mut contenders = before.filter_map(|place| self.contender(place.contender?));
        let queued = since.is_some_and(|since| contenders.any(|own| own.was_behind_since(since)));
        match self.last_failure {
            Some(_) => Contention::Unknown,
            None if kept_out || queued => Contention::Contended,
            None if local => Contention::LocalWaiters,
            None => Contention::Unknown,
        }
    }

    fn why_unavailable(&self, cx: &Context<'_>) -> Failure {
        let silent = || Failure::new(FailureClass::NotDone, "etcd has not answered in time");
        self.last_failure.clone().or_else(|| cx.effects.contact.trouble(cx.now)).unwrap_or_else(silent)
    }

    /// The ticket has waited for its `warn_after`: reads the holder, to report both.
    pub(in crate::protocol) fn report_slow_wait(&mut self, ticket: Ticket, cx: &mut Context<'_>) {
        self.slow.push(ticket);
        self.read_holder(cx);
    }

    fn report_slow_waits(&mut self, holder: Option<&CurrentHolder>, cx: &mut Context<'_>) {
        let waiting_here = self.waiters.len();
        for ticket in std::mem::take(&mut self.slow) {
            // Unless it was answered meanwhile.
            if let Some(waiter) = self.waiters.iter().find(|waiter| waiter.ticket == ticket) {
                cx.effects.act(Action::SlowWait {
                    name: self.name.clone(),
                    mode: waiter.mode,
                    waited: cx.now.since(waiter.since),
                    holder: holder.cloned(),
                    waiting_here,
                });
            }
        }
    }
}
