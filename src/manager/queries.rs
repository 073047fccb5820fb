//! Queries about locks, and forced unlocks, whichever process holds them.

use std::sync::Arc;

use super::LockManager;
use crate::driver::thread::GRACE;
use crate::error::LockError;
use crate::info::{FencingToken, ForceUnlock, LockInfo};
use crate::lock::observer::{Observer, Source};
use crate::shared::message::Query;

impl LockManager {
    /// Returns the current holder of this lock in any process; `None` if the lock is free. If several hold it together, the
    /// first of them; [`queue`](Self::queue) returns all.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidKey`]: the key is empty or too long.
    /// - [`LockError::Unavailable`], [`LockError::ClusterChanged`]: etcd did not answer in time, or another cluster
    ///   answered.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused the request.
    /// - [`LockError::Closed`], [`LockError::Crashed`], [`LockError::Forked`]: the manager no longer works.
    /// - [`LockError::Internal`]: etcd rejected the request for a reason that the caller cannot influence.
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
        let name = self.client.name(key)?;
        let doing = format!("looking at lock {key:?}");
        self.client.ask(&doing, |reply| Query::LockInfo { name, reply })
    }

    /// Returns every held lock whose key begins with `prefix`, with its first holder in any process, sorted by key.
    /// `""` matches all locks.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout) in total, whatever the number of locks.
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
        self.client.ask("listing locks", |reply| Query::ListLocks { prefix, reply })
    }

    /// Returns the queue of this lock in admission order: the holders, then the waiters, in any process. The list is
    /// empty if the lock is free.
    ///
    /// Not every waiting thread is in it. A process has in etcd those of its first waiters that can hold the lock together,
    /// and the next one; behind an exclusive one, none.
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
        let name = self.client.name(key)?;
        let doing = format!("looking at the queue of lock {key:?}");
        self.client.ask(&doing, |reply| Query::Queue { name, reply })
    }

    /// Observes who holds this lock: an [`Observer`] reports the holder now, and then each change of holder or note.
    ///
    /// # Blocking
    ///
    /// Until the first state was read: up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
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
    /// let guard = manager.new_lock("scheduler")?.lock()?;
    /// let leader = manager.observe("scheduler")?;
    /// assert_eq!(leader.current().map(|info| info.token), Some(guard.token()));
    ///
    /// guard.unlock()?;
    /// while leader.current().is_some() {
    ///     leader.changes().recv().expect("it is open");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn observe(&self, key: &str) -> Result<Observer, LockError> {
        let name = self.client.name(key)?;
        let source = Source {
            mailbox: &self.client.mailbox,
            feeds: self.client.feeds(),
            owner: Arc::clone(&self.client) as _,
            limit: self.client.request_timeout().saturating_add(GRACE),
        };
        Observer::begin(source, self.client.next_ticket().0, name)
    }

    /// Takes the lock away from its current holder, in any process, and returns the evicted holder. If several hold the
    /// lock together, the first of them is evicted, and the others keep it.
    ///
    /// If the holder uses this library it detects the loss within milliseconds, but after the fact: until then both the
    /// evicted and the next holder may believe that they hold the lock. The next waiter acquires the lock at once.
    ///
    /// If an answer of etcd is lost, the request is repeated for the same hold only, so that it never evicts two holders. If
    /// that hold has ended by then, its holder is returned, although it may have released the lock by itself.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::NotHeld`]: the lock is free.
    /// - [`LockError::NoSpace`]: etcd's database is full.
    /// - Otherwise as for [`lock_info`](Self::lock_info).
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
        let name = self.client.name(key)?;
        let doing = format!("force-unlocking lock {key:?}");
        self.client.ask(&doing, |reply| Query::ForceUnlock { name, token: None, scope, reply })
    }

    /// Takes the lock away from its current holder if that holder has this token, and returns the evicted holder.
    /// Otherwise as [`force_unlock`](Self::force_unlock).
    ///
    /// For operators and tools that look first and decide later: if the lock has changed hands since, the new holder
    /// keeps it.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::NotHeld`]: the lock is free, or its holder has another token.
    /// - Otherwise as for [`force_unlock`](Self::force_unlock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::{ForceUnlock, LockError};
    ///
    /// let lock = manager.new_lock("jobs")?;
    /// let stuck = lock.lock()?;
    /// let shown = manager.lock_info("jobs")?.expect("it is held");
    /// // While somebody decides what to do, the lock changes hands.
    /// drop(stuck);
    /// let guard = lock.lock()?;
    ///
    /// let refused = manager.force_unlock_if("jobs", shown.token, ForceUnlock::Lock);
    /// assert!(matches!(refused, Err(LockError::NotHeld { .. })));
    /// assert!(guard.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn force_unlock_if(
        &self,
        key: &str,
        token: FencingToken,
        scope: ForceUnlock,
    ) -> Result<LockInfo, LockError> {
        let name = self.client.name(key)?;
        let doing = format!("force-unlocking lock {key:?}");
        self.client.ask(&doing, |reply| Query::ForceUnlock { name, token: Some(token), scope, reply })
    }
}
