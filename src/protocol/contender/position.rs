//! A waiter's place behind others, and what it watches there.
//!
//! With only a few before it ([`Ahead::Near`]), a waiter watches the whole name. So the ends of all of them, and the end
//! of its own key, are told in one order: when it hears that the last one before it went, its own key was still there,
//! and it is the first without having to read so. That holds only if the watch is live and nothing was missed since a
//! read showed who they are, see [`Footing`]; else it reads.
//!
//! With more before it, it watches the one alone whose end brings it near, and finds out then where it stands: hundreds of
//! waiters need not all be told of every hand-over.

use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Key, Revision, Span, WatchId};
use crate::protocol::QueueId;
use crate::protocol::effects::{Outbox, Watched};
use crate::protocol::mutants::mutant;
use crate::protocol::read::Ahead;

/// A waiter looks where it stands after this long (less up to half, at random), so that a watch that died in silence
/// delays a hand-over but never strands it.
pub(in crate::protocol) const FALLBACK: Duration = Duration::from_secs(2);

/// A watch that was opened while the store was writing can miss its start: etcd then serves it from its next tick on,
/// which comes every 100 ms. A near waiter that has not heard anything yet looks this early, then after twice the time...
const FIRST_LOOK: Duration = Duration::from_millis(10);
/// ...so many times.
const EARLY_LOOKS: u32 = 4;

/// Where a waiter stands.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Place {
    /// The create revision of its key.
    pub(in crate::protocol) created: Revision,
    /// The store's revision when it was last read who is before it.
    pub(in crate::protocol) seen: Revision,
    /// When that read was sent.
    pub(in crate::protocol) asked_at: Time,
    /// It showed a contender of another session before us: whoever asked before the read was kept out by that one,
    /// even if its deletion has been reported since.
    pub(in crate::protocol) was_behind: bool,
    /// The keys whose end was told, and at which revision, since a read was begun: its answer may be from before that.
    told: Vec<(Revision, Key)>,
    pub(in crate::protocol) lookout: Option<Lookout>,
    /// Nobody is before it any more, as this revision shows.
    pub(in crate::protocol) first: Option<Revision>,
}

/// The watch that tells when it gets closer.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Lookout {
    watch: WatchId,
    pub(in crate::protocol) footing: Footing,
    pub(in crate::protocol) post: Post,
    early_looks: u32,
}

/// What the news of a watch can be relied on for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::protocol) enum Footing {
    /// The watch does not stand yet.
    None,
    /// Nor does it after so long that a read was sent meanwhile: by now its beginning can be old news from a member that
    /// is behind, even if that is the revision of the read before.
    Late,
    /// It stands, but began at another revision than the read was of: something may have been missed, or the member
    /// that serves it may be behind and tell old news.
    Shaky,
    /// The same, and a read that will tell is under way.
    Asked,
    /// It told, or will soon tell, all that happened since the read.
    Firm,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::protocol) enum Post {
    /// The whole name. These are before us; empty: to be read.
    Name(Vec<Key>),
    /// The one whose end brings us near.
    Far(Key),
}

impl Post {
    fn of(ahead: Ahead) -> Self {
        match ahead {
            Ahead::Near(keys) => Self::Name(keys),
            Ahead::Far(key) => Self::Far(key),
        }
    }

    /// Nobody is before us; if the footing is firm, that is known.
    pub(in crate::protocol) fn is_clear(&self) -> bool {
        matches!(self, Self::Name(ahead) if ahead.is_empty())
    }

    /// One watch serves both.
    fn sees_as_much_as(&self, other: &Self) -> bool {
        self == other || matches!((self, other), (Self::Name(_), Self::Name(_)))
    }
}

impl Place {
    pub(in crate::protocol) fn new(created: Revision, seen: Revision, asked_at: Time) -> Self {
        Self { created, seen, asked_at, was_behind: false, told: Vec::new(), lookout: None, first: None }
    }

    fn is_firm(&self) -> bool {
        let firm = self.lookout.as_ref().is_some_and(|lookout| lookout.footing == Footing::Firm);
        firm || mutant!(PromotedWithoutRead)
    }

    /// Whether a read answered at `revision` is older than one before.
    pub(in crate::protocol) fn has_seen_later(&self, revision: Revision) -> bool {
        revision < self.seen
    }

    /// A read of where we stand is on its way.
    pub(in crate::protocol) fn asked(&mut self) {
        self.told.clear();
        if let Some(Lookout { footing, .. }) = &mut self.lookout {
            *footing = match *footing {
                Footing::None if !mutant!(LateWatchBelieved) => Footing::Late,
                Footing::Shaky => Footing::Asked,
                settled => settled,
            };
        }
    }

