//! What holders ask of etcd while they hold: reads and writes of keys of their own, and their notes.
//!
//! Each request is one transaction that compares the epoch and the create revision of every key of the hold, so etcd
//! itself refuses it once the hold is over. A write without an answer is never repeated: it may still be carried out as
//! long as the hold stands and the epoch lasts. So the epoch moves before the next request of that hold is sent, which
//! makes sure that a late copy cannot replace what is written later, and that a later read shows what became of it.

mod call;
mod request;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::contender::origin::HeldKeys;
use super::effects::{Effects, Purpose};
use super::history::Age;
use super::messages::{Action, FencedAnswer, FencedCall, FencedFailure, FencedId, QueueId, Ticket};
use super::mutants::mutant;
use super::queue::{Context, Queue};
use super::read;
use super::session::{Session, Verdict};
use super::timers::Timer;
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, FailureClass, KeyValue, Request, Response, Revision};
use call::{Call, State};

/// The first back-off after a request that was not carried out.
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);

/// A read may be repeated, so it gives an endpoint half of the time that is left, but at least this.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(500);

/// All fenced requests that are not answered yet.
#[derive(Clone, Debug, Default)]
pub(super) struct FencedCalls {
    /// In the order in which they were made.
    calls: BTreeMap<FencedId, Call>,
    /// For each hold, the latest epoch under which a write went unanswered. It may be carried out until the epoch changes.
    unanswered: HashMap<Ticket, Revision>,
}

/// What an answer means beyond its request.
#[derive(Debug)]
pub(super) enum Consequence {
    Of(Verdict),
    /// A key of the hold of this ticket does not exist any more.
    HoldGone(Ticket),
}

/// The same for the hold that made it.
#[derive(Debug)]
enum Meaning {
    Nothing,
    /// The epoch has changed; this is the session key now.
    EpochChanged(Option<KeyValue>),
    /// The lease, or what was put with it, does not exist any more.
    SessionGone,
    HoldGone,
}

impl FencedCalls {
    /// Sends what holders have asked for, or refuses it if their hold is over.
    pub(super) fn send(&mut self, queues: &HashMap<QueueId, Box<Queue>>, cx: &mut Context<'_>) {
        for (id, ticket) in self.ready() {
            let queue = cx.effects.tickets.get(&ticket).and_then(|queue| queues.get(queue));
            let held = queue.and_then(|queue| queue.held_keys(ticket));
            self.advance(id, held, cx);
        }
    }

    /// The requests that are to be sent, each with the ticket of its hold.
    fn ready(&self) -> Vec<(FencedId, Ticket)> {
        let is_ready = |call: &Call| matches!(call.state, State::Ready | State::AwaitsEpoch);
        let ready = self.calls.iter().filter(|(_, call)| is_ready(call));
        ready.map(|(&id, call)| (id, call.ticket)).collect()
    }

    pub(super) fn add(&mut self, call: FencedCall, effects: &mut Effects) {
        effects.timers.set(Timer::Fenced(call.id), call.until);
        self.calls.insert(call.id, Call::new(call));
    }

    /// Sends a request, unless its hold is over (`held` is `None`) or the epoch has to move first.
    fn advance(&mut self, id: FencedId, held: Option<HeldKeys>, cx: &mut Context<'_>) {
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        let (Some(held), Some(epoch)) = (held, cx.session.lease().map(|lease| lease.epoch.clone())) else {
            return self.finish(id, Err(FencedFailure::NotHeld), cx.effects);
        };
        if call.until <= cx.now {
            return self.give_up(id, cx.effects);
        }
        if self.waits_for_epoch(call.ticket, epoch.revision, cx.now) && !mutant!(FencedUnderOldEpoch) {
            cx.session.begin_epoch(cx.effects);
            if let Some(call) = self.calls.get_mut(&id) {
                call.state = State::AwaitsEpoch;
            }
            return;
        }
        let left = call.until.since(cx.now);
        let timeout = if call.is_read() { (left / 2).max(SHORTEST_ATTEMPT).min(left) } else { left };
        let txn = request::txn(&epoch, &held, &call.request, &cx.effects.config);
        cx.effects.send_within(Purpose::Fenced(id), Request::Txn(txn), timeout);
        if let Some(call) = self.calls.get_mut(&id) {
            call.state = State::InFlight { epoch: epoch.revision, keys: held.keys };
        }
    }

    /// Whether a write of this hold may still be carried out although nobody waits for it.
    fn waits_for_epoch(&self, ticket: Ticket, epoch: Revision, now: Time) -> bool {
        let in_flight = |call: &Call| call.ticket == ticket && call.is_overdue_write(epoch, now);
        self.unanswered.get(&ticket).is_some_and(|&unanswered| unanswered >= epoch)
            || self.calls.values().any(in_flight)
    }

    /// A request was answered, or failed.
    pub(super) fn handle_reply(
        &mut self,
        id: FencedId,
        reply: Result<Response, Failure>,
        age: Age,
        session: &mut Session,
        effects: &mut Effects,
    ) -> Consequence {
        let ticket = self.calls.get(&id).map(|call| call.ticket);
        let meaning = self.take_reply(id, reply, age, effects);
        // An answer to a request of an earlier session says nothing about this one.
        let Some(ticket) = ticket.filter(|ticket| effects.tickets.contains_key(ticket)) else {
            return Consequence::Of(Verdict::Nothing);
        };
        match meaning {
            Meaning::Nothing => Consequence::Of(Verdict::Nothing),
            Meaning::EpochChanged(key) => Consequence::Of(session.handle_stale_epoch(key)),
            Meaning::SessionGone => Consequence::Of(Verdict::Lost(LossReason::SessionRevoked)),
            Meaning::HoldGone => Consequence::HoldGone(ticket),
        }
    }

