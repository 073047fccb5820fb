//! A store within this process: the same locks without a server and without a network.
//!
//! A [`MemoryStore`] is a small etcd in memory: it keeps leases, revisions, transactions and watches by etcd's
//! rules. A manager on it runs the same code as one on a cluster, with the same semantics. It is there for unit
//! tests, which can make happen what is hard to make happen to a real cluster at the right moment: a session that
//! expires, a partition, an answer that is lost. It also serves programs of a single process, and trying things out.
//!
//! It excludes **only the managers of this process that share the store**: two stores know nothing of each other,
//! and neither does another process. It keeps nothing beyond the process's life.

mod in_memory;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(doc)]
use crate::error::LossReason;
use crate::manager::LockManager;
use crate::store::ClientId;
use crate::store::memory::cluster::MemoryCluster;
use crate::store::memory::state::State;

pub use crate::store::memory::fault::Fault;

/// One in-process "cluster", for any number of managers. A clone is one more handle on the same one.
///
/// It lives as long as a handle or a manager on it does.
///
/// Its leases, like etcd's, are counted in whole seconds and last at least 2 s, whatever TTL is asked for.
///
/// For a program and its test on a store, see `examples/test_your_worker.rs`.
#[derive(Clone)]
pub struct MemoryStore {
    cluster: Arc<MemoryCluster>,
}

