//! The protocol's reads and what their answers mean, and the epoch that fences all requests of a session.
//!
//! Every request that could put a key compares the session's epoch, which is the mod revision of the session key. Once
//! that key is put again, no older request can take effect, wherever it is delayed.

use super::admission::{self, Admission, Milestone, Rank, Shown, WATCH_ALL_UP_TO};
use super::messages::CurrentHolder;
use super::mutants::mutant;
use crate::kv::{
    Answer, Compare, Failure, FailureClass, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, Range,
    Revision, Span, Txn, TxnAnswer,
};
use crate::mode::Mode;
use crate::name::LockName;

/// The session key and its mod revision, which requests compare.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    pub(super) session_key: Key,
    pub(super) revision: Revision,
}

/// The answer of [`check_position`] or [`check_milestone`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PositionAnswer {
    /// The epoch has changed; this is the session key now.
    StaleEpoch {
        session: Option<KeyValue>,
    },
    Read(Admission),
    Malformed,
}

/// Which other contenders the mode of one has to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) mode: Mode,
    /// Of a shared one: permits are taken before it, so it has to know of all others.
    pub(super) counted: bool,
}

impl Look {
    pub(super) fn spans(self, name: &LockName) -> Vec<Span> {
        match self.mode {
            Mode::Shared if !self.counted => name.contenders_but_shared().into(),
            _ => vec![name.contenders()],
        }
    }

    /// The maximum number of contenders to read in each span, besides our own; 0: all. As many as there can be permits
    /// leave no room for one more.
    fn limit(self) -> u32 {
        let few = WATCH_ALL_UP_TO as u32 + 1;
        match self.mode {
            Mode::Shared if self.counted => 0,
            Mode::Exclusive | Mode::Shared => few,
            Mode::Permits { limit, .. } => limit.max(few),
        }
    }

    /// Reads the newest contenders, our own included.
    pub(super) fn with_own(self, name: &LockName) -> Vec<Op> {
        let limit = self.limit_with_own();
        self.spans(name).into_iter().map(|span| Op::Range(keys(span, Order::NewestFirst, limit))).collect()
    }

    fn limit_with_own(self) -> u32 {
        match self.limit() {
            0 => 0,
            limit => limit + 1,
        }
    }

    /// The answer to [`with_own`](Self::with_own).
    pub(super) fn shown_with_own<'a>(self, results: &'a [OpResult]) -> Option<Vec<Shown<'a>>> {
        shown(results, self.limit_with_own())
    }

    /// Reads the newest of those before ours.
    fn before(self, name: &LockName, own: Rank<'_>) -> Vec<Op> {
        // Shared contenders of one commit have the same create revision.
        let max_create_revision = own.created - i64::from(self.mode != Mode::Shared);
        let range = |span| Range { max_create_revision, ..keys(span, Order::NewestFirst, self.limit()) };
        self.spans(name).into_iter().map(|span| Op::Range(range(span))).collect()
    }
}

fn shown(results: &[OpResult], limit: u32) -> Option<Vec<Shown<'_>>> {
    let shown = results.iter().map(|result| match result {
        OpResult::Range(range) => Some(Shown::within(range, limit)),
        _ => None,
    });
    shown.collect()
}

/// Reads whether our key still exists, and its nearest predecessors.
pub(super) fn check_position(epoch: &Epoch, name: &LockName, own: Rank<'_>, look: Look) -> Txn {
    Txn {
        when: epoch_unchanged(epoch),
        then: [vec![read_key(own.key)], look.before(name, own)].concat(),
        otherwise: vec![read_key(&epoch.session_key)],
    }
}

pub(super) fn position_answer(own: Rank<'_>, look: Look, answer: &TxnAnswer) -> PositionAnswer {
    match (answer.succeeded, &answer.results[..]) {
        (false, [OpResult::Range(session)]) => {
            PositionAnswer::StaleEpoch { session: session.kvs.first().cloned() }
        }
        (true, [OpResult::Range(exists), before @ ..]) if !before.is_empty() => {
            let Some(before) = shown(before, look.limit()) else {
                return PositionAnswer::Malformed;
            };
            let shown = [vec![Shown::own(exists)], before].concat();
            PositionAnswer::Read(admission::by_nearest(own, look.counted, &shown))
        }
        _ => PositionAnswer::Malformed,
    }
}

