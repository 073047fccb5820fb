//! A lock by its key: what one does to get hold of it.

pub(crate) mod guard;
pub(crate) mod hold;
pub(crate) mod pending;
pub(crate) mod reentrant;
pub(crate) mod reentrant_guard;

mod caller_thread;
mod holds;
pub(crate) mod registry;
mod waiter;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use guard::LockGuard;
use holds::Holds;
use pending::PendingLock;
use waiter::Waiter;

use crate::clock::Time;
use crate::error::LockError;
use crate::options::LockOptions;
use crate::protocol::WaitLimits;

/// A lock of a [`LockManager`](crate::LockManager): at most one process or thread anywhere holds it at a time.
///
/// A handle, cheap to clone and to share. Handles of one manager with one key are the same lock underneath.
///
/// **Order.** Between processes, first come first served; between the threads of one process, too.
///
/// **No re-entry.** A guard can go to any thread, so nobody can know which thread holds: whoever asks for a lock that is
/// held waits, or is told `None`, also the thread that has a guard of it. A thread that waits for itself waits as long as
/// the call says. For functions that call each other under one lock there is
/// [`new_reentrant_lock`](crate::LockManager::new_reentrant_lock).
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// let lock = manager.new_lock("nightly-report")?;
/// let guard = lock.lock()?;
/// println!("mine alone, as number {}", guard.token());
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

    /// Takes the lock, waiting for it as long as the lock's options say: by default, for ever.
    ///
    /// # Blocking
    ///
    /// Until the lock is granted, the [limit](LockOptions::max_retries) of its options runs out, or the manager is closed. While
    /// etcd is out of reach it goes on waiting. A lost session does not disturb a waiting call.
    ///
    /// # Errors
    ///
    /// - [`LockError::AlreadyHeld`]: that limit ran out while somebody else held it.
    /// - [`LockError::Unavailable`]: it ran out while etcd could not be reached.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`], [`LockError::NoSpace`]: etcd refused.
    /// - [`LockError::Closed`]: the manager was closed. [`LockError::Crashed`]: its I/O thread died.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("jobs")?;
    /// let guard = lock.lock()?;
    /// assert!(guard.is_held());
    /// // Nobody else has it now, this thread included.
    /// assert!(lock.try_lock()?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock(&self) -> Result<LockGuard, LockError> {
        self.acquire(self.limits(self.shared.client.now(), None), None)
    }

    /// Takes the lock if nobody has it; `None` if somebody does, or waits for it. Never joins the queue.
    ///
    /// # Blocking
    ///
    /// One question to etcd, up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock), but never [`LockError::AlreadyHeld`]; [`LockError::Unavailable`] if etcd could
    /// not be asked in time.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("cleanup")?;
    /// match lock.try_lock()? {
    ///     Some(_guard) => println!("cleaning up"),
    ///     None => println!("somebody else is at it"),
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

    /// Takes the lock, waiting for it at most `timeout`. A timeout beyond the clock's range is for ever.
    ///
    /// # Blocking
    ///
    /// Up to `timeout`, and some milliseconds to ask who holds it.
    ///
    /// # Errors
    ///
    /// - [`LockError::Timeout`]: somebody had it; names the holder if etcd could still tell.
    /// - [`LockError::Unavailable`]: the time ran out while etcd could not be asked.
    /// - Else as for [`lock`](Self::lock).
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
    /// // Whoever waits in vain learns who has it.
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

    /// Takes the lock, waiting for it until `deadline`. See [`lock_timeout`](Self::lock_timeout).
    ///
    /// # Blocking
    ///
    /// Until `deadline`, and some milliseconds to ask who holds it.
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

    /// Takes the lock, waiting for it until `cancel` has a message (which is taken) or is disconnected.
    ///
    /// A call that is cancelled has normally left the queue in etcd by the time it returns.
    ///
    /// # Blocking
    ///
    /// As [`lock`](Self::lock), and at most some 25 ms after the cancellation.
    ///
    /// # Errors
    ///
    /// [`LockError::Cancelled`]; else as for [`lock`](Self::lock).
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
    /// drop(stop); // whoever waits stops waiting
    /// let cancelled = worker.join().unwrap().unwrap_err();
    /// assert_eq!(cancelled.code(), ErrorCode::Cancelled);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_or_cancel(&self, cancel: &Receiver<()>) -> Result<LockGuard, LockError> {
        self.acquire(self.limits(self.shared.client.now(), None), Some(cancel))
    }

    /// Takes the lock, waiting for it at most `timeout`, and until `cancel` has a message (which is taken) or is
    /// disconnected: what a server needs, whose requests have a time limit and which may be shut down.
    ///
    /// A timeout beyond the clock's range is for ever. If `cancel` has fired already, etcd is not asked.
    ///
    /// # Blocking
    ///
    /// Up to `timeout`, and some milliseconds to ask who holds it; at most some 25 ms after the cancellation.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`] and [`LockError::Cancelled`], whichever comes first; else as for [`lock`](Self::lock).
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
    /// drop(shutdown); // whoever waits stops waiting
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

    /// Takes a place in the queue and returns at once. Dropping the [`PendingLock`] leaves the queue.
    ///
    /// **For one lock at a time.** A caller that queues for two locks at once can be granted one of them while a second
    /// such caller is granted the other. Each then holds what the other waits for: a deadlock, which also blocks everybody
    /// behind them. Take several locks one after the other, in the same order in all programs (by sorted key, say), with
    /// [`lock_deadline`](Self::lock_deadline).
    ///
    /// The [limit](LockOptions::max_retries) of its options counts from here.
    ///
    /// # Errors
    ///
    /// [`LockError::Closed`], [`LockError::Crashed`]. Everything else comes from [`PendingLock::wait`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::crossbeam_channel::{bounded, select};
    ///
    /// let (_stop, shutdown) = bounded::<()>(0);
    /// let pending = manager.new_lock("jobs")?.enqueue()?;
    /// select! {
    ///     recv(pending.ready()) -> _ => assert!(pending.wait()?.is_held()),
    ///     recv(shutdown) -> _ => drop(pending), // leaves the queue
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn enqueue(&self) -> Result<PendingLock, LockError> {
        PendingLock::ask(&self.shared, &self.options, self.limits(self.shared.client.now(), None))
    }

    /// Asks about this process only: whether some guard of this manager holds the lock right now, on any thread.
    ///
    /// `false` does not mean that the lock is free: for holders in other processes ask
    /// [`LockManager::lock_info`](crate::LockManager::lock_info). This does no I/O.
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

    /// The lock's key, as it was given to [`new_lock`](crate::LockManager::new_lock).
    pub fn key(&self) -> &str {
        self.shared.name.as_str()
    }

    /// How long a call waits that has no limit but `deadline` and the options.
    fn limits(&self, now: Time, deadline: Option<Time>) -> WaitLimits {
        let budget = self.options.budget().and_then(|budget| now.checked_add(budget));
        WaitLimits { try_only: false, deadline, budget }
    }

    /// [`try_lock`](Self::try_lock), with [`LockError::AlreadyHeld`] instead of `None`.
    fn take_if_free(&self) -> Result<LockGuard, LockError> {
        let budget = self.shared.client.now().checked_add(self.shared.client.request_timeout());
        self.acquire(WaitLimits { try_only: true, deadline: None, budget }, None)
    }

    /// What all the ways to take the lock have in common.
    fn acquire(&self, limits: WaitLimits, cancel: Option<&Receiver<()>>) -> Result<LockGuard, LockError> {
        if let Some(cancel) = cancel
            && cancel.try_recv() != Err(TryRecvError::Empty)
        {
            return Err(LockError::Cancelled { key: self.key().into() });
        }
        loop {
            let ask = |ready| Waiter::ask(&self.shared, &self.options, limits, ready);
            let guard = match cancel {
                None => ask(None)?.wait()?,
                Some(cancel) => {
                    let (decided, ready) = crossbeam_channel::bounded(0);
                    ask(Some(decided))?.wait_or_cancel(&ready, cancel)?
                }
            };
            // What was lost on its way here (this thread may have been stopped) never was the caller's: ask again.
            if guard.is_held() {
                return Ok(guard);
            }
        }
    }
}

/// What a try returns.
fn none_if_held<G>(taken: Result<G, LockError>) -> Result<Option<G>, LockError> {
    match taken {
        Ok(guard) => Ok(Some(guard)),
        Err(LockError::AlreadyHeld { .. }) => Ok(None),
        Err(error) => Err(error),
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
