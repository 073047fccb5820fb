//! The transactions of fenced requests, and what their answers mean.

use crate::kv::{
    Answer, Compare, Field, Key, KeyValue, Op, OpResult, Order, Range, Response, Revision, Span, Txn,
    TxnAnswer,
};
use crate::protocol::contender::origin::HeldKeys;
use crate::protocol::messages::{Config, FencedAnswer, FencedRequest, FencedWrite};
use crate::protocol::mutants::mutant;
use crate::protocol::read::{Epoch, epoch_unchanged, read_key};

/// What an answer means.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(FencedAnswer),
    /// Not carried out: the epoch has changed; this is the session key now.
    EpochChanged(Option<KeyValue>),
    /// Not carried out: the hold is over.
    HoldGone,
    /// Not carried out, and the answer shows nothing that speaks against it: it comes from an old state.
    Old,
    Malformed,
}

/// The request as one transaction.
pub(super) fn txn(epoch: &Epoch, held: &HeldKeys, request: &FencedRequest, config: &Config) -> Txn {
    let created =
        |key: &Key, revision| Compare::equal(Span::Key(key.clone()), Field::CreateRevision, revision);
    let mut when = epoch_unchanged(epoch);
    let mut then = ops(held, request, config);
    if mutant!(FencedByExistence) {
        let missing = held.keys.iter().map(|(key, _)| created(key, 0)).collect();
        then = vec![Op::Txn(Txn { when: missing, then: Vec::new(), otherwise: then })];
    } else {
        when.extend(held.keys.iter().map(|(key, revision)| created(key, *revision)));
    }
    let keys = held.keys.iter().map(|(key, _)| read_key(key));
    Txn { when, then, otherwise: [read_key(&epoch.session_key)].into_iter().chain(keys).collect() }
}

fn ops(held: &HeldKeys, request: &FencedRequest, config: &Config) -> Vec<Op> {
    match request {
        FencedRequest::Get(key) => vec![Op::Range(Range {
            span: Span::Key(key.clone()),
            order: Order::ByKey,
            limit: 1,
            max_create_revision: 0,
            at_revision: 0,
            keys_only: false,
        })],
        FencedRequest::Write(writes) => writes.iter().map(op).collect(),
        FencedRequest::Note(note) => {
            let value = held.origin.with_note(note.clone()).encode(config);
            let put = |key: &Key| Op::Put { key: key.clone(), value: value.clone(), lease: held.lease };
            held.keys.iter().map(|(key, _)| put(key)).collect()
        }
    }
}

fn op(write: &FencedWrite) -> Op {
    match write {
        FencedWrite::Put { key, value } => Op::Put { key: key.clone(), value: value.clone(), lease: 0 },
        FencedWrite::Delete { key } => Op::Delete { key: key.clone() },
    }
}

/// What the answer to the request means that was sent under this epoch and compared these keys.
pub(super) fn answer(
    epoch: Revision,
    keys: &[(Key, Revision)],
    request: &FencedRequest,
    response: Response,
) -> Outcome {
    let Answer::Txn(TxnAnswer { succeeded, results }) = response.answer else {
        return Outcome::Malformed;
    };
    let results = match &results[..] {
        [OpResult::Txn(nested)] if nested.succeeded && mutant!(FencedByExistence) => {
            return Outcome::HoldGone;
        }
        [OpResult::Txn(nested)] if mutant!(FencedByExistence) => nested.results.clone(),
        _ => results,
    };
    if succeeded { done(request, response.revision, results) } else { refused(epoch, keys, &results) }
}

fn done(request: &FencedRequest, revision: Revision, results: Vec<OpResult>) -> Outcome {
    let mut answer = FencedAnswer { revision, ..FencedAnswer::default() };
    if let FencedRequest::Get(_) = request {
        let [OpResult::Range(range)] = &results[..] else {
            return Outcome::Malformed;
        };
        answer.value = range.kvs.first().map(|kv| kv.value.clone());
    }
    for result in results {
        if let OpResult::Deleted { count } = result {
            answer.deleted += count;
        }
    }
    Outcome::Done(answer)
}

/// The hold counts first: the epoch may have changed as well.
fn refused(epoch: Revision, keys: &[(Key, Revision)], results: &[OpResult]) -> Outcome {
    let Some((OpResult::Range(session), own)) = results.split_first() else {
        return Outcome::Malformed;
    };
    let session = session.kvs.first();
    let stands = |(result, (key, created)): (&OpResult, &(Key, Revision))| match result {
        OpResult::Range(range) => {
            range.kvs.first().is_some_and(|kv| (&kv.key, kv.create_revision) == (key, *created))
        }
        _ => false,
    };
    match session {
        None => Outcome::EpochChanged(None),
        _ if own.len() != keys.len() => Outcome::Malformed,
        Some(_) if !own.iter().zip(keys).all(stands) => Outcome::HoldGone,
        Some(session) if session.mod_revision == epoch => Outcome::Old,
        Some(session) => Outcome::EpochChanged(Some(session.clone())),
    }
}