    fn take_reply(
        &mut self,
        id: FencedId,
        reply: Result<Response, Failure>,
        age: Age,
        effects: &mut Effects,
    ) -> Meaning {
        let Some(call) = self.calls.get_mut(&id) else {
            return Meaning::Nothing;
        };
        let State::InFlight { epoch, keys } = std::mem::replace(&mut call.state, State::Ready) else {
            return Meaning::Nothing;
        };
        let reply = match reply {
            // Unlike a write, a read can be answered from an old state (etcd #20418).
            Ok(_) if age == Age::Old && call.is_read() => Err(read::stale()),
            // What this session has put was lost in a restore.
            Ok(_) if age == Age::Old => {
                let stale = Failure { class: FailureClass::Unknown, ..read::stale() };
                self.finish(id, Err(FencedFailure::Failed(stale)), effects);
                return Meaning::SessionGone;
            }
            reply => reply,
        };
        match reply.map(|response| request::answer(epoch, &keys, &call.request, response)) {
            Ok(request::Outcome::Done(answer)) => {
                self.finish(id, Ok(answer), effects);
                Meaning::Nothing
            }
            Ok(request::Outcome::EpochChanged(Some(session))) if session.mod_revision < epoch => {
                if call.is_read() {
                    self.failed(id, epoch, read::stale(), effects)
                } else {
                    Meaning::SessionGone
                }
            }
            Ok(request::Outcome::EpochChanged(session)) => Meaning::EpochChanged(session),
            Ok(request::Outcome::HoldGone) => Meaning::HoldGone,
            Ok(request::Outcome::Old) => self.failed(id, epoch, read::stale(), effects),
            Ok(request::Outcome::Malformed) => self.failed(id, epoch, read::malformed_write(), effects),
            Err(failure) => self.failed(id, epoch, failure, effects),
        }
    }

    fn failed(&mut self, id: FencedId, epoch: Revision, failure: Failure, effects: &mut Effects) -> Meaning {
        let Some(call) = self.calls.get_mut(&id) else {
            return Meaning::Nothing;
        };
        let repeats = match failure.class {
            FailureClass::LeaseGone => return Meaning::SessionGone,
            FailureClass::NotDone => true,
            FailureClass::Unknown if mutant!(FencedRepeated) => true,
            FailureClass::Unknown => {
                if !call.is_read() {
                    let tickets = &effects.tickets;
                    self.unanswered.retain(|ticket, _| tickets.contains_key(ticket));
                    let latest = self.unanswered.entry(call.ticket).or_insert(epoch);
                    *latest = if mutant!(FencedEpochTakenBack) { epoch } else { epoch.max(*latest) };
                }
                call.is_read()
            }
            _ => false,
        };
        call.failures += 1;
        let again = effects.now + effects.back_off(FIRST_BACK_OFF, call.failures);
        if repeats && again < call.until {
            call.state = State::BackingOff;
            call.last_failure = Some(failure);
            effects.timers.set(Timer::Fenced(id), again);
        } else {
            self.finish(id, Err(FencedFailure::Failed(failure)), effects);
        }
        Meaning::Nothing
    }

    /// The back-off of the request is over, or its time.
    pub(super) fn handle_timer(&mut self, id: FencedId, effects: &mut Effects) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        // What is in flight has the same time limit, and its failure says more.
        if matches!(call.state, State::InFlight { .. }) {
            return;
        }
        if call.until <= effects.now {
            return self.give_up(id, effects);
        }
        call.state = State::Ready;
        effects.timers.set(Timer::Fenced(id), call.until);
    }

    /// The store refuses to begin a new epoch: fails the requests that wait for one.
    pub(super) fn epoch_refused(&mut self, failure: &Failure, effects: &mut Effects) {
        let waiting = self.calls.iter().filter(|(_, call)| call.state == State::AwaitsEpoch);
        for id in waiting.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.finish(id, Err(FencedFailure::Failed(failure.clone())), effects);
        }
    }

    /// The protocol is closing: answers everybody. What is in flight may be carried out.
    pub(super) fn close(&mut self, effects: &mut Effects) {
        let calls: Vec<(FencedId, bool)> =
            self.calls.iter().map(|(&id, call)| (id, matches!(call.state, State::InFlight { .. }))).collect();
        for (id, in_flight) in calls {
            let closed =
                || Failure::new(FailureClass::Unknown, "the manager was closed before etcd answered");
            let failure = if in_flight { FencedFailure::Failed(closed()) } else { FencedFailure::NotHeld };
            self.finish(id, Err(failure), effects);
        }
    }

    /// The time of a request that is not in flight is over.
    fn give_up(&mut self, id: FencedId, effects: &mut Effects) {
        let last = self.calls.get(&id).and_then(|call| call.last_failure.clone());
        let failure = last
            .or_else(|| effects.contact.trouble(effects.now))
            .unwrap_or_else(|| Failure::new(FailureClass::NotDone, "etcd has not answered in time"));
        self.finish(id, Err(FencedFailure::Failed(failure)), effects);
    }

    fn finish(&mut self, id: FencedId, result: Result<FencedAnswer, FencedFailure>, effects: &mut Effects) {
        if self.calls.remove(&id).is_some() {
            effects.timers.clear(Timer::Fenced(id));
            effects.act(Action::Fenced { id, result });
        }
    }
}
