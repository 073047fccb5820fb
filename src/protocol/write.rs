//! One step of a queue (keys that must go, a contender that wants in), alone in a request or grouped with others.

use super::QueueId;
use super::mutants::mutant;
use super::read::{Ahead, Guard, NEAR, contenders, epoch_stands, read_key};
use crate::kv::{
    Answer, Compare, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, RangeResult, Request, Response,
    Revision, Span, Txn, TxnAnswer,
};
use crate::name::LockName;

/// What one queue wants changed.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) queue: QueueId,
    /// These go whatever the epoch.
    pub(super) deletes: Vec<Deletion>,
    /// This enters if the epoch stands.
    pub(super) entry: Option<Entry>,
}

/// A key that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    pub(super) key: Key,
    /// Delete it only if it was created at this revision. Keys are used again, so without this compare a second
    /// copy of the request, from a proxy that retries, would end a later hold.
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

/// A contender that is to be put.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: LockName,
    pub(super) key: Key,
    pub(super) value: Vec<u8>,
    pub(super) lease: LeaseId,
    /// Only if nobody is there.
    pub(super) try_only: bool,
}

/// What became of a [`Step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepAnswer {
    pub(super) revision: Revision,
    /// For each delete, how many keys there were.
    pub(super) deleted: Vec<u64>,
    pub(super) entered: Option<Entered>,
}

/// What became of an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// The epoch has moved; here is the session key as it is now, or `None`: the session is gone.
    Refused { session: Option<KeyValue> },
    /// The contender holds the lock.
    First { token: Revision },
    /// The contender waits behind others. Who they are is unknown when this answers a repeated request.
    Behind { created: Revision, ahead: Option<Ahead> },
    /// To `try_only`: somebody else is there.
    Taken,
    /// The answer has not the form of the question.
    Garbled,
}

impl Step {
    /// How many operations it adds to a grouped transaction.
    pub(super) fn operations(&self) -> usize {
        self.deletes.len() + usize::from(self.entry.is_some())
    }

    fn delete_ops(&self) -> impl Iterator<Item = Op> {
        self.deletes.iter().map(Deletion::op)
    }
}

impl Entry {
    /// Nobody is there, for a try; else no key of ours, which there is if a first copy of the request was carried out.
    fn vacant(&self) -> Compare {
        let span = if self.try_only { self.name.contenders() } else { Span::Key(self.key.clone()) };
        Compare { span, field: Field::CreateRevision, equals: 0 }
    }

    fn put(&self) -> Vec<Op> {
        let put = Op::Put { key: self.key.clone(), value: self.value.clone(), lease: self.lease };
        vec![put, contenders(&self.name, Order::NewestFirst, NEAR as u32 + 2)]
    }

    fn look(&self) -> Vec<Op> {
        vec![contenders(&self.name, Order::OldestFirst, 1), read_key(&self.key)]
    }
}

/// One request for all the steps.
pub(super) fn request(guard: &Guard, steps: &[Step]) -> Request {
    match steps {
        [Step { deletes, entry: None, .. }] if deletes.len() == 1 => match deletes[0].conditional() {
            Some(txn) => Request::Txn(txn),
            // A plain delete is carried out even when the store's space is used up.
            None => Request::Delete { key: deletes[0].key.clone() },
        },
        [step @ Step { entry: Some(entry), .. }] => Request::Txn(lone(guard, step, entry)),
        _ => Request::Txn(grouped(guard, steps)),
    }
}

/// One transaction without nesting: releases before 3.5.33, 3.6.14 and 3.7.1 do not see nested puts when their space is
/// used up, and those before 3.4.42, 3.5.28 and 3.6.9 do not check permissions for them.
fn lone(guard: &Guard, step: &Step, entry: &Entry) -> Txn {
    let mut when = epoch_stands(guard);
    when.push(entry.vacant());
    let then = step.delete_ops().chain(entry.put()).collect();
    let otherwise = step.delete_ops().chain([read_key(&guard.session_key)]).chain(entry.look()).collect();
    Txn { when, then, otherwise }
}

/// One commit for many names: each entry is a transaction of its own under the one compare of the epoch.
fn grouped(guard: &Guard, steps: &[Step]) -> Txn {
    let enter = |entry: &Entry| {
        Op::Txn(Txn { when: vec![entry.vacant()], then: entry.put(), otherwise: entry.look() })
    };
    let then =
        steps.iter().flat_map(|step| step.delete_ops().chain(step.entry.as_ref().map(enter))).collect();
    if steps.iter().all(|step| step.entry.is_none()) {
        // Deletes do not depend on the epoch.
        return Txn { then, ..Txn::default() };
    }
    let deletes = steps.iter().flat_map(Step::delete_ops);
    let otherwise = deletes.chain([read_key(&guard.session_key)]).collect();
    Txn { when: epoch_stands(guard), then, otherwise }
}

