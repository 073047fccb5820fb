//! A lock by its key, and the ways to acquire it.

mod contended;
pub(crate) mod fenced;
pub(crate) mod guard;
pub(crate) mod hold;
pub(crate) mod observer;
pub(crate) mod pending;
pub(crate) mod reentrant;
pub(crate) mod reentrant_guard;

mod caller_thread;
mod holds;
mod lead;
mod note;
pub(crate) mod registry;
mod waiting_call;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use guard::LockGuard;
use holds::Holds;
use waiting_call::{WaitingCall, none_if_held};

use crate::clock::Time;
use crate::error::LockError;
use crate::mode::Mode;
use crate::options::LockOptions;
use crate::protocol::WaitLimits;

/// A lock of a [`LockManager`](crate::LockManager): a mutex, one side of a read-write lock, or a semaphore.
///
/// A `DistributedLock` is a handle: it is cheap to clone and can be sent and shared between threads. All handles that
/// one manager returns for one key are the same lock.
///
/// **Modes.** The handle's [mode](LockOptions::mode) says who may hold the lock together with its guards. A handle from
/// [`new_lock`](crate::LockManager::new_lock) is exclusive: at most one thread of one process holds the lock at a time.
/// Handles of one key can have different modes. All modes wait in one queue, and exclude each other as [`Mode`] says.
///
/// **Order.** The lock is granted in the order of the requests, between processes and between the threads of one
/// process. A writer is not overtaken by later readers, nor a large take of permits by small ones.
///
/// **No re-entry.** A guard can move to any thread, so the library cannot know which thread holds the lock. A thread
/// that holds a guard and asks for the lock again waits for itself, as long as the call allows; its `try_lock` returns
/// `None`. In the other modes a second guard is a hold of its own, and waits behind whoever has asked in between: a
/// thread that reads twice can wait for a writer that waits for its first read. Functions that call each other under
/// one lock use [`new_reentrant_lock`](crate::LockManager::new_reentrant_lock).
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// let lock = manager.new_lock("nightly-report")?;
/// let guard = lock.lock()?;
/// println!("holding the lock, token {}", guard.token());
/// drop(guard); // releases it
/// assert!(!lock.is_locked());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DistributedLock {
    shared: Arc<Holds>,
    options: LockOptions,
}

impl DistributedLock {
    pub(crate) fn new(shared: Arc<Holds>, options: LockOptions) -> Self {
        Self { shared, options }
    }