/// Reads whether our key and the milestone still exist. That costs etcd the same however long the queue is, while every
/// read of predecessors walks over all keys of the name.
pub(super) fn check_milestone(epoch: &Epoch, own: Rank<'_>, milestone: &Milestone) -> Txn {
    Txn {
        when: epoch_unchanged(epoch),
        then: vec![read_key(own.key), read_key(&milestone.key)],
        otherwise: vec![read_key(&epoch.session_key)],
    }
}

pub(super) fn milestone_answer(own: Rank<'_>, milestone: &Milestone, answer: &TxnAnswer) -> PositionAnswer {
    match (answer.succeeded, &answer.results[..]) {
        (true, [OpResult::Range(exists), OpResult::Range(stands)]) => {
            let [exists, stands] = [exists, stands].map(|range| range.kvs.first().map(Rank::from));
            PositionAnswer::Read(admission::by_milestone(own, exists, milestone, stands))
        }
        (false, [OpResult::Range(session)]) => {
            PositionAnswer::StaleEpoch { session: session.kvs.first().cloned() }
        }
        _ => PositionAnswer::Malformed,
    }
}

/// Reads the holder of the lock, with its value, and the number of contenders.
pub(crate) fn holder(name: &LockName) -> Txn {
    let range = Range { keys_only: false, ..keys(name.contenders(), Order::OldestFirst, 1) };
    Txn { then: vec![Op::Range(range)], ..Txn::default() }
}

/// The answer of [`holder`]; `None`: the lock is free.
pub(crate) fn holder_answer(answer: Answer) -> Result<Option<CurrentHolder>, Failure> {
    let range = answer.into_range()?;
    let waiters = range.count.saturating_sub(1);
    Ok(range.kvs.into_iter().next().map(|kv| CurrentHolder { kv, waiters }))
}

/// Puts the session key, which begins a new epoch. Fails if the lease is gone.
pub(super) fn put_session(session_key: &Key, lease: LeaseId) -> Txn {
    let put = Op::Put { key: session_key.clone(), value: Vec::new(), lease };
    Txn { then: vec![put], ..Txn::default() }
}

/// Reads only whether the epoch has changed.
pub(super) fn check_session(epoch: &Epoch) -> Txn {
    Txn { when: epoch_unchanged(epoch), then: Vec::new(), otherwise: vec![read_key(&epoch.session_key)] }
}

/// The answer of [`check_session`]: `None` if the epoch has not changed, else the session key as it is now.
pub(super) fn session_checked(answer: &TxnAnswer) -> Option<Option<KeyValue>> {
    match (answer.succeeded, &answer.results[..]) {
        (false, [OpResult::Range(session)]) => Some(session.kvs.first().cloned()),
        _ => None,
    }
}

/// The failure of a write whose answer does not have the form of the request: what was carried out is unknown.
pub(super) fn malformed_write() -> Failure {
    Failure { class: FailureClass::Unknown, ..Failure::malformed() }
}

/// The failure of a request that was answered from an older state than one before, as a defective etcd does after a
/// pause (etcd #20418).
pub(super) fn stale() -> Failure {
    Failure::new(FailureClass::NotDone, "etcd answered with an older state than before")
}

pub(super) fn epoch_unchanged(epoch: &Epoch) -> Vec<Compare> {
    if mutant!(EpochNotCompared) {
        return Vec::new();
    }
    let span = Span::Key(epoch.session_key.clone());
    vec![Compare::equal(span, Field::ModRevision, epoch.revision)]
}

pub(super) fn contenders(name: &LockName, order: Order, limit: u32) -> Op {
    Op::Range(keys(name.contenders(), order, limit))
}

pub(super) fn read_key(key: &Key) -> Op {
    Op::Range(keys(Span::Key(key.clone()), Order::ByKey, 1))
}

fn keys(span: Span, order: Order, limit: u32) -> Range {
    // Without the values: a foreign contender's can be as large as etcd allows.
    Range { span, order, limit, max_create_revision: 0, at_revision: 0, keys_only: true }
}
