//! The protocol's transactions, and what their answers mean.
//!
//! Everything that could put a key is guarded by the session's epoch, the mod revision of the session key: once that
//! key has been put again, no older request can take effect any more, wherever it was delayed.

use super::mutants::mutant;
use crate::name::LockName;
use crate::store::{
    Compare, Failure, FailureClass, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, Range, RangeResult,
    Revision, Span, Txn, TxnAnswer,
};

/// What a guarded request runs under.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub(super) session_key: Key,
    pub(super) epoch: Revision,
}

/// The contender that a step wants to bring into the queue.
#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a LockName,
    pub(super) key: &'a Key,
    pub(super) value: &'a [u8],
    pub(super) lease: LeaseId,
    /// Only if nobody is there.
    pub(super) try_only: bool,
}

/// What became of an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// The epoch has moved; here is the session key as it is now, or `None`: the session is gone.
    Refused { session: Option<KeyValue> },
    /// The contender holds the lock.
    First { token: Revision },
    /// The contender waits behind another. The predecessor is unknown when this answers a repeated request.
    Behind { created: Revision, predecessor: Option<Key> },
    /// To `try_only`: somebody else is there.
    Taken,
    /// The answer has not the form of the question.
    Garbled,
}

/// Where a contender stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Refused {
        session: Option<KeyValue>,
    },
    First,
    Behind {
        predecessor: Key,
    },
    /// The contender's key does not exist any more.
    Gone,
    Garbled,
}

/// One transaction: `deletes` go whatever the epoch, then the contender enters if the epoch still stands.
///
/// Nothing is nested: releases before 3.5.33, 3.6.14 and 3.7.1 do not see nested puts when their space is used up, and
/// those before 3.4.42, 3.5.28 and 3.6.9 do not check permissions for them.
pub(super) fn enter(guard: &Guard, deletes: &[Key], entry: &Entry<'_>) -> Txn {
    let delete_ops = || deletes.iter().map(|key| Op::Delete { key: key.clone() });
    // No key there: nobody at all for a try; else not ours, which is there if a first copy was carried out.
    let vacant = if entry.try_only { entry.name.contenders() } else { Span::Key(entry.key.clone()) };
    let mut when = epoch_stands(guard);
    when.push(Compare { span: vacant, field: Field::CreateRevision, equals: 0 });
    let first = contenders(entry.name, Order::OldestFirst, 1);
    let newest = contenders(entry.name, Order::NewestFirst, 2);
    let then = delete_ops().chain([put(entry), first.clone(), newest]).collect();
    let otherwise = delete_ops().chain([read_key(&guard.session_key), first, read_key(entry.key)]).collect();
    Txn { when, then, otherwise }
}

/// Reads [`enter`]'s answer, which begins with the results of the deletes.
pub(super) fn entered(entry_key: &Key, try_only: bool, epoch: Revision, answer: &TxnAnswer) -> Entered {
    let deletes =
        answer.results.iter().take_while(|result| matches!(result, OpResult::Deleted { .. })).count();
    match (answer.succeeded, &answer.results[deletes..]) {
        (true, [OpResult::Put, OpResult::Range(first), OpResult::Range(newest)]) => {
            queued(entry_key, first, newest.kvs.first(), newest.kvs.get(1))
        }
        (false, [OpResult::Range(session), OpResult::Range(first), OpResult::Range(own)]) => {
            let session = session.kvs.first();
            if session.is_none_or(|session| session.mod_revision != epoch) {
                return Entered::Refused { session: session.cloned() };
            }
            if try_only && first.kvs.first().is_none_or(|first| first.key != *entry_key) {
                return Entered::Taken;
            }
            queued(entry_key, first, own.kvs.first(), None)
        }
        _ => Entered::Garbled,
    }
}

fn queued(
    entry_key: &Key,
    first: &RangeResult,
    own: Option<&KeyValue>,
    predecessor: Option<&KeyValue>,
) -> Entered {
    match (first.kvs.first(), own) {
        (Some(owner), _) if owner.key == *entry_key => Entered::First { token: owner.create_revision },
        (Some(_), Some(own)) if own.key == *entry_key => Entered::Behind {
            created: own.create_revision,
            predecessor: predecessor.map(|kv| kv.key.clone()),
        },
        _ => Entered::Garbled,
    }
}

/// One read: who is first, whether `key` (created at `created`) is still there, and who is right before it.
pub(super) fn look(guard: &Guard, name: &LockName, key: &Key, created: Revision) -> Txn {
    Txn {
        when: epoch_stands(guard),
        then: vec![
            contenders(name, Order::OldestFirst, 1),
            read_key(key),
            Op::Range(Range {
                max_create_revision: created - 1,
                ..keys(name.contenders(), Order::NewestFirst, 1)
            }),
        ],
        otherwise: vec![read_key(&guard.session_key)],
    }
}

/// Reads [`look`]'s answer. A key that was deleted and put again is another contender, so the revisions count.
pub(super) fn standing(key: &Key, created: Revision, answer: &TxnAnswer) -> Standing {
    match (answer.succeeded, &answer.results[..]) {
        (false, [OpResult::Range(session)]) => Standing::Refused { session: session.kvs.first().cloned() },
        (true, [OpResult::Range(first), OpResult::Range(own), OpResult::Range(before)]) => {
            if own.kvs.first().is_none_or(|own| !is_ours(own, created)) {
                return Standing::Gone;
            }
            match (first.kvs.first(), before.kvs.first()) {
                (Some(first), _) if first.key == *key => Standing::First,
                (Some(_), Some(before)) => Standing::Behind { predecessor: before.key.clone() },
                _ => Standing::Garbled,
            }
        }
        _ => Standing::Garbled,
    }
}

fn is_ours(own: &KeyValue, created: Revision) -> bool {
    own.create_revision == created || mutant!(ExistenceForCreateRevision)
}

/// Who holds the lock, with its value unless `keys_only`, and how many contenders there are.
pub(super) fn inspect(name: &LockName, keys_only: bool) -> Txn {
    let range = Range { keys_only, ..keys(name.contenders(), Order::OldestFirst, 1) };
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

/// For an answer that has not the form of its question: a defect here or there, never the caller's.
pub(super) fn garbled() -> Failure {
    Failure::new(FailureClass::Refused, "etcd's answer does not fit the request")
}

fn epoch_stands(guard: &Guard) -> Vec<Compare> {
    if mutant!(EpochNotCompared) {
        return Vec::new();
    }
    let span = Span::Key(guard.session_key.clone());
    vec![Compare { span, field: Field::ModRevision, equals: guard.epoch }]
}

fn put(entry: &Entry<'_>) -> Op {
    Op::Put { key: entry.key.clone(), value: entry.value.to_vec(), lease: entry.lease }
}

fn contenders(name: &LockName, order: Order, limit: u32) -> Op {
    Op::Range(keys(name.contenders(), order, limit))
}

fn read_key(key: &Key) -> Op {
    Op::Range(keys(Span::Key(key.clone()), Order::ByKey, 1))
}

fn keys(span: Span, order: Order, limit: u32) -> Range {
    // Values are left out: a foreign contender's can be as large as etcd allows.
    Range { span, order, limit, max_create_revision: 0, at_revision: 0, keys_only: true }
}
