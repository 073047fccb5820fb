//! Our one key in etcd for a name, from its first request to its last delete.

use super::super::mutants::mutant;
use super::super::outbox::{Outbox, Watched};
use super::super::timers::Timer;
use super::super::{HoldId, QueueId, RequestId, Thread, Ticket};
use super::place::Place;
use crate::store::{Key, LeaseId, Revision, WatchId};

/// The key with which this process stands in the queue of a name.
#[derive(Debug)]
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
    pub(super) look: Option<RequestId>,
    /// Something happened since that read was sent.
    pub(super) look_again: bool,
    pub(super) own_watch: Option<OwnWatch>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The key is to be put, or its put is in flight. Exits: Queued, Held, dropped (never put), debris.
    Entering,
    /// Behind another contender. Exits: Held, debris, gone (deleted by somebody). Boxed, because most contenders hold.
    Queued(Box<Place>),
    /// First. Exits: debris (released), lost.
    Held(Hold),
}

#[derive(Debug)]
pub(super) struct Hold {
    pub(super) id: HoldId,
    pub(super) token: Revision,
    /// Who may re-enter.
    pub(super) thread: Thread,
    /// The tickets whose guards are still there; never empty.
    pub(super) claims: Vec<Ticket>,
    /// The key was seen deleted; only the reason is not known yet.
    pub(super) doomed: bool,
}

/// The watch on our own key, opened once the contender is old enough to be worth it.
#[derive(Debug)]
pub(super) struct OwnWatch {
    pub(super) id: WatchId,
    /// It stood once: standing again means that something may have been missed in between.
    pub(super) stood: bool,
}

/// A key of ours that must go.
#[derive(Debug)]
pub(super) struct Debris {
    pub(super) key: Key,
    /// See [`Contender::dirty`]: it can only be deleted for good under a later epoch.
    pub(super) dirty: Option<Revision>,
    /// A delete of it went unanswered, so a later one that finds nothing proves nothing.
    pub(super) repeated: bool,
    /// Who waits to hear that it is gone.
    pub(super) confirm: Vec<Ticket>,
}

impl Debris {
    /// Nothing can bring the key back once it is deleted.
    pub(super) fn is_fenced(&self, epoch: Revision) -> bool {
        self.dirty.is_none_or(|dirty| dirty < epoch) || mutant!(DeletedWithoutFence)
    }
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

    pub(super) fn leave_lookout(&mut self, out: &mut Outbox) {
        if let Some(place) = self.place_mut() {
            place.leave_lookout(out);
        }
    }

    /// Watches our own key from its creation on, so that a deletion in the past is told as well. Not from one revision
    /// later: that may be still to come, and etcd 3.5.30 answers no request for progress on a stream with such a watch.
    pub(super) fn watch_own_key(&mut self, queue: QueueId, out: &mut Outbox) {
        if let (Some(created), None) = (self.created(), &self.own_watch) {
            let span = crate::store::Span::Key(self.key.clone());
            let id = out.watch(Watched::Own(queue), span, created);
            self.own_watch = Some(OwnWatch { id, stood: false });
        }
    }

    /// Ends everything that was under way for this contender. What is left of it may have to be deleted.
    pub(super) fn retire(mut self, queue: QueueId, out: &mut Outbox) -> Debris {
        self.leave_lookout(out);
        if let Some(watch) = &self.own_watch {
            out.unwatch(watch.id);
        }
        if let Some(look) = self.look {
            out.forget_request(look);
        }
        out.timers.clear(Timer::Fallback(queue));
        out.timers.clear(Timer::OwnWatch(queue));
        Debris { key: self.key, dirty: self.dirty, repeated: false, confirm: Vec::new() }
    }
}
