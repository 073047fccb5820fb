//! How the contender advances in the queue of its name: reads of its position, and events of its watches.

use std::time::Duration;

use super::{Context, OWN_WATCH_AGE, Queue};
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Answer, Failure, Key, KeyValue, Request, Response, Revision};
use crate::protocol::Refusal;
use crate::protocol::contender::position::{DeletionEffect, Position, RECHECK_INTERVAL};
use crate::protocol::contender::{Contender, PositionCheck, Stage};
use crate::protocol::effects::Purpose;
use crate::protocol::mutants::mutant;
use crate::protocol::read::{self, PositionAnswer, Predecessors};
use crate::protocol::session::Verdict;
use crate::protocol::timers::Timer;

/// How long the end of a hold whose key was deleted waits for the reason: if the session key was deleted with it, that
/// is reported within the same moment.
const LOSS_REASON_GRACE: Duration = Duration::from_millis(50);

impl Queue {
    /// The contender's key was put and has predecessors, as of `revision`; `sent` is when that request was sent. Who they
    /// are is not known if the answer is that of a repeated request.
    pub(super) fn enter_queue(
        &mut self,
        created: Revision,
        predecessors: Option<Predecessors>,
        (revision, sent): (Revision, Time),
        cx: &mut Context<'_>,
    ) {
        if let Some(contender) = &mut self.contender {
            contender.stage = Stage::Queued(Box::new(Position::new(created, revision, sent)));
            cx.effects.timers.set(Timer::OwnWatch(self.id), cx.now + OWN_WATCH_AGE);
        }
        match predecessors {
            Some(predecessors) => self.wait_behind(predecessors, (revision, sent), cx),
            None => self.check_position(cx),
        }
    }

    /// A read, sent at `sent` and answered at `revision`, returned these predecessors.
    pub(super) fn wait_behind(
        &mut self,
        predecessors: Predecessors,
        (revision, sent): (Revision, Time),
        cx: &mut Context<'_>,
    ) {
        let Some(contender) = &mut self.contender else {
            return;
        };
        // Other keys of this session are being deleted, and keep nobody out for long.
        let lease = contender.lease;
        let is_other = |key: &Key| !self.name.is_key_of(key, lease);
        let Some(position) = contender.position_mut() else {
            return;
        };
        position.read_sent = sent;
        position.was_behind = match &predecessors {
            Predecessors::All(keys) => keys.iter().any(is_other),
            // More predecessors than are listed.
            Predecessors::Milestone(_) => true,
        };
        position.predecessors_read(predecessors, revision, self.id, self.name.contenders(), cx.effects);
        let after = cx.effects.jittered(position.recheck_after());
        cx.effects.timers.set(Timer::Recheck(self.id), cx.now + after);
    }

    /// The watch of the predecessors was created, for the first time or again.
    pub(in crate::protocol) fn predecessor_watch_created(
        &mut self,
        revision: Revision,
        cx: &mut Context<'_>,
    ) {
        let position = self.contender.as_mut().and_then(Contender::position_mut);
        if position.is_some_and(|position| position.watch_created(revision)) {
            self.check_position(cx);
        }
    }

    /// The watch of the predecessors reported deletions.
    pub(in crate::protocol) fn predecessors_deleted(
        &mut self,
        deleted: &[Key],
        revision: Revision,
        cx: &mut Context<'_>,
    ) {
        let Some(contender) = &mut self.contender else {
            return;
        };
        let Stage::Queued(position) = &mut contender.stage else {
            return;
        };
        if position.note_watch_served(revision) {
            let after = cx.effects.jittered(position.recheck_after());
            cx.effects.timers.set(Timer::Recheck(self.id), cx.now + after);
        }
        let checking = contender.position_check.is_some();
        match position.keys_deleted(&contender.key, deleted, revision, checking) {
            DeletionEffect::Nothing => {}
            DeletionEffect::OwnKeyDeleted => self.replace_deleted_key(cx),
            DeletionEffect::CheckPosition => self.check_position(cx),
            // The predecessors are read once this watch is confirmed.
            DeletionEffect::MilestoneDeleted => {
                let (unread, prefix) = (Predecessors::All(Vec::new()), self.name.contenders());
                position.watch_predecessors(unread, self.id, prefix, cx.effects);
            }
        }
    }

