//! The queue of one lock name: the waiters of this process, and the contenders that they have in etcd.
//!
//! The threads of this process wait in a local queue that costs etcd nothing; only the first of them have keys in etcd
//! (see [`places`]), a single one if the lock is exclusive. Events
//! only change the state. [`Queue::advance`] then decides, from the state alone, what to ask of the store. At most one
//! write (deletes of stale keys, puts of contenders) is in flight for a name.

mod facts;
mod giving_up;
mod places;
mod replies;
mod sent;
mod waiter;
mod writes;

use std::collections::VecDeque;
use std::time::Duration;

use self::sent::{SentHolderRead, SentWrite};
use self::waiter::{GivingUp, Waiter};
use super::contender::Contender;
use super::contender::stale_key::StaleKey;
use super::effects::Effects;
use super::messages::{Acquire, Action, ContenderId, QueueId, Refusal, ReleaseFailure, Ticket};
use super::mutants::mutant;
use super::session::Session;
use super::timers::Timer;
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::Failure;
use crate::name::LockName;

/// The first back-off after a failure, if there is no waiter that names one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// What a queue needs of its surroundings to handle an event.
pub(super) struct Context<'a> {
    pub(super) now: Time,
    pub(super) session: &'a mut Session,
    pub(super) effects: &'a mut Effects,
}

#[derive(Clone, Debug)]
pub(super) struct Queue {
    id: QueueId,
    name: LockName,
    /// In order of arrival.
    waiters: VecDeque<Waiter>,
    /// In the order in which they were first put.
    contenders: Vec<Contender>,
    /// An upper limit of the operations that put contenders for the waiters that need one, as of the last advance.
    put_operations: usize,
    /// The put of a contender that no waiter needs any more is in flight, as of the last advance.
    in_flight_for_nobody: bool,
    stale_keys: Vec<StaleKey>,
    write: WriteState,
    /// In the list of queues that have a write to send.
    enlisted: bool,
    /// A batch with this queue's write was refused, so its next write must be a request of its own.
    alone: bool,
    /// Writes and reads that failed in a row.
    failures: u32,
    last_failure: Option<Failure>,
    /// Tickets that have given up and are answered within a short grace period.
    giving_up: Vec<GivingUp>,
    /// The read of the holder that is in flight.
    sent_holder_read: Option<SentHolderRead>,
    /// Tickets whose long wait is reported once the holder has been read.
    slow: Vec<Ticket>,
}

/// The state of the queue's one write.
#[derive(Clone, Debug)]
enum WriteState {
    Idle,
    InFlight(SentWrite),
    /// Until `Timer::Retry`.
    BackingOff,
}

