//! Locks that several may hold together.

use super::LockManager;
use crate::error::LockError;
use crate::lock::DistributedLock;
use crate::mode::Mode;
use crate::options::LockOptions;

impl LockManager {
    /// Returns the reading side of the read-write lock with this key. [`new_lock`](Self::new_lock) with the same key
    /// returns its writing side. Does no I/O.
    ///
    /// Any number of readers, in any processes, hold the lock together, and a writer holds it alone. They are admitted
    /// in the order in which they asked: a reader that asks while a writer waits comes after that writer. Short for
    /// [`new_lock_with`](Self::new_lock_with) and [`Mode::Shared`].
    ///
    /// A second read by a thread that reads already is a hold of its own, and can wait for a writer that waits for the
    /// first: clone the guard instead. How a receiver of writes compares the tokens of readers and writers is in
    /// [the guide](crate::docs::guide).
    ///
    /// # Errors
    ///
    /// As for [`new_lock`](Self::new_lock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// use etcd_lock::{LockManager, memory::MemoryStore};
    ///
    /// let store = MemoryStore::new();
    /// let alice = LockManager::in_memory(&store, "/app", Default::default())?;
    /// let bob = LockManager::in_memory(&store, "/app", Default::default())?;
    ///
    /// let hers = alice.new_read_lock("catalogue")?.lock()?;
    /// let his = bob.new_read_lock("catalogue")?.lock()?; // at the same time
    /// assert!(hers.is_held() && his.is_held());
    ///
    /// let writer = bob.new_lock("catalogue")?;
    /// assert!(writer.try_lock()?.is_none());
    /// drop((hers, his));
    /// assert!(writer.lock()?.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_read_lock(&self, key: &str) -> Result<DistributedLock, LockError> {
        self.new_lock_with(key, LockOptions::default().mode(Mode::Shared))
    }

    /// Returns the semaphore with this key, each guard of which is one of `limit` permits. Does no I/O.
    ///
    /// Never more than `limit` permits are out, in all processes together. The permits of a process that dies come back
    /// when its lease expires. Short for [`new_lock_with`](Self::new_lock_with) and [`Mode::Permits`], which can also
    /// take several permits at once.
    ///
    /// All programs should give the same limit. While they do not, as during a deployment that changes it, the smallest
    /// limit among a waiter and those before it counts. [`new_lock`](Self::new_lock) with the same key waits until all
    /// permits are back, and holds all of them.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: the limit is 0 or above 4096.
    /// - Otherwise as for [`new_lock`](Self::new_lock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// // At most two downloads at a time, whichever processes they are in.
    /// let downloads = manager.new_semaphore("downloads", 2)?;
    /// let first = downloads.lock()?;
    /// let _second = downloads.lock()?;
    /// assert!(downloads.try_lock()?.is_none());
    ///
    /// drop(first);
    /// assert!(downloads.lock()?.is_held());
    /// assert!(manager.new_semaphore("downloads", 0).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_semaphore(&self, key: &str, limit: u32) -> Result<DistributedLock, LockError> {
        self.new_lock_with(key, LockOptions::default().mode(Mode::Permits { take: 1, limit }))
    }
}
