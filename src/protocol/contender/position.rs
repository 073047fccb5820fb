//! A queued contender's position: its predecessors, and the watch that reports their deletion.
//!
//! With only a few predecessors ([`Predecessors::All`]), a contender watches the whole prefix of the name. One watch
//! reports all their deletions and our own, in revision order. So when it reports that the last predecessor is deleted
//! and has not reported our own key before that, we hold the lock, and no read is needed. That is true only while the
//! watch is live and has missed nothing since the read that listed the predecessors; see [`WatchTrust`]. Otherwise the
//! position is read again.
//!
//! Farther back it watches one key only ([`Predecessors::Milestone`]), and reads its position when that is deleted:
//! hundreds of waiters need not all receive an event for every hand-over.
//!
//! A watch stream that has died silently is found by its heartbeat, once for all watches of the session. What a contender
//! checks by itself is the second line: near the head every two seconds, and farther back the more rarely, the longer
//! the queue is. So all waiters of a name together read little, however many they are.

use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Key, Revision, Span, WatchId};
use crate::mode::Mode;
use crate::protocol::admission::{self, Admission, Milestone, Predecessors};
use crate::protocol::effects::{Effects, Watched};
use crate::protocol::messages::ContenderId;
use crate::protocol::mutants::mutant;

/// With few predecessors, a queued contender reads its position this long after the last read (less up to half of it, at
/// random), so that an event that etcd has lost delays a hand-over but cannot stop it.
pub(super) const RECHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Farther back it waits this long for each contender of the name. The rate of all of them together grows with the
/// logarithm of their number: with a thousand, about nine a second, and five of those near the head.
const RECHECK_INTERVAL_PER_CONTENDER: Duration = Duration::from_millis(750);

/// A watch opened while the store is writing can miss its start: etcd then serves it only from its next tick on, which
/// comes every 100 ms. So until the watch of the prefix has reported something, the position is read this soon, then
/// after twice the time, and so on...
pub(super) const FIRST_EARLY_CHECK: Duration = Duration::from_millis(10);
/// ...this many times. A watch of a milestone may have missed its deletion before it was confirmed. Then the first check
/// comes after `FIRST_EARLY_CHECK` for each contender of the name: no hand-over takes less than a millisecond, so the
/// queue has rarely come so far by then, and in a busy one the milestone has been reported deleted before.
const EARLY_CHECKS: u32 = 4;

/// A contender's position in the queue of its name.
#[derive(Clone, Debug)]
pub(super) struct Position {
    /// The create revision of our key.
    pub(super) created: Revision,
    /// The store's revision as of the last read of our predecessors.
    read_at: Revision,
    /// When that read was sent.
    pub(super) read_sent: Time,
    /// That read showed a predecessor of another session. Every caller that had asked by then was kept out by it, even if
    /// its deletion has been reported since.
    pub(super) was_behind: bool,
    /// Deletions reported since the read in flight was sent, with their revisions; its answer may predate them.
    deleted_meanwhile: Vec<(Revision, Key)>,
    watch: Option<PredecessorWatch>,
    /// We have no predecessors any more, as of this revision.
    first_as_of: Option<Revision>,
}

/// The watch that reports when predecessors are deleted.
#[derive(Clone, Debug)]
struct PredecessorWatch {
    id: WatchId,
    trust: WatchTrust,
    /// The revision at which it was confirmed last.
    confirmed_at: Revision,
    /// `All` with no keys: not read yet, or none left.
    predecessors: Predecessors,
    /// Early reads of the position so far; see [`FIRST_EARLY_CHECK`].
    early_checks: u32,
}

/// When the confirmation of a watch calls for a read of the position.
pub(super) enum Confirmed {
    /// As planned before: nothing was missed.
    AsPlanned,
    /// Now, because events may be missing.
    CheckNow,
    /// After this time, because it is far back.
    CheckAfter(Duration),
}

/// Whether the events of a watch can be relied on to be complete and current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WatchTrust {
    /// The watch is not confirmed yet. Exits: Live, if it is confirmed at exactly the revision of the last read;
    /// Gapped, if at another one; Overtaken, if a read is sent first.
    Unconfirmed,
    /// Unconfirmed, and a read has been sent since: its start revision may come from a lagging member, so re-read on
    /// confirmation. Exit: Gapped.
    Overtaken,
    /// Confirmed, but not at the revision of the last read: events in between may be missing, or the member that serves
    /// the watch lags behind. Exit: Verifying.
    Gapped,
    /// Gapped, and a read has been sent since, whose answer closes the gap if it is not older than the confirmation.
    /// Exits: Live; Gapped, if the watch is reopened.
    Verifying,
    /// The watch reports everything that happens after the last read. Exit: Gapped, if the watch is reopened.
    Live,
}