/// Takes [`request`]'s answer apart, one for each step.
pub(super) fn answers(epoch: Revision, steps: &[Step], response: &Response) -> Vec<StepAnswer> {
    let revision = response.revision;
    match (&response.answer, steps) {
        (Answer::Deleted { count }, [_]) => {
            vec![StepAnswer { revision, deleted: vec![*count], entered: None }]
        }
        (Answer::Txn(answer), [Step { deletes, entry: None, .. }]) if deletes.len() == 1 => {
            vec![StepAnswer { revision, deleted: vec![deleted_by(answer)], entered: None }]
        }
        (Answer::Txn(answer), [step @ Step { entry: Some(entry), .. }]) => {
            let (deleted, rest) = split_deletes(step, &answer.results);
            let entered = Some(lone_entered(entry, epoch, answer.succeeded, rest));
            vec![StepAnswer { revision, deleted, entered }]
        }
        (Answer::Txn(answer), _) => grouped_answers(steps, revision, answer),
        _ => steps.iter().map(|step| garbled(step, revision)).collect(),
    }
}

fn grouped_answers(steps: &[Step], revision: Revision, answer: &TxnAnswer) -> Vec<StepAnswer> {
    let session = match answer.results.last() {
        Some(OpResult::Range(session)) => session.kvs.first().cloned(),
        _ => None,
    };
    let mut rest = &answer.results[..];
    let mut answers = Vec::with_capacity(steps.len());
    for step in steps {
        let (deleted, after) = split_deletes(step, rest);
        rest = after;
        let entered = step.entry.as_ref().map(|entry| {
            if !answer.succeeded {
                return Entered::Refused { session: session.clone() };
            }
            let Some((OpResult::Txn(own), after)) = rest.split_first() else {
                return Entered::Garbled;
            };
            rest = after;
            nested_entered(entry, own)
        });
        answers.push(StepAnswer { revision, deleted, entered });
    }
    answers
}

fn lone_entered(entry: &Entry, epoch: Revision, succeeded: bool, results: &[OpResult]) -> Entered {
    match (succeeded, results) {
        (true, [OpResult::Put, OpResult::Range(newest)]) => put_done(entry, newest),
        (false, [OpResult::Range(session), OpResult::Range(first), OpResult::Range(own)]) => {
            let session = session.kvs.first();
            if session.is_none_or(|session| session.mod_revision != epoch) {
                return Entered::Refused { session: session.cloned() };
            }
            there_already(entry, first, own)
        }
        _ => Entered::Garbled,
    }
}

fn nested_entered(entry: &Entry, own: &TxnAnswer) -> Entered {
    match (own.succeeded, &own.results[..]) {
        (true, [OpResult::Put, OpResult::Range(newest)]) => put_done(entry, newest),
        (false, [OpResult::Range(first), OpResult::Range(own)]) => there_already(entry, first, own),
        _ => Entered::Garbled,
    }
}

/// The key was put just now, so it is the newest of the name; whoever has nobody before it is the first.
fn put_done(entry: &Entry, newest: &RangeResult) -> Entered {
    match newest.kvs.split_first() {
        Some((own, before)) if own.key == entry.key => match Ahead::of(before) {
            None => Entered::First { token: own.create_revision },
            ahead => Entered::Behind { created: own.create_revision, ahead },
        },
        _ => Entered::Garbled,
    }
}

/// Somebody was there: for a try anybody, else an earlier copy of this request.
fn there_already(entry: &Entry, first: &RangeResult, own: &RangeResult) -> Entered {
    match (first.kvs.first(), own.kvs.first()) {
        (Some(first), _) if first.key == entry.key => Entered::First { token: first.create_revision },
        _ if entry.try_only => Entered::Taken,
        (Some(_), Some(own)) => Entered::Behind { created: own.create_revision, ahead: None },
        _ => Entered::Garbled,
    }
}

/// The results of the step's deletes, and what comes after them.
fn split_deletes<'a>(step: &Step, results: &'a [OpResult]) -> (Vec<u64>, &'a [OpResult]) {
    let (own, rest) = results.split_at(step.deletes.len().min(results.len()));
    let count = |result: &OpResult| match result {
        OpResult::Deleted { count } => *count,
        OpResult::Txn(answer) => deleted_by(answer),
        _ => 0,
    };
    (own.iter().map(count).collect(), rest)
}

/// How many keys a conditional delete has deleted.
fn deleted_by(answer: &TxnAnswer) -> u64 {
    match &answer.results[..] {
        [OpResult::Deleted { count }] => *count,
        _ => 0,
    }
}

fn garbled(step: &Step, revision: Revision) -> StepAnswer {
    let entered = step.entry.as_ref().map(|_| Entered::Garbled);
    StepAnswer { revision, deleted: Vec::new(), entered }
}
