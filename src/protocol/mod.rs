//! The lock protocol as a state machine without I/O, threads or a clock.
//!
//! Time and events come in as arguments, [`Action`]s come out of [`Protocol::poll_action`]. One `Protocol` is one
//! session's side of everything: its lease, and a queue for every name that is in use.

mod batch;
mod contact;
mod contender;
mod effects;
mod messages;
pub(crate) mod mutants;
mod queue;
mod read;
mod session;
mod timers;
mod write;

use std::collections::HashMap;

pub(crate) use self::batch::IN_FLIGHT;
pub(crate) use self::messages::{
    Acquire, Action, Command, Config, HoldId, Holder, Patience, Refusal, ReleaseFailure, RequestId, Ticket,
};

use self::batch::Batches;
use self::effects::{Outbox, Purpose, Watched};
use self::messages::QueueId;
use self::mutants::mutant;
use self::queue::{Cx, Queue};
use self::session::{Session, Verdict};
use self::timers::Timer;
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, Response, WatchEvent};
use crate::name::LockName;

/// One session's side of the lock protocol.
///
/// Feed it with the `handle_*` methods; carry out what [`poll_action`](Self::poll_action) gives until it gives nothing;
/// call [`handle_timeout`](Self::handle_timeout) at [`next_timeout`](Self::next_timeout).
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    session: Session,
    /// Boxed, because the table is up to half empty.
    queues: HashMap<QueueId, Box<Queue>>,
    names: HashMap<LockName, QueueId>,
    /// Queues whose state changed. They advance when the outside has handed over all it has, so that what arrives
    /// together (a release and the next acquire, say) leaves together.
    touched: Vec<QueueId>,
    batches: Batches,
    out: Outbox,
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
            out: Outbox::new(config),
            now: Time::default(),
        }
    }

    /// Begins to set up a session.
    pub(crate) fn handle_start(&mut self, now: Time) {
        self.pass(now);
        self.session.connect(now, &mut self.out);
    }

    pub(crate) fn handle_command(&mut self, now: Time, command: Command) {
        self.pass(now);
        match command {
            Command::Acquire(acquire) if self.session.is_closing() => {
                self.out.refuse(acquire.ticket, Refusal::Closed);
            }
            Command::Acquire(acquire) => self.acquire(acquire),
            Command::Leave { ticket, confirm } => self.leave(ticket, confirm),
            Command::Close => self.close(),
        }
    }

    pub(crate) fn handle_reply(&mut self, now: Time, id: RequestId, reply: Result<Response, Failure>) {
        self.pass(now);
        if let Some(action) = self.out.contact.replied(now, reply.as_ref().err()) {
            self.out.act(action);
        }
        // Not there: nobody waits for it any more, as after the loss of its session.
        let Some(purpose) = self.out.take_purpose(id) else {
            return;
        };
        let stale = reply.as_ref().is_ok_and(|response| self.session.is_stale(response));
        let (session, out) = (&mut self.session, &mut self.out);
        let verdict = match purpose {
            Purpose::GrantLease { sent } => session.handle_granted(now, sent, reply, out),
            Purpose::PutSession => session.handle_put(now, reply, out),
            Purpose::Renew { sent } => session.handle_renewed(now, sent, reply, stale, out),
            Purpose::CheckSession => session.handle_checked(reply),
            Purpose::Revoke { lease } => {
                session.handle_revoked(now, lease, &reply, out);
                Verdict::Nothing
            }
            Purpose::Steps => return self.handle_steps(id, reply),
            Purpose::Look(id) => self.in_queue(id, |queue, cx| queue.handle_look(reply, cx)),
            Purpose::Inspect(id) => self.in_queue(id, |queue, cx| {
                queue.handle_inspected(reply, cx);
                Verdict::Nothing
            }),
        };
        self.obey(verdict);
    }

    pub(crate) fn handle_watch(&mut self, now: Time, event: WatchEvent) {
        self.pass(now);
        let id = match event {
            WatchEvent::Created { watch, .. } | WatchEvent::Deleted { watch, .. } => watch,
        };
        let Some(watched) = self.out.watched(id) else {
            return;
        };
        match (watched, event) {
            (Watched::Session, WatchEvent::Created { .. }) => {
                self.session.handle_watch_created(&mut self.out);
            }
            (Watched::Session, WatchEvent::Deleted { .. }) => {
                self.obey(Verdict::Lost(LossReason::SessionRevoked));
            }
            (Watched::Place(id), WatchEvent::Created { revision, .. }) => {
                self.change_queue(id, |queue, cx| queue.lookout_stands(revision, cx));
            }
            (Watched::Place(id), WatchEvent::Deleted { keys, revision, .. }) => {
                self.change_queue(id, |queue, cx| queue.sighted(&keys, revision, cx));
            }
            (Watched::Own(id), WatchEvent::Created { .. }) => {
                self.change_queue(id, |queue, cx| queue.own_key_watched(cx));
            }
            (Watched::Own(id), WatchEvent::Deleted { revision, .. }) => {
                self.change_queue(id, |queue, cx| queue.own_key_deleted(revision, cx));
            }
        }
    }

    /// A caller's thread saw the deadline pass before a renewal could move it, and acted on that.
    pub(crate) fn handle_expired(&mut self, now: Time) {
        self.pass(now);
        if self.session.tenure().is_some() {
            self.obey(Verdict::Lost(LossReason::SessionExpired));
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.pass(now);
        while let Some(timer) = self.out.timers.take_due(now) {
            match timer {
                Timer::SessionDeadline => self.obey(Verdict::Lost(LossReason::SessionExpired)),
                Timer::Silence => self.session.check_silence(now, &mut self.out),
                Timer::SlowWait(ticket) => self.in_place_of(ticket, Queue::tell_slow_wait),
                Timer::Renew => self.session.renew(now, &mut self.out),
                Timer::Connect => self.session.connect(now, &mut self.out),
                Timer::Fence => self.session.retry_put(&mut self.out),
                Timer::Revoke(lease) => self.session.retry_revoke(lease, &mut self.out),
                Timer::Patience(ticket) => self.in_place_of(ticket, Queue::lose_patience),
                Timer::Depart(ticket) => self.in_place_of(ticket, Queue::end_grace),
                Timer::Retry(id) => self.change_queue(id, Queue::retry),
                Timer::Fallback(id) => self.change_queue(id, Queue::fall_back),
                Timer::OwnWatch(id) => self.change_queue(id, Queue::watch_own_key),
            }
        }
    }

    /// What to do next; `None` until something else is handled.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        for id in std::mem::take(&mut self.touched) {
            let mut cx = Cx { now: self.now, session: &mut self.session, out: &mut self.out };
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
        let mut cx = Cx { now: self.now, session: &mut self.session, out: &mut self.out };
        self.batches.send(&mut self.queues, &mut cx);
        self.out.pop_action()
    }

    /// A close would have nothing to take back from the store.
    pub(crate) fn has_left_nothing(&self) -> bool {
        self.session.has_left_nothing()
    }

    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.out.timers.next()
    }

    /// Nobody holds, waits, or has left anything that must go.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// All of its state that matters to what comes, in an order of its own: two protocols with the same sketch, but for
    /// the names of things and the times, do the same.
    #[cfg(test)]
    pub(crate) fn sketch(&self) -> String {
        let queues: std::collections::BTreeMap<_, _> = self.queues.iter().collect();
        let (batches, out) = (self.batches.sketch(), self.out.sketch());
        format!("{queues:?} {:?} {batches} {:?} {out}", self.touched, self.session)
    }

    /// Time has passed. A deadline that passed with it counts before anything else, even an answer that arrived.
    fn pass(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.out.now = self.now;
        if self.session.is_past_deadline(now) && !mutant!(AnswersBeforeDeadline) {
            self.obey(Verdict::Lost(LossReason::SessionExpired));
        }
    }

    fn acquire(&mut self, acquire: Acquire) {
        let id = match self.names.get(&acquire.name) {
            Some(&id) => id,
            None => {
                let id = QueueId(self.out.next_id());
                self.names.insert(acquire.name.clone(), id);
                self.queues.insert(id, Box::new(Queue::new(id, acquire.name.clone())));
                id
            }
        };
        self.change_queue(id, |queue, cx| queue.acquire(acquire, cx));
    }

    fn leave(&mut self, ticket: Ticket, confirm: bool) {
        if self.out.tickets.contains_key(&ticket) {
            self.in_place_of(ticket, |queue, ticket, cx| queue.leave(ticket, confirm, cx));
        } else if confirm {
            // Its hold was lost or its refusal is on the way; the caller knows more than this or learns it first.
            let result = Err(ReleaseFailure::NotHeld);
            self.out.act(Action::Confirm { ticket, result });
        }
    }

    fn close(&mut self) {
        if self.session.is_closing() {
            return;
        }
        self.batches.clear();
        self.session.announce_end(LossReason::Closed, &mut self.out);
        for id in self.queue_ids() {
            self.change_queue(id, Queue::close);
        }
        self.session.close(self.now, &mut self.out);
    }

    fn handle_steps(&mut self, id: RequestId, reply: Result<Response, Failure>) {
        for (queue, fate) in self.batches.handle_reply(id, reply, &self.queues, self.now) {
            let verdict = self.in_queue(queue, |queue, cx| queue.handle_step(fate, cx));
            self.obey(verdict);
        }
    }

    fn obey(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Nothing => {}
            Verdict::Up => self.touched.extend(self.queue_ids()),
            Verdict::Fenced(waiting) => {
                for id in waiting {
                    self.change_queue(id, Queue::retry);
                }
            }
            Verdict::FenceRefused(waiting, failure) => {
                for id in waiting {
                    self.change_queue(id, |queue, cx| queue.fence_refused(&failure, cx));
                }
            }
            Verdict::Lost(reason) => {
                self.batches.clear();
                self.out.forget_requests(|purpose| purpose == Purpose::Steps);
                self.session.announce_end(reason, &mut self.out);
                for id in self.queue_ids() {
                    self.change_queue(id, |queue, cx| queue.lose_session(reason, cx));
                }
                self.session.lose(self.now, reason, &mut self.out);
            }
            Verdict::Refused(failure) => {
                let refusal = Refusal::Failed(failure);
                for id in self.queue_ids() {
                    self.change_queue(id, |queue, cx| queue.refuse_waiters(&refusal, cx));
                }
            }
        }
    }

    /// In order of creation, so that the same events always give the same actions.
    fn queue_ids(&self) -> Vec<QueueId> {
        let mut ids: Vec<QueueId> = self.queues.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn in_place_of(&mut self, ticket: Ticket, change: impl FnOnce(&mut Queue, Ticket, &mut Cx<'_>)) {
        if let Some(&id) = self.out.tickets.get(&ticket) {
            self.change_queue(id, |queue, cx| change(queue, ticket, cx));
        }
    }

    fn change_queue(&mut self, id: QueueId, change: impl FnOnce(&mut Queue, &mut Cx<'_>)) {
        let verdict = self.in_queue(id, |queue, cx| {
            change(queue, cx);
            Verdict::Nothing
        });
        self.obey(verdict);
    }

    fn in_queue(&mut self, id: QueueId, change: impl FnOnce(&mut Queue, &mut Cx<'_>) -> Verdict) -> Verdict {
        let mut cx = Cx { now: self.now, session: &mut self.session, out: &mut self.out };
        let Some(queue) = self.queues.get_mut(&id) else {
            return Verdict::Nothing;
        };
        self.touched.push(id);
        change(queue, &mut cx)
    }
}

#[cfg(test)]
mod tests;
