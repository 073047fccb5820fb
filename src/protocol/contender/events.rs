//! How a contender advances in the queue of its name: the answers to its put and to the reads of its position, and the
//! events of its watches.

use std::time::Duration;

use super::position::{Confirmed, DeletionEffect, FIRST_EARLY_CHECK, Position, RECHECK_INTERVAL};
use super::{Contender, Fact, OWN_WATCH_AGE, PositionCheck, Stage, Surroundings, Unread};
use crate::clock::Time;
use crate::kv::{Answer, Failure, Key, Request, Response, Revision};
use crate::protocol::admission::{Admission, Predecessors, Rank};
use crate::protocol::effects::Purpose;
use crate::protocol::mutants::mutant;
use crate::protocol::read::{self, PositionAnswer};
use crate::protocol::timers::Timer;

/// How long the end of a hold whose key was deleted waits for the reason: if the session key was deleted with it, that
/// is reported within the same moment.
const LOSS_REASON_GRACE: Duration = Duration::from_millis(50);

impl Contender {
    /// The key exists since `created`. The answer says so as of `revision`; the put was sent at `sent`.
    pub(in crate::protocol) fn put_answered(
        &mut self,
        (created, admission): (Revision, Admission),
        (revision, sent): (Revision, Time),
        cx: &mut Surroundings<'_>,
    ) -> Fact {
        let predecessors = match admission {
            Admission::Admitted => return Fact::Admitted { token: created, as_of: revision },
            Admission::Gone => return Fact::Gone,
            Admission::Behind(predecessors) => predecessors,
            Admission::Uncounted => {
                self.look.counted = true;
                None
            }
        };
        self.stage = Stage::Queued(Box::new(Position::new(created, revision, sent)));
        self.wait_behind(predecessors, (revision, sent), cx);
        let far = self.milestone().map_or(Duration::ZERO, |milestone| milestone.times(FIRST_EARLY_CHECK));
        cx.effects.timers.set(Timer::OwnWatch(self.id), cx.now + OWN_WATCH_AGE.max(far));
        Fact::Nothing
    }

    /// The put went unanswered under this epoch, so it may still be carried out while the epoch lasts.
    pub(in crate::protocol) fn put_unanswered(&mut self, epoch: Revision) {
        self.unanswered_epoch = self.unanswered_epoch.max(Some(epoch));
    }

    /// An answer of `revision` to a request sent at `sent` showed these predecessors; `None` if it did not show them.
    fn wait_behind(
        &mut self,
        predecessors: Option<Predecessors>,
        (revision, sent): (Revision, Time),
        cx: &mut Surroundings<'_>,
    ) {
        let Some(predecessors) = predecessors else {
            return self.come_closer(cx);
        };
        // Other keys of this session are being deleted, and keep nobody out for long.
        let (lease, own) = (self.lease, (self.id, self.key.clone()));
        let is_other = |key: &Key| !cx.name.is_key_of(key, lease);
        let Some(position) = self.position_mut() else {
            return;
        };
        position.read_sent = sent;
        position.was_behind = match &predecessors {
            Predecessors::All(keys) | Predecessors::Nearest(keys) => keys.iter().any(is_other),
            // More predecessors than are listed.
            Predecessors::Milestone(_) => true,
        };
        position.predecessors_read(predecessors, revision, (own.0, &own.1), cx.name.contenders(), cx.effects);
        let after = cx.effects.jittered(position.recheck_after());
        cx.effects.timers.set(Timer::Recheck(self.id), cx.now + after);
    }

    /// The watch of the predecessors was confirmed, for the first time or again.
    pub(in crate::protocol) fn predecessor_watch_confirmed(
        &mut self,
        revision: Revision,
        cx: &mut Surroundings<'_>,
    ) -> Fact {
        match self.position_mut().map_or(Confirmed::AsPlanned, |position| position.watch_created(revision)) {
            Confirmed::AsPlanned => {}
            Confirmed::CheckNow => self.check_position(cx),
            Confirmed::CheckAfter(after) => {
                let after = cx.effects.jittered(after);
                cx.effects.timers.set(Timer::Recheck(self.id), cx.now + after);
            }
        }
        Fact::Nothing
    }

