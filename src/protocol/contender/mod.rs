//! Our key in the queue of a lock name, from the request that puts it to its deletion.
//!
//! A [`Contender`] sends the reads of its position, watches its predecessors and its own key, and sets its timers by
//! itself. Its queue passes events to it, and acts on the [`Fact`]s that they establish.

mod events;
pub(in crate::protocol) mod origin;
mod position;
pub(in crate::protocol) mod stale_key;

use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Failure, Key, KeyValue, LeaseId, Revision, Span, WatchId};
use crate::mode::Mode;
use crate::name::LockName;
use crate::protocol::admission::Milestone;
use crate::protocol::effects::{Effects, Watched};
use crate::protocol::messages::{Acquire, Config, ContenderId, HoldId, RequestId, Ticket};
use crate::protocol::put::{ContenderPut, Try};
use crate::protocol::read::{Epoch, Look};
use crate::protocol::timers::Timer;

use origin::{HeldKeys, Origin};
use position::Position;
use stale_key::StaleKey;

/// A contender of this age gets a watch of its own key; shorter holds do not pay for one.
const OWN_WATCH_AGE: Duration = Duration::from_millis(100);

/// What an event of a contender means for its queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fact {
    /// Nothing that concerns the queue.
    Nothing,
    /// The contender has the lock, and was known to be first as of this revision. The queue has to [`hold`] it for a
    /// waiter, or to give it up.
    ///
    /// [`hold`]: Contender::hold
    Admitted { token: Revision, as_of: Revision },
    /// The key was deleted by somebody else. The hold, if there is one, is lost.
    Gone,
}

/// Why a read of the position says nothing about it.
#[derive(Debug)]
pub(super) enum Unread {
    Failed(Failure),
    /// The epoch has changed, or the session is gone; this is the session key now.
    EpochChanged {
        session: Option<KeyValue>,
    },
}

/// What a contender needs of its surroundings to handle an event.
pub(super) struct Surroundings<'a> {
    pub(super) name: &'a LockName,
    pub(super) now: Time,
    /// The epoch of the session, if it is established.
    pub(super) epoch: Option<&'a Epoch>,
    pub(super) effects: &'a mut Effects,
}

/// One contender of a lock name: a key that we have put, or are about to put, on behalf of the waiters of this process.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    id: ContenderId,
    key: Key,
    /// What the key's value says.
    origin: Origin,
    lease: LeaseId,
    look: Look,
    /// The key is put only if the contender is admitted at once.
    try_only: Option<Try>,
    /// The latest epoch under which a request that puts this key went unanswered. A copy of it may still be carried out
    /// until the epoch changes.
    unanswered_epoch: Option<Revision>,
    stage: Stage,
    /// The read of our position that is in flight.
    position_check: Option<PositionCheck>,
    /// Something happened since that read was sent, so another one must follow.
    check_again: bool,
    own_watch: Option<OwnWatch>,
}

/// A read of our position that is in flight.
#[derive(Clone, Debug)]
struct PositionCheck {
    request: RequestId,
    epoch: Revision,
    sent: Time,
    /// It reads only whether this milestone is passed.
    milestone: Option<Milestone>,
}

#[derive(Clone, Debug)]
enum Stage {
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
    as_of: Revision,
    /// The ticket that was granted the lock.
    pub(super) ticket: Ticket,
    /// The key was reported deleted at this revision; the hold ends as soon as the reason is known.
    deleted_at: Option<Revision>,
}

/// The watch of our own key. It is opened only for contenders of some age, so that short holds do not pay for it.
#[derive(Clone, Debug)]
struct OwnWatch {
    id: WatchId,
    /// Confirmed once; a second confirmation means that the stream was reopened and events may be missing.
    confirmed: bool,
}

impl Held {
    pub(super) fn new(id: HoldId, ticket: Ticket, token: Revision, as_of: Revision) -> Self {
        Self { id, token, as_of, ticket, deleted_at: None }
    }
}

impl Contender {
    pub(super) fn new(
        id: ContenderId,
        key: Key,
        origin: Origin,
        lease: LeaseId,
        mode: Mode,
        try_only: bool,
    ) -> Self {
        Self {
            id,
            key,
            origin,
            lease,
            look: Look { mode, counted: false },
            try_only: try_only.then(Try::default),
            unanswered_epoch: None,
            stage: Stage::Entering,
            position_check: None,
            check_again: false,
            own_watch: None,
        }
    }

