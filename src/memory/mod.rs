//! A store within this process: the same locks without a server and without a network.
//!
//! A [`MemoryStore`] is a small etcd in memory: it keeps leases, revisions, transactions and watches by etcd's
//! rules. A manager on it runs the same code as one on a cluster, with the same semantics. It is there for unit
//! tests, which can make happen what is hard to make happen to a real cluster at the right moment: a session that
//! expires, a partition, an answer that is lost. It also serves programs of a single process, and trying things out.
//!
//! It excludes **only the managers of this process that share the store**: two stores know nothing of each other,
//! and neither does another process. It keeps nothing beyond the process's life.

mod advance;
mod client;
mod manager;
pub(crate) mod model;
mod state;

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

pub(crate) use client::{ClientId, MemoryClient};
use state::State;

use crate::clock::Clock;
#[cfg(doc)]
use crate::error::LossReason;
use crate::manager::LockManager;

/// One in-process "cluster", for any number of managers. A clone is one more handle on the same one.
///
/// It lives as long as a handle or a manager on it does.
///
/// Its leases, like etcd's, are counted in whole seconds and last at least 2 s, whatever TTL is asked for.
///
/// For a program and its test on a store, see `examples/test_your_worker.rs`.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// What [`MemoryStore::fail_next`] does to a request.
///
/// Renewals of the session are never hit, so that it does not depend on the time which request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The connection breaks before the request gets through: the store never sees it. The manager is told at once,
    /// but cannot tell it from [`LoseResponse`](Self::LoseResponse).
    LoseRequest,
    /// The store carries the request out, and then the connection breaks: the answer never comes. The manager is
    /// told at once, but cannot tell it from [`LoseRequest`](Self::LoseRequest).
    LoseResponse,
    /// The store does not carry the request out and says so, as a member of a cluster without a leader does. Trying
    /// again helps.
    NoLeader,
    /// The store refuses because its space is used up.
    NoSpace,
    /// The store refuses because the user lacks the permission.
    PermissionDenied,
    /// The store refuses because the password does not fit any more.
    Unauthenticated,
}

struct Shared {
    state: Mutex<State>,
    clock: Clock,
    /// Changes whenever a lease was granted, which may be due before all others.
    granted: watch::Sender<()>,
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
        let (state, clock) = (Mutex::new(State::new()), Clock::movable());
        Self { shared: Arc::new(Shared { state, clock, granted: watch::Sender::new(()) }) }
    }

    /// One manager's way to the store.
    pub(crate) fn client(&self) -> MemoryClient {
        MemoryClient::new(self.shared.clone())
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

    /// `None` if the manager is not on this store.
    fn on<T>(&self, manager: &LockManager, act: impl FnOnce(&mut State, ClientId) -> T) -> Option<T> {
        let client = manager.client?;
        let mut state = self.shared.state.lock();
        state.knows(client).then(|| act(&mut state, client))
    }
}

/// The same by the client, for tests of what lies below a manager.
#[cfg(test)]
impl MemoryStore {
    pub(crate) fn expire_leases_of(&self, client: ClientId) {
        self.shared.state.lock().expire_leases_of(client);
    }

    pub(crate) fn disconnect_client(&self, client: ClientId) {
        self.shared.state.lock().disconnect(client);
    }

    pub(crate) fn reconnect_client(&self, client: ClientId) {
        self.shared.state.lock().reconnect(client);
    }

    pub(crate) fn delay_of(&self, client: ClientId, delay: Duration) {
        self.shared.state.lock().delay(client, delay);
    }

    pub(crate) fn fail_next_of(&self, client: ClientId, fault: Fault) {
        self.shared.state.lock().fail_next(client, fault);
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("MemoryStore")
            .field("revision", &state.model.revision())
            .field("leases", &state.model.leases().count())
            .finish_non_exhaustive()
    }
}
