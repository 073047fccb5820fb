//! What the store's answers and watch events mean for a queue.

use std::time::Duration;

use super::writes::{SentDelete, SentStep};
use super::{Cx, Progress, Queue};
use crate::error::LossReason;
use crate::kv::{Answer, Failure, FailureClass, KeyValue, Request, Response, Revision};
use crate::protocol::batch::Fate;
use crate::protocol::contender::position::FALLBACK;
use crate::protocol::contender::{Contender, Look};
use crate::protocol::effects::Purpose;
use crate::protocol::mutants::mutant;
use crate::protocol::read::{self, Standing};
use crate::protocol::session::Verdict;
use crate::protocol::timers::Timer;
use crate::protocol::write::Entered;
use crate::protocol::{Action, Refusal, ReleaseFailure};

/// How long the end of a hold whose key is gone may wait to learn why: the deletion of the session key, if that was
/// the reason, is told within the same moment.
const REASON_GRACE: Duration = Duration::from_millis(50);

impl Queue {
    pub(in crate::protocol) fn handle_step(&mut self, fate: Fate, cx: &mut Cx<'_>) -> Verdict {
        let Progress::InFlight(sent) = std::mem::replace(&mut self.step, Progress::Idle) else {
            return Verdict::Nothing;
        };
        let answer = match fate {
            Fate::Answered(answer) if answer.deleted.len() != sent.deletes.len() => {
                return self.step_failed(sent, read::misfit(), cx);
            }
            Fate::Answered(answer) => answer,
            Fate::Failed(failure) => return self.step_failed(sent, failure, cx),
            Fate::Again { alone } => {
                self.alone |= alone;
                return Verdict::Nothing;
            }
        };
        self.alone = false;
        self.failures = 0;
        self.last_failure = None;
        self.deletes_done(&sent.deletes, &answer.deleted, cx);
        match answer.entered {
            None => {}
            Some(Entered::Refused { session }) => return self.step_refused(sent.epoch, session, cx),
            Some(Entered::First { token }) => self.hold(token, answer.revision, cx),
            Some(Entered::Behind { created, ahead }) => {
                self.refuse_tries_of(&sent.tries, cx);
                self.stand(created, ahead, (answer.revision, sent.sent), cx);
            }
            Some(Entered::Taken) => {
                self.forget_contender(cx);
                self.refuse_tries_of(&sent.tries, cx);
            }
            Some(Entered::Garbled) => self.refuse_garbled(cx),
        }
        Verdict::Nothing
    }

    /// The epoch has moved. Where it has moved back, the store was restored from a backup: what this session put since
    /// is gone, although its lease may be there.
    fn step_refused(&mut self, epoch: Revision, session: Option<KeyValue>, cx: &mut Cx<'_>) -> Verdict {
        match &session {
            Some(session) if session.mod_revision < epoch => Verdict::Lost(LossReason::SessionRevoked),
            // Asking at once would lead nowhere.
            Some(session) if session.mod_revision == epoch => {
                self.back_off_step(stale(), cx);
                Verdict::Nothing
            }
            _ => cx.session.handle_refused(session),
        }
    }

    fn deletes_done(&mut self, deletes: &[SentDelete], counts: &[u64], cx: &mut Cx<'_>) {
        for (delete, &count) in deletes.iter().zip(counts) {
            let Some(at) = self.debris.iter().position(|debris| debris.key == delete.key) else {
                continue;
            };
            if !self.debris[at].deleted(count, delete.for_good) {
                continue;
            }
            let debris = self.debris.remove(at);
            if let Some(token) = debris.released.filter(|_| !debris.was_gone) {
                cx.out.act(Action::Released { name: self.name.clone(), token });
            }
            for ticket in debris.confirm {
                let result = if debris.was_gone { Err(ReleaseFailure::NotHeld) } else { Ok(()) };
                cx.out.act(Action::Confirm { ticket, result });
            }
        }
    }

