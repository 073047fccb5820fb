//! The put of a contender's key, and what its answer says about the contender.

use super::admission::{self, Admission, Rank, Shown, WATCH_ALL_UP_TO};
use super::mutants::mutant;
use super::read::{Look, contenders, read_key};
use crate::kv::{Compare, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, RangeResult, Revision, Span};
use crate::mode::{Load, Mode};
use crate::name::LockName;

/// The put of a contender's key.
#[derive(Clone, Debug)]
pub(super) struct ContenderPut {
    pub(super) name: LockName,
    pub(super) key: Key,
    pub(super) value: Vec<u8>,
    pub(super) lease: LeaseId,
    pub(super) look: Look,
    /// Put the key only if the contender is admitted at once.
    pub(super) try_only: Option<Try>,
}

/// When a contender that must not join the queue may be put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Try {
    /// Those that stood at this revision, as an answer showed, leave room for it; later ones need not. 0: it is put only
    /// if there are no contenders that its mode has to know of.
    pub(super) as_of: Revision,
}

/// The answer to a [`ContenderPut`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PutOutcome {
    /// The epoch has changed, so nothing was put; this is the session key now.
    StaleEpoch { session: Option<KeyValue> },
    /// The contender's key exists, and this is what the rule says about it. Who its predecessors are is not known if this
    /// answers a repeated request.
    Put { created: Revision, admission: Admission },
    /// A try was not put, because these leave no room for it, as far as they are shown; none is shown to an exclusive one.
    Taken { by: Vec<Key> },
    /// A try was not put, but those that the answer showed leave room for it, so it has to be put as of that answer. If
    /// `counted`, the shared contenders were not among those, but must be counted.
    Room { counted: bool },
    /// The answer does not have the form of the request.
    Malformed,
}

impl ContenderPut {
    /// A try compares that those that its mode has to know of leave room for it. All compare that our own key does not
    /// exist, which it does if an earlier copy of the request was carried out; an exclusive try has done so already.
    pub(super) fn compares(&self) -> Vec<Compare> {
        let absent = |span| Compare::equal(span, Field::CreateRevision, 0);
        let own = absent(Span::Key(self.key.clone()));
        match self.try_only {
            None => vec![own],
            Some(_) if self.look.mode == Mode::Exclusive => vec![absent(self.name.contenders())],
            Some(Try { as_of: 0 }) => {
                self.look.spans(&self.name).into_iter().map(absent).chain([own]).collect()
            }
            Some(Try { .. }) if mutant!(TryPutWithoutCompare) => vec![own],
            Some(Try { as_of }) => {
                let no_later = |span| Compare::less(span, Field::CreateRevision, as_of + 1);
                self.look.spans(&self.name).into_iter().map(no_later).chain([own]).collect()
            }
        }
    }

    /// The operations if the compares hold.
    pub(super) fn put_ops(&self) -> Vec<Op> {
        let put = Op::Put { key: self.key.clone(), value: self.value.clone(), lease: self.lease };
        let read = match self.look.mode {
            Mode::Exclusive => contenders(&self.name, Order::NewestFirst, WATCH_ALL_UP_TO as u32 + 2),
            Mode::Shared | Mode::Permits { .. } => read_key(&self.key),
        };
        vec![put, read]
    }

    /// The operations if they do not.
    pub(super) fn read_ops(&self) -> Vec<Op> {
        match self.look.mode {
            Mode::Exclusive => vec![contenders(&self.name, Order::OldestFirst, 1), read_key(&self.key)],
            Mode::Shared | Mode::Permits { .. } => vec![read_key(&self.key)],
        }
    }

    /// What else is read in either case, after this put and those beside it.
    pub(super) fn look_ops(&self) -> Vec<Op> {
        match self.look.mode {
            Mode::Exclusive => Vec::new(),
            Mode::Shared | Mode::Permits { .. } => self.look.with_own(&self.name),
        }
    }

    /// The results of [`put_ops`](Self::put_ops) or [`read_ops`](Self::read_ops), and of [`look_ops`](Self::look_ops).
    pub(super) fn split_look<'a>(&self, results: &'a [OpResult]) -> (&'a [OpResult], &'a [OpResult]) {
        results.split_at(results.len().saturating_sub(self.look_ops().len()))
    }

    pub(super) fn outcome(&self, put: bool, own: &[OpResult], look: &[OpResult]) -> PutOutcome {
        match (self.look.mode, put, own) {
            (Mode::Exclusive, true, [OpResult::Put, OpResult::Range(newest)]) => self.put_first(newest),
            (Mode::Exclusive, false, [OpResult::Range(oldest), OpResult::Range(own)]) => {
                self.not_put(oldest, own)
            }
            (Mode::Shared | Mode::Permits { .. }, true, [OpResult::Put, OpResult::Range(own)])
            | (Mode::Shared | Mode::Permits { .. }, false, [OpResult::Range(own)]) => {
                match self.look.shown_with_own(look) {
                    Some(shown) => self.looked(own, shown),
                    None => PutOutcome::Malformed,
                }
            }
            _ => PutOutcome::Malformed,
        }
    }

    /// Our exclusive key was just put, so it is the newest.
    fn put_first(&self, newest: &RangeResult) -> PutOutcome {
        match newest.kvs.first().map(Rank::from) {
            Some(own) if *own.key == self.key => {
                let shown = Shown::within(newest, WATCH_ALL_UP_TO as u32 + 2);
                let admission = admission::by_nearest(own, false, &[shown]);
                PutOutcome::Put { created: own.created, admission }
            }
            _ => PutOutcome::Malformed,
        }
    }

    /// No exclusive key was put: a try found another contender, or an earlier copy of the request had put our key already.
    fn not_put(&self, oldest: &RangeResult, own: &RangeResult) -> PutOutcome {
        let [own, oldest] = [own, oldest].map(|range| range.kvs.first().map(Rank::from));
        match (admission::by_oldest(own, oldest), own) {
            (Admission::Admitted, Some(own)) => {
                PutOutcome::Put { created: own.created, admission: Admission::Admitted }
            }
            _ if self.try_only.is_some() => PutOutcome::Taken { by: Vec::new() },
            (admission @ Admission::Behind(_), Some(own)) => {
                PutOutcome::Put { created: own.created, admission }
            }
            _ => PutOutcome::Malformed,
        }
    }

    /// From our own key, if it exists, and the contenders that its mode has to know of.
    fn looked<'a>(&self, own: &'a RangeResult, mut shown: Vec<Shown<'a>>) -> PutOutcome {
        if let Some(rank) = own.kvs.first().map(Rank::from) {
            shown.push(Shown::own(own));
            let admission = admission::by_nearest(rank, self.look.counted, &shown);
            // Even that of a try that is not admitted: it exists, and must be deleted.
            return PutOutcome::Put { created: rank.created, admission };
        }
        if self.try_only.is_none() {
            return PutOutcome::Malformed;
        }
        let others = || shown.iter().flat_map(|shown| shown.contenders()).map(Rank::mode);
        let load = Load::of(others());
        let counted = self.look.mode != Mode::Shared || self.look.counted || load == Load::NONE;
        if load.is_exclusive() || counted && !load.admits(self.look.mode) {
            let by = shown.iter().flat_map(|shown| shown.contenders()).map(|it| it.key.clone());
            PutOutcome::Taken { by: by.collect() }
        } else {
            PutOutcome::Room { counted: !counted }
        }
    }
}
