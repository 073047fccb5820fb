//! One lock name while it is in use: the threads that wait here, and the one key with which they stand in etcd.
//!
//! The threads of this process wait in a local queue and cost etcd nothing; whoever is in front contends for all of
//! them. Events change the state, and [`Queue::advance`] then decides from the state alone what to ask of the store:
//! at most one step (delete what must go,
//! enter who wants in) is in flight for a name.

mod contender;
mod departures;
mod place;
mod replies;

use std::collections::VecDeque;
use std::time::Duration;

use self::contender::{Contender, Debris, Hold, Stage};
use self::departures::Departing;
use super::mutants::mutant;
use super::outbox::Outbox;
use super::requests::Guard;
use super::session::Session;
use super::step::{Entry, Step};
use super::timers::Timer;
use super::{Acquire, Action, HoldId, QueueId, Refusal, ReleaseFailure, Ticket};
use crate::clock::Time;
use crate::error::LossReason;
use crate::name::LockName;
use crate::store::{Failure, Key, Revision};
use crate::value::ContenderValue;

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

#[derive(Debug)]
pub(super) struct Queue {
    id: QueueId,
    name: LockName,
    /// In order of arrival; the first one contends in etcd.
    waiters: VecDeque<Acquire>,
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
    inspecting: bool,
}

/// Where the queue is with the one step that it may have under way.
#[derive(Debug)]
enum Progress {
    Idle,
    InFlight(SentStep),
    /// Until `Timer::Retry`.
    BackingOff,
}

#[derive(Debug)]
struct SentStep {
    epoch: Revision,
    deletes: Vec<Key>,
    entering: bool,
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
            inspecting: false,
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

    pub(super) fn acquire(&mut self, acquire: Acquire, cx: &mut Cx<'_>) {
        let ticket = acquire.ticket;
        if let Some(contender) = &mut self.contender {
            match &mut contender.stage {
                Stage::Held(hold) if hold.thread == acquire.thread && !hold.doomed => {
                    hold.claims.push(ticket);
                    let (hold, token) = (hold.id, hold.token);
                    cx.out.tickets.insert(ticket, self.id);
                    let (name, key) = (self.name.clone(), contender.key.clone());
                    cx.out.act(Action::Grant { ticket, hold, name, key, token });
                    return;
                }
                Stage::Held(_) | Stage::Queued(_) if acquire.patience.try_only => {
                    cx.out.refuse(ticket, Refusal::Held);
                    return;
                }
                _ => {}
            }
        }
        cx.out.tickets.insert(ticket, self.id);
        let limits = [acquire.patience.deadline, acquire.patience.budget];
        if let Some(limit) = limits.into_iter().flatten().min() {
            cx.out.timers.set(Timer::Patience(ticket), limit);
        }
        self.waiters.push_back(acquire);
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
        hold.claims.retain(|&claim| claim != ticket);
        let (id, last) = (hold.id, hold.claims.is_empty());
        cx.out.forget_ticket(ticket);
        if last {
            cx.out.act(Action::EndHold { hold: id, lost: None });
            let confirm = if confirm { vec![ticket] } else { Vec::new() };
            self.discard_contender(confirm, cx);
        } else if confirm {
            cx.out.act(Action::Confirm { ticket, result: Ok(()) });
        }
    }

