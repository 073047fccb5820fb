//! The session: a lease, its renewal, and the epoch that fences every request made under it.

mod closing;
mod lease;
mod revocation;

use std::time::Duration;

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Answer, Failure, FailureClass, KeyValue, Request, Response, Revision, Span};

use super::effects::{Effects, Purpose, Watched};
use super::messages::{Action, QueueId};
use super::mutants::mutant;
use super::read::{self, Epoch};
use super::timers::Timer;
use lease::{ContenderKeys, Fence, Lease, SessionWatch};
use revocation::Revocations;

/// The first back-off after a failed attempt to set up a session or to begin a new epoch.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// What the session or a queue has found out that concerns the whole protocol.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    Nothing,
    /// A session is established: every queue may go on.
    Up,
    /// A new epoch has begun: these queues may go on.
    Fenced(Vec<QueueId>),
    /// The store refuses to begin a new epoch: tries in these queues cannot be decided.
    FenceRefused(Vec<QueueId>, Failure),
    /// The session is over: every hold is lost.
    Lost(LossReason),
    /// The store refuses a session for this reason, and waiting would not help.
    Refused(Failure),
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    state: State,
    /// The highest raft term of all sessions; only a mutant compares with it.
    #[cfg(test)]
    term: u64,
    /// Attempts to set up a session that failed in a row.
    failures: u32,
    revocations: Revocations,
}