impl Queue {
    pub(super) fn new(id: QueueId, name: LockName) -> Self {
        Self {
            id,
            name,
            waiters: VecDeque::new(),
            contenders: Vec::new(),
            put_operations: 0,
            in_flight_for_nobody: false,
            stale_keys: Vec::new(),
            write: WriteState::Idle,
            enlisted: false,
            alone: false,
            failures: 0,
            last_failure: None,
            giving_up: Vec::new(),
            sent_holder_read: None,
            slow: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> QueueId {
        self.id
    }

    pub(super) fn name(&self) -> &LockName {
        &self.name
    }

    /// There are no waiters and no keys, so the queue can be dropped.
    pub(super) fn is_over(&self) -> bool {
        self.waiters.is_empty()
            && self.contenders.is_empty()
            && self.stale_keys.is_empty()
            && self.giving_up.is_empty()
    }

    /// There is a waiter other than a `try_only` ticket.
    pub(super) fn has_queued_waiter(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.limits.try_only)
    }

    /// The holders of this process leave no room for one of its waiters.
    pub(super) fn keeps_somebody_waiting(&self) -> bool {
        let held = self.held_load();
        self.waiters.iter().any(|waiter| !waiter.limits.try_only && !held.admits(waiter.mode))
    }

    pub(super) fn acquire(&mut self, acquire: Acquire, cx: &mut Context<'_>) {
        let ticket = acquire.ticket;
        let held = self.held_load();
        let waiting = self.waiters.iter().filter(|waiter| !waiter.limits.try_only);
        let came_behind = self.has_queued_waiter()
            && !waiting.fold(held, |load, waiter| load.with(waiter.mode)).admits(acquire.mode);
        // If a contender is queued, an earlier caller of this process is in the queue.
        let queued = came_behind && self.contenders.iter().any(Contender::is_queued);
        if acquire.limits.try_only && (!held.admits(acquire.mode) || queued) {
            cx.effects.refuse(ticket, Refusal::Held);
            return;
        }
        cx.effects.tickets.insert(ticket, self.id);
        let limits = [acquire.limits.deadline, acquire.limits.budget];
        if let Some(limit) = limits.into_iter().flatten().min() {
            cx.effects.timers.set(Timer::WaitLimit(ticket), limit);
        }
        if let Some(at) = acquire.warn_after.and_then(|after| acquire.since.checked_add(after)) {
            cx.effects.timers.set(Timer::SlowWait(ticket), at);
        }
        self.waiters.push_back(Waiter::new(acquire, came_behind));
    }

    /// The caller no longer needs the ticket, whether it waits, gives up or holds the lock.
    pub(super) fn abandon(&mut self, ticket: Ticket, confirm: bool, cx: &mut Context<'_>) {
        if let Some(at) = self.waiters.iter().position(|waiter| waiter.ticket == ticket) {
            self.waiters.remove(at);
            cx.effects.forget_ticket(ticket);
            if confirm {
                self.give_up(GivingUp::cancelled(ticket), cx);
            }
        } else if let Some(at) = self.giving_up.iter().position(|giving_up| giving_up.ticket == ticket) {
            if confirm {
                self.giving_up[at].cancel();
            } else {
                self.giving_up.remove(at);
                cx.effects.forget_ticket(ticket);
            }
        } else {
            self.release_hold(ticket, confirm, cx);
        }
    }

    fn release_hold(&mut self, ticket: Ticket, confirm: bool, cx: &mut Context<'_>) {
        let of_ticket = |contender: &&Contender| contender.held().is_some_and(|hold| hold.ticket == ticket);
        let Some(contender) = self.contenders.iter().find(of_ticket) else {
            return;
        };
        let (id, hold) = (contender.id(), contender.held().map(|hold| (hold.id, hold.token)));
        let Some((hold, token)) = hold.filter(|_| !mutant!(AbandonIgnoredAfterGrant)) else {
            return;
        };
        cx.effects.act(Action::EndHold { hold, lost: None });
        cx.effects.forget_ticket(ticket);
        // They asked before it was released.
        let load = self.held_load();
        let kept_out = self.waiters.iter_mut().filter(|waiter| !load.admits(waiter.mode));
        kept_out.for_each(|waiter| waiter.kept_out = true);
        self.discard_contender(id, if confirm { vec![ticket] } else { Vec::new() }, cx);
        if let Some(stale) = self.stale_keys.last_mut() {
            stale.released = Some(token);
        }
    }

    /// Decides, from the state alone, what to do next.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) {
        self.settle(cx);
        self.refuse_queued_tries(cx);
        self.drop_unwanted_contenders(cx);
        self.fence_stale_keys(cx);
        self.answer_given_up(cx);
    }

    /// Refuses `try_only` tickets: the lock is held or others are queued.
    fn refuse_tries(&mut self, which: impl Fn(&Waiter) -> bool, cx: &mut Context<'_>) {
        self.waiters.retain(|waiter| {
            let refused = waiter.limits.try_only && which(waiter);
            if refused {
                cx.effects.refuse(waiter.ticket, Refusal::Held);
            }
            !refused
        });
    }

    /// The put of this contender was answered: there is no room for it. This answers the tries of its mode that had been
    /// made when the write was sent (`asked`) and are not before it, and those for which the callers of this process before them leave no room.
    fn refuse_tries_of(&mut self, id: ContenderId, asked: &[Ticket], cx: &mut Context<'_>) {
        let mode = self.contender(id).map(Contender::mode);
        let is_try = self.contender(id).is_some_and(Contender::is_try);
        let (mut load, mut queued, mut behind) = (self.held_load(), false, Vec::new());
        for waiter in &self.waiters {
            if !waiter.limits.try_only {
                load = load.with(waiter.mode);
                queued = true;
            } else {
                let answered = Some(waiter.mode) == mode && asked.contains(&waiter.ticket);
                if answered && (is_try || queued) || queued && !load.admits(waiter.mode) {
                    behind.push(waiter.ticket);
                }
            }
        }
        self.refuse_tries(|it| behind.contains(&it.ticket) || mutant!(TryRefusedByOldNews), cx);
    }

