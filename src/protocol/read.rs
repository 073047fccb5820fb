//! What the protocol asks of the store, and what the answers mean; the steps of the queues are in `write.rs`.
//!
//! Everything that could put a key is guarded by the session's epoch, the mod revision of the session key: once that
//! key has been put again, no older request can take effect any more, wherever it was delayed.

use super::mutants::mutant;
use crate::kv::{
    Compare, Failure, FailureClass, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, Range, Revision,
    Span, Txn, TxnAnswer,
};
use crate::name::LockName;

/// What a guarded request runs under.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub(super) session_key: Key,
    pub(super) epoch: Revision,
}

/// With so many before it a contender is near.
pub(super) const NEAR: usize = 7;
/// One that is not yet comes near when so many are left: in a long queue, few are told of every hand-over.
const LEFT: usize = 2;

/// Who is before a contender; somebody is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// These, at most [`NEAR`].
    Near(Vec<Key>),
    /// More. Once this one goes, [`LEFT`] are left, if nobody gave up.
    Far(Key),
}

impl Ahead {
    /// `None`: nobody. Of those before a contender, it takes the `NEAR + 1` newest to tell.
    pub(super) fn of(newest_first: &[KeyValue]) -> Option<Self> {
        match newest_first {
            [] => None,
            near if near.len() <= NEAR => Some(Self::Near(near.iter().map(|kv| kv.key.clone()).collect())),
            far => far.get(LEFT).map(|kv| Self::Far(kv.key.clone())),
        }
    }
}

/// Where a contender stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Refused {
        session: Option<KeyValue>,
    },
    First,
    Behind(Ahead),
    /// The contender's key does not exist any more.
    Gone,
    Garbled,
}

/// One read: whether `key` (created at `created`) is still there, and who are right before it.
pub(super) fn look(guard: &Guard, name: &LockName, key: &Key, created: Revision) -> Txn {
    Txn {
        when: epoch_stands(guard),
        then: vec![
            read_key(key),
            Op::Range(Range {
                max_create_revision: created - 1,
                ..keys(name.contenders(), Order::NewestFirst, NEAR as u32 + 1)
            }),
        ],
        otherwise: vec![read_key(&guard.session_key)],
    }
}

/// Reads [`look`]'s answer. A key that was deleted and put again is another contender, so the revisions count.
pub(super) fn standing(created: Revision, answer: &TxnAnswer) -> Standing {
    match (answer.succeeded, &answer.results[..]) {
        (false, [OpResult::Range(session)]) => Standing::Refused { session: session.kvs.first().cloned() },
        (true, [OpResult::Range(own), OpResult::Range(before)]) => {
            if own.kvs.first().is_none_or(|own| !is_ours(own, created)) {
                return Standing::Gone;
            }
            Ahead::of(&before.kvs).map_or(Standing::First, Standing::Behind)
        }
        _ => Standing::Garbled,
    }
}

fn is_ours(own: &KeyValue, created: Revision) -> bool {
    own.create_revision == created || mutant!(ExistenceForCreateRevision)
}

/// Who holds the lock, with its value, and how many contenders there are.
pub(super) fn inspect(name: &LockName) -> Txn {
    let range = Range { keys_only: false, ..keys(name.contenders(), Order::OldestFirst, 1) };
    Txn { then: vec![Op::Range(range)], ..Txn::default() }
}

/// Reads [`inspect`]'s answer: the first contender and how many are behind it.
pub(super) fn inspected(answer: &TxnAnswer) -> Option<(&KeyValue, u64)> {
    match &answer.results[..] {
        [OpResult::Range(range)] => range.kvs.first().map(|first| (first, range.count.saturating_sub(1))),
        _ => None,
    }
}

/// Puts the session key, which makes the epoch. Fails as a whole if the lease is gone.
pub(super) fn put_session(session_key: &Key, lease: LeaseId) -> Txn {
    let put = Op::Put { key: session_key.clone(), value: Vec::new(), lease };
    Txn { then: vec![put], ..Txn::default() }
}

/// Asks only whether the epoch stands.
pub(super) fn check_session(guard: &Guard) -> Txn {
    Txn { when: epoch_stands(guard), then: Vec::new(), otherwise: vec![read_key(&guard.session_key)] }
}

/// Reads [`check_session`]'s answer: `None` if the epoch stands, else the session key as it is now.
pub(super) fn session_checked(answer: &TxnAnswer) -> Option<Option<KeyValue>> {
    match (answer.succeeded, &answer.results[..]) {
        (false, [OpResult::Range(session)]) => Some(session.kvs.first().cloned()),
        _ => None,
    }
}

/// The same for a request that changes something: nobody knows what was carried out.
pub(super) fn misfit() -> Failure {
    Failure { class: FailureClass::Unknown, ..garbled() }
}

/// For an answer that has not the form of its question: a defect here or there, never the caller's.
pub(super) fn garbled() -> Failure {
    Failure::new(FailureClass::Refused, "etcd's answer does not fit the request")
}

pub(super) fn epoch_stands(guard: &Guard) -> Vec<Compare> {
    if mutant!(EpochNotCompared) {
        return Vec::new();
    }
    let span = Span::Key(guard.session_key.clone());
    vec![Compare { span, field: Field::ModRevision, equals: guard.epoch }]
}

pub(super) fn contenders(name: &LockName, order: Order, limit: u32) -> Op {
    Op::Range(keys(name.contenders(), order, limit))
}

pub(super) fn read_key(key: &Key) -> Op {
    Op::Range(keys(Span::Key(key.clone()), Order::ByKey, 1))
}

fn keys(span: Span, order: Order, limit: u32) -> Range {
    // Values are left out: a foreign contender's can be as large as etcd allows.
    Range { span, order, limit, max_create_revision: 0, at_revision: 0, keys_only: true }
}
