//! Constructors of managers and viewers on an in-process store.

use super::MemoryStore;
use crate::error::LockError;
use crate::manager::LockManager;
use crate::options::LockManagerOptions;
use crate::store::memory::client::MemoryClient;
use crate::viewer::LockViewer;

impl LockManager {
    /// Creates a manager on an in-process store: the same locks without a server, for unit tests, experiments and
    /// single-process programs.
    ///
    /// Its locks exclude only the managers of this process that share the store. [`memory`](crate::memory) describes
    /// the faults that a test can produce.
    ///
    /// # Blocking
    ///
    /// While the threads are started and the session is set up.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option or the root is invalid.
    /// - [`LockError::Internal`]: a thread could not be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let alice = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let bob = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    ///
    /// let guard = alice.new_lock("report")?.lock()?;
    /// assert!(bob.new_lock("report")?.try_lock()?.is_none());
    /// drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_memory(
        store: &MemoryStore,
        root: &str,
        options: LockManagerOptions,
    ) -> Result<Self, LockError> {
        let client = MemoryClient::new(&store.cluster);
        let (id, clock) = (client.id(), client.clock());
        let mut manager = Self::connect_to(root, &options, clock, move || async move { Ok(client) })?;
        manager.store_client = Some(id);
        Ok(manager)
    }
}

impl LockViewer {
    /// Creates a viewer on an in-process store, for tests.
    ///
    /// # Blocking
    ///
    /// While the thread is started.
    ///
    /// # Errors
    ///
    /// As for [`LockManager::in_memory`](crate::LockManager::in_memory).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// use etcd_lock::{LockManager, LockViewer, memory::MemoryStore};
    ///
    /// let store = MemoryStore::new();
    /// let manager = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let viewer = LockViewer::in_memory(&store, "/app/locks", Default::default())?;
    /// assert!(viewer.lock_info("report")?.is_none());
    ///
    /// let guard = manager.new_lock("report")?.lock()?;
    /// let info = viewer.lock_info("report")?.expect("it is held");
    /// assert_eq!(info.token, guard.token());
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_memory(
        store: &MemoryStore,
        root: &str,
        options: LockManagerOptions,
    ) -> Result<Self, LockError> {
        let client = MemoryClient::new(&store.cluster);
        Self::start(root, &options, move || async move { Ok(client) })
    }
}