    /// Acquires the lock, waiting as long as the lock's options allow: by default without a limit.
    ///
    /// # Blocking
    ///
    /// Until the lock is granted, the [limit](LockOptions::max_retries) of the options runs out, or the manager is
    /// closed. The call goes on waiting while etcd is unreachable, and when the manager replaces a lost session.
    ///
    /// # Errors
    ///
    /// - [`LockError::AlreadyHeld`]: the limit ran out while another holder had the lock.
    /// - [`LockError::Unavailable`]: the limit ran out while etcd could not be reached.
    /// - [`LockError::ClusterChanged`]: the endpoints belong to another cluster than before.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`], [`LockError::NoSpace`]: etcd refused the
    ///   request.
    /// - [`LockError::Closed`], [`LockError::Crashed`], [`LockError::Forked`]: the manager was closed, its I/O thread
    ///   died, or this process is a child of the one that created it.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("jobs")?;
    /// let guard = lock.lock()?;
    /// assert!(guard.is_held());
    /// // The lock is held, so nobody can acquire it again: not even this thread.
    /// assert!(lock.try_lock()?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock(&self) -> Result<LockGuard, LockError> {
        self.acquire(self.limits(self.shared.client.now(), None), None)
    }

    /// Acquires the lock if nobody is in the way: a holder that excludes this mode, or somebody who is queued. Otherwise
    /// returns `None`. Never joins the queue.
    ///
    /// # Blocking
    ///
    /// For one transaction of etcd, for permits two, up to
    /// [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::Unavailable`]: etcd did not answer in time.
    /// - Otherwise as for [`lock`](Self::lock), but never [`LockError::AlreadyHeld`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("cleanup")?;
    /// match lock.try_lock()? {
    ///     Some(_guard) => println!("cleaning up"),
    ///     None => println!("another thread or process is cleaning up"),
    /// }
    ///
    /// let _guard = lock.lock()?;
    /// assert!(lock.try_lock()?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_lock(&self) -> Result<Option<LockGuard>, LockError> {
        none_if_held(self.take_if_free())
    }

    /// Acquires the lock, waiting for at most `timeout`. A timeout beyond the range of the clock means no limit.
    ///
    /// # Blocking
    ///
    /// Up to `timeout`, and up to 75 ms more, in which the current holder is looked up for the error.
    ///
    /// # Errors
    ///
    /// - [`LockError::Timeout`]: the lock was not free within the timeout. Names the holder if the look-up succeeded.
    /// - [`LockError::Unavailable`]: the timeout passed while etcd could not be reached.
    /// - Otherwise as for [`lock`](Self::lock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use std::time::Duration;
    /// use etcd_lock::LockError;
    ///
    /// let lock = manager.new_lock("jobs")?;
    /// let guard = lock.lock_timeout(Duration::from_secs(3))?;
    ///
    /// // The error names the current holder.
    /// match lock.lock_timeout(Duration::from_millis(50)) {
    ///     Err(LockError::Timeout { holder: Some(holder), .. }) => assert_eq!(holder.token, guard.token()),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_timeout(&self, timeout: Duration) -> Result<LockGuard, LockError> {
        let now = self.shared.client.now();
        self.acquire(self.limits(now, now.checked_add(timeout)), None)
    }

    /// Acquires the lock, waiting until `deadline` at the latest. Otherwise as [`lock_timeout`](Self::lock_timeout).
    ///
    /// # Blocking
    ///
    /// Until `deadline`, and up to 75 ms more, in which the current holder is looked up for the error.
    ///
    /// # Errors
    ///
    /// As for [`lock_timeout`](Self::lock_timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use std::time::{Duration, Instant};
    /// // One deadline for several locks.
    /// let deadline = Instant::now() + Duration::from_secs(3);
    /// let left = manager.new_lock("left")?.lock_deadline(deadline)?;
    /// let right = manager.new_lock("right")?.lock_deadline(deadline)?;
    /// assert!(left.is_held() && right.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_deadline(&self, deadline: Instant) -> Result<LockGuard, LockError> {
        self.lock_timeout(deadline.saturating_duration_since(Instant::now()))
    }

    /// Acquires the lock, waiting until `cancel` receives a message (which is consumed) or is disconnected.
    ///
    /// When a cancelled call returns, its key has normally been deleted from etcd already. If `cancel` is ready at the
    /// start, the call returns without contacting etcd.
    ///
    /// # Blocking
    ///
    /// As [`lock`](Self::lock), and up to 25 ms after the cancellation, in which the key is deleted.
    ///
    /// # Errors
    ///
    /// - [`LockError::Cancelled`]: `cancel` received a message or was disconnected.
    /// - Otherwise as for [`lock`](Self::lock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::{ErrorCode, crossbeam_channel::bounded};
    /// let lock = manager.new_lock("jobs")?;
    /// let _guard = lock.lock()?;
    ///
    /// let (stop, cancel) = bounded::<()>(0);
    /// let worker = std::thread::spawn(move || lock.lock_or_cancel(&cancel));
    /// drop(stop); // the waiting call returns
    /// let cancelled = worker.join().unwrap().unwrap_err();
    /// assert_eq!(cancelled.code(), ErrorCode::Cancelled);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_or_cancel(&self, cancel: &Receiver<()>) -> Result<LockGuard, LockError> {
        self.acquire(self.limits(self.shared.client.now(), None), Some(cancel))
    }

    /// Acquires the lock, waiting for at most `timeout`, and until `cancel` receives a message (which is consumed) or
    /// is disconnected. For servers whose requests have a time limit and which can be shut down.
    ///
    /// A timeout beyond the range of the clock means no limit. If `cancel` is ready at the start, the call returns
    /// without contacting etcd.
    ///
    /// # Blocking
    ///
    /// Up to `timeout`, and up to 75 ms more, in which the current holder is looked up for the error; up to 25 ms after
    /// the cancellation, in which the key is deleted.
    ///
    /// # Errors
    ///
    /// - [`LockError::Timeout`], [`LockError::Cancelled`]: whichever came first.
    /// - Otherwise as for [`lock_timeout`](Self::lock_timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use std::time::Duration;
    /// use etcd_lock::{ErrorCode, crossbeam_channel::bounded};
    /// let lock = manager.new_lock("jobs")?;
    /// let guard = lock.lock()?;
    ///
    /// let (shutdown, cancel) = bounded::<()>(0);
    /// // Each request is served by a thread of its own.
    /// let serve = |limit| {
    ///     let (lock, cancel) = (lock.clone(), cancel.clone());
    ///     std::thread::spawn(move || lock.lock_timeout_or_cancel(limit, &cancel))
    /// };
    /// let late = serve(Duration::from_millis(50)).join().unwrap();
    /// assert_eq!(late.unwrap_err().code(), ErrorCode::LockTimeout);
    ///
    /// let request = serve(Duration::from_secs(60));
    /// drop(shutdown); // the waiting call returns
    /// let stopped = request.join().unwrap();
    /// assert_eq!(stopped.unwrap_err().code(), ErrorCode::Cancelled);
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_timeout_or_cancel(
        &self,
        timeout: Duration,
        cancel: &Receiver<()>,
    ) -> Result<LockGuard, LockError> {
        let now = self.shared.client.now();
        self.acquire(self.limits(now, now.checked_add(timeout)), Some(cancel))
    }

    /// Asks about this process only: whether a guard of this manager holds the lock right now, in any mode and on any
    /// thread.
    ///
    /// `false` does not mean that the lock is free: use [`LockManager::lock_info`](crate::LockManager::lock_info) to
    /// find holders in other processes. Does no I/O.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("jobs")?;
    /// let _guard = lock.lock()?;
    /// assert!(lock.is_locked());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_locked(&self) -> bool {
        self.shared.is_held()
    }

    /// The key of the lock, as passed to [`new_lock`](crate::LockManager::new_lock).
    pub fn key(&self) -> &str {
        self.shared.name.as_str()
    }

    /// Who may hold the lock together with guards of this handle.
    pub fn mode(&self) -> Mode {
        self.options.mode
    }

    /// The limits of a call that waits until `deadline` or until the budget of the options is used up.
    fn limits(&self, now: Time, deadline: Option<Time>) -> WaitLimits {
        let budget = self.options.budget().and_then(|budget| now.checked_add(budget));
        WaitLimits { try_only: false, deadline, budget }
    }

    /// Like [`try_lock`](Self::try_lock), but returns [`LockError::AlreadyHeld`] instead of `None`.
    fn take_if_free(&self) -> Result<LockGuard, LockError> {
        let budget = self.shared.client.now().checked_add(self.shared.client.request_timeout());
        self.acquire(WaitLimits { try_only: true, deadline: None, budget }, None)
    }

    /// The common body of all acquiring calls.
    fn acquire(&self, limits: WaitLimits, cancel: Option<&Receiver<()>>) -> Result<LockGuard, LockError> {
        if let Some(cancel) = cancel
            && cancel.try_recv() != Err(TryRecvError::Empty)
        {
            return Err(LockError::Cancelled { key: self.key().into() });
        }
        loop {
            let ask = |ready| WaitingCall::ask(&self.shared, &self.options, limits, ready);
            let guard = match cancel {
                None => ask(None)?.wait()?,
                Some(cancel) => {
                    let (decided, ready) = crossbeam_channel::bounded(0);
                    ask(Some(decided))?.wait_or_cancel(&ready, cancel)?
                }
            };
            // A hold that was lost before its guard reaches the caller (this thread may have been suspended) was never
            // the caller's: ask again.
            if guard.is_held() {
                return Ok(guard);
            }
        }
    }
}

impl fmt::Debug for DistributedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistributedLock")
            .field("key", &self.key())
            .field("locked", &self.is_locked())
            .field("options", &self.options)
            .finish()
    }
}