impl MemoryStore {
    /// An empty store.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let (one, another) = (MemoryStore::new(), MemoryStore::new());
    /// let manager = LockManager::in_memory(&one, "/app/locks", Default::default())?;
    /// let stranger = LockManager::in_memory(&another, "/app/locks", Default::default())?;
    ///
    /// // Two stores know nothing of each other.
    /// let _guard = manager.new_lock("report")?.lock()?;
    /// assert!(stranger.new_lock("report")?.try_lock()?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        Self { cluster: MemoryCluster::new() }
    }

    /// Ends the manager's session as a partition longer than the TTL does, without waiting for it. First the manager's
    /// own deadline passes: every hold is lost as [`SessionExpired`](LossReason::SessionExpired). Then the lease expires
    /// in the store, and its keys are deleted. Both have happened when this returns. The manager sets up another session.
    ///
    /// A manager that is not on this store is left alone, here and in the methods below.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager, LossReason};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let manager = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let guard = manager.new_lock("report")?.lock()?;
    ///
    /// store.expire_session(&manager);
    ///
    /// assert!(guard.done().recv().is_err()); // disconnected: the hold is over
    /// assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    /// # Ok(())
    /// # }
    /// ```
    pub fn expire_session(&self, manager: &LockManager) {
        // What the manager is granted from now on belongs to its next session.
        let Some(leases) = self.on(manager, State::leases_of) else { return };
        manager.expire();
        self.on(manager, |state, client| state.end_leases(client, &leases));
    }

    /// Ends the manager's session as an administrator does by revoking its lease: its keys are deleted, and watches report
    /// that. The manager learns of it within milliseconds, but after the fact: every hold is lost as
    /// [`SessionRevoked`](LossReason::SessionRevoked). It sets up another session.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager, LossReason};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let manager = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let guard = manager.new_lock("report")?.lock()?;
    ///
    /// store.revoke_session(&manager);
    ///
    /// assert!(guard.done().recv().is_err()); // disconnected: the hold is over
    /// assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
    /// # Ok(())
    /// # }
    /// ```
    pub fn revoke_session(&self, manager: &LockManager) {
        self.on(manager, State::expire_leases_of);
    }

    /// Makes the store slow for this manager: from now on each answer, also to a renewal, arrives after this delay.
    /// `Duration::ZERO` ends it. Requests are still carried out at once; a call that gives up before the answer arrives
    /// does not know the outcome.
    ///
    /// The delay passes by the store's time, and the request's limit with it: an answer that is under way while the time is
    /// [advanced](Self::advance) arrives on the way, unless the request has been given up before. A renewal is given up after
    /// a sixth of the TTL, so a longer delay ends the session, as it would on a cluster.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let manager = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    ///
    /// store.delay(&manager, Duration::from_millis(50));
    /// let begun = Instant::now();
    /// let guard = manager.new_lock("report")?.lock()?;
    /// assert!(begun.elapsed() >= Duration::from_millis(50));
    /// # store.delay(&manager, Duration::ZERO);
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn delay(&self, manager: &LockManager, delay: Duration) {
        self.on(manager, |state, client| state.delay(client, delay));
    }

    /// Cuts the manager off from the store, silently, as a partition does. Its requests wait for the reconnection;
    /// one that is given up before never gets through. Its watches hear nothing more.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager, LockManagerOptions, LossReason};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let options = LockManagerOptions::default().ttl(Duration::from_secs(2));
    /// let cut_off = LockManager::in_memory(&store, "/app/locks", options.clone())?;
    /// let other = LockManager::in_memory(&store, "/app/locks", options)?;
    /// let guard = cut_off.new_lock("report")?.lock()?;
    ///
    /// store.disconnect(&cut_off);
    ///
    /// // The other one gets the lock when the lease is over; the holder was told before.
    /// let next = other.new_lock("report")?.lock()?;
    /// assert!(!guard.is_held());
    /// assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    /// assert!(next.token() > guard.token());
    /// # Ok(())
    /// # }
    /// ```
    pub fn disconnect(&self, manager: &LockManager) {
        self.on(manager, State::disconnect);
    }

    /// Ends the partition. Requests that still wait are carried out now; every watch is opened anew, and one that
    /// begins at no particular revision does not tell what was deleted meanwhile.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let manager = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let lock = manager.new_lock("report")?;
    ///
    /// store.disconnect(&manager);
    /// assert!(lock.lock_timeout(Duration::from_millis(100)).is_err());
    ///
    /// store.reconnect(&manager);
    /// assert!(lock.lock_timeout(Duration::from_secs(10)).is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn reconnect(&self, manager: &LockManager) {
        self.on(manager, State::reconnect);
    }

    /// Does this to the manager's next request that is not a renewal. Several faults wait in line.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::memory::{Fault, MemoryStore};
    /// use etcd_lock::{LockError, LockManager};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let manager = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let lock = manager.new_lock("report")?;
    ///
    /// store.fail_next(&manager, Fault::LoseResponse); // carried out, but the answer never comes
    /// let guard = lock.lock()?; // asks again, and finds that it has the lock
    /// assert_eq!(manager.list_locks("")?.len(), 1);
    ///
    /// store.fail_next(&manager, Fault::NoSpace);
    /// assert!(matches!(manager.new_lock("other")?.lock(), Err(LockError::NoSpace)));
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fail_next(&self, manager: &LockManager, fault: Fault) {
        self.on(manager, |state, client| state.fail_next(client, fault));
    }

    /// Lets time pass at once, for the store and for every manager on it: leases and holds expire, waits time out.
    ///
    /// It passes in small steps, and managers do what is due on the way: who is connected renews its session and
    /// keeps its holds, who is [disconnected](Self::disconnect) is told of the loss before anybody else has the lock. So
    /// a test of a partition takes no TTL. Answers that are [delayed](Self::delay) arrive when the time has passed them. Time
    /// passes by itself, too, as ever.
    ///
    /// [`Instant`](std::time::Instant)s and limits of requests stay those of the machine's clock, but for an answer that is delayed: a request
    /// of a manager that is cut off is given up after a real [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Blocking
    ///
    /// For every second that passes some milliseconds; a manager whose I/O thread hangs costs one second, once.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager, LossReason};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let cut_off = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let other = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let guard = cut_off.new_lock("report")?.lock()?;
    /// let kept = other.new_lock("mail")?.lock()?;
    ///
    /// store.disconnect(&cut_off);
    /// store.advance(Duration::from_secs(31)); // more than the TTL of 30 s
    ///
    /// assert!(guard.done().recv().is_err());
    /// assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    /// let next = other.new_lock("report")?.lock()?;
    /// assert!(next.token() > guard.token());
    /// assert!(kept.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn advance(&self, by: Duration) {
        self.cluster.advance(by);
    }

    /// `None` if the manager is not on this store.
    fn on<T>(&self, manager: &LockManager, act: impl FnOnce(&mut State, ClientId) -> T) -> Option<T> {
        let client = manager.store_client?;
        let mut state = self.cluster.state.lock();
        state.knows(client).then(|| act(&mut state, client))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryStore").field(&self.cluster).finish()
    }
}
