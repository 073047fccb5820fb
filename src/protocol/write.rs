//! The writes of the queues (deletes of stale keys, the put of a contender), as a request of their own or grouped.

use super::admission::{self, Admission, Rank, WATCH_ALL_UP_TO};
use super::messages::QueueId;
use super::mutants::mutant;
use super::read::{Epoch, contenders, epoch_unchanged, read_key};
use crate::kv::{
    Answer, Compare, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, RangeResult, Request, Response,
    Revision, Span, Txn, TxnAnswer,
};
use crate::name::LockName;

/// What one queue wants written.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) queue: QueueId,
    /// Carried out whatever the epoch is.
    pub(super) deletes: Vec<Deletion>,
    /// Carried out if the epoch has not changed.
    pub(super) put: Option<ContenderPut>,
}

/// A key to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    pub(super) key: Key,
    /// Delete the key only if it was created at this revision. Keys are reused, so without this compare a second copy
    /// of the request, sent by a proxy that retries, would end a later hold.
    pub(super) created: Option<Revision>,
}

impl Deletion {
    fn op(&self) -> Op {
        match self.conditional() {
            None => Op::Delete { key: self.key.clone() },
            Some(txn) => Op::Txn(txn),
        }
    }

    fn conditional(&self) -> Option<Txn> {
        let created = self.created.filter(|_| !mutant!(DeletedByNameAlone))?;
        let span = Span::Key(self.key.clone());
        Some(Txn {
            when: vec![Compare { span, field: Field::CreateRevision, equals: created }],
            then: vec![Op::Delete { key: self.key.clone() }],
            otherwise: Vec::new(),
        })
    }
}

/// The put of a contender's key.
#[derive(Clone, Debug)]
pub(super) struct ContenderPut {
    pub(super) name: LockName,
    pub(super) key: Key,
    pub(super) value: Vec<u8>,
    pub(super) lease: LeaseId,
    /// Put the key only if the name has no contender.
    pub(super) try_only: bool,
}

/// The answer to a [`Write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WriteAnswer {
    pub(super) revision: Revision,
    /// How many keys each delete found.
    pub(super) deleted: Vec<u64>,
    pub(super) put: Option<PutOutcome>,
}

/// The answer to a [`ContenderPut`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PutOutcome {
    /// The epoch has changed, so nothing was put; this is the session key now.
    StaleEpoch { session: Option<KeyValue> },
    /// The contender's key exists, and this is what the rule says about it. Who its predecessors are is not known if this
    /// answers a repeated request.
    Put { created: Revision, admission: Admission },
    /// A `try_only` contender was not put, because the name has another one.
    Taken,
    /// The answer does not have the form of the request.
    Malformed,
}

impl Write {
    /// The number of operations that it adds to a grouped transaction.
    pub(super) fn operations(&self) -> usize {
        self.deletes.len() + usize::from(self.put.is_some())
    }

    fn delete_ops(&self) -> impl Iterator<Item = Op> {
        self.deletes.iter().map(Deletion::op)
    }
}

impl ContenderPut {
    /// A try compares that the name has no contender; otherwise, that our own key does not exist, which it does if an
    /// earlier copy of the request was carried out.
    fn absent(&self) -> Compare {
        let span = if self.try_only { self.name.contenders() } else { Span::Key(self.key.clone()) };
        Compare { span, field: Field::CreateRevision, equals: 0 }
    }

    fn put_ops(&self) -> Vec<Op> {
        let put = Op::Put { key: self.key.clone(), value: self.value.clone(), lease: self.lease };
        vec![put, contenders(&self.name, Order::NewestFirst, WATCH_ALL_UP_TO as u32 + 2)]
    }

    fn read_ops(&self) -> Vec<Op> {
        vec![contenders(&self.name, Order::OldestFirst, 1), read_key(&self.key)]
    }
}

/// The request for these writes.
pub(super) fn request(epoch: &Epoch, writes: &[Write]) -> Request {
    match writes {
        [Write { deletes, put: None, .. }] if deletes.len() == 1 => match deletes[0].conditional() {
            Some(txn) => Request::Txn(txn),
            // A plain delete is carried out even when the store has run out of space.
            None => Request::Delete { key: deletes[0].key.clone() },
        },
        [write @ Write { put: Some(put), .. }] => Request::Txn(lone(epoch, write, put)),
        _ => Request::Txn(grouped(epoch, writes)),
    }
}

/// One transaction without nesting: etcd before 3.5.33, 3.6.14 and 3.7.1 does not notice nested puts when it has run out
/// of space, and before 3.4.42, 3.5.28 and 3.6.9 it does not check permissions for them.
fn lone(epoch: &Epoch, write: &Write, put: &ContenderPut) -> Txn {
    let mut when = epoch_unchanged(epoch);
    when.push(put.absent());
    let then = write.delete_ops().chain(put.put_ops()).collect();
    let otherwise = write.delete_ops().chain([read_key(&epoch.session_key)]).chain(put.read_ops()).collect();
    Txn { when, then, otherwise }
}

/// One commit for many names: each put is a nested transaction under one compare of the epoch.
fn grouped(epoch: &Epoch, writes: &[Write]) -> Txn {
    let enter = |put: &ContenderPut| {
        Op::Txn(Txn { when: vec![put.absent()], then: put.put_ops(), otherwise: put.read_ops() })
    };
    let then =
        writes.iter().flat_map(|write| write.delete_ops().chain(write.put.as_ref().map(enter))).collect();
    if writes.iter().all(|write| write.put.is_none()) {
        // Deletes do not depend on the epoch.
        return Txn { then, ..Txn::default() };
    }
    let deletes = writes.iter().flat_map(Write::delete_ops);
    let otherwise = deletes.chain([read_key(&epoch.session_key)]).collect();
    Txn { when: epoch_unchanged(epoch), then, otherwise }
}