    /// Decides from the state alone what is to be done next.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>) {
        self.take_if_first(cx);
        if self.waiters.is_empty() {
            self.drop_unwanted_contender(cx);
        }
        self.fence_debris(cx);
        self.settle_departures(cx);
    }

    /// A contender that holds for somebody stays; one whose request is in flight stays until the answer is here.
    fn drop_unwanted_contender(&mut self, cx: &mut Cx<'_>) {
        let in_flight = matches!(&self.step, Progress::InFlight(sent) if sent.entering);
        let Some(contender) = &self.contender else {
            return;
        };
        match contender.stage {
            Stage::Held(_) => {}
            Stage::Entering if in_flight => {}
            Stage::Entering if contender.dirty.is_none() => self.forget_contender(cx),
            Stage::Entering | Stage::Queued(_) => self.discard_contender(Vec::new(), cx),
        }
    }

    /// A key that a delayed request could still bring back is deleted only under a later epoch than that request's.
    fn fence_debris(&mut self, cx: &mut Cx<'_>) {
        let epoch = cx.session.tenure().map(|tenure| tenure.guard.epoch);
        if epoch.is_some_and(|epoch| !self.debris.iter().all(|debris| debris.is_fenced(epoch))) {
            cx.session.fence(self.id, cx.out);
        }
    }

    /// Whether this queue is to be asked for a step soon, and was not already.
    pub(super) fn enlist(&mut self) -> bool {
        let wanted = match self.contender.as_ref().map(Contender::is_entering) {
            None => !self.waiters.is_empty(),
            Some(entering) => entering,
        };
        let wanted = matches!(self.step, Progress::Idle) && (wanted || !self.debris.is_empty());
        wanted && !std::mem::replace(&mut self.enlisted, true)
    }

    /// At most so many operations are in its next step.
    pub(super) fn most_operations(&self) -> usize {
        self.debris.len() + 1
    }

    /// Its next step must have a request of its own, because a batch with it was refused.
    pub(super) fn goes_alone(&self) -> bool {
        self.alone
    }

    /// The step that the state calls for now, if there is any; it is then in flight.
    pub(super) fn take_step(&mut self, guard: &Guard, cx: &mut Cx<'_>) -> Option<Step> {
        self.enlisted = false;
        if !matches!(self.step, Progress::Idle) {
            return None;
        }
        let tenure = cx.session.tenure()?;
        if let (None, Some(front)) = (&self.contender, self.waiters.front()) {
            let key =
                tenure.contender_key(&self.name, |key| self.debris.iter().any(|debris| debris.key == *key));
            let value = contender_value(front, cx.now, cx.out);
            self.contender = Some(Contender::new(key, value, tenure.lease, front.patience.try_only));
        }
        let entry =
            self.contender.as_ref().filter(|contender| contender.is_entering()).map(|contender| Entry {
                name: self.name.clone(),
                key: contender.key.clone(),
                value: contender.value.clone(),
                lease: contender.lease,
                try_only: contender.try_only,
            });
        let fenced = self.debris.iter().filter(|debris| debris.is_fenced(guard.epoch));
        let mut deletes: Vec<Key> = fenced.map(|debris| debris.key.clone()).collect();
        if self.alone && entry.is_none() {
            deletes.truncate(1);
        }
        if deletes.is_empty() && entry.is_none() {
            return None;
        }
        let sent = SentStep { epoch: guard.epoch, deletes: deletes.clone(), entering: entry.is_some() };
        self.step = Progress::InFlight(sent);
        Some(Step { queue: self.id, deletes, entry })
    }

    /// The contender has the lock, for the first waiter and for whatever else its thread has asked for.
    fn hold(&mut self, token: Revision, cx: &mut Cx<'_>) {
        let id = HoldId(cx.out.next_id());
        let Some(contender) = &mut self.contender else {
            return;
        };
        contender.leave_lookout(cx.out);
        // It is in the store now; ten thousand of them need not be here as well.
        contender.value = Vec::new();
        cx.out.timers.clear(Timer::Fallback(self.id));
        let Some(thread) = self.waiters.front().map(|front| front.thread) else {
            // Whoever wanted it has left meanwhile.
            self.discard_contender(Vec::new(), cx);
            return;
        };
        let (granted, waiting) = self.waiters.drain(..).partition(|waiter| waiter.thread == thread);
        self.waiters = waiting;
        let granted: VecDeque<Acquire> = granted;
        let claims: Vec<Ticket> = granted.iter().map(|waiter| waiter.ticket).collect();
        for &ticket in &claims {
            cx.out.timers.clear(Timer::Patience(ticket));
            let (name, key) = (self.name.clone(), contender.key.clone());
            cx.out.act(Action::Grant { ticket, hold: id, name, key, token });
        }
        contender.stage = Stage::Held(Hold { id, token, thread, claims, doomed: false });
        if contender.own_watch.is_none() {
            cx.out.timers.set(Timer::OwnWatch(self.id), cx.now + OWN_WATCH_AGE);
        }
        self.refuse_tries(cx);
    }

    /// Somebody has the lock, so those who only try do not get it.
    fn refuse_tries(&mut self, cx: &mut Cx<'_>) {
        self.waiters.retain(|waiter| {
            if waiter.patience.try_only {
                cx.out.refuse(waiter.ticket, Refusal::Held);
            }
            !waiter.patience.try_only
        });
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
        if let Some(hold) = self.forget_claims(out) {
            out.act(Action::EndHold { hold, lost: Some(reason) });
        }
    }

    /// The hold, if there is one, whose guards have nothing left to release.
    fn forget_claims(&self, out: &mut Outbox) -> Option<HoldId> {
        let hold = self.contender.as_ref().and_then(Contender::hold)?;
        for &ticket in &hold.claims {
            out.forget_ticket(ticket);
        }
        Some(hold.id)
    }

    /// The session is over, and with it the hold: [`Action::SessionDown`] ended all of them. Whatever this name had in
    /// etcd is deleted with its lease. The waiters stay.
    pub(super) fn lose_session(&mut self, reason: LossReason, cx: &mut Cx<'_>) {
        self.forget_claims(cx.out);
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

fn contender_value(front: &Acquire, now: Time, out: &Outbox) -> Vec<u8> {
    // The caller's wall clock when it asked, and the time it has waited here since.
    let created_at = front.asked_at + now.since(front.since);
    let thread = front.thread.0.to_string();
    ContenderValue::new(&out.config.owner, &thread, out.config.pid, created_at).encode()
}