    /// Takes the lock if the contender has no predecessors. Decided when all events that arrived together are handled,
    /// because one of them may report that our own key was deleted, too.
    pub(super) fn take_if_first(&mut self, cx: &mut Context<'_>) {
        let position = self.contender.as_mut().and_then(Contender::position_mut);
        if let Some((created, as_of)) =
            position.and_then(|position| Some((position.created, position.first_as_of()?)))
        {
            self.hold(created, as_of, cx);
        }
    }

    /// Reads the contender's position; at most one such read is in flight.
    pub(super) fn check_position(&mut self, cx: &mut Context<'_>) {
        let (Some(contender), Some(lease)) = (&mut self.contender, cx.session.lease()) else {
            return;
        };
        let Some(created) = contender.created() else {
            return;
        };
        if contender.position_check.is_some() {
            contender.check_again = true;
            return;
        }
        let epoch = lease.epoch.revision;
        let check = read::check_position(&lease.epoch, &self.name, &contender.key, created);
        // A read that gets lost must not delay a hand-over longer than a watch that dies.
        let timeout = cx.effects.config.request_timeout.min(RECHECK_INTERVAL);
        let purpose = Purpose::CheckPosition(self.id);
        let request = cx.effects.send_within(purpose, Request::Txn(check), timeout);
        contender.position_check = Some(PositionCheck { request, epoch, sent: cx.now });
        if let Some(position) = contender.position_mut() {
            position.check_sent();
        }
    }

    pub(in crate::protocol) fn handle_position_check(
        &mut self,
        reply: Result<Response, Failure>,
        cx: &mut Context<'_>,
    ) -> Verdict {
        let Some(contender) = &mut self.contender else {
            return Verdict::Nothing;
        };
        let check = contender.position_check.take();
        let again = std::mem::take(&mut contender.check_again);
        let (revision, answer) = match reply {
            Ok(Response { revision, answer: Answer::Txn(answer), .. }) => (revision, answer),
            Ok(_) => return self.position_check_failed(Failure::malformed(), cx),
            Err(failure) => return self.position_check_failed(failure, cx),
        };
        let Some(created) = contender.created() else {
            return Verdict::Nothing;
        };
        let answer = read::position_answer(created, &answer);
        let sent = check.map_or(cx.now, |check| check.sent);
        if contender.is_newer_than(revision) && !mutant!(StaleReadBelieved) {
            return self.position_check_failed(read::stale(), cx);
        }
        if let PositionAnswer::StaleEpoch { session } = answer {
            return self.position_check_refused(check, session, cx);
        }
        self.failures = 0;
        self.last_failure = None;
        match (answer, contender.held_mut()) {
            (PositionAnswer::First, None) => self.hold(created, revision, cx),
            (PositionAnswer::Behind(predecessors), None) => {
                self.wait_behind(predecessors, (revision, sent), cx);
                if again {
                    self.check_position(cx);
                }
            }
            // The watch already proved us first; this read is older.
            (PositionAnswer::Behind(_), Some(held)) if revision < held.as_of => {}
            (PositionAnswer::First, Some(held)) => {
                // The key exists after the reported deletion, so that was one of an earlier use of it.
                if held.deleted_at.take().is_some() {
                    cx.effects.timers.clear(Timer::AwaitLossReason(self.id));
                }
            }
            // A predecessor exists, so we never were the first, and the hold is not to be relied on.
            (PositionAnswer::Behind(_), Some(_)) => self.lose_deleted_key(cx),
            (PositionAnswer::KeyGone, Some(_)) => self.lose_deleted_key(cx),
            // The waiters stay, and their next contender has another key.
            (PositionAnswer::KeyGone, None) => self.replace_deleted_key(cx),
            (PositionAnswer::StaleEpoch { .. } | PositionAnswer::Malformed, _) => {
                return self.position_check_failed(Failure::malformed(), cx);
            }
        }
        Verdict::Nothing
    }