    pub(super) fn id(&self) -> ContenderId {
        self.id
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn mode(&self) -> Mode {
        self.look.mode
    }

    /// The key is put only if the contender is admitted at once.
    pub(super) fn is_try(&self) -> bool {
        self.try_only.is_some()
    }

    /// It may be put as of this revision; see [`Try`].
    pub(super) fn try_as_of(&mut self, revision: Revision, counted: bool) {
        self.try_only = Some(Try { as_of: if counted { 0 } else { revision } });
        self.look.counted |= counted;
    }

    pub(super) fn is_entering(&self) -> bool {
        matches!(self.stage, Stage::Entering)
    }

    pub(super) fn is_queued(&self) -> bool {
        matches!(self.stage, Stage::Queued(_))
    }

    /// The read of its position that was sent last, at `since` or later, showed a predecessor of another session.
    pub(super) fn was_behind_since(&self, since: Time) -> bool {
        matches!(&self.stage, Stage::Queued(position) if position.was_behind && position.read_sent >= since)
    }

    /// When the read was sent that shows that there is no room for it, if it is a try that exists all the same: an earlier
    /// copy of its put was carried out.
    pub(super) fn has_no_room_since(&self) -> Option<Time> {
        match &self.stage {
            Stage::Queued(position) if self.is_try() && position.knows_predecessors() => {
                Some(position.read_sent)
            }
            _ => None,
        }
    }

    /// It is queued, and the last read of its position was sent before `since`.
    pub(super) fn was_read_before(&self, since: Time) -> bool {
        matches!(&self.stage, Stage::Queued(position) if position.read_sent < since)
    }

    /// The put of the key, as long as that is not known to be carried out.
    pub(super) fn put(&self, name: &LockName, config: &Config) -> Option<ContenderPut> {
        self.is_entering().then(|| ContenderPut {
            name: name.clone(),
            key: self.key.clone(),
            value: self.origin.encode(config),
            lease: self.lease,
            look: self.look,
            try_only: self.try_only,
        })
    }

    /// Takes the lock for a ticket, and returns the key.
    pub(super) fn hold(&mut self, held: Held, cx: &mut Surroundings<'_>) -> Key {
        self.unwatch_predecessors(cx.effects);
        self.stage = Stage::Held(held);
        cx.effects.timers.clear(Timer::Recheck(self.id));
        if self.own_watch.is_none() {
            cx.effects.timers.set(Timer::OwnWatch(self.id), cx.now + OWN_WATCH_AGE);
        }
        self.key.clone()
    }

    /// Whether it holds the lock with this key.
    pub(super) fn holds(&self, kv: &KeyValue) -> bool {
        self.held().is_some_and(|held| (&self.key, held.token) == (&kv.key, kv.create_revision))
    }

    /// What is in etcd for the hold of this ticket.
    pub(super) fn held_keys(&self, ticket: Ticket) -> Option<HeldKeys> {
        let held = self.held().filter(|held| held.ticket == ticket)?;
        let keys = vec![(self.key.clone(), held.token)];
        Some(HeldKeys { keys, lease: self.lease, origin: self.origin.clone() })
    }

    /// It can stand for this caller: its mode and what its value says are what the caller wants.
    pub(super) fn suits(&self, acquire: &Acquire) -> bool {
        self.mode() == acquire.mode && self.origin.note == acquire.note
    }

    pub(super) fn held(&self) -> Option<&Held> {
        match &self.stage {
            Stage::Held(held) => Some(held),
            _ => None,
        }
    }

    fn held_mut(&mut self) -> Option<&mut Held> {
        match &mut self.stage {
            Stage::Held(held) => Some(held),
            _ => None,
        }
    }

    fn position_mut(&mut self) -> Option<&mut Position> {
        match &mut self.stage {
            Stage::Queued(position) => Some(position),
            _ => None,
        }
    }

    /// The milestone that it waits for, if it is queued far back.
    fn milestone(&self) -> Option<&Milestone> {
        match &self.stage {
            Stage::Queued(position) => position.milestone(),
            _ => None,
        }
    }

    /// The create revision of our key, if it is known to exist.
    fn created(&self) -> Option<Revision> {
        match &self.stage {
            Stage::Entering => None,
            Stage::Queued(position) => Some(position.created),
            Stage::Held(held) => Some(held.token),
        }
    }

    /// Whether a read answered at `revision` is older than what is already known of this contender.
    fn is_newer_than(&self, revision: Revision) -> bool {
        match &self.stage {
            Stage::Entering => false,
            Stage::Queued(position) => revision < position.created || position.is_newer_than(revision),
            Stage::Held(held) => revision < held.token || held.deleted_at.is_some_and(|at| revision < at),
        }
    }

    fn unwatch_predecessors(&mut self, effects: &mut Effects) {
        if let Some(position) = self.position_mut() {
            position.unwatch_predecessors(effects);
        }
    }

    /// Watches our own key from its creation on, so that a deletion that has already happened is reported, too. Not from
    /// the next revision on: while that is still in the future, etcd 3.5.30 answers no progress request on the stream.
    pub(super) fn watch_own_key(&mut self, cx: &mut Surroundings<'_>) -> Fact {
        if let (Some(created), None) = (self.created(), &self.own_watch) {
            let id = cx.effects.watch(Watched::OwnKey(self.id), Span::Key(self.key.clone()), created);
            self.own_watch = Some(OwnWatch { id, confirmed: false });
        }
        Fact::Nothing
    }

    /// Ends the contender's watches, reads and timers. Its key may have to be deleted; if its create revision is known,
    /// the delete compares it, so that it does no harm to a later key of the same name.
    pub(super) fn into_stale_key(mut self, effects: &mut Effects) -> StaleKey {
        self.unwatch_predecessors(effects);
        if let Some(watch) = &self.own_watch {
            effects.unwatch(watch.id);
        }
        if let Some(check) = &self.position_check {
            effects.forget_request(check.request);
        }
        effects.timers.clear(Timer::Recheck(self.id));
        effects.timers.clear(Timer::AwaitLossReason(self.id));
        effects.timers.clear(Timer::OwnWatch(self.id));
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
