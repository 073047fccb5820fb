//! Who holds the lock: the one rule, and what the answers and events of etcd say by it.
//!
//! The contenders of a name are ordered by create revision, then by key, and a contender holds the lock if no other one
//! is before it. The contenders before it can only vanish, never appear, so one that is admitted stays admitted. All
//! functions here are pure; whether an answer or an event is recent enough to be believed is for the caller to know.

use std::time::Duration;

use super::mutants::mutant;
use crate::kv::{Key, KeyValue, Revision};

/// With at most this many predecessors, a contender watches the whole prefix of the name.
pub(super) const WATCH_ALL_UP_TO: usize = 7;
/// Farther back it watches one key, chosen so that this many predecessors remain once it is deleted.
const LEFT_BY_MILESTONE: usize = 2;

/// A contender's rank among those of its name; the lowest holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank<'a> {
    pub(super) created: Revision,
    pub(super) key: &'a Key,
}

/// What the rule says about a contender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It holds the lock.
    Admitted,
    /// It waits for these; `None` if it is not known who they are.
    Behind(Option<Predecessors>),
    /// Its key does not exist.
    Gone,
}

/// The predecessors of a contender, as far as it has to know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Predecessors {
    /// All of them, at most [`WATCH_ALL_UP_TO`].
    All(Vec<Key>),
    /// There are more.
    Milestone(Milestone),
}

/// A predecessor to wait for. Once it is deleted, [`LEFT_BY_MILESTONE`] remain, or fewer if some of those gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Milestone {
    pub(super) key: Key,
    pub(super) created: Revision,
    /// How many contenders there were beside our own, so at most as many are before it.
    pub(super) others: u64,
}

/// From the contenders that one answer showed, newest first: our own, if it exists, and at least the newest
/// `WATCH_ALL_UP_TO + 1` of those before it. In all, the name has `count` contenders.
pub(super) fn by_nearest<'a>(
    own: Rank<'a>,
    shown: impl IntoIterator<Item = Rank<'a>>,
    count: u64,
) -> Admission {
    let (mut exists, mut before) = (false, Vec::new());
    for contender in shown {
        if contender < own {
            before.push(contender);
        }
        exists |= contender.is_same_as(own);
    }
    if exists { decide(Predecessors::nearest(&before, count.saturating_sub(1))) } else { Admission::Gone }
}

/// From what there is under our own key and under that of the milestone, as one answer showed them.
pub(super) fn by_milestone(
    own: Rank<'_>,
    exists: Option<Rank<'_>>,
    milestone: &Milestone,
    stands: Option<Rank<'_>>,
) -> Admission {
    let is_there = |wanted: Rank<'_>, found: Option<Rank<'_>>| found.is_some_and(|it| it.is_same_as(wanted));
    if !is_there(own, exists) {
        return Admission::Gone;
    }
    let waits = is_there(milestone.rank(), stands);
    Admission::Behind(waits.then(|| Predecessors::Milestone(milestone.clone())))
}

/// From the oldest contender of the name and our own, as one answer showed them.
pub(super) fn by_oldest(own: Option<Rank<'_>>, oldest: Option<Rank<'_>>) -> Admission {
    match (own, oldest) {
        (Some(own), Some(oldest)) if oldest < own => Admission::Behind(None),
        (Some(_), Some(_)) => Admission::Admitted,
        _ => Admission::Gone,
    }
}

/// From all predecessors that there were, and the keys that have been deleted since, maybe our own.
pub(super) fn by_deletions(own: &Key, before: &[Key], deleted: &[Key]) -> Admission {
    if deleted.contains(own) && !mutant!(OwnEndOverlooked) {
        return Admission::Gone;
    }
    let mut left = Predecessors::All(before.to_vec());
    left.remove(|key| deleted.contains(key));
    decide(left)
}

/// The rule.
fn decide(before: Predecessors) -> Admission {
    if before.is_empty() { Admission::Admitted } else { Admission::Behind(Some(before)) }
}

impl<'a> Rank<'a> {
    /// Never the mere existence of the key counts: one that was deleted and put again is another contender.
    fn is_same_as(self, own: Self) -> bool {
        self == own || self.key == own.key && mutant!(ExistenceForCreateRevision)
    }
}

impl<'a> From<&'a KeyValue> for Rank<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self { created: kv.create_revision, key: &kv.key }
    }
}

impl Predecessors {
    /// From the newest `WATCH_ALL_UP_TO + 1` contenders before ours, which has so many others beside it.
    fn nearest(newest_first: &[Rank<'_>], others: u64) -> Self {
        match newest_first.get(LEFT_BY_MILESTONE) {
            Some(&Rank { created, key }) if newest_first.len() > WATCH_ALL_UP_TO => {
                Self::Milestone(Milestone { key: key.clone(), created, others })
            }
            _ => Self::All(newest_first.iter().map(|it| it.key.clone()).collect()),
        }
    }

    /// There are none, as far as is known.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::All(keys) if keys.is_empty())
    }

    /// Removes those that have been deleted since they were read.
    pub(super) fn remove(&mut self, deleted: impl Fn(&Key) -> bool) {
        if let Self::All(keys) = self {
            keys.retain(|key| !deleted(key));
        }
    }

    /// Whether the same watch reports the deletions of both.
    pub(super) fn has_same_watch_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All(_), Self::All(_)) => true,
            (Self::Milestone(one), Self::Milestone(other)) => one.rank() == other.rank(),
            _ => false,
        }
    }
}

