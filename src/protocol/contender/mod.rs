//! Our one key in etcd for a name, from its first request to its last delete.

pub(in crate::protocol) mod position;
pub(in crate::protocol) mod stale_key;

use self::position::Place;
use self::stale_key::Debris;
use super::effects::{Outbox, Watched};
use super::timers::Timer;
use super::{HoldId, QueueId, RequestId, Ticket};
use crate::clock::Time;
use crate::kv::{Key, LeaseId, Revision, WatchId};

/// The key with which this process stands in the queue of a name.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    pub(super) key: Key,
    pub(super) value: Vec<u8>,
    pub(super) lease: LeaseId,
    /// Enters only if nobody is there.
    pub(super) try_only: bool,
    /// The latest epoch under which a request that puts this key went unanswered: a copy may still take effect as
    /// long as the session key is not put again.
    pub(super) dirty: Option<Revision>,
    pub(super) stage: Stage,
    /// The read of where we stand that is in flight.
    pub(super) look: Option<Look>,
    /// Something happened since that read was sent.
    pub(super) look_again: bool,
    pub(super) own_watch: Option<OwnWatch>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) request: RequestId,
    pub(super) epoch: Revision,
    pub(super) sent: Time,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// The key is to be put, or its put is in flight. Exits: Queued, Held, dropped (never put), debris.
    Entering,
    /// Behind another contender. Exits: Held, debris, gone (deleted by somebody). Boxed, because most contenders hold.
    Queued(Box<Place>),
    /// First. Exits: debris (released), lost.
    Held(Hold),
}

#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) id: HoldId,
    pub(super) token: Revision,
    /// The revision that showed it to be the first.
    pub(super) as_of: Revision,
    /// The ticket whose guards are still there.
    pub(super) ticket: Ticket,
    /// The key was reported deleted at this revision; only the reason is not known yet.
    pub(super) doomed: Option<Revision>,
}

/// The watch on our own key, opened once the contender is old enough to be worth it.
#[derive(Clone, Debug)]
pub(super) struct OwnWatch {
    pub(super) id: WatchId,
    /// It stood once: standing again means that something may have been missed in between.
    pub(super) stood: bool,
}

impl Contender {
    pub(super) fn new(key: Key, value: Vec<u8>, lease: LeaseId, try_only: bool) -> Self {
        Self {
            key,
            value,
            lease,
            try_only,
            dirty: None,
            stage: Stage::Entering,
            look: None,
            look_again: false,
            own_watch: None,
        }
    }

    pub(super) fn is_entering(&self) -> bool {
        matches!(self.stage, Stage::Entering)
    }

    pub(super) fn hold(&self) -> Option<&Hold> {
        match &self.stage {
            Stage::Held(hold) => Some(hold),
            _ => None,
        }
    }

    pub(super) fn hold_mut(&mut self) -> Option<&mut Hold> {
        match &mut self.stage {
            Stage::Held(hold) => Some(hold),
            _ => None,
        }
    }

    pub(super) fn place_mut(&mut self) -> Option<&mut Place> {
        match &mut self.stage {
            Stage::Queued(place) => Some(place),
            _ => None,
        }
    }

    /// The create revision of our key, once it is known.
    pub(super) fn created(&self) -> Option<Revision> {
        match &self.stage {
            Stage::Entering => None,
            Stage::Queued(place) => Some(place.created),
            Stage::Held(hold) => Some(hold.token),
        }
    }

    /// Whether a read answered at `revision` is older than what is known: it does not speak for this contender.
    pub(super) fn is_older(&self, revision: Revision) -> bool {
        match &self.stage {
            Stage::Entering => false,
            Stage::Queued(place) => revision < place.created || place.has_seen_later(revision),
            Stage::Held(hold) => revision < hold.token || hold.doomed.is_some_and(|at| revision < at),
        }
    }

    pub(super) fn leave_lookout(&mut self, out: &mut Outbox) {
        if let Some(place) = self.place_mut() {
            place.leave_lookout(out);
        }
    }

    /// Watches our own key from its creation on, so that a deletion in the past is told as well. Not from one revision
    /// later: that may be still to come, and etcd 3.5.30 answers no request for progress on a stream with such a watch.
    pub(super) fn watch_own_key(&mut self, queue: QueueId, out: &mut Outbox) {
        if let (Some(created), None) = (self.created(), &self.own_watch) {
            let span = crate::kv::Span::Key(self.key.clone());
            let id = out.watch(Watched::Own(queue), span, created);
            self.own_watch = Some(OwnWatch { id, stood: false });
        }
    }

    /// Ends everything that was under way for this contender. What is left of it may have to be deleted.
    /// A key whose create revision is known is compared with it, so that deleting what is gone already does no harm.
    pub(super) fn retire(mut self, queue: QueueId, out: &mut Outbox) -> Debris {
        self.leave_lookout(out);
        if let Some(watch) = &self.own_watch {
            out.unwatch(watch.id);
        }
        if let Some(look) = self.look {
            out.forget_request(look.request);
        }
        out.timers.clear(Timer::Fallback(queue));
        out.timers.clear(Timer::OwnWatch(queue));
        Debris {
            created: self.created(),
            key: self.key,
            dirty: self.dirty,
            repeated: false,
            plain: false,
            was_gone: false,
            released: None,
            confirm: Vec::new(),
        }
    }
}
