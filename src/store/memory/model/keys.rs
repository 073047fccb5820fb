//! The keys and their history: etcd's multi-version store.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use crate::kv::{
    Compare, Failure, FailureClass, Field, Key, KeyValue, LeaseId, Order, Range, RangeResult, Relation,
    Revision, Span,
};

/// An empty etcd is at revision 1: the first write makes revision 2.
pub(super) const FIRST_REVISION: Revision = 1;

/// All keys, at the current revision and at every revision that was not compacted.
///
/// Writes belong to the revision after the last committed one until [`commit`](Self::commit). Reads see them at once: a
/// writer has exclusive access until then.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// The last committed revision.
    revision: Revision,
    /// The revision below which nothing can be read or watched; 0: never compacted.
    compacted: Revision,
    live: BTreeMap<Key, Record>,
    /// The former records of each key, oldest first. Separate from `live`, so that deleted contenders do not slow down
    /// reads of the present.
    past: BTreeMap<Key, Vec<Past>>,
    /// All writes since the compaction, in order.
    changes: VecDeque<Change>,
}

/// A key's value and metadata.
#[derive(Clone, Debug)]
struct Record {
    value: Vec<u8>,
    create_revision: Revision,
    mod_revision: Revision,
    lease: LeaseId,
}

/// A record that was overwritten or deleted: it existed from its `mod_revision` to just before `until`.
#[derive(Clone, Debug)]
struct Past {
    record: Record,
    until: Revision,
}

/// One write.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: Revision,
    pub(super) key: Key,
    pub(super) deleted: bool,
}