impl Milestone {
    fn rank(&self) -> Rank<'_> {
        Rank { created: self.created, key: &self.key }
    }

    /// So long for each of the other contenders.
    pub(super) fn times(&self, each: Duration) -> Duration {
        each.saturating_mul(u32::try_from(self.others).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many contenders as it takes for a milestone with some more before it.
    const MOST: usize = WATCH_ALL_UP_TO + 4;

    fn keys() -> Vec<Key> {
        (0..MOST).map(|number| Key::from(format!("/locks/a/{number:x}"))).collect()
    }

    fn rank(keys: &[Key], number: usize) -> Rank<'_> {
        // Later contenders have lower keys: the create revision comes first.
        Rank { created: 100 + number as Revision, key: &keys[MOST - 1 - number] }
    }

    /// The contenders of a set, given as bits, oldest first.
    fn members(set: usize) -> impl DoubleEndedIterator<Item = usize> {
        (0..MOST).filter(move |number| set & (1 << number) != 0)
    }

    /// What the put or a read of the position of this contender shows.
    fn read(keys: &[Key], set: usize, own: usize) -> Admission {
        let before = members(set).rev().filter(|&it| it < own).take(WATCH_ALL_UP_TO + 1);
        let exists = members(set).find(|&it| it == own);
        let shown = exists.into_iter().chain(before).map(|it| rank(keys, it));
        by_nearest(rank(keys, own), shown, members(set).count() as u64)
    }

    #[test]
    fn exactly_one_contender_is_admitted_whatever_way_it_finds_out() {
        let keys = keys();
        for set in 1_usize..1 << MOST {
            let admitted: Vec<usize> =
                (0..MOST).filter(|&own| read(&keys, set, own) == Admission::Admitted).collect();
            let first = members(set).next();
            assert_eq!(admitted, first.into_iter().collect::<Vec<_>>(), "{set:b}");
            for own in 0..MOST {
                let exists = members(set).find(|&it| it == own).map(|it| rank(&keys, it));
                let by_oldest = by_oldest(exists, first.map(|it| rank(&keys, it)));
                let expected = match read(&keys, set, own) {
                    Admission::Behind(_) => Admission::Behind(None),
                    known => known,
                };
                assert_eq!(by_oldest, expected, "{set:b} {own}");
            }
        }
    }

    /// From every set of contenders to every one that deletions can leave of it; ours is the newest.
    #[test]
    fn deletions_say_what_a_read_after_them_says_and_who_is_admitted_stays_admitted() {
        let keys = keys();
        for set in 1_usize..1 << MOST {
            let (first, own) = (members(set).next().unwrap(), members(set).next_back().unwrap());
            let before = match read(&keys, set, own) {
                Admission::Behind(Some(Predecessors::All(before))) => before,
                Admission::Behind(Some(Predecessors::Milestone(milestone))) => {
                    let nearer =
                        members(set).rev().skip(1).take_while(|&it| rank(&keys, it) != milestone.rank());
                    assert_eq!(nearer.count(), LEFT_BY_MILESTONE);
                    assert_eq!(milestone.others, members(set).count() as u64 - 1);
                    assert!(members(set).count() > WATCH_ALL_UP_TO + 1);
                    continue;
                }
                Admission::Admitted => Vec::new(),
                other => panic!("{set:b}: {other:?}"),
            };
            assert_eq!(before.len() + 1, members(set).count(), "{set:b}");
            for left in subsets(set) {
                let gone = members(set & !left).map(|it| rank(&keys, it).key.clone());
                let by_deletions = by_deletions(rank(&keys, own).key, &before, &gone.collect::<Vec<_>>());
                assert_eq!(by_deletions, read(&keys, left, own), "{set:b} {left:b}");
                if members(left).any(|it| it == first) {
                    assert_eq!(read(&keys, left, first), Admission::Admitted, "{set:b} {left:b}");
                }
            }
        }
    }

    /// All subsets of a set of bits.
    fn subsets(set: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(set), move |&left| (left != 0).then(|| (left - 1) & set))
    }

    #[test]
    fn a_key_that_was_deleted_and_put_again_is_another_contender() {
        let keys = keys();
        let own = Rank { created: 5, key: &keys[0] };
        let again = Rank { created: 9, key: &keys[0] };
        assert_eq!(by_nearest(own, [again], 1), Admission::Gone);
    }

    #[test]
    fn a_milestone_is_passed_once_the_contender_that_it_was_is_gone() {
        let keys = keys();
        let [own, other] = [(9, &keys[0]), (5, &keys[1])].map(|(created, key)| Rank { created, key });
        let milestone = Milestone { key: other.key.clone(), created: 5, others: 20 };
        let read = |exists, stands| by_milestone(own, exists, &milestone, stands);
        let waits = Admission::Behind(Some(Predecessors::Milestone(milestone.clone())));
        assert_eq!(read(Some(own), Some(other)), waits);
        assert_eq!(read(Some(own), None), Admission::Behind(None));
        assert_eq!(read(Some(own), Some(Rank { created: 11, ..other })), Admission::Behind(None));
        assert_eq!(read(None, Some(other)), Admission::Gone);
        assert_eq!(read(Some(Rank { created: 11, ..own }), Some(other)), Admission::Gone);
    }

    #[test]
    fn contenders_of_one_commit_are_ordered_by_their_keys() {
        let keys = keys();
        let [low, high] = [&keys[0], &keys[1]].map(|key| Rank { created: 5, key });
        assert_eq!(by_nearest(low, [high, low], 2), Admission::Admitted);
        assert_ne!(by_nearest(high, [high, low], 2), Admission::Admitted);
    }
}