    fn step_failed(&mut self, sent: SentStep, failure: Failure, cx: &mut Cx<'_>) -> Verdict {
        match failure.class {
            FailureClass::LeaseGone => return Verdict::Lost(LossReason::SessionRevoked),
            FailureClass::Unknown if !mutant!(UnknownTakenForNotDone) => {
                if let Some(contender) = self.contender.as_mut().filter(|_| sent.entering) {
                    contender.dirty = contender.dirty.max(Some(sent.epoch));
                }
                for debris in self.debris.iter_mut().filter(|debris| sent.deletes(&debris.key)) {
                    debris.unanswered();
                }
                cx.session.retire_keys();
            }
            FailureClass::NoSpace if !mutant!(NoSpaceTakenForNotDone) && self.is_out_of_space(&sent) => {
                self.step_out_of_space(&sent, failure, cx);
                return Verdict::Nothing;
            }
            _ if failure.is_final() && sent.entering => {
                self.refuse_waiters(&Refusal::Failed(failure), cx);
                self.forget_contender(cx);
                return Verdict::Nothing;
            }
            _ if failure.is_final() => {
                // The key stays until the delete is allowed or the lease ends; whoever waits for it need not.
                for debris in &mut self.debris {
                    for ticket in debris.confirm.drain(..) {
                        let result = Err(ReleaseFailure::Failed(failure.clone()));
                        cx.out.act(Action::Confirm { ticket, result });
                    }
                }
            }
            _ => {}
        }
        self.back_off_step(failure, cx);
        Verdict::Nothing
    }

    /// Whether there is something else to do than to wait for space.
    fn is_out_of_space(&self, sent: &SentStep) -> bool {
        sent.entering || self.debris.iter().any(|debris| sent.deletes(&debris.key) && !debris.plain)
    }

    /// etcd may carry out a transaction and answer that its space is used up (`quotaApplierV3.Txn` applies first; seen
    /// in 3.4.42, 3.5.30 and 3.6.14). So our key may be there, and what was to go may be gone. A plain delete is
    /// carried out all the same. It does not compare the create revision, so the key is not used again.
    fn step_out_of_space(&mut self, sent: &SentStep, failure: Failure, cx: &mut Cx<'_>) {
        cx.session.retire_keys();
        if sent.entering {
            self.refuse_waiters(&Refusal::Failed(failure), cx);
            self.discard_contender(Vec::new(), cx);
        }
        for debris in self.debris.iter_mut().filter(|debris| sent.deletes(&debris.key)) {
            debris.unanswered();
            debris.plain = true;
        }
    }

    fn back_off_step(&mut self, failure: Failure, cx: &mut Cx<'_>) {
        let pause = self.back_off(failure, cx);
        self.step = Progress::BackingOff;
        cx.out.timers.set(Timer::Retry(self.id), cx.now + pause);
    }

    /// Reads where the contender stands; one read at a time.
    pub(super) fn look(&mut self, cx: &mut Cx<'_>) {
        let (Some(contender), Some(tenure)) = (&mut self.contender, cx.session.tenure()) else {
            return;
        };
        let Some(created) = contender.created() else {
            return;
        };
        if contender.look.is_some() {
            contender.look_again = true;
            return;
        }
        let tenure_epoch = tenure.guard.epoch;
        let look = read::look(&tenure.guard, &self.name, &contender.key, created);
        // A read that goes astray may delay a hand-over no more than a watch that does.
        let timeout = cx.out.config.request_timeout.min(FALLBACK);
        let request = cx.out.send_within(Purpose::Look(self.id), Request::Txn(look), timeout);
        contender.look = Some(Look { request, epoch: tenure_epoch, sent: cx.now });
        if let Some(place) = contender.place_mut() {
            place.asked();
        }
    }

    pub(in crate::protocol) fn handle_look(
        &mut self,
        reply: Result<Response, Failure>,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        let Some(contender) = &mut self.contender else {
            return Verdict::Nothing;
        };
        let asked = contender.look.take();
        let again = std::mem::take(&mut contender.look_again);
        let (revision, answer) = match reply {
            Ok(Response { revision, answer: Answer::Txn(answer), .. }) => (revision, answer),
            Ok(_) => return self.look_failed(read::garbled(), cx),
            Err(failure) => return self.look_failed(failure, cx),
        };
        let Some(created) = contender.created() else {
            return Verdict::Nothing;
        };
        let standing = read::standing(created, &answer);
        let sent = asked.map_or(cx.now, |look| look.sent);
        if contender.is_older(revision) && !mutant!(StaleReadBelieved) {
            return self.look_failed(stale(), cx);
        }
        if let Standing::Refused { session } = standing {
            return self.look_refused(asked, session, cx);
        }
        self.failures = 0;
        self.last_failure = None;
        match (standing, contender.hold_mut()) {
            (Standing::First, None) => self.hold(created, revision, cx),
            (Standing::Behind(ahead), None) => {
                self.wait_behind(ahead, (revision, sent), cx);
                if again {
                    self.look(cx);
                }
            }
            // A watch reported the deletion of the others before this read, which is older.
            (Standing::Behind(_), Some(hold)) if revision < hold.as_of => {}
            (Standing::First, Some(hold)) => {
                // It is there after the deletion that was reported.
                if hold.doomed.take().is_some() {
                    cx.out.timers.clear(Timer::Fallback(self.id));
                }
            }
            // Someone is before us, so we never held: nothing built on this hold can be relied on.
            (Standing::Behind(_), Some(_)) => self.key_deleted(cx),
            // Our key was deleted: the waiters stay and enter with a new one.
            (Standing::Gone, Some(_)) => self.key_deleted(cx),
            (Standing::Gone, None) => self.leave_deleted_key(cx),
            (Standing::Refused { .. } | Standing::Garbled, _) => {
                return self.look_failed(read::garbled(), cx);
            }
        }
        Verdict::Nothing
    }