    /// A try must not join the queue, so if its key stands there all the same, it is refused, and the key deleted.
    fn refuse_queued_tries(&mut self, cx: &mut Context<'_>) {
        let no_room = |it: &Contender| it.has_no_room_since().map(|read| (it.id(), it.mode(), read));
        for (id, mode, read) in self.contenders.iter().filter_map(no_room).collect::<Vec<_>>() {
            // A read from before the call is no answer to it.
            self.refuse_tries(|waiter| waiter.mode == mode && waiter.since <= read, cx);
            self.discard_contender(id, Vec::new(), cx);
        }
    }

    fn contender(&self, id: ContenderId) -> Option<&Contender> {
        self.contenders.iter().find(|contender| contender.id() == id)
    }

    fn take_contender(&mut self, id: ContenderId) -> Option<Contender> {
        let at = self.contenders.iter().position(|contender| contender.id() == id)?;
        Some(self.contenders.remove(at))
    }

    /// Its put is in flight.
    fn is_in_flight(&self, id: ContenderId) -> bool {
        matches!(&self.write, WriteState::InFlight(sent) if sent.puts.contains(&id))
    }

    pub(super) fn refuse_waiters(&mut self, refusal: &Refusal, cx: &mut Context<'_>) {
        for waiter in self.waiters.drain(..) {
            cx.effects.refuse(waiter.ticket, refusal.clone());
        }
    }

    /// The contender's key must be deleted; the tickets in `confirm` are answered when it is.
    fn discard_contender(&mut self, id: ContenderId, confirm: Vec<Ticket>, cx: &mut Context<'_>) {
        if let Some(contender) = self.take_contender(id) {
            self.stale_keys.push(StaleKey { confirm, ..contender.into_stale_key(cx.effects) });
        }
    }

    /// The contender's key does not exist, so it need not be deleted, unless a delayed request could still put it.
    fn forget_contender(&mut self, id: ContenderId, cx: &mut Context<'_>) {
        if let Some(contender) = self.take_contender(id) {
            let stale = contender.into_stale_key(cx.effects);
            if stale.unanswered_epoch.is_some() {
                self.stale_keys.push(stale);
            }
        }
    }

    /// Ends the contender's hold, if it has one, as lost. Its guard has nothing to release any more.
    fn lose_hold(&mut self, id: ContenderId, reason: LossReason, effects: &mut Effects) {
        if let Some(hold) = self.contender(id).and_then(Contender::held) {
            effects.forget_ticket(hold.ticket);
            effects.act(Action::EndHold { hold: hold.id, lost: Some(reason) });
        }
    }

    /// The session is over, and [`Action::SessionDown`] has ended its holds. Our keys are deleted with the lease. The
    /// waiters stay, and enter again under the next session.
    pub(super) fn lose_session(&mut self, reason: LossReason, cx: &mut Context<'_>) {
        for contender in self.contenders.drain(..) {
            if let Some(hold) = contender.held() {
                cx.effects.forget_ticket(hold.ticket);
            }
            contender.into_stale_key(cx.effects);
        }
        self.write = WriteState::Idle;
        self.enlisted = false;
        self.alone = false;
        self.failures = 0;
        cx.effects.timers.clear(Timer::Retry(self.id));
        for stale in self.stale_keys.drain(..) {
            for ticket in stale.confirm {
                cx.effects.act(Action::Confirm { ticket, result: Err(ReleaseFailure::Lost(reason)) });
            }
        }
    }

    /// The protocol is closing: refuses everyone.
    pub(super) fn close(&mut self, cx: &mut Context<'_>) {
        self.lose_session(LossReason::Closed, cx);
        self.refuse_waiters(&Refusal::Closed, cx);
        for giving_up in self.giving_up.drain(..) {
            cx.effects.refuse(giving_up.ticket, Refusal::Closed);
        }
    }

    /// Ends the back-off: its time is over, or the epoch that it waited for is there.
    pub(super) fn retry(&mut self, cx: &mut Context<'_>) {
        if matches!(self.write, WriteState::BackingOff) {
            self.write = WriteState::Idle;
            cx.effects.timers.clear(Timer::Retry(self.id));
        }
    }

    fn back_off(&mut self, failure: Failure, cx: &mut Context<'_>) -> Duration {
        self.failures += 1;
        self.last_failure = Some(failure);
        let first = self.waiters.front().map_or(FIRST_BACK_OFF, |front| front.retry_interval);
        cx.effects.back_off(first, self.failures)
    }
}