    /// The watch of the predecessors reported deletions.
    pub(in crate::protocol) fn predecessors_deleted(
        &mut self,
        deleted: &[Key],
        revision: Revision,
        cx: &mut Surroundings<'_>,
    ) -> Fact {
        let Stage::Queued(position) = &mut self.stage else {
            return Fact::Nothing;
        };
        if position.note_watch_served(revision) {
            let after = cx.effects.jittered(position.recheck_after());
            cx.effects.timers.set(Timer::Recheck(self.id), cx.now + after);
        }
        let checking = self.position_check.is_some();
        match position.keys_deleted(&self.key, deleted, revision, checking) {
            DeletionEffect::Nothing => {}
            DeletionEffect::OwnKeyDeleted => return Fact::Gone,
            DeletionEffect::CheckPosition => self.check_position(cx),
            DeletionEffect::MilestoneDeleted => self.come_closer(cx),
        }
        Fact::Nothing
    }

    /// The milestone is passed, or who our predecessors are is not known: they must be read.
    fn come_closer(&mut self, cx: &mut Surroundings<'_>) {
        let id = self.id;
        let Some(position) = self.position_mut().filter(|position| position.milestone().is_some()) else {
            return self.check_position(cx);
        };
        // They are read once this watch is confirmed.
        let (unread, prefix) = (Predecessors::All(Vec::new()), cx.name.contenders());
        position.watch_predecessors(unread, id, prefix, cx.effects);
        let after = cx.effects.jittered(RECHECK_INTERVAL);
        cx.effects.timers.set(Timer::Recheck(self.id), cx.now + after);
    }

    /// All events that arrived together are handled: admits the contender if no predecessors are left. Not earlier,
    /// because one of those events may report that our own key was deleted, too.
    pub(in crate::protocol) fn settle(&self) -> Fact {
        match &self.stage {
            Stage::Queued(position) => position
                .first_as_of()
                .map_or(Fact::Nothing, |as_of| Fact::Admitted { token: position.created, as_of }),
            Stage::Entering | Stage::Held(_) => Fact::Nothing,
        }
    }

    /// Reads the position; at most one such read is in flight.
    pub(in crate::protocol) fn check_position(&mut self, cx: &mut Surroundings<'_>) {
        let (Some(epoch), Some(created)) = (cx.epoch, self.created()) else {
            return;
        };
        if self.position_check.is_some() {
            self.check_again = true;
            return;
        }
        let (own, milestone) = (Rank { created, key: &self.key }, self.milestone().cloned());
        let check = match &milestone {
            Some(milestone) => read::check_milestone(epoch, own, milestone),
            None => read::check_position(epoch, cx.name, own, self.look),
        };
        // A read that gets lost must not delay a hand-over longer than a watch that dies.
        let timeout = cx.effects.config.request_timeout.min(RECHECK_INTERVAL);
        let purpose = Purpose::CheckPosition(self.id);
        let request = cx.effects.send_within(purpose, Request::Txn(check), timeout);
        self.position_check = Some(PositionCheck { request, epoch: epoch.revision, sent: cx.now, milestone });
        if let Some(position) = self.position_mut() {
            position.check_sent();
        }
    }

    /// The read of the position was answered, or failed.
    pub(in crate::protocol) fn position_answered(
        &mut self,
        reply: Result<Response, Failure>,
        cx: &mut Surroundings<'_>,
    ) -> Result<Fact, Unread> {
        let check = self.position_check.take();
        let again = std::mem::take(&mut self.check_again);
        let Response { revision, answer, .. } = reply.map_err(Unread::Failed)?;
        let (Answer::Txn(answer), Some(created)) = (answer, self.created()) else {
            return Err(Unread::Failed(Failure::malformed()));
        };
        if self.is_newer_than(revision) && !mutant!(StaleReadBelieved) {
            return Err(Unread::Failed(read::stale()));
        }
        let sent = check.as_ref().map_or(cx.now, |check| check.sent);
        let (own, asked) =
            (Rank { created, key: &self.key }, check.as_ref().and_then(|it| it.milestone.as_ref()));
        let read = match asked {
            Some(milestone) => read::milestone_answer(own, milestone, &answer),
            None => read::position_answer(own, self.look, &answer),
        };
        match read {
            PositionAnswer::StaleEpoch { session } => {
                // Unlike a write, a read can be answered from an old state (etcd #20418), and then its session key is no
                // news.
                let read = session.as_ref().zip(check.as_ref());
                let old = read.is_some_and(|(session, check)| session.mod_revision <= check.epoch);
                Err(if old { Unread::Failed(read::stale()) } else { Unread::EpochChanged { session } })
            }
            // The milestone was reported deleted meanwhile, and the answer says nothing about others.
            PositionAnswer::Read(Admission::Behind(_))
                if asked.is_some() && self.milestone() != asked && !mutant!(PassedMilestoneBelieved) =>
            {
                if again {
                    self.check_position(cx);
                }
                Ok(Fact::Nothing)
            }
            PositionAnswer::Read(admission) => {
                Ok(self.position_read(admission, (created, revision, sent), again, cx))
            }
            PositionAnswer::Malformed => Err(Unread::Failed(Failure::malformed())),
        }
    }

