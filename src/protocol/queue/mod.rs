//! One lock name while it is in use: the threads that wait here, and the one key with which they stand in etcd.
//!
//! The threads of this process wait in a local queue and cost etcd nothing; whoever is in front contends for all of
//! them. Events change the state, and [`Queue::advance`] then decides from the state alone what to ask of the store:
//! at most one step (delete what must go,
//! enter who wants in) is in flight for a name.

mod giving_up;
mod replies;
mod standing;
mod waiter;
mod writes;

use std::collections::VecDeque;
use std::time::Duration;

use self::giving_up::Departing;
use self::waiter::Waiter;
use self::writes::SentStep;
use super::contender::stale_key::Debris;
use super::contender::{Contender, Hold, Stage};
use super::effects::Outbox;
use super::mutants::mutant;
use super::session::Session;
use super::timers::Timer;
use super::{Acquire, Action, HoldId, QueueId, Refusal, ReleaseFailure, Ticket};
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, Revision};
use crate::name::LockName;

/// A contender this old gets a watch on its own key; shorter holds pay nothing.
const OWN_WATCH_AGE: Duration = Duration::from_millis(100);

/// The pause before a step is tried again where no waiter names one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// What a queue works with.
pub(super) struct Cx<'a> {
    pub(super) now: Time,
    pub(super) session: &'a mut Session,
    pub(super) out: &'a mut Outbox,
}

#[derive(Clone, Debug)]
pub(super) struct Queue {
    id: QueueId,
    name: LockName,
    /// In order of arrival; the first one contends in etcd.
    waiters: VecDeque<Waiter>,
    contender: Option<Contender>,
    /// Keys of ours that must go.
    debris: Vec<Debris>,
    step: Progress,
    /// It is among those that wait to take a step.
    enlisted: bool,
    alone: bool,
    /// Steps and looks that failed in a row.
    failures: u32,
    last_failure: Option<Failure>,
    /// Tickets that gave up and get their answer within a short grace.
    departing: Vec<Departing>,
    /// When the read of the holder that is in flight was sent.
    inspecting: Option<Time>,
    /// Waiters that are told of once the holder's name is known.
    slow: Vec<Ticket>,
}

/// Where the queue is with the one step that it may have under way.
#[derive(Clone, Debug)]
enum Progress {
    Idle,
    InFlight(SentStep),
    /// Until `Timer::Retry`.
    BackingOff,
}