/// What a reported deletion means for a queued contender.
pub(super) enum DeletionEffect {
    Nothing,
    /// Our own key was deleted.
    OwnKeyDeleted,
    /// The watch is not trusted, so only a read can tell.
    CheckPosition,
    /// The milestone was deleted: few predecessors are left.
    MilestoneDeleted,
}

impl Position {
    pub(super) fn new(created: Revision, read_at: Revision, read_sent: Time) -> Self {
        Self {
            created,
            read_at,
            read_sent,
            was_behind: false,
            deleted_meanwhile: Vec::new(),
            watch: None,
            first_as_of: None,
        }
    }

    /// The revision as of which we have no predecessors, if that is so.
    pub(super) fn first_as_of(&self) -> Option<Revision> {
        self.first_as_of
    }

    fn is_live(&self) -> bool {
        let live = self.watch.as_ref().is_some_and(|watch| watch.trust == WatchTrust::Live);
        live || mutant!(PromotedWithoutRead)
    }

    /// Whether an answer of this revision is too old to say anything: it predates the last read, or it is to close the
    /// gap of a watch and predates the watch's confirmation, before which it was not even sent. Only a read that is not
    /// linearizable is answered so (etcd #20418).
    pub(super) fn is_newer_than(&self, revision: Revision) -> bool {
        let verifying = self.watch.as_ref().filter(|watch| watch.trust == WatchTrust::Verifying);
        let gap_stays = verifying.is_some_and(|watch| revision < watch.confirmed_at);
        revision < self.read_at || gap_stays && !mutant!(GapClosedByStaleRead)
    }

    /// A read of our position is being sent.
    pub(super) fn check_sent(&mut self) {
        self.deleted_meanwhile.clear();
        if let Some(PredecessorWatch { trust, .. }) = &mut self.watch {
            *trust = match *trust {
                WatchTrust::Unconfirmed if !mutant!(LateWatchBelieved) => WatchTrust::Overtaken,
                WatchTrust::Gapped => WatchTrust::Verifying,
                other => other,
            };
        }
    }

    /// A read at `revision` returned these predecessors.
    pub(super) fn predecessors_read(
        &mut self,
        mut predecessors: Predecessors,
        revision: Revision,
        (contender, own): (ContenderId, &Key),
        prefix: Span,
        effects: &mut Effects,
    ) {
        self.read_at = self.read_at.max(revision);
        if let Some(PredecessorWatch { trust: trust @ WatchTrust::Verifying, .. }) = &mut self.watch {
            *trust = WatchTrust::Live;
        }
        predecessors.remove(|key| {
            self.deleted_meanwhile.iter().any(|(at, deleted)| *at > revision && deleted == key)
        });
        let last_deletion = self.deleted_meanwhile.iter().map(|&(at, _)| at).max();
        self.deleted_meanwhile.clear();
        self.watch_predecessors(predecessors, contender, prefix, effects);
        let before = self.watch.as_ref().map(|watch| watch.predecessors.clone());
        let admitted = before.is_some_and(|it| admission::decide(Mode::of(own), it) == Admission::Admitted);
        let first = self.is_live() && admitted;
        self.first_as_of = first.then_some(last_deletion.map_or(self.read_at, |at| at.max(self.read_at)));
    }

    /// Watches these predecessors, with the open watch if it covers them.
    pub(super) fn watch_predecessors(
        &mut self,
        predecessors: Predecessors,
        contender: ContenderId,
        prefix: Span,
        effects: &mut Effects,
    ) {
        if let Some(watch) =
            self.watch.as_mut().filter(|watch| watch.predecessors.has_same_watch_as(&predecessors))
        {
            watch.predecessors = predecessors;
            return;
        }
        self.unwatch_predecessors(effects);
        let span = match &predecessors {
            Predecessors::All(_) | Predecessors::Nearest(_) => match prefix {
                Span::Prefix(all) if mutant!(OthersUnwatched) => {
                    let end = Key::from([all.as_bytes(), b"~"].concat());
                    Span::Between(all, end)
                }
                prefix => prefix,
            },
            Predecessors::Milestone(milestone) => Span::Key(milestone.key.clone()),
        };
        // From the current revision on, not from a past one: etcd serves only a watch that need not catch up at once.
        let id = effects.watch(Watched::Predecessors(contender), span, 0);
        let trust = WatchTrust::Unconfirmed;
        self.watch = Some(PredecessorWatch { id, trust, confirmed_at: 0, predecessors, early_checks: 0 });
    }

    pub(super) fn unwatch_predecessors(&mut self, effects: &mut Effects) {
        if let Some(watch) = self.watch.take() {
            effects.unwatch(watch.id);
        }
    }

