//! The session: one lease, its renewal, and the epoch that fences every request made under it.

mod closing;
mod lease;
mod revocation;

use std::time::Duration;

use self::lease::{ContenderKeys, Fence, SessionWatch, Tenure};
use self::revocation::Revocations;
use super::effects::{Outbox, Purpose, Watched};
use super::mutants::mutant;
use super::read::{self, Guard};
use super::timers::Timer;
use super::{Action, QueueId};
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Answer, Failure, FailureClass, KeyValue, Request, Response, Revision, Span};

/// First pause after a failed attempt to set up or to fence.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// What the whole protocol must do after the session handled something.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    Nothing,
    /// The session stands (again): every queue may go on.
    Up,
    /// A fence is through: these queues may go on.
    Fenced(Vec<QueueId>),
    /// The store refuses a later epoch: tries in these queues cannot be decided.
    FenceRefused(Vec<QueueId>, Failure),
    /// The session is over: every hold is lost.
    Lost(LossReason),
    /// There is no session, for this reason, and waiting does not help.
    Refused(Failure),
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    state: State,
    /// The highest raft term of all sessions, which only a mutant compares with.
    #[cfg(test)]
    term: u64,
    /// Attempts to set up that failed in a row.
    failures: u32,
    revocations: Revocations,
}