impl Queue {
    pub(super) fn new(id: QueueId, name: LockName) -> Self {
        Self {
            id,
            name,
            waiters: VecDeque::new(),
            contender: None,
            debris: Vec::new(),
            step: Progress::Idle,
            enlisted: false,
            alone: false,
            failures: 0,
            last_failure: None,
            departing: Vec::new(),
            inspecting: None,
            slow: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> QueueId {
        self.id
    }

    pub(super) fn name(&self) -> &LockName {
        &self.name
    }

    /// Nobody wants or owes anything here.
    pub(super) fn is_over(&self) -> bool {
        self.waiters.is_empty()
            && self.contender.is_none()
            && self.debris.is_empty()
            && self.departing.is_empty()
    }

    /// Somebody here waits in the queue, not only for an answer to a try.
    fn has_queued_waiter(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.patience.try_only)
    }

    pub(super) fn acquire(&mut self, acquire: Acquire, cx: &mut Cx<'_>) {
        let ticket = acquire.ticket;
        let queued = self.has_queued_waiter();
        if acquire.patience.try_only
            && let Some(contender) = &self.contender
        {
            let held = match contender.stage {
                Stage::Held(_) => true,
                // Our own place in the queue, as long as somebody here wants it.
                Stage::Queued(_) => queued,
                Stage::Entering => false,
            };
            if held {
                cx.out.refuse(ticket, Refusal::Held);
                return;
            }
        }
        cx.out.tickets.insert(ticket, self.id);
        let limits = [acquire.patience.deadline, acquire.patience.budget];
        if let Some(limit) = limits.into_iter().flatten().min() {
            cx.out.timers.set(Timer::Patience(ticket), limit);
        }
        if let Some(at) = acquire.warn_after.and_then(|after| acquire.since.checked_add(after)) {
            cx.out.timers.set(Timer::SlowWait(ticket), at);
        }
        self.waiters.push_back(Waiter::new(acquire));
    }

    /// The ticket is not wanted any more, whatever has become of it.
    pub(super) fn leave(&mut self, ticket: Ticket, confirm: bool, cx: &mut Cx<'_>) {
        if let Some(at) = self.waiters.iter().position(|waiter| waiter.ticket == ticket) {
            self.waiters.remove(at);
            cx.out.forget_ticket(ticket);
            if confirm {
                self.depart(Departing::cancelled(ticket), cx);
            }
        } else if let Some(at) = self.departing.iter().position(|departing| departing.ticket == ticket) {
            if confirm {
                self.departing[at].cancel();
            } else {
                self.departing.remove(at);
                cx.out.forget_ticket(ticket);
            }
        } else {
            self.leave_hold(ticket, confirm, cx);
        }
    }

    fn leave_hold(&mut self, ticket: Ticket, confirm: bool, cx: &mut Cx<'_>) {
        let Some(hold) = self.contender.as_mut().and_then(Contender::hold_mut) else {
            return;
        };
        if mutant!(AbandonIgnoredAfterGrant) {
            return;
        }
        if hold.ticket == ticket {
            cx.out.act(Action::EndHold { hold: hold.id, lost: None });
            cx.out.forget_ticket(ticket);
            // They asked before it was let go.
            self.waiters.iter_mut().for_each(|waiter| waiter.kept_out = true);
            let (token, confirm) = (hold.token, if confirm { vec![ticket] } else { Vec::new() });
            self.discard_contender(confirm, cx);
            if let Some(debris) = self.debris.last_mut() {
                debris.released = Some(token);
            }
        }
    }

    /// Decides from the state alone what is to be done next.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>) {
        self.take_if_first(cx);
        self.drop_unwanted_contender(cx);
        self.fence_debris(cx);
        self.settle_departures(cx);
    }

    /// The contender has the lock for the first waiter, as the store's revision `as_of` shows.
    fn hold(&mut self, token: Revision, as_of: Revision, cx: &mut Cx<'_>) {
        let id = HoldId(cx.out.next_id());
        let Some(contender) = &mut self.contender else {
            return;
        };
        contender.leave_lookout(cx.out);
        // It is in the store now; ten thousand of them need not be here as well.
        contender.value = Vec::new();
        cx.out.timers.clear(Timer::Fallback(self.id));
        let Some(ticket) = self.waiters.pop_front().map(|waiter| waiter.ticket) else {
            // Whoever wanted it has left meanwhile.
            if let Some(contender) = self.contender.take() {
                self.debris.push(Debris { created: Some(token), ..contender.retire(self.id, cx.out) });
            }
            return;
        };
        cx.out.timers.clear(Timer::Patience(ticket));
        cx.out.timers.clear(Timer::SlowWait(ticket));
        let (name, key) = (self.name.clone(), contender.key.clone());
        cx.out.act(Action::Grant { ticket, hold: id, name, key, token });
        contender.stage = Stage::Held(Hold { id, token, as_of, ticket, doomed: None });
        if contender.own_watch.is_none() {
            cx.out.timers.set(Timer::OwnWatch(self.id), cx.now + OWN_WATCH_AGE);
        }
        self.refuse_tries(|_| true, cx);
    }

    /// Somebody has the lock, so those who only try do not get it.
    fn refuse_tries(&mut self, which: impl Fn(Ticket) -> bool, cx: &mut Cx<'_>) {
        self.waiters.retain(|waiter| {
            let refused = waiter.patience.try_only && which(waiter.ticket);
            if refused {
                cx.out.refuse(waiter.ticket, Refusal::Held);
            }
            !refused
        });
    }

