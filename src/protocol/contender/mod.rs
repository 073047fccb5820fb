//! Our key in the queue of a lock name, from the request that puts it to its deletion.

pub(in crate::protocol) mod position;
pub(in crate::protocol) mod stale_key;

use crate::clock::Time;
use crate::kv::{Key, LeaseId, Revision, Span, WatchId};
use crate::protocol::effects::{Effects, Watched};
use crate::protocol::messages::{HoldId, QueueId, RequestId, Ticket};
use crate::protocol::timers::Timer;

use position::Position;
use stale_key::StaleKey;

/// One contender of a lock name: a key that we have put, or are about to put, on behalf of the waiters of this process.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    pub(super) key: Key,
    /// The key's value; empty once the lock is held.
    pub(super) value: Vec<u8>,
    pub(super) lease: LeaseId,
    /// The key is put only if the lock is free.
    pub(super) try_only: bool,
    /// The latest epoch under which a request that puts this key went unanswered. A copy of it may still be carried out
    /// until the epoch changes.
    pub(super) unanswered_epoch: Option<Revision>,
    pub(super) stage: Stage,
    /// The read of our position that is in flight.
    pub(super) position_check: Option<PositionCheck>,
    /// Something happened since that read was sent, so another one must follow.
    pub(super) check_again: bool,
    pub(super) own_watch: Option<OwnWatch>,
}

/// A read of our position that is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct PositionCheck {
    pub(super) request: RequestId,
    pub(super) epoch: Revision,
    pub(super) sent: Time,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// The key is to be put, or its put is in flight. Exits: Queued, Held, forgotten (never put), stale key.
    Entering,
    /// Waits behind other contenders. Exits: Held, stale key (not wanted any more, or deleted by somebody else). Boxed,
    /// because most contenders hold the lock.
    Queued(Box<Position>),
    /// Holds the lock. Exits: stale key (released or lost).
    Held(Held),
}

/// The hold of a contender that has the lock.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) id: HoldId,
    pub(super) token: Revision,
    /// The revision as of which the contender was known to be first.
    pub(super) as_of: Revision,
    /// The ticket that was granted the lock.
    pub(super) ticket: Ticket,
    /// The key was reported deleted at this revision; the hold ends as soon as the reason is known.
    pub(super) deleted_at: Option<Revision>,
}

/// The watch of our own key. It is opened only for contenders of some age, so that short holds do not pay for it.
#[derive(Clone, Debug)]
pub(super) struct OwnWatch {
    pub(super) id: WatchId,
    /// Confirmed once; a second confirmation means that the stream was reopened and events may be missing.
    pub(super) confirmed: bool,
}

impl Contender {
    pub(super) fn new(key: Key, value: Vec<u8>, lease: LeaseId, try_only: bool) -> Self {
        Self {
            key,
            value,
            lease,
            try_only,
            unanswered_epoch: None,
            stage: Stage::Entering,
            position_check: None,
            check_again: false,
            own_watch: None,
        }
    }

    pub(super) fn is_entering(&self) -> bool {
        matches!(self.stage, Stage::Entering)
    }

    pub(super) fn held(&self) -> Option<&Held> {
        match &self.stage {
            Stage::Held(held) => Some(held),
            _ => None,
        }
    }

    pub(super) fn held_mut(&mut self) -> Option<&mut Held> {
        match &mut self.stage {
            Stage::Held(held) => Some(held),
            _ => None,
        }
    }

    pub(super) fn position_mut(&mut self) -> Option<&mut Position> {
        match &mut self.stage {
            Stage::Queued(position) => Some(position),
            _ => None,
        }
    }

    /// The create revision of our key, if it is known to exist.
    pub(super) fn created(&self) -> Option<Revision> {
        match &self.stage {
            Stage::Entering => None,
            Stage::Queued(position) => Some(position.created),
            Stage::Held(held) => Some(held.token),
        }
    }

    /// Whether a read answered at `revision` is older than what is already known of this contender.
    pub(super) fn is_newer_than(&self, revision: Revision) -> bool {
        match &self.stage {
            Stage::Entering => false,
            Stage::Queued(position) => revision < position.created || position.is_newer_than(revision),
            Stage::Held(held) => revision < held.token || held.deleted_at.is_some_and(|at| revision < at),
        }
    }

    pub(super) fn unwatch_predecessors(&mut self, effects: &mut Effects) {
        if let Some(position) = self.position_mut() {
            position.unwatch_predecessors(effects);
        }
    }

    /// Watches our own key from its creation on, so that a deletion that has already happened is reported, too. Not from
    /// the next revision on: while that is still in the future, etcd 3.5.30 answers no progress request on the stream.
    pub(super) fn watch_own_key(&mut self, queue: QueueId, effects: &mut Effects) {
        if let (Some(created), None) = (self.created(), &self.own_watch) {
            let id = effects.watch(Watched::OwnKey(queue), Span::Key(self.key.clone()), created);
            self.own_watch = Some(OwnWatch { id, confirmed: false });
        }
    }

    /// Ends the contender's watches, reads and timers. Its key may have to be deleted; if its create revision is known,
    /// the delete compares it, so that it does no harm to a later key of the same name.
    pub(super) fn into_stale_key(mut self, queue: QueueId, effects: &mut Effects) -> StaleKey {
        self.unwatch_predecessors(effects);
        if let Some(watch) = &self.own_watch {
            effects.unwatch(watch.id);
        }
        if let Some(check) = self.position_check {
            effects.forget_request(check.request);
        }
        effects.timers.clear(Timer::Recheck(queue));
        effects.timers.clear(Timer::AwaitLossReason(queue));
        effects.timers.clear(Timer::OwnWatch(queue));
        StaleKey {
            created: self.created(),
            key: self.key,
            unanswered_epoch: self.unanswered_epoch,
            repeated: false,
            plain: false,
            was_gone: false,
            released: None,
            confirm: Vec::new(),
        }
    }
}
