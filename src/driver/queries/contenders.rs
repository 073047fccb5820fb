//! Which contenders of a lock hold it, and which wait.

use std::collections::BTreeMap;

use crate::info::{FencingToken, LockState};
use crate::kv::{Key, KeyValue, LeaseId, Revision, Span};
use crate::mode::{Load, Mode};
use crate::name::{LockName, Root};
use crate::protocol::CurrentHolder;

/// All contenders of one lock, in the order of their admission. The first ones hold the lock.
pub(super) struct Contenders {
    kvs: Vec<KeyValue>,
    holders: usize,
}

impl Contenders {
    /// From the contenders in any order.
    pub(super) fn of(mut kvs: Vec<KeyValue>) -> Self {
        // Two keys of one transaction share their create revision.
        kvs.sort_by(|a, b| (a.create_revision, &a.key).cmp(&(b.create_revision, &b.key)));
        let holders = Load::holders(kvs.iter().map(|kv| Mode::of(&kv.key)));
        Self { kvs, holders }
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.kvs.iter().map(|kv| kv.lease)
    }

    /// Each with its state, and the number of those that wait behind it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&KeyValue, LockState, u64)> {
        self.kvs.iter().enumerate().map(|(place, kv)| {
            let state = if place < self.holders { LockState::Held } else { LockState::Waiting };
            let waiting_behind = self.kvs.len() - self.holders.max(place + 1);
            (kv, state, waiting_behind as u64)
        })
    }

    /// The first holder with this token; those of one commit share it.
    pub(super) fn into_holder_with(self, token: FencingToken) -> Option<CurrentHolder> {
        let waiters = (self.kvs.len() - self.holders) as u64;
        let mut holders = self.kvs.into_iter().take(self.holders);
        holders.find(|kv| kv.create_revision == token.as_i64()).map(|kv| CurrentHolder { kv, waiters })
    }

    /// The first holder.
    pub(super) fn into_first(self) -> Option<CurrentHolder> {
        let waiters = (self.kvs.len() - self.holders) as u64;
        self.kvs.into_iter().next().map(|kv| CurrentHolder { kv, waiters })
    }
}

/// The first holders of locks, gathered from keys in their order.
pub(super) struct Locks<'a> {
    root: &'a Root,
    locks: BTreeMap<String, Lock>,
}

/// The contenders of one lock, of which only the first is known in full.
struct Lock {
    first: KeyValue,
    /// Of all of them, in the order of their keys.
    ranks: Vec<(Revision, Mode)>,
}

impl<'a> Locks<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self { root, locks: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, kv: KeyValue) {
        let Some(name) = self.name_of(&kv.key) else {
            return;
        };
        let rank = (kv.create_revision, Mode::of(&kv.key));
        match self.locks.get_mut(&name) {
            None => {
                self.locks.insert(name, Lock { first: kv, ranks: vec![rank] });
            }
            Some(lock) => {
                lock.ranks.push(rank);
                if kv.create_revision < lock.first.create_revision {
                    lock.first = kv;
                }
            }
        }
    }

    /// The lock that this is a contender of; `None` for sessions, and for keys that no lock's name leads to.
    fn name_of(&self, key: &Key) -> Option<String> {
        let name = self.root.name_of(key)?;
        match LockName::parse(self.root, &name).ok()?.contenders() {
            Span::Prefix(prefix) if key.as_bytes().starts_with(prefix.as_bytes()) => Some(name),
            _ => None,
        }
    }

    pub(super) fn into_holders(self) -> BTreeMap<String, CurrentHolder> {
        let holder = |Lock { first, mut ranks }: Lock| {
            // Stable: those of one transaction stay in the order of their keys.
            ranks.sort_by_key(|&(created, _)| created);
            let holders = Load::holders(ranks.iter().map(|&(_, mode)| mode));
            CurrentHolder { kv: first, waiters: (ranks.len() - holders) as u64 }
        };
        self.locks.into_iter().map(|(name, lock)| (name, holder(lock))).collect()
    }
}