    /// The store has answered a step: there was somebody before us. That speaks for the tries that had asked by then.
    fn refuse_tries_of(&mut self, asked: &[Ticket], cx: &mut Cx<'_>) {
        let queued = self.has_queued_waiter() || mutant!(TryRefusedByOldNews);
        self.refuse_tries(|ticket| queued || asked.contains(&ticket), cx);
    }

    pub(super) fn refuse_waiters(&mut self, refusal: &Refusal, cx: &mut Cx<'_>) {
        for waiter in self.waiters.drain(..) {
            cx.out.refuse(waiter.ticket, refusal.clone());
        }
    }

    /// Our key has to go; who is in `confirm` hears when it is gone.
    fn discard_contender(&mut self, confirm: Vec<Ticket>, cx: &mut Cx<'_>) {
        if let Some(contender) = self.contender.take() {
            self.debris.push(Debris { confirm, ..contender.retire(self.id, cx.out) });
        }
    }

    /// Our key is not there; only a delayed copy of a request could still bring it back.
    fn forget_contender(&mut self, cx: &mut Cx<'_>) {
        if let Some(contender) = self.contender.take() {
            let debris = contender.retire(self.id, cx.out);
            if debris.dirty.is_some() {
                self.debris.push(debris);
            }
        }
    }

    /// Ends the hold, if there is one, although its guards are still there.
    fn lose_hold(&mut self, reason: LossReason, out: &mut Outbox) {
        if let Some(hold) = self.forget_holder(out) {
            out.act(Action::EndHold { hold, lost: Some(reason) });
        }
    }

    /// The hold, if there is one, whose guards have nothing left to release.
    fn forget_holder(&self, out: &mut Outbox) -> Option<HoldId> {
        let hold = self.contender.as_ref().and_then(Contender::hold)?;
        out.forget_ticket(hold.ticket);
        Some(hold.id)
    }

    /// The session is over, and with it the hold: [`Action::SessionDown`] ended all of them. Whatever this name had in
    /// etcd is deleted with its lease. The waiters stay.
    pub(super) fn lose_session(&mut self, reason: LossReason, cx: &mut Cx<'_>) {
        self.forget_holder(cx.out);
        if let Some(contender) = self.contender.take() {
            contender.retire(self.id, cx.out);
        }
        self.step = Progress::Idle;
        self.enlisted = false;
        self.alone = false;
        self.failures = 0;
        cx.out.timers.clear(Timer::Retry(self.id));
        for debris in self.debris.drain(..) {
            for ticket in debris.confirm {
                cx.out.act(Action::Confirm { ticket, result: Err(ReleaseFailure::Lost(reason)) });
            }
        }
    }

    /// Nothing here will be answered any more.
    pub(super) fn close(&mut self, cx: &mut Cx<'_>) {
        self.lose_session(LossReason::Closed, cx);
        self.refuse_waiters(&Refusal::Closed, cx);
        for departing in self.departing.drain(..) {
            cx.out.refuse(departing.ticket, Refusal::Closed);
        }
    }

    /// Ends a back-off: its time is over, or the store was just heard of.
    pub(super) fn retry(&mut self, cx: &mut Cx<'_>) {
        if matches!(self.step, Progress::BackingOff) {
            self.step = Progress::Idle;
            cx.out.timers.clear(Timer::Retry(self.id));
        }
    }

    fn back_off(&mut self, failure: Failure, cx: &mut Cx<'_>) -> Duration {
        self.failures += 1;
        self.last_failure = Some(failure);
        let first = self.waiters.front().map_or(FIRST_BACK_OFF, |front| front.retry_interval);
        cx.out.back_off(first, self.failures)
    }
}