    fn position_read(
        &mut self,
        admission: Admission,
        (created, revision, sent): (Revision, Revision, Time),
        again: bool,
        cx: &mut Surroundings<'_>,
    ) -> Fact {
        match (admission, self.held_mut()) {
            (Admission::Uncounted, None) => {
                self.look.counted = true;
                self.check_position(cx);
            }
            (Admission::Admitted, None) => return Fact::Admitted { token: created, as_of: revision },
            (Admission::Behind(predecessors), None) => {
                self.wait_behind(predecessors, (revision, sent), cx);
                if again {
                    self.check_position(cx);
                }
            }
            // The watch already proved us first; this read is older.
            (Admission::Behind(_) | Admission::Uncounted, Some(held)) if revision < held.as_of => {}
            (Admission::Admitted, Some(held)) => {
                // The key exists after the reported deletion, so that was one of an earlier use of it.
                if held.deleted_at.take().is_some() {
                    cx.effects.timers.clear(Timer::AwaitLossReason(self.id));
                }
            }
            // A predecessor exists, so we never were the first, and the hold is not to be relied on.
            (Admission::Behind(_) | Admission::Uncounted, Some(_)) | (Admission::Gone, _) => {
                return Fact::Gone;
            }
        }
        Fact::Nothing
    }

    /// The last read of the position failed; another one follows after this pause.
    pub(in crate::protocol) fn check_position_after(&mut self, pause: Duration, cx: &mut Surroundings<'_>) {
        if self.held().is_none_or(|held| held.deleted_at.is_none()) {
            cx.effects.timers.set(Timer::Recheck(self.id), cx.now + pause);
        }
    }

    /// The watch has not reported anything for a while, or the last read of the position failed.
    pub(in crate::protocol) fn recheck_position(&mut self, cx: &mut Surroundings<'_>) -> Fact {
        if !mutant!(MissedEventsIgnored) {
            self.check_position(cx);
        }
        Fact::Nothing
    }

    /// The key of the hold was deleted, and no other reason has been reported since.
    pub(in crate::protocol) fn stop_awaiting_loss_reason(&mut self, _: &mut Surroundings<'_>) -> Fact {
        let deleted = self.held().is_some_and(|held| held.deleted_at.is_some());
        if deleted { Fact::Gone } else { Fact::Nothing }
    }

    pub(in crate::protocol) fn own_watch_confirmed(&mut self, cx: &mut Surroundings<'_>) -> Fact {
        if let Some(watch) = &mut self.own_watch
            && std::mem::replace(&mut watch.confirmed, true)
        {
            self.check_position(cx);
        }
        Fact::Nothing
    }

    /// The watch stream was reopened, perhaps because the store was restored from a backup. A young hold has no watch of its
    /// own key yet, and one that begins now reports no deletion of a key that never existed in the restored store.
    pub(in crate::protocol) fn stream_reopened(&mut self, cx: &mut Surroundings<'_>) -> Fact {
        if self.held().is_some() {
            self.check_position(cx);
        }
        Fact::Nothing
    }

    /// Our key was deleted by somebody else. A hold is over, but if the session ended at the same time, that is the reason
    /// to report; a read finds out.
    pub(in crate::protocol) fn own_key_deleted(
        &mut self,
        revision: Revision,
        cx: &mut Surroundings<'_>,
    ) -> Fact {
        let replayed = self.created().is_some_and(|created| revision <= created);
        if replayed && !mutant!(ReplayedDeletionBelieved) {
            // A lagging member reports the deletion of an earlier use of the key.
            return Fact::Nothing;
        }
        let Some(held) = self.held_mut() else {
            return Fact::Gone;
        };
        held.deleted_at = Some(revision);
        cx.effects.timers.clear(Timer::Recheck(self.id));
        cx.effects.timers.set(Timer::AwaitLossReason(self.id), cx.now + LOSS_REASON_GRACE);
        self.check_position(cx);
        Fact::Nothing
    }
}
