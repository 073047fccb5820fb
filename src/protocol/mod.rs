//! The lock protocol as a state machine without I/O, threads or a clock.
//!
//! Time and events are arguments of the `handle_*` methods of [`Protocol`]; [`Action`]s come out of
//! [`Protocol::poll_action`]. A `Protocol` has one session, whose lease all of its keys are attached to, and one
//! [`Queue`] for every lock name in use. The session knows no queue and the queues do not know each other: what one part
//! must cause in another is returned as a [`Verdict`], and carried out here.

mod messages;
mod session;

mod contender;
mod fenced;
mod queue;

mod admission;
mod batch;
mod put;
mod read;
mod write;

mod contact;
mod effects;
mod history;
mod timers;

pub(crate) mod mutants;

use std::collections::HashMap;

pub(crate) use batch::WRITES_IN_FLIGHT;
pub(crate) use effects::back_off;
pub(crate) use messages::{
    Acquire, Action, Command, Config, CurrentHolder, FencedAnswer, FencedCall, FencedFailure, FencedId,
    FencedRequest, FencedWrite, HoldId, Refusal, ReleaseFailure, RequestId, Ticket, WaitLimits,
};
pub(crate) use read::{holder, holder_answer};

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, Response, WatchEvent};
use crate::name::LockName;

use batch::Batches;
use contender::{Contender, Fact, Surroundings};
use effects::{Effects, Purpose, Watched};
use fenced::{Consequence, FencedCalls};
use history::Age;
use messages::{ContenderId, QueueId};
use mutants::mutant;
use queue::{Context, Queue};
use session::{Session, Verdict};
use timers::Timer;

/// One session's side of the lock protocol.
///
/// The driver passes events to the `handle_*` methods, then carries out actions from [`poll_action`](Self::poll_action)
/// until there are none, and calls [`handle_timeout`](Self::handle_timeout) at [`next_timeout`](Self::next_timeout).
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    session: Session,
    /// Boxed, because up to half of a hash table's slots are empty.
    queues: HashMap<QueueId, Box<Queue>>,
    names: HashMap<LockName, QueueId>,
    /// Queues whose state changed. They advance in `poll_action`, when the driver has passed on all of its events, so
    /// that events that arrive together (a release and the next acquire, say) end up in one write.
    touched: Vec<QueueId>,
    batches: Batches,
    fenced: FencedCalls,
    effects: Effects,
    now: Time,
}