/// Splits the answer to [`request`] into one answer for each write.
pub(super) fn answers(epoch: Revision, writes: &[Write], response: &Response) -> Vec<WriteAnswer> {
    let revision = response.revision;
    match (&response.answer, writes) {
        (Answer::Deleted { count }, [_]) => {
            vec![WriteAnswer { revision, deleted: vec![*count], put: None }]
        }
        (Answer::Txn(answer), [Write { deletes, put: None, .. }]) if deletes.len() == 1 => {
            vec![WriteAnswer { revision, deleted: vec![deleted_by(answer)], put: None }]
        }
        (Answer::Txn(answer), [write @ Write { put: Some(put), .. }]) => {
            let (deleted, rest) = split_deletes(write, &answer.results);
            let put = Some(lone_put(put, epoch, answer.succeeded, rest));
            vec![WriteAnswer { revision, deleted, put }]
        }
        (Answer::Txn(answer), _) => grouped_answers(writes, revision, answer),
        _ => writes.iter().map(|write| malformed(write, revision)).collect(),
    }
}

fn grouped_answers(writes: &[Write], revision: Revision, answer: &TxnAnswer) -> Vec<WriteAnswer> {
    let session = match answer.results.last() {
        Some(OpResult::Range(session)) => session.kvs.first().cloned(),
        _ => None,
    };
    let mut rest = &answer.results[..];
    let mut answers = Vec::with_capacity(writes.len());
    for write in writes {
        let (deleted, after) = split_deletes(write, rest);
        rest = after;
        let put = write.put.as_ref().map(|put| {
            if !answer.succeeded {
                return PutOutcome::StaleEpoch { session: session.clone() };
            }
            let Some((OpResult::Txn(own), after)) = rest.split_first() else {
                return PutOutcome::Malformed;
            };
            rest = after;
            nested_put(put, own)
        });
        answers.push(WriteAnswer { revision, deleted, put });
    }
    answers
}

fn lone_put(put: &ContenderPut, epoch: Revision, succeeded: bool, results: &[OpResult]) -> PutOutcome {
    match (succeeded, results) {
        (true, [OpResult::Put, OpResult::Range(newest)]) => put_answer(put, newest),
        (false, [OpResult::Range(session), OpResult::Range(first), OpResult::Range(own)]) => {
            let session = session.kvs.first();
            if session.is_none_or(|session| session.mod_revision != epoch) {
                return PutOutcome::StaleEpoch { session: session.cloned() };
            }
            not_put_answer(put, first, own)
        }
        _ => PutOutcome::Malformed,
    }
}

fn nested_put(put: &ContenderPut, own: &TxnAnswer) -> PutOutcome {
    match (own.succeeded, &own.results[..]) {
        (true, [OpResult::Put, OpResult::Range(newest)]) => put_answer(put, newest),
        (false, [OpResult::Range(first), OpResult::Range(own)]) => not_put_answer(put, first, own),
        _ => PutOutcome::Malformed,
    }
}

/// Our key was just put, so it is the newest.
fn put_answer(put: &ContenderPut, newest: &RangeResult) -> PutOutcome {
    match newest.kvs.first().map(Rank::from) {
        Some(own) if *own.key == put.key => {
            let admission = admission::by_nearest(own, newest.kvs.iter().map(Rank::from), newest.count);
            PutOutcome::Put { created: own.created, admission }
        }
        _ => PutOutcome::Malformed,
    }
}

/// Nothing was put: a try found another contender, or an earlier copy of the request had put our key already.
fn not_put_answer(put: &ContenderPut, oldest: &RangeResult, own: &RangeResult) -> PutOutcome {
    let [own, oldest] = [own, oldest].map(|range| range.kvs.first().map(Rank::from));
    match (admission::by_oldest(own, oldest), own) {
        (Admission::Admitted, Some(own)) => {
            PutOutcome::Put { created: own.created, admission: Admission::Admitted }
        }
        _ if put.try_only => PutOutcome::Taken,
        (admission @ Admission::Behind(_), Some(own)) => PutOutcome::Put { created: own.created, admission },
        _ => PutOutcome::Malformed,
    }
}

/// The results of the write's deletes, and the rest.
fn split_deletes<'a>(write: &Write, results: &'a [OpResult]) -> (Vec<u64>, &'a [OpResult]) {
    let (own, rest) = results.split_at(write.deletes.len().min(results.len()));
    let count = |result: &OpResult| match result {
        OpResult::Deleted { count } => *count,
        OpResult::Txn(answer) => deleted_by(answer),
        _ => 0,
    };
    (own.iter().map(count).collect(), rest)
}

/// How many keys a conditional delete found.
fn deleted_by(answer: &TxnAnswer) -> u64 {
    match &answer.results[..] {
        [OpResult::Deleted { count }] => *count,
        _ => 0,
    }
}

fn malformed(write: &Write, revision: Revision) -> WriteAnswer {
    let put = write.put.as_ref().map(|_| PutOutcome::Malformed);
    WriteAnswer { revision, deleted: Vec::new(), put }
}
