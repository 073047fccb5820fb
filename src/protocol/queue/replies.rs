//! What the store's answers and watch events mean for a queue.

use std::time::Duration;

use super::contender::{Contender, Place, Stage};
use super::{Cx, OWN_WATCH_AGE, Progress, Queue, SentStep};
use crate::error::LossReason;
use crate::protocol::batch::Fate;
use crate::protocol::mutants::mutant;
use crate::protocol::outbox::{Purpose, Watched};
use crate::protocol::requests::{self, Standing};
use crate::protocol::session::Verdict;
use crate::protocol::step::Entered;
use crate::protocol::timers::Timer;
use crate::protocol::{Action, Refusal, ReleaseFailure};
use crate::store::{Answer, Failure, FailureClass, Key, Request, Response, Revision, Span};

/// A waiter looks where it stands after this long (less up to half, at random), so that a watch that died in silence
/// delays a hand-over but never strands it.
const FALLBACK: Duration = Duration::from_secs(2);

/// How long the end of a hold whose key is gone may wait to learn why: the deletion of the session key, if that was
/// the reason, is told within the same moment.
const REASON_GRACE: Duration = Duration::from_millis(50);

impl Queue {
    pub(in crate::protocol) fn handle_step(&mut self, fate: Fate, cx: &mut Cx<'_>) -> Verdict {
        let Progress::InFlight(sent) = std::mem::replace(&mut self.step, Progress::Idle) else {
            return Verdict::Nothing;
        };
        let answer = match fate {
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
            Some(Entered::Refused { session }) => return cx.session.handle_refused(session),
            Some(Entered::First { token }) => self.hold(token, cx),
            Some(Entered::Behind { created, predecessor }) => {
                self.stand(created, predecessor, answer.revision, cx);
            }
            Some(Entered::Taken) => {
                self.forget_contender(cx);
                self.refuse_tries(cx);
            }
            Some(Entered::Garbled) => self.refuse_garbled(cx),
        }
        Verdict::Nothing
    }

