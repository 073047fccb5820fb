//! A hold of a lock, as its holder sees it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::error::{LockError, LossReason};
use crate::info::FencingToken;
use crate::process;

mod hold;

pub(crate) use hold::Hold;

/// A hold of a lock; dropping it releases the lock.
///
/// A clone is one more claim on the same hold, to be kept or moved to another thread: the last one out releases.
/// Dropping never waits for etcd; [`unlock`](Self::unlock) does.
///
/// A hold can be **lost** while its guard is still there: etcd out of reach for too long, a forced unlock, a closed
/// manager. It is then over for good, nothing re-acquires it. [`done`](Self::done) tells a thread that waits,
/// [`is_held`](Self::is_held) and [`ensure`](Self::ensure) one that is about to do something.
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

    /// A channel that carries nothing and disconnects when the hold is over: lost, or released by its last guard.
    ///
    /// Made for [`select!`](crate::crossbeam_channel::select), and for a watching thread that owns a clone of the
    /// receiver. [`loss`](Self::loss) tells which it was. It disconnects before etcd can give the lock to anybody
    /// else, except after a forced unlock or a revoked lease, which are told within milliseconds. That does not depend
    /// on the thread that talks to etcd: a thread of its own watches the deadline, so it also holds while a logger blocks.
    ///
    /// In a child of `fork()` it is disconnected. A clone that was made before the fork is a copy of the parent's channel:
    /// it disconnects there a moment after the child first calls this, makes any call that locks, waits or asks, or drops
    /// a guard, a lock or the manager. In the rare case that a thread of the parent was just using the channel at the
    /// fork, it never does. The parent's channel is not concerned.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// let done = guard.done().clone();
    /// let watcher = std::thread::spawn(move || done.recv());
    /// drop(guard);
    /// assert!(watcher.join().unwrap().is_err(), "released: the channel is disconnected");
    /// # Ok(())
    /// # }
    /// ```
    pub fn done(&self) -> &Receiver<()> {
        if self.hold.state.is_here() {
            return &self.hold.state.done;
        }
        // The first call in a forked child has the copies closed.
        let _ = self.hold.check_process();
        process::disconnected()
    }

    /// Why the hold was lost; `None` while it is held.
    ///
    /// Decided by the clock itself if need be: a hold whose time has run out is lost, even when the I/O thread has not
    /// run since.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::LossReason;
    ///
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// assert_eq!(guard.loss(), None);
    /// manager.close()?;
    /// assert_eq!(guard.loss(), Some(LossReason::Closed));
    /// # Ok(())
    /// # }
    /// ```
    pub fn loss(&self) -> Option<LossReason> {
        self.hold.state.loss(self.hold.now())
    }

    /// Whether the lock is held right now. Once it was false it stays false.
    ///
    /// Compares the hold's deadline with the clock on the caller's own thread, without I/O and without the I/O thread,
    /// so it costs some tens of nanoseconds and is right even after the process was stopped or the machine slept.
    ///
    /// False in a child of `fork()`: the hold is its parent's.
    ///
    /// A `true` is about this instant. What must not happen after a loss also needs the [`token`](Self::token),
    /// checked by whoever carries it out.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// for step in 1..=3 {
    ///     if !guard.is_held() {
    ///         break;
    ///     }
    ///     println!("step {step}");
    /// }
    /// assert!(guard.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_held(&self) -> bool {
        self.hold.state.is_held(self.hold.now())
    }

    /// How long the hold is assured if etcd never answers again; zero once it is lost. Every renewal sets it anew.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// // The TTL of 30 s less the safety margin of 3 s, counted from the last renewal that etcd answered.
    /// assert!(guard.remaining() <= std::time::Duration::from_secs(27));
    /// assert!(!guard.remaining().is_zero());
    /// # Ok(())
    /// # }
    /// ```
    pub fn remaining(&self) -> Duration {
        self.hold.state.remaining(self.hold.now()).unwrap_or_default()
    }

    /// The token, if the hold is assured for `at_least` that long: the check before a step that takes time.
    ///
    /// # Errors
    ///
    /// [`LockError::Expired`] if the hold is lost, with the reason; also, as
    /// [`LossReason::SessionExpired`], if it is held but too little time is left. The hold lives on in that case,
    /// and may have more time again after the next renewal: [`is_held`](Self::is_held) tells the two apart.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// # fn write(_row: &str, _token: u64) {}
    /// use std::time::Duration;
    ///
    /// let guard = manager.new_lock("report")?.lock()?;
    /// let token = guard.ensure(Duration::from_secs(2))?;
    /// write("a row that takes up to two seconds", token.as_u64());
    ///
    /// // More than the TTL is never assured.
    /// assert!(guard.ensure(Duration::from_secs(60)).is_err());
    /// assert!(guard.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn ensure(&self, at_least: Duration) -> Result<FencingToken, LockError> {
        let now = self.hold.now();
        match self.hold.state.remaining(now) {
            Some(left) if left >= at_least => Ok(self.token()),
            _ => Err(self.hold.state.expired(now)),
        }
    }

    /// The fencing token: greater than that of every earlier holder of this lock, anywhere.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("jobs")?;
    /// let first = lock.lock()?.token();
    /// let second = lock.lock()?.token();
    /// assert!(second > first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn token(&self) -> FencingToken {
        self.hold.state.token
    }

    /// The lock's name.
    pub fn key(&self) -> &str {
        self.hold.state.name.as_str()
    }

    /// The key in etcd that is this hold. It exists as long as etcd grants the lock to it.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("a/b")?.lock()?;
    /// assert_eq!(guard.key(), "a/b");
    /// assert!(guard.etcd_key().starts_with("/app/a%2Fb/"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn etcd_key(&self) -> &str {
        self.hold.state.key.as_str()
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
    /// - [`LockError::Expired`]: the hold was lost before; what was done under it may not have been exclusive.
    /// - [`LockError::NotHeld`]: its key was already deleted in etcd by somebody else.
    /// - [`LockError::Unavailable`]: etcd did not confirm in time. The release goes on in the background, and the key
    ///   is gone at the latest when its lease expires.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused.
    /// - [`LockError::Internal`]: the I/O thread died.
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
        let (state, now) = (Arc::clone(&self.hold.state), self.hold.now());
        match Arc::into_inner(self.hold) {
            Some(hold) => hold.release(),
            // Whichever guard somebody worked under, an `Ok` says that the work was not disturbed so far.
            None => match state.loss(now) {
                Some(_) => Err(state.expired(now)),
                None => Ok(()),
            },
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("key", &self.key())
            .field("token", &self.token())
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
