//! An in-process store: the same locks without a server and without a network.
//!
//! A [`MemoryStore`] is a small etcd in memory, with leases, revisions, transactions and watches that follow etcd's
//! rules. A manager on it runs the same code as one on a cluster, with the same semantics. It is meant for unit tests,
//! which can produce events that are hard to produce on a real cluster at the right moment: an expired session, a
//! partition, a lost answer. It also serves single-process programs and experiments.
//!
//! Locks exclude **only the managers of this process that share the store**: two stores are independent, and other
//! processes cannot use them. Nothing outlives the process.

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

/// An in-process "cluster", for any number of managers. A clone is another handle of the same store.
///
/// It exists as long as one of its handles or managers.
///
/// TTLs are rounded up to whole seconds and raised to at least 2 s, as in etcd with its default election timeout.
///
/// `examples/test_your_worker.rs` is a program with a test on a store.
#[derive(Clone)]
pub struct MemoryStore {
    cluster: Arc<MemoryCluster>,
}

impl MemoryStore {
    /// Creates an empty store.
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
    /// // Two stores are independent.
    /// let _guard = manager.new_lock("report")?.lock()?;
    /// assert!(stranger.new_lock("report")?.try_lock()?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        Self { cluster: MemoryCluster::new() }
    }

    /// Ends the manager's session as a partition longer than the TTL would, without the wait. First the manager's own
    /// deadline passes, and every hold is lost with [`SessionExpired`](LossReason::SessionExpired). Then the lease
    /// expires in the store, and its keys are deleted. Both have happened when this returns. The manager sets up a new
    /// session.
    ///
    /// # Blocking
    ///
    /// For some milliseconds, until the manager's I/O thread has ended the holds. Without a limit if that thread hangs.
    ///
    /// Has no effect on a manager of another store; the same is true of the methods below.
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

    /// Ends the manager's session as an administrator does by revoking its lease: the keys are deleted, and watches
    /// report it. The manager detects it within milliseconds, but after the fact: every hold is lost with
    /// [`SessionRevoked`](LossReason::SessionRevoked). The manager sets up a new session. Does not block.
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

    /// Delays all answers to this manager from now on, those to renewals included. `Duration::ZERO` ends the delay.
    /// Requests are still executed at once, so the outcome of a call that times out before its answer arrives is
    /// unknown. Does not block.
    ///
    /// The delay and the time limit of the request pass by the store's time: while the time is
    /// [advanced](Self::advance), a pending answer arrives when its delay has passed, unless its request has timed out
    /// by then. A renewal times out after a sixth of the TTL, so a longer delay ends the session, as it would on a
    /// cluster.
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

    /// Cuts the manager off from the store without an error, as a partition does. Its requests wait for the
    /// reconnection; a request that times out first is never executed. Its watches report nothing. Does not block.
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
    /// // The other manager acquires the lock when the lease has expired; the holder has lost it earlier.
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

    /// Ends the partition. Requests still waiting are executed now. Every watch is reopened; one without a start
    /// revision does not report what was deleted meanwhile. Does not block.
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

    /// Makes the manager's next request fail in this way; renewals are not affected. Several faults are applied one per
    /// request, in order. Does not block.
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
    /// store.fail_next(&manager, Fault::LoseResponse); // executed, but the answer is lost
    /// let guard = lock.lock()?; // repeats the request, and finds that it holds the lock
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

    /// Advances the time of the store and of all its managers: leases and holds expire, waits time out.
    ///
    /// The time advances in small steps, and after each step the managers do what is due: a connected manager renews
    /// its session and its holds last; a [disconnected](Self::disconnect) one loses its holds before another manager
    /// can acquire the locks. So a test of a partition need not wait for the TTL. [Delayed](Self::delay) answers arrive
    /// when their delay has passed. Real time passes as well.
    ///
    /// [`Instant`](std::time::Instant)s and the time limits of requests follow the machine's clock, except for a
    /// delayed answer: a request of a disconnected manager times out after a real
    /// [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Blocking
    ///
    /// For some milliseconds per advanced second. A manager whose I/O thread hangs delays the call by one second, once.
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

    /// Runs `act` on the manager's client; `None` if the manager is not on this store.
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