    /// The watch was created, or created anew after its stream broke, and reports everything after `revision`.
    pub(super) fn watch_created(&mut self, revision: Revision) -> Confirmed {
        let Some(watch) = &mut self.watch else {
            return Confirmed::AsPlanned;
        };
        let complete = watch.trust == WatchTrust::Unconfirmed && revision == self.read_at;
        let complete = complete || mutant!(MissedEventsIgnored);
        watch.trust = if complete { WatchTrust::Live } else { WatchTrust::Gapped };
        let reopened = std::mem::replace(&mut watch.confirmed_at, revision) != 0;
        match &watch.predecessors {
            Predecessors::Milestone(_) if complete || mutant!(MilestoneGapIgnored) => {
                Confirmed::CheckAfter(self.recheck_after())
            }
            Predecessors::Milestone(milestone) if !reopened => {
                Confirmed::CheckAfter(milestone.times(FIRST_EARLY_CHECK))
            }
            Predecessors::All(keys) | Predecessors::Nearest(keys) if complete && !keys.is_empty() => {
                Confirmed::AsPlanned
            }
            _ => Confirmed::CheckNow,
        }
    }

    /// The last read showed who keeps us out.
    pub(super) fn knows_predecessors(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| !watch.predecessors.is_empty())
    }

    /// The milestone that it waits for, far back in the queue.
    pub(super) fn milestone(&self) -> Option<&Milestone> {
        match &self.watch {
            Some(PredecessorWatch { predecessors: Predecessors::Milestone(milestone), .. }) => {
                Some(milestone)
            }
            _ => None,
        }
    }

    /// When to read the position again if the watch reports nothing.
    pub(super) fn recheck_after(&mut self) -> Duration {
        match &mut self.watch {
            Some(PredecessorWatch {
                predecessors: Predecessors::All(_) | Predecessors::Nearest(_),
                early_checks,
                ..
            }) if *early_checks < EARLY_CHECKS => {
                *early_checks += 1;
                FIRST_EARLY_CHECK * (1 << (*early_checks - 1))
            }
            // Until it is confirmed, nobody finds out that the stream is dead.
            Some(PredecessorWatch {
                predecessors: Predecessors::Milestone(milestone), confirmed_at, ..
            }) if *confirmed_at != 0 => milestone.times(RECHECK_INTERVAL_PER_CONTENDER),
            _ => RECHECK_INTERVAL,
        }
    }

    /// The watch of the prefix has reported something of `revision`, so etcd serves it live and early checks are not
    /// needed any more. Returns whether they were needed until now.
    pub(super) fn note_watch_served(&mut self, revision: Revision) -> bool {
        match &mut self.watch {
            Some(PredecessorWatch {
                predecessors: Predecessors::All(_) | Predecessors::Nearest(_),
                early_checks,
                ..
            }) if revision > self.read_at => std::mem::replace(early_checks, EARLY_CHECKS) < EARLY_CHECKS,
            _ => false,
        }
    }

    /// The watch reported that these keys were deleted at `revision`. `own` is our key; `checking`: a read of the
    /// position is in flight.
    pub(super) fn keys_deleted(
        &mut self,
        own: &Key,
        deleted: &[Key],
        revision: Revision,
        checking: bool,
    ) -> DeletionEffect {
        // The last read already reflects this deletion; a key of the same name in it was put later.
        if revision <= self.read_at && !mutant!(OldDeletionBelieved) {
            return DeletionEffect::Nothing;
        }
        if checking {
            self.deleted_meanwhile.extend(deleted.iter().map(|key| (revision, key.clone())));
        }
        let live = self.is_live();
        let Some(PredecessorWatch { predecessors, .. }) = &mut self.watch else {
            return DeletionEffect::Nothing;
        };
        match predecessors {
            Predecessors::Milestone(_) if mutant!(MilestoneIgnored) => DeletionEffect::Nothing,
            Predecessors::Milestone(_) => DeletionEffect::MilestoneDeleted,
            Predecessors::All(_) | Predecessors::Nearest(_) => {
                match admission::by_deletions(own, predecessors, deleted) {
                    Admission::Gone => DeletionEffect::OwnKeyDeleted,
                    Admission::Behind(None) if !checking => DeletionEffect::CheckPosition,
                    admission if live && !predecessors.is_empty() => {
                        predecessors.remove(|key| deleted.contains(key));
                        self.first_as_of = (admission == Admission::Admitted).then_some(revision);
                        DeletionEffect::Nothing
                    }
                    // The answer will be combined with the deletions reported meanwhile.
                    _ if checking => DeletionEffect::Nothing,
                    _ => DeletionEffect::CheckPosition,
                }
            }
        }
    }
}
