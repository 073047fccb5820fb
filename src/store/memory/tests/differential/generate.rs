//! Random sequences of requests, generated so that many of their keys and leases exist.

use std::time::Duration;

use fastrand::Rng;

use crate::clock;
use crate::kv::{
    Answer, Compare, Field, Key, LeaseId, Op, Order, Range, Relation, Request, Revision, Span, Txn, WatchSpec,
};
use crate::store::memory::model::Model;

/// Few keys, some of which are prefixes of others. (At most a dozen: etcd's sort is not stable for keys that share a
/// create revision, but happens to be for few keys.)
const KEYS: [&str; 8] = ["a", "a/", "a/x", "a/y", "b", "b/x", "c", "c/z"];
const PREFIXES: [&str; 5] = ["", "a", "a/", "b", "d"];

/// A lease that was never granted.
const NO_SUCH_LEASE: LeaseId = 4711;

pub(super) enum Step {
    Ask(Request),
    Watch(WatchSpec),
    Unwatch,
    Compact(Revision),
}

pub(super) struct Generator {
    rng: Rng,
    /// The prefix of all keys of this sequence, and of no other sequence's.
    root: String,
    /// The revision at which the sequence began.
    first: Option<Revision>,
    /// All leases that the model has granted so far.
    leases: Vec<LeaseId>,
    compacts: bool,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        // Waiting for etcd's watches of the past is slow.
        let compacts = rng.u32(..25) == 0;
        Self { rng, root: format!("/{seed}/"), first: None, leases: Vec::new(), compacts }
    }

    pub(super) fn length(&mut self) -> u32 {
        self.rng.u32(5..40)
    }

    pub(super) fn step(&mut self, model: &Model) -> Step {
        if self.first.is_none() {
            self.first = Some(model.revision());
            return Step::Ask(Request::GrantLease { ttl: self.ttl() });
        }
        for lease in model.leases() {
            if !self.leases.contains(&lease) {
                self.leases.push(lease);
            }
        }
        match self.rng.u32(..100) {
            0..6 => Step::Ask(Request::GrantLease { ttl: self.ttl() }),
            6..10 => Step::Ask(Request::RevokeLease { lease: self.lease() }),
            10..13 => Step::Ask(Request::RenewLease { lease: self.lease() }),
            13..16 => Step::Ask(Request::LeaseTimeToLive { lease: self.lease() }),
            16..22 => Step::Ask(Request::Delete { key: self.key_to_delete(model) }),
            22..30 => Step::Watch(self.watch(model)),
            30..32 => Step::Unwatch,
            32 if self.compacts => Step::Compact(self.revision(model)),
            33 => Step::Ask(Request::Txn(self.long_txn())),
            _ => Step::Ask(Request::Txn(self.agreeable_txn(model))),
        }
    }

    /// Long enough to outlive the sequence on a busy machine.
    fn ttl(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(300_000..1_000_000))
    }

    fn lease(&mut self) -> LeaseId {
        match self.rng.choice(&self.leases) {
            Some(&lease) if self.rng.u32(..20) > 0 => lease,
            _ => NO_SUCH_LEASE,
        }
    }

    fn key(&mut self) -> Key {
        Key::from(format!("{}{}", self.root, KEYS[self.rng.usize(..KEYS.len())]))
    }

    /// Usually one that exists.
    fn key_to_delete(&mut self, model: &Model) -> Key {
        let there = model.read(&self.plain_range()).map(|found| found.kvs).unwrap_or_default();
        match self.rng.choice(&there) {
            Some(kv) if self.rng.u32(..3) > 0 => kv.key.clone(),
            _ => self.key(),
        }
    }

    fn span(&mut self) -> Span {
        match self.rng.u32(..3) {
            0 => Span::Key(self.key()),
            1 => {
                let prefix = PREFIXES[self.rng.usize(..PREFIXES.len())];
                Span::Prefix(Key::from(format!("{}{prefix}", self.root)))
            }
            // Sometimes reversed, and so empty.
            _ => Span::Between(self.key(), self.key()),
        }
    }

    /// A revision of the sequence: usually the last one, sometimes one in the future.
    fn revision(&mut self, model: &Model) -> Revision {
        let now = model.revision();
        self.rng.i64(self.first.unwrap_or(now)..=now + 1)
    }

    fn watch(&mut self, model: &Model) -> WatchSpec {
        let span = loop {
            let span = if self.rng.bool() { self.plain_range().span } else { self.span() };
            // The vocabulary has no answer of etcd to a watch of an empty range.
            if !matches!(&span, Span::Between(first, end) if first >= end) {
                break span;
            }
        };
        let from_revision = match self.rng.u32(..10) {
            0..5 => 0,
            5..8 => self.revision(model),
            _ => model.revision() + self.rng.i64(0..4),
        };
        let puts = self.rng.bool();
        // Releases differ in what remains of the compacted revision itself.
        let doubtful = from_revision > 0 && from_revision == model.compacted();
        WatchSpec { span, from_revision: from_revision + i64::from(doubtful), puts }
    }

    fn compare(&mut self, model: &Model) -> Compare {
        let span = self.span();
        let field = if self.rng.bool() { Field::CreateRevision } else { Field::ModRevision };
        let range = Range { span: span.clone(), ..self.plain_range() };
        let kvs = model.read(&range).map(|found| found.kvs).unwrap_or_default();
        let revision = match self.rng.choice(&kvs) {
            Some(kv) if self.rng.u32(..3) > 0 && field == Field::CreateRevision => kv.create_revision,
            Some(kv) if self.rng.u32(..3) > 0 => kv.mod_revision,
            _ if self.rng.u32(..3) > 0 => 0,
            _ => self.revision(model),
        };
        let relation = if self.rng.bool() { Relation::Equal } else { Relation::Less };
        Compare {
            span,
            field,
            relation,
            revision: revision + i64::from(relation == Relation::Less && self.rng.bool()),
        }
    }

    fn plain_range(&self) -> Range {
        Range {
            span: Span::Prefix(Key::from(self.root.as_str())),
            order: Order::ByKey,
            limit: 0,
            max_create_revision: 0,
            at_revision: 0,
            keys_only: false,
        }
    }

    fn range(&mut self, model: &Model) -> Range {
        let order = [Order::ByKey, Order::OldestFirst, Order::NewestFirst][self.rng.usize(..3)];
        Range {
            span: self.span(),
            order,
            limit: if self.rng.bool() { 0 } else { self.rng.u32(1..4) },
            max_create_revision: if self.rng.u32(..4) > 0 { 0 } else { self.revision(model) },
            at_revision: if self.rng.u32(..5) > 0 { 0 } else { self.revision(model) },
            keys_only: self.rng.u32(..4) == 0,
        }
    }

    fn op(&mut self, model: &Model, depth: u32) -> Op {
        match self.rng.u32(..10) {
            0..4 => {
                let lease = if self.rng.u32(..3) == 0 { self.lease() } else { 0 };
                Op::Put { key: self.key(), value: self.rng.u8(..).to_string().into_bytes(), lease }
            }
            4..6 => Op::Delete { key: self.key_to_delete(model) },
            6..8 if depth > 0 => Op::Txn(self.txn(model, depth - 1)),
            _ => Op::Range(self.range(model)),
        }
    }

    fn txn(&mut self, model: &Model, depth: u32) -> Txn {
        Txn {
            when: (0..self.rng.u32(..3)).map(|_| self.compare(model)).collect(),
            then: (0..self.rng.u32(1..6)).map(|_| self.op(model, depth)).collect(),
            otherwise: (0..self.rng.u32(..4)).map(|_| self.op(model, depth)).collect(),
        }
    }

    /// Usually one that is executed: with so few keys, many are refused for writing a key twice.
    fn agreeable_txn(&mut self, model: &Model) -> Txn {
        for _ in 0..self.rng.u32(..6) {
            let txn = self.txn(model, 3);
            let tried = model.clone().execute(clock::now(), &Request::Txn(txn.clone()));
            if matches!(tried.map(|response| response.answer), Ok(Answer::Txn(_))) {
                return txn;
            }
        }
        self.txn(model, 3)
    }

    /// A transaction of about the maximum length.
    fn long_txn(&mut self) -> Txn {
        let reads = |count: u32, range: &Range| vec![Op::Range(range.clone()); count as usize];
        let range = Range { limit: 1, keys_only: true, ..self.plain_range() };
        let outer = self.rng.u32(1..129);
        let inner = 128 - outer + self.rng.u32(..2);
        let nested = Txn { otherwise: reads(inner, &range), ..Txn::default() };
        let mut then = reads(outer - 1, &range);
        then.push(Op::Txn(nested));
        if self.rng.bool() {
            Txn { then, ..Txn::default() }
        } else {
            let compare = Compare::equal(range.span.clone(), Field::ModRevision, Revision::MAX);
            Txn { when: vec![compare; self.rng.usize(..130)], then: reads(1, &range), otherwise: then }
        }
    }
}
