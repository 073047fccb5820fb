//! What a manager asks etcd beside its own locks.

use super::LockManager;
use crate::command::Question;
use crate::error::LockError;
use crate::info::{ForceUnlock, LockInfo};

impl LockManager {
    /// Who holds this lock, anywhere; `None` if it is free.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidKey`], [`LockError::Unavailable`], [`LockError::PermissionDenied`],
    /// [`LockError::Unauthenticated`], [`LockError::Closed`], [`LockError::Crashed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// assert!(manager.lock_info("jobs")?.is_none());
    ///
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// if let Some(info) = manager.lock_info("jobs")? {
    ///     assert_eq!(info.token, guard.token());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_info(&self, key: &str) -> Result<Option<LockInfo>, LockError> {
        let name = self.inner.name(key)?;
        let doing = format!("looking at lock {key:?}");
        self.inner.ask(&doing, |reply| Question::LockInfo { name, reply })
    }

    /// Every lock that is held, anywhere, and whose key begins with `prefix`, sorted by key. `""` is all of them.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout), however many locks there are.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let _b2 = manager.new_lock("b/2")?.lock()?;
    /// let _b1 = manager.new_lock("b/1")?.lock()?;
    /// let _mail = manager.new_lock("mail")?.lock()?;
    /// let keys: Vec<String> = manager.list_locks("b/")?.into_iter().map(|info| info.key).collect();
    /// assert_eq!(keys, ["b/1", "b/2"]);
    /// assert_eq!(manager.list_locks("")?.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn list_locks(&self, prefix: &str) -> Result<Vec<LockInfo>, LockError> {
        let prefix = prefix.to_owned();
        self.inner.ask("listing locks", |reply| Question::ListLocks { prefix, reply })
    }

    /// Everybody in this lock's queue, anywhere, in its order: who holds it, and who waits. Empty if it is free.
    ///
    /// A process is there once for each lock, however many of its threads wait.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// use etcd_lock::{LockManager, LockManagerOptions, LockState, memory::MemoryStore};
    ///
    /// let store = MemoryStore::new();
    /// let connect = |owner: &str| {
    ///     LockManager::in_memory(&store, "/app", LockManagerOptions::default().owner(owner))
    /// };
    /// let (alice, bob) = (connect("alice")?, connect("bob")?);
    /// let _hers = alice.new_lock("jobs")?.lock()?;
    /// let _his = bob.new_lock("jobs")?.enqueue()?;
    /// # while alice.queue("jobs")?.len() < 2 {}
    ///
    /// let queue = alice.queue("jobs")?;
    /// let owners: Vec<_> = queue.iter().map(|info| (info.owner.as_deref(), info.state)).collect();
    /// assert_eq!(owners, [(Some("alice"), LockState::Held), (Some("bob"), LockState::Waiting)]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue(&self, key: &str) -> Result<Vec<LockInfo>, LockError> {
        let name = self.inner.name(key)?;
        let doing = format!("looking at the queue of lock {key:?}");
        self.inner.ask(&doing, |reply| Question::Queue { name, reply })
    }

    /// Takes the lock from whoever holds it, and tells who that was.
    ///
    /// A holder of this library learns of it within milliseconds, but after the fact: until then both may believe to
    /// hold the lock. The next waiter has it at once.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if nobody holds it; else as for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::{ForceUnlock, LossReason};
    ///
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// // From any process:
    /// let evicted = manager.force_unlock("jobs", ForceUnlock::Lock)?;
    /// println!("took it from {:?}", evicted.owner);
    /// assert_eq!(evicted.token, guard.token());
    ///
    /// assert!(guard.done().recv().is_err()); // disconnected: the hold is over
    /// assert_eq!(guard.loss(), Some(LossReason::ForceUnlocked));
    /// # Ok(())
    /// # }
    /// ```
    pub fn force_unlock(&self, key: &str, scope: ForceUnlock) -> Result<LockInfo, LockError> {
        let name = self.inner.name(key)?;
        let doing = format!("force-unlocking lock {key:?}");
        self.inner.ask(&doing, |reply| Question::ForceUnlock { name, scope, reply })
    }
}