impl Protocol {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            session: Session::new(),
            queues: HashMap::new(),
            names: HashMap::new(),
            touched: Vec::new(),
            batches: Batches::new(),
            fenced: FencedCalls::default(),
            effects: Effects::new(config),
            now: Time::default(),
        }
    }

    /// Begins to set up a session.
    pub(crate) fn handle_start(&mut self, now: Time) {
        self.advance_clock(now);
        self.session.connect(now, &mut self.effects);
    }

    pub(crate) fn handle_command(&mut self, now: Time, command: Command) {
        self.advance_clock(now);
        match command {
            Command::Acquire(acquire) if self.session.is_closing() => {
                self.effects.refuse(acquire.ticket, Refusal::Closed);
            }
            Command::Acquire(acquire) => self.acquire(acquire),
            Command::Abandon { ticket, confirm } => self.abandon(ticket, confirm),
            Command::Fenced(call) => self.fenced.add(call, &mut self.effects),
            Command::Close => self.close(),
        }
    }

    pub(crate) fn handle_reply(&mut self, now: Time, id: RequestId, reply: Result<Response, Failure>) {
        self.advance_clock(now);
        if let Some(action) = self.effects.contact.replied(now, reply.as_ref().err()) {
            self.effects.act(action);
        }
        // Unknown ids belong to requests that are no longer of interest, as after the loss of their session.
        let Some((purpose, known)) = self.effects.take_request(id) else {
            return;
        };
        let age =
            reply.as_ref().ok().zip(known).map_or(Age::Current, |(answer, known)| {
                self.effects.history.answered(answer.revision, known)
            });
        if age == Age::Old && purpose == Purpose::Writes && !self.session.is_closing() {
            // What this session has put was lost in a restore.
            return self.apply(Verdict::Lost(LossReason::SessionRevoked));
        }
        let stale = reply.as_ref().is_ok_and(|response| self.session.is_stale(response));
        let (session, effects) = (&mut self.session, &mut self.effects);
        let verdict = match purpose {
            Purpose::GrantLease { sent } => session.handle_granted(now, sent, reply, effects),
            Purpose::PutSession => session.handle_put(now, reply, known.unwrap_or_default(), effects),
            Purpose::Renew { sent } => session.handle_renewed(now, sent, reply, stale, effects),
            Purpose::CheckSession if age == Age::Old => Verdict::Nothing,
            Purpose::CheckSession => session.handle_checked(reply),
            Purpose::Revoke { lease } => {
                session.handle_revoked(now, lease, &reply, effects);
                Verdict::Nothing
            }
            Purpose::Writes => return self.handle_writes(id, reply),
            Purpose::Fenced(id) => self.handle_fenced(id, reply, age),
            Purpose::CheckPosition(id) => {
                self.in_queue(id.queue, |queue, cx| queue.position_answered(id, reply, cx))
            }
            Purpose::ReadHolder(id) => self.in_queue(id, |queue, cx| {
                let reply = if age == Age::Old { Err(read::stale()) } else { reply };
                queue.handle_holder_read(reply, cx);
                Verdict::Nothing
            }),
        };
        self.apply(verdict);
        if age == Age::Old {
            self.session.begin_epoch(&mut self.effects);
        }
    }

    pub(crate) fn handle_watch(&mut self, now: Time, event: WatchEvent) {
        self.advance_clock(now);
        let Some(watched) = self.effects.watched(event.watch()) else {
            return;
        };
        match (watched, event) {
            // The protocol's watches ask for deletions only.
            (_, WatchEvent::Put { .. }) => {}
            (Watched::Session, WatchEvent::Created { .. }) => {
                if self.session.handle_watch_created(&mut self.effects) {
                    for id in self.queue_ids() {
                        self.change_queue(id, Queue::stream_reopened);
                    }
                }
            }
            (Watched::Session, WatchEvent::Deleted { .. }) => {
                self.apply(Verdict::Lost(LossReason::SessionRevoked));
            }
            (Watched::Predecessors(id), WatchEvent::Created { revision, .. }) => {
                self.contend(id, |contender, cx| contender.predecessor_watch_confirmed(revision, cx));
            }
            (Watched::Predecessors(id), WatchEvent::Deleted { keys, revision, .. }) => {
                self.contend(id, |contender, cx| contender.predecessors_deleted(&keys, revision, cx));
            }
            (Watched::OwnKey(id), WatchEvent::Created { .. }) => {
                self.contend(id, Contender::own_watch_confirmed);
            }
            (Watched::OwnKey(id), WatchEvent::Deleted { revision, .. }) => {
                self.contend(id, |contender, cx| contender.own_key_deleted(revision, cx));
            }
        }
    }

    /// A caller's thread saw the deadline pass before a renewal could extend it, so the holds have ended already.
    pub(crate) fn handle_expired(&mut self, now: Time) {
        self.advance_clock(now);
        if self.session.lease().is_some() {
            self.apply(Verdict::Lost(LossReason::SessionExpired));
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.advance_clock(now);
        while let Some(timer) = self.effects.timers.take_due(now) {
            match timer {
                Timer::SessionDeadline => self.apply(Verdict::Lost(LossReason::SessionExpired)),
                Timer::Silence => self.session.check_silence(now, &mut self.effects),
                Timer::SlowWait(ticket) => self.in_queue_of(ticket, Queue::report_slow_wait),
                Timer::Renew => self.session.renew(now, &mut self.effects),
                Timer::Connect => self.session.connect(now, &mut self.effects),
                Timer::Fence => self.session.retry_put(&mut self.effects),
                Timer::Revoke(lease) => self.session.retry_revoke(lease, &mut self.effects),
                Timer::WaitLimit(ticket) => self.in_queue_of(ticket, Queue::reach_wait_limit),
                Timer::EndGrace(ticket) => self.in_queue_of(ticket, Queue::end_grace),
                Timer::Retry(id) => self.change_queue(id, Queue::retry),
                Timer::Recheck(id) => self.contend(id, Contender::recheck_position),
                Timer::AwaitLossReason(id) => self.contend(id, Contender::stop_awaiting_loss_reason),
                Timer::Fenced(id) => self.fenced.handle_timer(id, &mut self.effects),
                Timer::OwnWatch(id) => self.contend(id, Contender::watch_own_key),
            }
        }
    }

    /// The next action to carry out; `None` until another event is handled.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        for id in std::mem::take(&mut self.touched) {
            let mut cx = Context { now: self.now, session: &mut self.session, effects: &mut self.effects };
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.advance(&mut cx);
                if queue.is_over() {
                    self.names.remove(queue.name());
                    self.queues.remove(&id);
                } else {
                    self.batches.enlist(queue);
                }
            }
        }
        let mut cx = Context { now: self.now, session: &mut self.session, effects: &mut self.effects };
        self.batches.send(&mut self.queues, &mut cx);
        self.fenced.send(&self.queues, &mut cx);
        self.effects.pop_action()
    }

    /// Whether a caller of this process waits for the lock; one that only tries does not count.
    pub(crate) fn has_waiters(&self, name: &LockName) -> bool {
        self.names.get(name).and_then(|id| self.queues.get(id)).is_some_and(|it| it.keeps_somebody_waiting())
    }

    /// Nothing of ours is in the store, as far as we know, so closing needs no request.
    pub(crate) fn owns_nothing(&self) -> bool {
        self.session.owns_nothing()
    }

    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.effects.timers.next()
    }

    /// Advances the clock. A session deadline that has passed by then takes effect before the event that is about to be
    /// handled, even if that is the answer to a renewal.
    fn advance_clock(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.effects.now = self.now;
        if self.session.is_past_deadline(now) && !mutant!(AnswersBeforeDeadline) {
            self.apply(Verdict::Lost(LossReason::SessionExpired));
        }
    }

    fn acquire(&mut self, acquire: Acquire) {
        let id = match self.names.get(&acquire.name) {
            Some(&id) => id,
            None => {
                let id = QueueId(self.effects.next_id());
                self.names.insert(acquire.name.clone(), id);
                self.queues.insert(id, Box::new(Queue::new(id, acquire.name.clone())));
                id
            }
        };
        self.change_queue(id, |queue, cx| queue.acquire(acquire, cx));
    }

    fn abandon(&mut self, ticket: Ticket, confirm: bool) {
        if self.effects.tickets.contains_key(&ticket) {
            self.in_queue_of(ticket, |queue, ticket, cx| queue.abandon(ticket, confirm, cx));
        } else if confirm {
            // Its hold was lost or it was refused, and that action was emitted before this one.
            let result = Err(ReleaseFailure::NotHeld);
            self.effects.act(Action::Confirm { ticket, result });
        }
    }

    fn close(&mut self) {
        if self.session.is_closing() {
            return;
        }
        self.batches.clear();
        self.session.announce_end(LossReason::Closed, &mut self.effects);
        for id in self.queue_ids() {
            self.change_queue(id, Queue::close);
        }
        self.fenced.close(&mut self.effects);
        self.session.close(self.now, &mut self.effects);
    }

    fn handle_fenced(&mut self, id: FencedId, reply: Result<Response, Failure>, age: Age) -> Verdict {
        match self.fenced.handle_reply(id, reply, age, &mut self.session, &mut self.effects) {
            Consequence::Of(verdict) => verdict,
            Consequence::HoldGone(ticket) => {
                self.in_queue_of(ticket, Queue::hold_gone);
                Verdict::Nothing
            }
        }
    }

    fn handle_writes(&mut self, id: RequestId, reply: Result<Response, Failure>) {
        for (queue, outcome) in self.batches.handle_reply(id, reply, &self.queues, self.now) {
            let verdict = self.in_queue(queue, |queue, cx| queue.handle_write(outcome, cx));
            self.apply(verdict);
        }
    }

    fn apply(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Nothing => {}
            Verdict::Up => self.touched.extend(self.queue_ids()),
            Verdict::Fenced(waiting) => {
                for id in waiting {
                    self.change_queue(id, Queue::retry);
                }
            }
            Verdict::FenceRefused(waiting, failure) => {
                self.fenced.epoch_refused(&failure, &mut self.effects);
                for id in waiting {
                    self.change_queue(id, |queue, cx| queue.fence_refused(&failure, cx));
                }
            }
            Verdict::Lost(reason) => {
                self.effects.forget_history();
                self.batches.clear();
                self.effects.forget_requests(|purpose| purpose == Purpose::Writes);
                self.session.announce_end(reason, &mut self.effects);
                for id in self.queue_ids() {
                    self.change_queue(id, |queue, cx| queue.lose_session(reason, cx));
                }
                self.session.lose(self.now, reason, &mut self.effects);
            }
            Verdict::Refused(failure) => {
                let refusal = Refusal::Failed(failure);
                for id in self.queue_ids() {
                    self.change_queue(id, |queue, cx| queue.refuse_waiters(&refusal, cx));
                }
            }
        }
    }

    /// In order of creation, so that the same events always cause the same actions.
    fn queue_ids(&self) -> Vec<QueueId> {
        let mut ids: Vec<QueueId> = self.queues.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn in_queue_of(&mut self, ticket: Ticket, change: impl FnOnce(&mut Queue, Ticket, &mut Context<'_>)) {
        if let Some(&id) = self.effects.tickets.get(&ticket) {
            self.change_queue(id, |queue, cx| change(queue, ticket, cx));
        }
    }

    fn change_queue(&mut self, id: QueueId, change: impl FnOnce(&mut Queue, &mut Context<'_>)) {
        let verdict = self.in_queue(id, |queue, cx| {
            change(queue, cx);
            Verdict::Nothing
        });
        self.apply(verdict);
    }

    /// Passes an event to a contender.
    fn contend(
        &mut self,
        id: ContenderId,
        event: impl FnOnce(&mut Contender, &mut Surroundings<'_>) -> Fact,
    ) {
        self.change_queue(id.queue, |queue, cx| queue.contend(id, cx, event));
    }

    fn in_queue(
        &mut self,
        id: QueueId,
        change: impl FnOnce(&mut Queue, &mut Context<'_>) -> Verdict,
    ) -> Verdict {
        let mut cx = Context { now: self.now, session: &mut self.session, effects: &mut self.effects };
        let Some(queue) = self.queues.get_mut(&id) else {
            return Verdict::Nothing;
        };
        self.touched.push(id);
        change(queue, &mut cx)
    }
}

#[cfg(test)]
mod tests;