    fn deletes_done(&mut self, deletes: &[Key], counts: &[u64], cx: &mut Cx<'_>) {
        for (key, &count) in deletes.iter().zip(counts) {
            let Some(at) = self.debris.iter().position(|debris| debris.key == *key) else {
                continue;
            };
            let debris = self.debris.remove(at);
            let was_gone = count == 0 && !debris.repeated;
            for ticket in debris.confirm {
                let result = if was_gone { Err(ReleaseFailure::NotHeld) } else { Ok(()) };
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
                for debris in self.debris.iter_mut().filter(|debris| sent.deletes.contains(&debris.key)) {
                    debris.repeated = true;
                }
                cx.session.retire_keys();
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
        let pause = self.back_off(failure, cx);
        self.step = Progress::BackingOff;
        cx.out.timers.set(Timer::Retry(self.id), cx.now + pause);
        Verdict::Nothing
    }

    /// The contender stands behind another, as of `revision`.
    fn stand(&mut self, created: Revision, predecessor: Option<Key>, revision: Revision, cx: &mut Cx<'_>) {
        if let Some(contender) = &mut self.contender {
            contender.stage = Stage::Queued(Place { created, predecessor: None, seen: revision });
            cx.out.timers.set(Timer::OwnWatch(self.id), cx.now + OWN_WATCH_AGE);
        }
        self.refuse_tries(cx);
        match predecessor {
            Some(predecessor) => self.wait_behind(predecessor, revision, cx),
            None => self.look(cx),
        }
    }

    fn wait_behind(&mut self, predecessor: Key, revision: Revision, cx: &mut Cx<'_>) {
        let Some(contender) = &mut self.contender else {
            return;
        };
        let Some(place) = contender.place_mut() else {
            return;
        };
        place.seen = place.seen.max(revision);
        if place.predecessor.as_ref().is_none_or(|(key, _)| *key != predecessor) {
            contender.unwatch_predecessor(cx.out);
            // From now, not from a past revision: etcd serves a watch live only if it does not have to catch up.
            let watch = cx.out.watch(Watched::Predecessor(self.id), Span::Key(predecessor.clone()), 0);
            if let Some(place) = contender.place_mut() {
                place.predecessor = Some((predecessor, watch));
            }
        }
        let fallback = cx.out.jittered(FALLBACK);
        cx.out.timers.set(Timer::Fallback(self.id), cx.now + fallback);
    }

    /// Reads where the contender stands; one read at a time.
    fn look(&mut self, cx: &mut Cx<'_>) {
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
        let look = requests::look(&tenure.guard, &self.name, &contender.key, created);
        // A read that goes astray may delay a hand-over no more than a watch that does.
        let timeout = cx.out.config.request_timeout.min(FALLBACK);
        contender.look = Some(cx.out.send_within(Purpose::Look(self.id), Request::Txn(look), timeout));
    }

    pub(in crate::protocol) fn handle_look(
        &mut self,
        reply: Result<Response, Failure>,
        cx: &mut Cx<'_>,
    ) -> Verdict {
        let Some(contender) = &mut self.contender else {
            return Verdict::Nothing;
        };
        contender.look = None;
        let again = std::mem::take(&mut contender.look_again);
        let (revision, answer) = match reply {
            Ok(Response { revision, answer: Answer::Txn(answer), .. }) => (revision, answer),
            Ok(_) => return Verdict::Nothing,
            Err(failure) => return self.look_failed(failure, cx),
        };
        self.failures = 0;
        self.last_failure = None;
        let standing = match (&contender.stage, contender.created()) {
            (_, Some(created)) => requests::standing(created, &answer),
            (_, None) => return Verdict::Nothing,
        };
        match (standing, contender.hold().is_some()) {
            (Standing::Refused { session }, _) => {
                let verdict = cx.session.handle_refused(session);
                if verdict == Verdict::Nothing {
                    self.look(cx);
                }
                return verdict;
            }
            (Standing::First, false) => {
                let created = contender.created().unwrap_or_default();
                self.hold(created, cx);
            }
            (Standing::First, true) => {}
            (Standing::Behind { predecessor }, false) => {
                self.wait_behind(predecessor, revision, cx);
                if again {
                    self.look(cx);
                }
            }
            // Our key was deleted: the waiters stay and enter with a new one.
            (Standing::Gone, true) => self.key_deleted(cx),
            (Standing::Gone, false) => self.leave_deleted_key(cx),
            (Standing::Behind { .. }, true) | (Standing::Garbled, _) => {
                return self.look_failed(requests::garbled(), cx);
            }
        }
        Verdict::Nothing
    }

    fn look_failed(&mut self, failure: Failure, cx: &mut Cx<'_>) -> Verdict {
        let holds = self.contender.as_ref().and_then(Contender::hold).is_some();
        if failure.is_final() && !holds {
            self.refuse_waiters(&Refusal::Failed(failure), cx);
            return Verdict::Nothing;
        }
        let doomed = self.contender.as_ref().and_then(Contender::hold).is_some_and(|hold| hold.doomed);
        let pause = self.back_off(failure, cx);
        if !doomed {
            cx.out.timers.set(Timer::Fallback(self.id), cx.now + pause);
        }
        Verdict::Nothing
    }

    /// The time to look has come, or the time to stop waiting for the reason of a loss.
    pub(in crate::protocol) fn fall_back(&mut self, cx: &mut Cx<'_>) {
        match self.contender.as_ref().and_then(Contender::hold) {
            Some(hold) if hold.doomed => self.key_deleted(cx),
            _ if mutant!(MissedEventsIgnored) => {}
            _ => self.look(cx),
        }
    }

    pub(in crate::protocol) fn watch_own_key(&mut self, cx: &mut Cx<'_>) {
        if let Some(contender) = &mut self.contender {
            contender.watch_own_key(self.id, cx.out);
        }
    }

    /// The watch on the predecessor stands from `revision` on.
    pub(in crate::protocol) fn predecessor_watched(&mut self, revision: Revision, cx: &mut Cx<'_>) {
        let place = self.contender.as_mut().and_then(Contender::place_mut);
        if place.is_some_and(|place| place.seen < revision) && !mutant!(MissedEventsIgnored) {
            // It may have gone between the read that showed it and the beginning of the watch.
            self.look(cx);
        }
    }

    pub(in crate::protocol) fn predecessor_deleted(&mut self, cx: &mut Cx<'_>) {
        if let Some(place) = self.contender.as_mut().and_then(Contender::place_mut) {
            if mutant!(PromotedWithoutRead) {
                let created = place.created;
                return self.hold(created, cx);
            }
            self.look(cx);
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
    pub(in crate::protocol) fn own_key_deleted(&mut self, cx: &mut Cx<'_>) {
        match self.contender.as_mut().map(Contender::hold_mut) {
            Some(Some(hold)) => {
                hold.doomed = true;
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

    /// Whoever deleted it may do so again: the next contender has another key.
    fn leave_deleted_key(&mut self, cx: &mut Cx<'_>) {
        cx.session.retire_keys();
        self.forget_contender(cx);
    }

    fn refuse_garbled(&mut self, cx: &mut Cx<'_>) {
        self.refuse_waiters(&Refusal::Failed(requests::garbled()), cx);
        self.discard_contender(Vec::new(), cx);
    }
}