    /// The epoch has moved, or the session is gone. Unlike a step, a read may be answered from the past (etcd #20418).
    fn look_refused(&mut self, asked: Option<Look>, session: Option<KeyValue>, cx: &mut Cx<'_>) -> Verdict {
        let old =
            session.as_ref().zip(asked).is_some_and(|(session, asked)| session.mod_revision <= asked.epoch);
        if old {
            return self.look_failed(stale(), cx);
        }
        let verdict = cx.session.handle_refused(session);
        if verdict == Verdict::Nothing {
            self.look(cx);
        }
        verdict
    }

    fn look_failed(&mut self, failure: Failure, cx: &mut Cx<'_>) -> Verdict {
        let holds = self.contender.as_ref().and_then(Contender::hold).is_some();
        if failure.is_final() && !holds {
            self.refuse_waiters(&Refusal::Failed(failure), cx);
            return Verdict::Nothing;
        }
        let doomed =
            self.contender.as_ref().and_then(Contender::hold).is_some_and(|hold| hold.doomed.is_some());
        let pause = self.back_off(failure, cx);
        if !doomed {
            cx.out.timers.set(Timer::Fallback(self.id), cx.now + pause);
        }
        Verdict::Nothing
    }

    /// The time to look has come, or the time to stop waiting for the reason of a loss.
    pub(in crate::protocol) fn fall_back(&mut self, cx: &mut Cx<'_>) {
        match self.contender.as_ref().and_then(Contender::hold) {
            Some(hold) if hold.doomed.is_some() => self.key_deleted(cx),
            _ if mutant!(MissedEventsIgnored) => {}
            _ => self.look(cx),
        }
    }

    pub(in crate::protocol) fn watch_own_key(&mut self, cx: &mut Cx<'_>) {
        if let Some(contender) = &mut self.contender {
            contender.watch_own_key(self.id, cx.out);
        }
    }

    pub(in crate::protocol) fn own_key_watched(&mut self, cx: &mut Cx<'_>) {
        let Some(watch) = self.contender.as_mut().and_then(|contender| contender.own_watch.as_mut()) else {
            return;
        };
        if std::mem::replace(&mut watch.stood, true) {
            self.look(cx);
        }
    }

    /// Somebody deleted our key. A waiter enters again with a new one. A hold is over; if
    /// the session went with it, that is the reason to tell, so ask first.
    pub(in crate::protocol) fn own_key_deleted(&mut self, revision: Revision, cx: &mut Cx<'_>) {
        let created = self.contender.as_ref().and_then(Contender::created);
        if created.is_some_and(|created| revision <= created) && !mutant!(ReplayedDeletionBelieved) {
            // An earlier use of the key, told by a member that is behind.
            return;
        }
        match self.contender.as_mut().map(Contender::hold_mut) {
            Some(Some(hold)) => {
                hold.doomed = Some(revision);
                cx.out.timers.set(Timer::Fallback(self.id), cx.now + REASON_GRACE);
                self.look(cx);
            }
            Some(None) => self.leave_deleted_key(cx),
            None => {}
        }
    }

    fn key_deleted(&mut self, cx: &mut Cx<'_>) {
        self.lose_hold(LossReason::ForceUnlocked, cx.out);
        self.leave_deleted_key(cx);
    }

    /// Whoever deleted it may do so again: the next contender has another key. What was believed may be wrong, and a key
    /// that is left behind would block everybody, so it is deleted once more.
    pub(super) fn leave_deleted_key(&mut self, cx: &mut Cx<'_>) {
        cx.session.retire_keys();
        if mutant!(DeletedKeyForgotten) {
            self.forget_contender(cx);
        } else {
            self.discard_contender(Vec::new(), cx);
        }
    }

    fn refuse_garbled(&mut self, cx: &mut Cx<'_>) {
        self.refuse_waiters(&Refusal::Failed(read::garbled()), cx);
        self.discard_contender(Vec::new(), cx);
    }
}

/// For an answer from the past, which a defective etcd gives after a pause (etcd #20418).
fn stale() -> Failure {
    Failure::new(FailureClass::NotDone, "etcd answered with an older state than before")
}
