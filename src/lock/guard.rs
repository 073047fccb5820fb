//! The guard of a held lock.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::hold::Hold;
use crate::error::LockError;

/// A guard of a held lock; dropping the last guard releases the lock.
///
/// It dereferences to its [`Hold`]. A clone is one more guard of the same hold, and can move to another thread; the
/// lock is released when the last one is dropped. Dropping never waits for etcd; [`unlock`](Self::unlock) does.
///
/// A hold can be **lost** while its guards exist: etcd is unreachable for too long, the lock is force-unlocked, the
/// manager is closed. It is then over for good: the library never re-acquires it. [`done`](Hold::done) notifies waiting
/// threads; [`is_held`](Hold::is_held) and [`ensure`](Hold::ensure) are checks before a step.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// use etcd_lock::crossbeam_channel::{select, unbounded};
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
///
/// let (queue, jobs) = unbounded();
/// for job in ["sort", "count"] {
///     queue.send(job).unwrap();
/// }
/// drop(queue);
///
/// let guard = manager.new_lock("jobs")?.lock()?;
/// let mut done = Vec::new();
/// loop {
///     select! {
///         recv(jobs) -> job => match job {
///             Ok(job) => done.push((job, guard.token())),
///             Err(_) => break, // no more jobs
///         },
///         recv(guard.done()) -> _ => break, // the lock is lost
///     }
/// }
/// assert_eq!(done.len(), 2);
/// guard.unlock() // an error if the lock was lost
/// # }
/// ```
#[must_use = "if unused the lock is released at once"]
#[derive(Clone)]
pub struct LockGuard {
    hold: Arc<Hold>,
}

impl LockGuard {
    pub(crate) fn new(hold: Arc<Hold>) -> Self {
        Self { hold }
    }

    /// Releases the lock and waits for etcd's confirmation. If other guards of the hold exist this only drops the
    /// guard; a loss is still reported.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout). Dropping a guard does not wait.
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the hold was lost earlier, so the work done under it may not have been exclusive. The
    ///   reason is [`LossReason::ForceUnlocked`](crate::LossReason::ForceUnlocked) if the key had already been deleted
    ///   in etcd.
    /// - [`LockError::Unavailable`]: etcd did not confirm in time. The release continues in the background, and the key
    ///   disappears with its lease at the latest.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused the request.
    /// - [`LockError::Crashed`], [`LockError::Forked`]: the I/O thread died, or this process is a child of the one that
    ///   acquired the lock.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("jobs")?;
    /// let guard = lock.lock()?;
    /// // ... work ...
    /// guard.unlock()?; // on an error the work may not have been exclusive
    /// assert!(!lock.is_locked());
    /// # Ok(())
    /// # }
    /// ```
    pub fn unlock(self) -> Result<(), LockError> {
        Hold::unlock(self.hold)
    }

    /// The hold, for a guard of another kind.
    pub(super) fn into_hold(self) -> Arc<Hold> {
        self.hold
    }
}

impl Deref for LockGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hold.describe("LockGuard", f)
    }
}
