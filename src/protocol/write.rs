//! The writes of the queues (deletes of stale keys, puts of contenders), as a request of their own or grouped.

use super::messages::QueueId;
use super::mutants::mutant;
use super::put::{ContenderPut, PutOutcome};
use super::read::{Epoch, epoch_unchanged, read_key};
use crate::kv::{
    Answer, Compare, Field, Key, Op, OpResult, Request, Response, Revision, Span, Txn, TxnAnswer,
};

/// What one queue wants written.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) queue: QueueId,
    /// Carried out whatever the epoch is.
    pub(super) deletes: Vec<Deletion>,
    /// Carried out if the epoch has not changed: one put, or several of shared contenders.
    pub(super) puts: Vec<ContenderPut>,
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
            when: vec![Compare::equal(span, Field::CreateRevision, created)],
            then: vec![Op::Delete { key: self.key.clone() }],
            otherwise: Vec::new(),
        })
    }
}

/// The answer to a [`Write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WriteAnswer {
    pub(super) revision: Revision,
    /// How many keys each delete found.
    pub(super) deleted: Vec<u64>,
    pub(super) puts: Vec<PutOutcome>,
}

impl Write {
    /// The number of operations that it adds to a grouped transaction.
    pub(super) fn operations(&self) -> usize {
        self.deletes.len() + self.puts.len() + self.look_ops().len()
    }

    fn delete_ops(&self) -> impl Iterator<Item = Op> {
        self.deletes.iter().map(Deletion::op)
    }

    /// What is read once for all of its puts, after them.
    fn look_ops(&self) -> Vec<Op> {
        self.puts.first().map(ContenderPut::look_ops).unwrap_or_default()
    }
}

/// The request for these writes.
pub(super) fn request(epoch: &Epoch, writes: &[Write]) -> Request {
    match writes {
        [Write { deletes, puts, .. }] if deletes.len() == 1 && puts.is_empty() => {
            match deletes[0].conditional() {
                Some(txn) => Request::Txn(txn),
                // A plain delete is carried out even when the store has run out of space.
                None => Request::Delete { key: deletes[0].key.clone() },
            }
        }
        [write] if write.puts.len() == 1 => Request::Txn(lone(epoch, write, &write.puts[0])),
        _ => Request::Txn(grouped(epoch, writes)),
    }
}

/// One transaction without nesting: etcd before 3.5.33, 3.6.14 and 3.7.1 does not notice nested puts when it has run out
/// of space, and before 3.4.42, 3.5.28 and 3.6.9 it does not check permissions for them.
fn lone(epoch: &Epoch, write: &Write, put: &ContenderPut) -> Txn {
    let mut when = epoch_unchanged(epoch);
    when.extend(put.compares());
    let then = write.delete_ops().chain(put.put_ops()).chain(write.look_ops()).collect();
    let otherwise = write.delete_ops().chain([read_key(&epoch.session_key)]);
    let otherwise = otherwise.chain(put.read_ops()).chain(write.look_ops()).collect();
    Txn { when, then, otherwise }
}

/// One commit for many names: each put is a nested transaction under one compare of the epoch.
fn grouped(epoch: &Epoch, writes: &[Write]) -> Txn {
    let enter = |put: &ContenderPut| {
        Op::Txn(Txn { when: put.compares(), then: put.put_ops(), otherwise: put.read_ops() })
    };
    let operations = |write: &Write| -> Vec<Op> {
        write.delete_ops().chain(write.puts.iter().map(enter)).chain(write.look_ops()).collect()
    };
    let then = writes.iter().flat_map(operations).collect();
    if writes.iter().all(|write| write.puts.is_empty()) {
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
            vec![WriteAnswer { revision, deleted: vec![*count], puts: Vec::new() }]
        }
        (Answer::Txn(answer), [Write { deletes, puts, .. }]) if deletes.len() == 1 && puts.is_empty() => {
            vec![WriteAnswer { revision, deleted: vec![deleted_by(answer)], puts: Vec::new() }]
        }
        (Answer::Txn(answer), [write]) if write.puts.len() == 1 => {
            let (deleted, rest) = split_deletes(write, &answer.results);
            let put = lone_put(&write.puts[0], epoch, answer.succeeded, rest);
            vec![WriteAnswer { revision, deleted, puts: vec![put] }]
        }
        (Answer::Txn(answer), _) => grouped_answers(writes, revision, answer),
        _ => writes.iter().map(|write| malformed(write, revision)).collect(),
    }
}

fn lone_put(put: &ContenderPut, epoch: Revision, succeeded: bool, results: &[OpResult]) -> PutOutcome {
    if succeeded {
        let (own, look) = put.split_look(results);
        return put.outcome(true, own, look);
    }
    let Some((OpResult::Range(session), rest)) = results.split_first() else {
        return PutOutcome::Malformed;
    };
    let session = session.kvs.first();
    if session.is_none_or(|session| session.mod_revision != epoch) {
        return PutOutcome::StaleEpoch { session: session.cloned() };
    }
    let (own, look) = put.split_look(rest);
    put.outcome(false, own, look)
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
        let puts = if answer.succeeded {
            let (nested, after) = rest.split_at(write.puts.len().min(rest.len()));
            let (look, after) = after.split_at(write.look_ops().len().min(after.len()));
            rest = after;
            write.puts.iter().enumerate().map(|(at, put)| nested_put(put, nested.get(at), look)).collect()
        } else {
            write.puts.iter().map(|_| PutOutcome::StaleEpoch { session: session.clone() }).collect()
        };
        answers.push(WriteAnswer { revision, deleted, puts });
    }
    answers
}

fn nested_put(put: &ContenderPut, nested: Option<&OpResult>, look: &[OpResult]) -> PutOutcome {
    match nested {
        Some(OpResult::Txn(own)) => put.outcome(own.succeeded, &own.results, look),
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
    let puts = write.puts.iter().map(|_| PutOutcome::Malformed).collect();
    WriteAnswer { revision, deleted: Vec::new(), puts }
}
