//! The locks of a manager by name: all handles of one key share one lock.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::mutex::Mutex;

use super::holds::Holds;
use crate::client::Client;
use crate::error::LockError;
use crate::name::LockName;

/// Below this size the table is not pruned.
const SMALL: usize = 64;

/// The locks of a manager that are in use. Callers' threads look them up and insert them.
pub(crate) struct Registry {
    client: Arc<Client>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// The locks that have a handle, a waiter or a guard, and those whose last one was dropped since the last pruning.
    locks: HashMap<LockName, Weak<Holds>>,
    /// The size at which the table is pruned next: twice the number of locks in use at the last pruning. So pruning has
    /// constant amortised cost per insertion, and the table holds at most as many unused locks as used ones.
    prune_at: usize,
}

impl Registry {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, table: Mutex::default() }
    }

    /// The lock with this key, created if it is not in use.
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

    /// The size of the table, including locks no longer in use.
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