#[derive(Clone, Debug)]
enum State {
    /// No session, waiting for `Timer::Connect`. Exits: Granting, Closed.
    Down,
    /// A lease was asked for. Exits: Registering, Down, Closing.
    Granting,
    /// The lease is there, its session key is on its way. Exits: Up, Down, Closing.
    Registering(Tenure),
    /// Exits: Down, Closing.
    Up(Tenure),
    /// Every lease is being revoked, the one that was asked for once it is known. Exits: Closed.
    Closing {
        /// A lease was asked for, and there is no answer yet.
        granting: bool,
    },
    Closed,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            state: State::Down,
            #[cfg(test)]
            term: 0,
            failures: 0,
            revocations: Revocations::default(),
        }
    }

    /// The session, if it stands.
    pub(super) fn tenure(&mut self) -> Option<&mut Tenure> {
        match &mut self.state {
            State::Up(tenure) => Some(tenure),
            _ => None,
        }
    }

    /// No key that was used so far is used again; see [`ContenderKeys`].
    pub(super) fn retire_keys(&mut self) {
        if let Some(tenure) = self.tenure() {
            tenure.keys.retire();
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing { .. } | State::Closed)
    }

    pub(super) fn is_past_deadline(&self, now: Time) -> bool {
        matches!(&self.state, State::Up(tenure) | State::Registering(tenure) if tenure.deadline <= now)
    }

    /// Whether the answer comes from a member that has missed an election which others have told this session of. Such a
    /// member may answer a renewal for a lease that the new leader has given up (etcd #15247).
    pub(super) fn is_stale(&mut self, response: &Response) -> bool {
        let (State::Registering(tenure) | State::Up(tenure)) = &mut self.state else {
            return false;
        };
        tenure.term = tenure.term.max(response.term);
        #[cfg(test)]
        {
            self.term = self.term.max(response.term);
            if mutant!(TermOutlivesSession) {
                tenure.term = self.term;
            }
        }
        response.term < tenure.term && !mutant!(StaleTermBelieved)
    }

    /// Asks for a lease, if there is none.
    pub(super) fn connect(&mut self, now: Time, out: &mut Outbox) {
        if matches!(self.state, State::Down) {
            self.state = State::Granting;
            let ttl = out.config.ttl;
            out.send(Purpose::GrantLease { sent: now }, Request::GrantLease { ttl });
        }
    }

    pub(super) fn handle_granted(
        &mut self,
        now: Time,
        sent: Time,
        reply: Result<Response, Failure>,
        out: &mut Outbox,
    ) -> Verdict {
        let (lease, ttl, term) = match reply {
            Ok(Response { answer: Answer::LeaseGranted { lease, ttl }, term, .. }) => (lease, ttl, term),
            Ok(_) => return self.set_up_failed(now, read::garbled(), out),
            Err(failure) => return self.set_up_failed(now, failure, out),
        };
        if let State::Closing { granting } = &mut self.state {
            *granting = false;
            self.revocations.begin(now, lease, ttl, out);
            return Verdict::Nothing;
        }
        let deadline = (sent + ttl).saturating_sub(out.config.safety_margin);
        let session_key = out.config.root.session_key(lease);
        out.send(Purpose::PutSession, Request::Txn(read::put_session(&session_key, lease)));
        out.timers.set(Timer::SessionDeadline, deadline);
        let guard = Guard { session_key, epoch: 0 };
        let fence = Some(Fence::default());
        let keys = ContenderKeys::default();
        let tenure = Tenure { lease, ttl, term, deadline, guard, keys, fence, watch: None };
        self.state = State::Registering(tenure);
        // The renewals count from the grant, as the deadline does.
        out.timers.set(Timer::Renew, sent + ttl / 3);
        Verdict::Nothing
    }

    /// The session key was put: the first time, or again as a fence.
    pub(super) fn handle_put(
        &mut self,
        now: Time,
        reply: Result<Response, Failure>,
        out: &mut Outbox,
    ) -> Verdict {
        let (State::Registering(tenure) | State::Up(tenure)) = &mut self.state else {
            return Verdict::Nothing;
        };
        let response = match reply {
            Ok(response) => response,
            Err(failure) => return self.put_failed(now, failure, out),
        };
        tenure.guard.epoch = tenure.guard.epoch.max(response.revision);
        let waiting = tenure.fence.take().map(|fence| fence.waiting).unwrap_or_default();
        if matches!(self.state, State::Up(_)) {
            return Verdict::Fenced(waiting);
        }
        self.came_up(out)
    }

    fn came_up(&mut self, out: &mut Outbox) -> Verdict {
        if let State::Registering(mut tenure) = std::mem::replace(&mut self.state, State::Down) {
            let Tenure { lease, ttl, deadline, .. } = tenure;
            let span = Span::Key(tenure.guard.session_key.clone());
            // Not from a later revision: one that is still to come has etcd answer no request for progress on the
            // whole stream (3.4.42, 3.5.22, 3.6.5 and later), which then looks dead.
            let ahead = Revision::from(mutant!(SessionWatchedFromFuture));
            let id = out.watch(Watched::Session, span, tenure.guard.epoch + ahead);
            tenure.watch = Some(SessionWatch { id, stood: false });
            self.state = State::Up(tenure);
            self.failures = 0;
            out.act(Action::SessionUp { lease, ttl, deadline });
            out.timers.set(Timer::Silence, out.now + ttl / 3);
        }
        Verdict::Up
    }

    fn put_failed(&mut self, now: Time, failure: Failure, out: &mut Outbox) -> Verdict {
        match (failure.class, &mut self.state) {
            (FailureClass::LeaseGone, State::Up(_)) => Verdict::Lost(LossReason::SessionRevoked),
            (FailureClass::NotDone | FailureClass::Unknown, State::Registering(tenure))
            | (_, State::Up(tenure)) => {
                let fence = tenure.fence.get_or_insert_default();
                fence.failures += 1;
                let pause = out.back_off(FIRST_BACK_OFF, fence.failures);
                out.timers.set(Timer::Fence, now + pause);
                if failure.is_final() {
                    Verdict::FenceRefused(fence.waiting.clone(), failure)
                } else {
                    Verdict::Nothing
                }
            }
            (_, State::Registering(tenure)) => {
                let (lease, ttl) = (tenure.lease, tenure.ttl);
                self.revocations.begin(now, lease, ttl, out);
                self.set_up_failed(now, failure, out)
            }
            _ => Verdict::Nothing,
        }
    }

    /// Tries again later; a refusal that waiting does not mend is told to those who wait.
    fn set_up_failed(&mut self, now: Time, failure: Failure, out: &mut Outbox) -> Verdict {
        if let State::Closing { granting } = &mut self.state {
            *granting = false;
            self.end_if_done(out);
            return Verdict::Nothing;
        }
        self.state = State::Down;
        self.failures += 1;
        lease::forget_requests(out);
        let pause = out.back_off(FIRST_BACK_OFF, self.failures);
        out.timers.set(Timer::Connect, now + pause);
        out.act(Action::SessionFailed { failure: failure.clone() });
        if failure.is_final() { Verdict::Refused(failure) } else { Verdict::Nothing }
    }

    /// A store that is silent for a third of the time for which holds are assured is worth a word.
    pub(super) fn check_silence(&self, now: Time, out: &mut Outbox) {
        if let State::Up(tenure) = &self.state {
            let assured = tenure.ttl.saturating_sub(out.config.safety_margin);
            let check = out.contact.check_silence(now, tenure.deadline, assured);
            out.timers.set(Timer::Silence, check.again);
            if let Some(action) = check.action {
                out.act(action);
            }
        }
    }

    /// Sends a renewal. Each attempt has a deadline of its own, so that a member that does not answer costs one
    /// attempt, not the session.
    pub(super) fn renew(&mut self, now: Time, out: &mut Outbox) {
        if let State::Up(Tenure { lease, ttl, .. }) | State::Registering(Tenure { lease, ttl, .. }) =
            &self.state
        {
            let request = Request::RenewLease { lease: *lease };
            out.send_within(Purpose::Renew { sent: now }, request, *ttl / 6);
        }
    }

    pub(super) fn handle_renewed(
        &mut self,
        now: Time,
        sent: Time,
        reply: Result<Response, Failure>,
        stale: bool,
        out: &mut Outbox,
    ) -> Verdict {
        let reply = reply.map(|response| response.answer);
        let up = matches!(self.state, State::Up(_));
        let (State::Up(tenure) | State::Registering(tenure)) = &mut self.state else {
            return Verdict::Nothing;
        };
        match reply {
            Ok(Answer::LeaseRenewed { ttl }) if !stale => {
                tenure.ttl = ttl;
                // Counted from the send: etcd started the TTL anew after that, whenever it did.
                let start = if mutant!(DeadlineFromReceipt) { now } else { sent };
                let deadline = (start + ttl).saturating_sub(out.config.safety_margin);
                if deadline > tenure.deadline {
                    tenure.deadline = deadline;
                    out.timers.set(Timer::SessionDeadline, deadline);
                    if up {
                        out.act(Action::ExtendSession { deadline });
                    }
                }
                out.timers.set(Timer::Renew, (sent + ttl / 3).max(now));
                Verdict::Nothing
            }
            Err(failure) if failure.class == FailureClass::LeaseGone => {
                if up {
                    return Verdict::Lost(LossReason::SessionRevoked);
                }
                self.set_up_failed(now, failure, out)
            }
            _ => {
                let pause = (tenure.ttl / 20).min(Duration::from_millis(500));
                let pause = out.jittered(pause);
                out.timers.set(Timer::Renew, now + pause);
                Verdict::Nothing
            }
        }
    }

    /// Wants a later epoch; the queue is told by [`Verdict::Fenced`].
    pub(super) fn fence(&mut self, queue: QueueId, out: &mut Outbox) {
        if let State::Up(tenure) = &mut self.state {
            if tenure.fence.is_none() {
                tenure.put_session_key(out);
            }
            let fence = tenure.fence.get_or_insert_default();
            if !fence.waiting.contains(&queue) {
                fence.waiting.push(queue);
            }
        }
    }

    /// Puts the session key again after a failure.
    pub(super) fn retry_put(&mut self, out: &mut Outbox) {
        if let State::Up(tenure) | State::Registering(tenure) = &mut self.state {
            tenure.put_session_key(out);
        }
    }

    /// A guarded request was refused: here is the session key as it is now.
    pub(super) fn handle_refused(&mut self, session: Option<KeyValue>) -> Verdict {
        match (&mut self.state, session) {
            (State::Up(tenure), Some(kv)) => {
                tenure.guard.epoch = tenure.guard.epoch.max(kv.mod_revision);
                Verdict::Nothing
            }
            (State::Up(_), None) => Verdict::Lost(LossReason::SessionRevoked),
            _ => Verdict::Nothing,
        }
    }

    pub(super) fn handle_watch_created(&mut self, out: &mut Outbox) {
        if let State::Up(Tenure { watch: Some(watch), guard, .. }) = &mut self.state {
            if watch.stood {
                out.send(Purpose::CheckSession, Request::Txn(read::check_session(guard)));
            }
            watch.stood = true;
        }
    }

    pub(super) fn handle_checked(&mut self, reply: Result<Response, Failure>) -> Verdict {
        match reply.map(|response| response.answer) {
            Ok(Answer::Txn(answer)) => match read::session_checked(&answer) {
                Some(session) => self.handle_refused(session),
                None => Verdict::Nothing,
            },
            // Renewals and the next guarded request find out as well.
            _ => Verdict::Nothing,
        }
    }

    /// Says that the session is over, if it stands: for all of its holds at once, before any part of it is given up.
    /// [`lose`](Self::lose) or [`close`](Self::close) follows.
    pub(super) fn announce_end(&self, reason: LossReason, out: &mut Outbox) {
        if matches!(self.state, State::Up(_)) {
            out.act(Action::SessionDown { reason });
        }
    }

    /// Ends the session that stands; its end was announced before. A new one is asked for at once.
    pub(super) fn lose(&mut self, now: Time, reason: LossReason, out: &mut Outbox) {
        match std::mem::replace(&mut self.state, State::Down) {
            State::Up(tenure) => {
                tenure.clear(out);
                if reason == LossReason::SessionExpired {
                    // The margin is the holders' time to stop. Where the network works again, or in one direction only,
                    // an early revocation would hand their locks over within a moment.
                    let margin = out.config.safety_margin;
                    let pause = (tenure.deadline + margin).since(now).min(margin);
                    self.revocations.begin_after(now, pause, (tenure.lease, tenure.ttl), out);
                } else {
                    self.revocations.begin(now, tenure.lease, tenure.ttl, out);
                }
            }
            State::Registering(tenure) => {
                tenure.clear(out);
                self.revocations.begin(now, tenure.lease, tenure.ttl, out);
            }
            other => self.state = other,
        }
        self.connect(now, out);
    }
}