    /// It was read at `revision` who is before us.
    pub(in crate::protocol) fn read(
        &mut self,
        ahead: Ahead,
        revision: Revision,
        queue: QueueId,
        name: Span,
        out: &mut Outbox,
    ) {
        self.seen = self.seen.max(revision);
        if let Some(Lookout { footing: footing @ Footing::Asked, .. }) = &mut self.lookout {
            *footing = Footing::Firm;
        }
        let mut post = Post::of(ahead);
        if let Post::Name(ahead) = &mut post {
            ahead.retain(|key| !self.told.iter().any(|(at, gone)| *at > revision && gone == key));
        }
        let last_told = self.told.iter().map(|&(at, _)| at).max();
        self.told.clear();
        self.move_to(post, queue, name, out);
        let clear = self.is_firm() && matches!(&self.lookout, Some(lookout) if lookout.post.is_clear());
        self.first = clear.then_some(last_told.map_or(self.seen, |told| told.max(self.seen)));
    }

    pub(in crate::protocol) fn move_to(&mut self, post: Post, queue: QueueId, name: Span, out: &mut Outbox) {
        if let Some(lookout) = self.lookout.as_mut().filter(|lookout| lookout.post.sees_as_much_as(&post)) {
            lookout.post = post;
            return;
        }
        self.leave_lookout(out);
        let span = match &post {
            Post::Name(_) => name,
            Post::Far(key) => Span::Key(key.clone()),
        };
        // From now, not from a past revision: etcd serves a watch live only if it does not have to catch up.
        let watch = out.watch(Watched::Place(queue), span, 0);
        self.lookout = Some(Lookout { watch, footing: Footing::None, post, early_looks: 0 });
    }

    pub(in crate::protocol) fn leave_lookout(&mut self, out: &mut Outbox) {
        if let Some(lookout) = self.lookout.take() {
            out.unwatch(lookout.watch);
        }
    }

    /// How long to rely on the watch alone.
    pub(in crate::protocol) fn patience(&mut self) -> Duration {
        match &mut self.lookout {
            Some(Lookout { post: Post::Name(_), early_looks, .. }) if *early_looks < EARLY_LOOKS => {
                *early_looks += 1;
                FIRST_LOOK * (1 << (*early_looks - 1))
            }
            _ => FALLBACK,
        }
    }

    /// The watch of the name told something of `revision`, so it is served: what comes next it will tell at once.
    /// Returns whether that is news.
    pub(in crate::protocol) fn note_served(&mut self, revision: Revision) -> bool {
        match &mut self.lookout {
            Some(Lookout { post: Post::Name(_), early_looks, .. }) if revision > self.seen => {
                std::mem::replace(early_looks, EARLY_LOOKS) < EARLY_LOOKS
            }
            _ => false,
        }
    }

    /// Takes in that these keys went at `revision`. `own` is ours; `looking`: a read is on its way.
    pub(in crate::protocol) fn sight(
        &mut self,
        own: &Key,
        gone: &[Key],
        revision: Revision,
        looking: bool,
    ) -> Sighting {
        // What was gone before the read is not what the read showed, though it may have the same name.
        if revision <= self.seen && !mutant!(OldDeletionBelieved) {
            return Sighting::Nothing;
        }
        if looking {
            self.told.extend(gone.iter().map(|key| (revision, key.clone())));
        }
        let firm = self.is_firm();
        let Some(Lookout { post, .. }) = &mut self.lookout else {
            return Sighting::Nothing;
        };
        match post {
            Post::Far(_) => Sighting::Closer,
            Post::Name(_) if gone.contains(own) && !mutant!(OwnEndOverlooked) => Sighting::Gone,
            Post::Name(ahead) if firm && !ahead.is_empty() => {
                ahead.retain(|key| !gone.contains(key));
                self.first = ahead.is_empty().then_some(revision);
                Sighting::Nothing
            }
            // The answer will be put together with what was told.
            Post::Name(_) if looking => Sighting::Nothing,
            Post::Name(_) => Sighting::Unclear,
        }
    }
}

/// What is to be done about deletions that the lookout was told of.
pub(in crate::protocol) enum Sighting {
    Nothing,
    /// Our own key went.
    Gone,
    /// It has to be read what they mean.
    Unclear,
    /// We may be near now.
    Closer,
}
