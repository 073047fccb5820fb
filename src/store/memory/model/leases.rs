//! Leases with their keys and expiry times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Time;
use crate::kv::{Key, LeaseId};

/// The first lease id. Far from revisions and other numbers that start at 1, so that no test passes by mixing them up.
const FIRST_LEASE: LeaseId = 0x1ea5_e001;

/// All leases that were granted and have not ended.
///
/// A lease that is due has not ended: it ends when the caller ends it, as etcd's leader does in its expiry loop.
#[derive(Clone, Debug)]
pub(super) struct Leases {
    next: LeaseId,
    leases: BTreeMap<LeaseId, Lease>,
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    due: Time,
    keys: BTreeSet<Key>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { next: FIRST_LEASE, leases: BTreeMap::new() }
    }

    /// Grants a new lease. Ids are never reused.
    pub(super) fn grant(&mut self, now: Time, ttl: Duration) -> LeaseId {
        let id = self.next;
        self.next += 1;
        self.leases.insert(id, Lease { ttl, due: now + ttl, keys: BTreeSet::new() });
        id
    }

    pub(super) fn contains(&self, lease: LeaseId) -> bool {
        self.leases.contains_key(&lease)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// The lease's keys, by name; none if there is no such lease.
    pub(super) fn keys(&self, lease: LeaseId) -> impl Iterator<Item = &Key> {
        self.leases.get(&lease).into_iter().flat_map(|lease| &lease.keys)
    }

    /// Whether the lease exists although its TTL has passed.
    pub(super) fn is_due(&self, now: Time, lease: LeaseId) -> bool {
        self.leases.get(&lease).is_some_and(|lease| lease.due <= now)
    }

    /// Restarts the TTL and returns it.
    pub(super) fn renew(&mut self, now: Time, lease: LeaseId) -> Option<Duration> {
        let lease = self.leases.get_mut(&lease)?;
        lease.due = now + lease.ttl;
        Some(lease.ttl)
    }

    /// The remaining time in whole seconds, rounded down as in etcd; 0 once the lease is due.
    pub(super) fn remaining(&self, now: Time, lease: LeaseId) -> Option<Duration> {
        self.leases.get(&lease).map(|lease| Duration::from_secs(lease.due.since(now).as_secs()))
    }

    pub(super) fn attach(&mut self, lease: LeaseId, key: &Key) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.insert(key.clone());
        }
    }

    pub(super) fn detach(&mut self, lease: LeaseId, key: &Key) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }

    /// Ends the lease and returns its keys, for the caller to delete.
    pub(super) fn remove(&mut self, lease: LeaseId) -> Option<BTreeSet<Key>> {
        self.leases.remove(&lease).map(|lease| lease.keys)
    }

    /// When the first lease is or was due.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.leases.values().map(|lease| lease.due).min()
    }

    /// The leases that are due, the longest overdue first.
    pub(super) fn due(&self, now: Time) -> Vec<LeaseId> {
        let due = self.leases.iter().filter(|(_, lease)| lease.due <= now);
        let mut due: Vec<_> = due.map(|(&id, lease)| (lease.due, id)).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Restarts the TTL of every lease, those that are due included.
    #[cfg(test)]
    pub(super) fn renew_all(&mut self, now: Time) {
        for lease in self.leases.values_mut() {
            lease.due = now + lease.ttl;
        }
    }
}
