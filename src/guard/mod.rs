//! What a holder of a lock has in hand.

mod hold;
mod reentrant;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

pub use hold::Hold;
pub use reentrant::ReentrantGuard;
pub(crate) use reentrant::reenter;

use crate::error::LockError;

/// A hold of a lock; dropping it releases the lock.
///
/// What it tells is [`Hold`]'s. A clone is one more guard of the same hold, to be kept or moved to another thread: the
/// last one out releases. Dropping never waits for etcd; [`unlock`](Self::unlock) does.
///
/// A hold can be **lost** while its guard is still there: etcd out of reach for too long, a forced unlock, a closed
/// manager. It is then over for good, nothing re-acquires it. [`done`](Hold::done) tells a thread that waits,
/// [`is_held`](Hold::is_held) and [`ensure`](Hold::ensure) one that is about to do something.
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
/// guard.unlock() // tells whether it was held to the end
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

    /// Releases the lock and waits until etcd has confirmed it. A guard that is not the last of its hold just goes;
    /// it too says so if the hold was lost.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout). Dropping a guard does not wait.
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the hold was lost before; what was done under it may not have been exclusive. The reason is
    ///   [`LossReason::ForceUnlocked`](crate::LossReason::ForceUnlocked) where its key was already deleted in etcd.
    /// - [`LockError::Unavailable`]: etcd did not confirm in time. The release goes on in the background, and the key
    ///   is gone at the latest when its lease expires.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused.
    /// - [`LockError::Crashed`]: the I/O thread died.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("jobs")?;
    /// let guard = lock.lock()?;
    /// // ... work ...
    /// guard.unlock()?; // an error here says that the work may have been disturbed
    /// assert!(!lock.is_locked());
    /// # Ok(())
    /// # }
    /// ```
    pub fn unlock(self) -> Result<(), LockError> {
        Hold::unlock(self.hold)
    }

    /// The hold behind it, for a guard of another kind.
    fn into_hold(self) -> Arc<Hold> {
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

#[cfg(test)]
mod tests;
