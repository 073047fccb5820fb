//! The locks of a manager by their names: handles of one key are one lock.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::holds::Holds;
use crate::client::Client;
use crate::error::LockError;
use crate::name::LockName;

/// A smaller table is not worth pruning.
const SMALL: usize = 64;

/// Every lock of a manager that is in use.
pub(crate) struct Registry {
    client: Arc<Client>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Locks that have a handle, a waiter or a guard, and those that have lost the last of them since the last pruning.
    locks: HashMap<LockName, Weak<Holds>>,
    /// The size at which the table is pruned: twice what was in use at the last pruning, so that pruning costs each
    /// insertion a constant, and unused locks are at most as many as there were used ones.
    prune_at: usize,
}

impl Registry {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, table: Mutex::default() }
    }

    /// The one lock of this key.
    pub(crate) fn lock(&self, key: &str) -> Result<Arc<Holds>, LockError> {
        let name = self.client.name(key)?;
        self.client.mailbox.check()?;
        let mut table = self.table.lock();
        if let Some(lock) = table.locks.get(&name).and_then(Weak::upgrade) {
            return Ok(lock);
        }
        if table.locks.len() >= table.prune_at {
            table.prune();
        }
        let lock = Arc::new(Holds::new(name.clone(), Arc::clone(&self.client)));
        table.locks.insert(name, Arc::downgrade(&lock));
        Ok(lock)
    }

    /// The size of the table, with the locks that are not in use.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table.lock().locks.len()
    }
}

impl Table {
    fn prune(&mut self) {
        self.locks.retain(|_, lock| lock.strong_count() > 0);
        self.prune_at = SMALL.max(2 * self.locks.len());
        self.locks.shrink_to(self.prune_at);
    }
}