impl Keys {
    pub(super) fn starting_at(revision: Revision) -> Self {
        Self {
            revision,
            compacted: 0,
            live: BTreeMap::new(),
            past: BTreeMap::new(),
            changes: VecDeque::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Puts the key. An existing key retains its create revision, whatever its lease. Returns the key's previous lease.
    pub(super) fn put(&mut self, key: &Key, value: Vec<u8>, lease: LeaseId) -> LeaseId {
        let revision = self.revision + 1;
        let replaced = self.retire(key, revision);
        let create_revision = replaced.map_or(revision, |(created, _)| created);
        let record = Record { value, create_revision, mod_revision: revision, lease };
        self.live.insert(key.clone(), record);
        self.changes.push_back(Change { revision, key: key.clone(), deleted: false });
        replaced.map_or(0, |(_, lease)| lease)
    }

    /// Deletes the key, if it exists, and returns its lease. A later put creates a new key with a new create revision.
    pub(super) fn delete(&mut self, key: &Key) -> Option<LeaseId> {
        let revision = self.revision + 1;
        let (_, lease) = self.retire(key, revision)?;
        self.changes.push_back(Change { revision, key: key.clone(), deleted: true });
        Some(lease)
    }

    /// Moves the key's record into the past; returns its create revision and its lease.
    fn retire(&mut self, key: &Key, until: Revision) -> Option<(Revision, LeaseId)> {
        let record = self.live.remove(key)?;
        let facts = (record.create_revision, record.lease);
        // A record put and deleted in one transaction was never visible.
        if record.mod_revision < until {
            self.past.entry(key.clone()).or_default().push(Past { record, until });
        }
        Some(facts)
    }

    /// Ends a transaction, and returns whether it made a revision: one without a write makes none.
    pub(super) fn commit(&mut self) -> bool {
        let wrote = self.changes.back().is_some_and(|last| last.revision > self.revision);
        if wrote {
            self.revision += 1;
        }
        wrote
    }

    /// The writes of this revision and of all later ones, in order.
    pub(super) fn changes_from(&self, revision: Revision) -> impl Iterator<Item = &Change> {
        let first = self.changes.partition_point(|change| change.revision < revision);
        self.changes.range(first..)
    }

    /// Whether the compare holds now. A span without keys compares as one key whose revisions are 0.
    pub(super) fn satisfies(&self, compare: &Compare) -> bool {
        let holds = |revision: Revision| match compare.relation {
            Relation::Equal => revision == compare.revision,
            Relation::Less => revision < compare.revision,
        };
        let mut records = self.in_span(&compare.span).peekable();
        if records.peek().is_none() {
            return holds(0);
        }
        records.all(|(_, record)| match compare.field {
            Field::CreateRevision => holds(record.create_revision),
            Field::ModRevision => holds(record.mod_revision),
        })
    }

    /// An error if the keys at that revision cannot be read; 0 is the current revision.
    pub(super) fn check_readable(&self, at: Revision) -> Result<(), Failure> {
        if at > self.revision {
            let message = "etcdserver: mvcc: required revision is a future revision";
            return Err(Failure::new(FailureClass::Compacted, message));
        }
        if at != 0 && at < self.compacted {
            return Err(compacted());
        }
        Ok(())
    }

    /// Reads the keys. The caller has checked that the revision can be read.
    ///
    /// As in etcd, `count` is the size of the whole span, whatever `limit` and `max_create_revision` are. Keys of the
    /// same create revision are ordered by name, in either direction.
    pub(super) fn range(&self, range: &Range) -> RangeResult {
        let mut found: Vec<_> = match range.at_revision {
            0 => self.in_span(&range.span).collect(),
            at => self.in_span_at(&range.span, at),
        };
        let count = found.len() as u64;
        if range.max_create_revision != 0 {
            found.retain(|(_, record)| record.create_revision <= range.max_create_revision);
        }
        match range.order {
            Order::ByKey => {}
            Order::OldestFirst => found.sort_by_key(|(_, record)| record.create_revision),
            Order::NewestFirst => found.sort_by_key(|(_, record)| Reverse(record.create_revision)),
        }
        if range.limit != 0 {
            found.truncate(range.limit as usize);
        }
        let kvs = found.into_iter().map(|(key, record)| record.to_key_value(key, range.keys_only)).collect();
        RangeResult { kvs, count }
    }

    /// The keys of the span at the current revision, by name.
    fn in_span<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = (&'a Key, &'a Record)> {
        self.live.range(span.start()..).take_while(|(key, _)| span.contains(key))
    }

    /// The keys of the span at a past revision, by name.
    fn in_span_at<'a>(&'a self, span: &'a Span, at: Revision) -> Vec<(&'a Key, &'a Record)> {
        let still = self.in_span(span).filter(|(_, record)| record.mod_revision <= at);
        let gone = self.past.range(span.start()..).take_while(|(key, _)| span.contains(key));
        let then = gone.filter_map(|(key, pasts)| {
            let past = pasts.iter().find(|past| past.record.mod_revision <= at && at < past.until)?;
            Some((key, &past.record))
        });
        let mut found: Vec<_> = still.chain(then).collect();
        found.sort_by_key(|(key, _)| *key);
        found
    }

    /// Removes what was overwritten or deleted before this revision, which itself can still be read and watched.
    ///
    /// The deletions *at* this revision are retained for watches that start there. (So does etcd since 3.4.34, 3.5.16
    /// and 3.6; before, a watch from the compacted revision itself could miss one.)
    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), Failure> {
        self.check_readable(revision)?;
        if revision <= self.compacted {
            return Err(compacted());
        }
        self.compacted = revision;
        let kept = self.changes.partition_point(|change| change.revision < revision);
        for change in self.changes.drain(..kept) {
            if let Some(pasts) = self.past.get_mut(&change.key) {
                pasts.retain(|past| past.until > revision);
                if pasts.is_empty() {
                    self.past.remove(&change.key);
                }
            }
        }
        Ok(())
    }

    /// The number of retained writes, plus the number of keys with former records.
    #[cfg(test)]
    pub(super) fn history(&self) -> usize {
        self.changes.len() + self.past.len()
    }
}

impl Record {
    fn to_key_value(&self, key: &Key, keys_only: bool) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: if keys_only { Vec::new() } else { self.value.clone() },
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            lease: self.lease,
        }
    }
}

fn compacted() -> Failure {
    Failure::new(FailureClass::Compacted, "etcdserver: mvcc: required revision has been compacted")
}
