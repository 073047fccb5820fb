//! Where the contender stands, and what its watch tells.

use super::{Cx, OWN_WATCH_AGE, Queue};
use crate::clock::Time;
use crate::kv::{Key, Revision};
use crate::protocol::contender::position::{Footing, Place, Post, Sighting};
use crate::protocol::contender::{Contender, Stage};
use crate::protocol::mutants::mutant;
use crate::protocol::read::Ahead;
use crate::protocol::timers::Timer;

impl Queue {
    /// The contender stands behind others, as of `revision`.
    pub(super) fn stand(
        &mut self,
        created: Revision,
        ahead: Option<Ahead>,
        (revision, sent): (Revision, Time),
        cx: &mut Cx<'_>,
    ) {
        if let Some(contender) = &mut self.contender {
            contender.stage = Stage::Queued(Box::new(Place::new(created, revision, sent)));
            cx.out.timers.set(Timer::OwnWatch(self.id), cx.now + OWN_WATCH_AGE);
        }
        match ahead {
            Some(ahead) => self.wait_behind(ahead, (revision, sent), cx),
            None => self.look(cx),
        }
    }

    /// A read showed at `revision` who is before us.
    pub(super) fn wait_behind(&mut self, ahead: Ahead, (revision, sent): (Revision, Time), cx: &mut Cx<'_>) {
        let Some(contender) = &mut self.contender else {
            return;
        };
        // Other keys of this session are being deleted, and keep nobody out for long.
        let lease = contender.lease;
        let is_other = |key: &Key| !self.name.is_key_of(key, lease);
        let Some(place) = contender.place_mut() else {
            return;
        };
        place.asked_at = sent;
        place.was_behind = match &ahead {
            Ahead::Near(keys) => keys.iter().any(is_other),
            // Too many to be known by name.
            Ahead::Far(_) => true,
        };
        place.read(ahead, revision, self.id, self.name.contenders(), cx.out);
        let patience = cx.out.jittered(place.patience());
        cx.out.timers.set(Timer::Fallback(self.id), cx.now + patience);
    }

    /// The lookout tells everything after `revision`, for the first time or again.
    pub(in crate::protocol) fn lookout_stands(&mut self, revision: Revision, cx: &mut Cx<'_>) {
        let Some(place) = self.contender.as_mut().and_then(Contender::place_mut) else {
            return;
        };
        let Some(lookout) = &mut place.lookout else {
            return;
        };
        let begun = lookout.footing == Footing::None && revision == place.seen;
        let begun = begun || mutant!(MissedEventsIgnored);
        lookout.footing = if begun { Footing::Firm } else { Footing::Shaky };
        if !begun || lookout.post.is_clear() {
            self.look(cx);
        }
    }

    /// Keys that the lookout watches were deleted.
    pub(in crate::protocol) fn sighted(&mut self, gone: &[Key], revision: Revision, cx: &mut Cx<'_>) {
        let Some(contender) = &mut self.contender else {
            return;
        };
        let Stage::Queued(place) = &mut contender.stage else {
            return;
        };
        if place.note_served(revision) {
            let patience = cx.out.jittered(place.patience());
            cx.out.timers.set(Timer::Fallback(self.id), cx.now + patience);
        }
        match place.sight(&contender.key, gone, revision, contender.look.is_some()) {
            Sighting::Nothing => {}
            Sighting::Gone => self.leave_deleted_key(cx),
            Sighting::Unclear => self.look(cx),
            // Read once the watch stands.
            Sighting::Closer => {
                place.move_to(Post::Name(Vec::new()), self.id, self.name.contenders(), cx.out)
            }
        }
    }

    /// Takes the lock if nobody is before us any more, as far as we have heard: what came in together with the news, and
    /// may be that our own key went too, counts.
    pub(super) fn take_if_first(&mut self, cx: &mut Cx<'_>) {
        let place = self.contender.as_mut().and_then(Contender::place_mut);
        if let Some((created, as_of)) = place.and_then(|place| Some((place.created, place.first?))) {
            self.hold(created, as_of, cx);
        }
    }
}