#[derive(Clone, Debug)]
enum State {
    /// No session, waiting for `Timer::Connect`. Exits: Granting, Closed.
    Down,
    /// The grant of a lease is in flight. Exits: Registering, Down, Closing.
    Granting,
    /// The lease is granted, the put of its session key is in flight. Exits: Up, Down, Closing.
    Registering(Lease),
    /// The session is established. Exits: Down, Closing.
    Up(Lease),
    /// Every lease is being revoked, also one whose grant is not answered yet. Exits: Closed.
    Closing {
        /// The grant of a lease is in flight.
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

    /// The lease of the session, if it is established.
    pub(super) fn lease(&mut self) -> Option<&mut Lease> {
        match &mut self.state {
            State::Up(lease) => Some(lease),
            _ => None,
        }
    }

    /// Stops the reuse of all keys that have been used so far; see [`ContenderKeys`].
    pub(super) fn retire_keys(&mut self) {
        if let Some(lease) = self.lease() {
            lease.keys.retire();
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing { .. } | State::Closed)
    }

    pub(super) fn is_past_deadline(&self, now: Time) -> bool {
        matches!(&self.state, State::Up(lease) | State::Registering(lease) if lease.deadline <= now)
    }

    /// Whether the answer comes from a member that has missed an election, as answers of other members have shown. Such a
    /// member may still renew a lease that has expired for the new leader (etcd #15247).
    pub(super) fn is_stale(&mut self, response: &Response) -> bool {
        let (State::Registering(lease) | State::Up(lease)) = &mut self.state else {
            return false;
        };
        lease.term = lease.term.max(response.term);
        #[cfg(test)]
        {
            self.term = self.term.max(response.term);
            if mutant!(TermOutlivesSession) {
                lease.term = self.term;
            }
        }
        response.term < lease.term && !mutant!(StaleTermBelieved)
    }

    /// Requests a lease, if there is none.
    pub(super) fn connect(&mut self, now: Time, effects: &mut Effects) {
        if matches!(self.state, State::Down) {
            self.state = State::Granting;
            let ttl = effects.config.ttl;
            effects.send(Purpose::GrantLease { sent: now }, Request::GrantLease { ttl });
        }
    }

    pub(super) fn handle_granted(
        &mut self,
        now: Time,
        sent: Time,
        reply: Result<Response, Failure>,
        effects: &mut Effects,
    ) -> Verdict {
        let (id, ttl, term) = match reply {
            Ok(Response { answer: Answer::LeaseGranted { lease, ttl }, term, .. }) => (lease, ttl, term),
            Ok(_) => return self.set_up_failed(now, Failure::malformed(), effects),
            Err(failure) => return self.set_up_failed(now, failure, effects),
        };
        if let State::Closing { granting } = &mut self.state {
            *granting = false;
            self.revocations.begin(now, id, ttl, effects);
            return Verdict::Nothing;
        }
        let deadline = (sent + ttl).saturating_sub(effects.config.safety_margin);
        let session_key = effects.config.root.session_key(id);
        effects.send(Purpose::PutSession, Request::Txn(read::put_session(&session_key, id)));
        effects.timers.set(Timer::SessionDeadline, deadline);
        let epoch = Epoch { session_key, revision: 0 };
        let fence = Some(Fence::default());
        let keys = ContenderKeys::default();
        let lease = Lease { id, ttl, term, deadline, epoch, keys, fence, watch: None };
        self.state = State::Registering(lease);
        // Like the deadline, counted from the send of the grant.
        effects.timers.set(Timer::Renew, sent + ttl / 3);
        Verdict::Nothing
    }

    /// The put of the session key was answered: the first one, or a fence.
    pub(super) fn handle_put(
        &mut self,
        now: Time,
        reply: Result<Response, Failure>,
        known: Revision,
        effects: &mut Effects,
    ) -> Verdict {
        let (State::Registering(lease) | State::Up(lease)) = &mut self.state else {
            return Verdict::Nothing;
        };
        let response = match reply {
            // A put begins a revision of its own. If that was known before, the store was restored from a backup.
            Ok(response) if response.revision <= known => return Verdict::Lost(LossReason::SessionRevoked),
            Ok(response) => response,
            Err(failure) => return self.put_failed(now, failure, effects),
        };
        lease.epoch.revision = lease.epoch.revision.max(response.revision);
        let waiting = lease.fence.take().map(|fence| fence.waiting).unwrap_or_default();
        if matches!(self.state, State::Up(_)) {
            return Verdict::Fenced(waiting);
        }
        self.establish(effects)
    }

    fn establish(&mut self, effects: &mut Effects) -> Verdict {
        if let State::Registering(mut lease) = std::mem::replace(&mut self.state, State::Down) {
            let Lease { id, ttl, deadline, .. } = lease;
            let span = Span::Key(lease.epoch.session_key.clone());
            // Not from a later revision: while that is in the future, etcd answers no progress request on the whole
            // stream (3.4.42, 3.5.22, 3.6.5 and later), and the stream looks dead.
            let ahead = Revision::from(mutant!(SessionWatchedFromFuture));
            let watch = effects.watch(Watched::Session, span, lease.epoch.revision + ahead);
            lease.watch = Some(SessionWatch { id: watch, confirmed: false });
            self.state = State::Up(lease);
            self.failures = 0;
            effects.act(Action::SessionUp { lease: id, ttl, deadline });
            effects.timers.set(Timer::Silence, effects.now + ttl / 3);
        }
        Verdict::Up
    }

    fn put_failed(&mut self, now: Time, failure: Failure, effects: &mut Effects) -> Verdict {
        match (failure.class, &mut self.state) {
            (FailureClass::LeaseGone, State::Up(_)) => Verdict::Lost(LossReason::SessionRevoked),
            (FailureClass::NotDone | FailureClass::Unknown, State::Registering(lease))
            | (_, State::Up(lease)) => {
                let fence = lease.fence.get_or_insert_default();
                fence.failures += 1;
                let pause = effects.back_off(FIRST_BACK_OFF, fence.failures);
                effects.timers.set(Timer::Fence, now + pause);
                if failure.is_final() {
                    Verdict::FenceRefused(fence.waiting.clone(), failure)
                } else {
                    Verdict::Nothing
                }
            }
            (_, State::Registering(lease)) => {
                let (id, ttl) = (lease.id, lease.ttl);
                self.revocations.begin(now, id, ttl, effects);
                self.set_up_failed(now, failure, effects)
            }
            _ => Verdict::Nothing,
        }
    }

    /// Retries later; if waiting would not help, the waiters are refused.
    fn set_up_failed(&mut self, now: Time, failure: Failure, effects: &mut Effects) -> Verdict {
        if let State::Closing { granting } = &mut self.state {
            *granting = false;
            self.end_if_done(effects);
            return Verdict::Nothing;
        }
        self.state = State::Down;
        self.failures += 1;
        lease::forget_requests(effects);
        let pause = effects.back_off(FIRST_BACK_OFF, self.failures);
        effects.timers.set(Timer::Connect, now + pause);
        effects.act(Action::SessionFailed { failure: failure.clone() });
        if failure.is_final() { Verdict::Refused(failure) } else { Verdict::Nothing }
    }

    /// Reports a store that has been silent for a third of the time for which holds are assured.
    pub(super) fn check_silence(&self, now: Time, effects: &mut Effects) {
        if let State::Up(lease) = &self.state {
            let assured = lease.ttl.saturating_sub(effects.config.safety_margin);
            let check = effects.contact.check_silence(now, lease.deadline, assured);
            effects.timers.set(Timer::Silence, check.again);
            if let Some(action) = check.action {
                effects.act(action);
            }
        }
    }

    /// Sends a renewal. Each attempt has a timeout of its own, so that a member that does not answer costs one attempt,
    /// not the session.
    pub(super) fn renew(&mut self, now: Time, effects: &mut Effects) {
        if let State::Up(Lease { id, ttl, .. }) | State::Registering(Lease { id, ttl, .. }) = &self.state {
            let request = Request::RenewLease { lease: *id };
            effects.send_within(Purpose::Renew { sent: now }, request, *ttl / 6);
        }
    }

    pub(super) fn handle_renewed(
        &mut self,
        now: Time,
        sent: Time,
        reply: Result<Response, Failure>,
        stale: bool,
        effects: &mut Effects,
    ) -> Verdict {
        let reply = reply.map(|response| response.answer);
        let up = matches!(self.state, State::Up(_));
        let (State::Up(lease) | State::Registering(lease)) = &mut self.state else {
            return Verdict::Nothing;
        };
        match reply {
            Ok(Answer::LeaseRenewed { ttl }) if !stale => {
                lease.ttl = ttl;
                // Counted from the send: etcd has restarted the TTL some time after that.
                let start = if mutant!(DeadlineFromReceipt) { now } else { sent };
                let deadline = (start + ttl).saturating_sub(effects.config.safety_margin);
                if deadline > lease.deadline {
                    lease.deadline = deadline;
                    effects.timers.set(Timer::SessionDeadline, deadline);
                    if up {
                        effects.act(Action::ExtendSession { deadline });
                    }
                }
                effects.timers.set(Timer::Renew, (sent + ttl / 3).max(now));
                Verdict::Nothing
            }
            Err(failure) if failure.class == FailureClass::LeaseGone => {
                if up {
                    return Verdict::Lost(LossReason::SessionRevoked);
                }
                self.set_up_failed(now, failure, effects)
            }
            _ => {
                let pause = (lease.ttl / 20).min(Duration::from_millis(500));
                let pause = effects.jittered(pause);
                effects.timers.set(Timer::Renew, now + pause);
                Verdict::Nothing
            }
        }
    }

    /// Begins a new epoch; [`Verdict::Fenced`] names the queue when that is done.
    pub(super) fn fence(&mut self, queue: QueueId, effects: &mut Effects) {
        if let State::Up(lease) = &mut self.state {
            let fence = lease.begin_epoch(effects);
            if !fence.waiting.contains(&queue) {
                fence.waiting.push(queue);
            }
        }
    }

    /// Begins a new epoch. To find out whether the store was restored from a backup after an answer came from an old state:
    /// only a write can. Or to fence an unanswered write of a holder.
    pub(super) fn begin_epoch(&mut self, effects: &mut Effects) {
        if let State::Up(lease) = &mut self.state {
            lease.begin_epoch(effects);
        }
    }

    /// Puts the session key again after a failure.
    pub(super) fn retry_put(&mut self, effects: &mut Effects) {
        if let State::Up(lease) | State::Registering(lease) = &mut self.state {
            lease.put_session_key(effects);
        }
    }

    /// A request was refused by its epoch compare; this is the session key now.
    pub(super) fn handle_stale_epoch(&mut self, session: Option<KeyValue>) -> Verdict {
        match (&mut self.state, session) {
            (State::Up(lease), Some(kv)) => {
                lease.epoch.revision = lease.epoch.revision.max(kv.mod_revision);
                Verdict::Nothing
            }
            (State::Up(_), None) => Verdict::Lost(LossReason::SessionRevoked),
            _ => Verdict::Nothing,
        }
    }

    /// Returns whether the watch stream was reopened.
    pub(super) fn handle_watch_created(&mut self, effects: &mut Effects) -> bool {
        let State::Up(Lease { watch: Some(watch), epoch, .. }) = &mut self.state else {
            return false;
        };
        let reopened = std::mem::replace(&mut watch.confirmed, true);
        if reopened {
            effects.send(Purpose::CheckSession, Request::Txn(read::check_session(epoch)));
        }
        reopened
    }

    pub(super) fn handle_checked(&mut self, reply: Result<Response, Failure>) -> Verdict {
        match reply.map(|response| response.answer) {
            Ok(Answer::Txn(answer)) => match read::session_checked(&answer) {
                Some(session) => self.handle_stale_epoch(session),
                None => Verdict::Nothing,
            },
            // Not repeated: renewals and the next write find out, too.
            _ => Verdict::Nothing,
        }
    }

    /// Reports the end of the session, if it is established, so that all of its holds end at once and before any of its
    /// keys is deleted. [`lose`](Self::lose) or [`close`](Self::close) follows.
    pub(super) fn announce_end(&self, reason: LossReason, effects: &mut Effects) {
        if matches!(self.state, State::Up(_)) {
            effects.act(Action::SessionDown { reason });
        }
    }

    /// Ends the session, whose end was announced before, and sets up a new one.
    pub(super) fn lose(&mut self, now: Time, reason: LossReason, effects: &mut Effects) {
        match std::mem::replace(&mut self.state, State::Down) {
            State::Up(lease) => {
                lease.clear(effects);
                if reason == LossReason::SessionExpired {
                    // The safety margin is the holders' time to stop. If the network works again, or works in one
                    // direction, a revocation before its end would hand their locks over at once.
                    let margin = effects.config.safety_margin;
                    let pause = (lease.deadline + margin).since(now).min(margin);
                    self.revocations.begin_after(now, pause, (lease.id, lease.ttl), effects);
                } else {
                    self.revocations.begin(now, lease.id, lease.ttl, effects);
                }
            }
            State::Registering(lease) => {
                lease.clear(effects);
                self.revocations.begin(now, lease.id, lease.ttl, effects);
            }
            other => self.state = other,
        }
        self.connect(now, effects);
    }
}