    /// The epoch has changed, or the session is gone. Unlike a write, a read can be answered from an old state (etcd
    /// #20418), and then its session key is no news.
    fn position_check_refused(
        &mut self,
        check: Option<PositionCheck>,
        session: Option<KeyValue>,
        cx: &mut Context<'_>,
    ) -> Verdict {
        let old =
            session.as_ref().zip(check).is_some_and(|(session, check)| session.mod_revision <= check.epoch);
        if old {
            return self.position_check_failed(read::stale(), cx);
        }
        let verdict = cx.session.handle_stale_epoch(session);
        if verdict == Verdict::Nothing {
            self.check_position(cx);
        }
        verdict
    }

    fn position_check_failed(&mut self, failure: Failure, cx: &mut Context<'_>) -> Verdict {
        let held = self.contender.as_ref().and_then(Contender::held);
        if failure.is_final() && held.is_none() {
            self.refuse_waiters(&Refusal::Failed(failure), cx);
            return Verdict::Nothing;
        }
        let awaiting_loss_reason = held.is_some_and(|held| held.deleted_at.is_some());
        let pause = self.back_off(failure, cx);
        if !awaiting_loss_reason {
            cx.effects.timers.set(Timer::Recheck(self.id), cx.now + pause);
        }
        Verdict::Nothing
    }

    /// The watch has not reported anything for a while, or the last read of the position failed.
    pub(in crate::protocol) fn recheck_position(&mut self, cx: &mut Context<'_>) {
        if !mutant!(MissedEventsIgnored) {
            self.check_position(cx);
        }
    }

    /// The key of our hold was deleted, and no other reason has been reported since.
    pub(in crate::protocol) fn stop_awaiting_loss_reason(&mut self, cx: &mut Context<'_>) {
        let held = self.contender.as_ref().and_then(Contender::held);
        if held.is_some_and(|held| held.deleted_at.is_some()) {
            self.lose_deleted_key(cx);
        }
    }

    pub(in crate::protocol) fn watch_own_key(&mut self, cx: &mut Context<'_>) {
        if let Some(contender) = &mut self.contender {
            contender.watch_own_key(self.id, cx.effects);
        }
    }

    pub(in crate::protocol) fn own_watch_created(&mut self, cx: &mut Context<'_>) {
        let Some(watch) = self.contender.as_mut().and_then(|contender| contender.own_watch.as_mut()) else {
            return;
        };
        if std::mem::replace(&mut watch.confirmed, true) {
            self.check_position(cx);
        }
    }

    /// Our key was deleted by somebody else. A waiter enters again with another key. A hold is over, but if the session
    /// ended at the same time, that is the reason to report; a read finds out.
    pub(in crate::protocol) fn own_key_deleted(&mut self, revision: Revision, cx: &mut Context<'_>) {
        let created = self.contender.as_ref().and_then(Contender::created);
        if created.is_some_and(|created| revision <= created) && !mutant!(ReplayedDeletionBelieved) {
            // A lagging member reports the deletion of an earlier use of the key.
            return;
        }
        match self.contender.as_mut().map(Contender::held_mut) {
            Some(Some(held)) => {
                held.deleted_at = Some(revision);
                cx.effects.timers.clear(Timer::Recheck(self.id));
                cx.effects.timers.set(Timer::AwaitLossReason(self.id), cx.now + LOSS_REASON_GRACE);
                self.check_position(cx);
            }
            Some(None) => self.replace_deleted_key(cx),
            None => {}
        }
    }

    fn lose_deleted_key(&mut self, cx: &mut Context<'_>) {
        self.lose_hold(LossReason::ForceUnlocked, cx.effects);
        self.replace_deleted_key(cx);
    }

    /// The next contender has another key, because whoever deleted this one may delete it again. This key is deleted
    /// once more: the report may have been wrong, and a key left behind would block the lock.
    pub(super) fn replace_deleted_key(&mut self, cx: &mut Context<'_>) {
        cx.session.retire_keys();
        if mutant!(DeletedKeyForgotten) {
            self.forget_contender(cx);
        } else {
            self.discard_contender(Vec::new(), cx);
        }
    }
}
