//! A place in a lock's queue.

use std::fmt;

use crossbeam_channel::Receiver;

use super::DistributedLock;
use super::guard::LockGuard;
use super::waiting_call::WaitingCall;
use crate::error::LockError;
use crate::shared::process;

/// A place in a lock's queue, returned by [`DistributedLock::enqueue`]. Dropping it leaves the queue, and releases the
/// lock if it was granted meanwhile.
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
/// let hers = alice.new_lock("jobs")?.lock()?;
/// let pending = bob.new_lock("jobs")?.enqueue()?; // returns at once
/// drop(hers);
/// let his = pending.wait()?;
/// assert_eq!(his.key(), "jobs");
/// # Ok(())
/// # }
/// ```
#[must_use = "if unused the place in the queue is given up at once"]
pub struct PendingLock {
    call: WaitingCall,
    ready: Receiver<()>,
}

impl DistributedLock {
    /// Takes a place in the lock's queue. Dropping the returned [`PendingLock`] leaves the queue. Never blocks.
    ///
    /// **For one lock at a time.** A caller that queues for two locks at once can be granted one of them while another
    /// such caller is granted the other. Each then holds what the other waits for: a deadlock, which also blocks
    /// everyone queued behind them. Acquire several locks one after the other, in the same order in all programs
    /// (sorted by key, for example), with [`lock_deadline`](Self::lock_deadline).
    ///
    /// The [limit](crate::LockOptions::max_retries) of the options counts from this call, not from [`PendingLock::wait`].
    ///
    /// # Errors
    ///
    /// - [`LockError::Closed`], [`LockError::Crashed`], [`LockError::Forked`]: the manager no longer works.
    /// - All other errors are returned by [`PendingLock::wait`].
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
        let (decided, ready) = crossbeam_channel::bounded(0);
        let limits = self.limits(self.shared.client.now(), None);
        let call = WaitingCall::ask(&self.shared, &self.options, limits, Some(decided))?;
        Ok(PendingLock { call, ready })
    }
}

impl PendingLock {
    /// Returns a channel that carries no messages and disconnects when the outcome is known; [`wait`](Self::wait) then
    /// returns at once. For use in [`select!`](crate::crossbeam_channel::select).
    ///
    /// The lock may then be held, so call `wait` promptly.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let pending = manager.new_lock("jobs")?.enqueue()?;
    /// assert!(pending.ready().recv().is_err()); // disconnected: the outcome is known
    /// assert!(pending.wait()?.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn ready(&self) -> &Receiver<()> {
        if self.call.is_here() { &self.ready } else { process::disconnected() }
    }

    /// Waits until the lock is granted or refused.
    ///
    /// # Blocking
    ///
    /// Until the lock is granted, the [limit](crate::LockOptions::max_retries) of the options runs out, or the manager
    /// is closed. Returns at once if [`ready`](Self::ready) is disconnected.
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the lock was granted, but lost before this call.
    /// - Otherwise as for [`DistributedLock::lock`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let pending = manager.new_lock("report")?.enqueue()?;
    /// let text = "prepared while waiting";
    /// let guard = pending.wait()?;
    /// println!("{text}, under token {}", guard.token());
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(self) -> Result<LockGuard, LockError> {
        let guard = self.call.wait()?;
        guard.check()?;
        Ok(guard)
    }
}

impl fmt::Debug for PendingLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingLock").field("key", &self.call.key()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::TryRecvError;

    use super::*;
    use crate::error::LossReason;
    use crate::lock::tests::scripted_io::{SOON, lock, scripted_locks};
    use crate::protocol::Refusal;

    #[test]
    fn ready_disconnects_when_the_outcome_is_known() {
        let (locks, mut io) = scripted_locks();
        let pending = lock(&locks, "a").enqueue().unwrap();
        assert_eq!(pending.ready().try_recv(), Err(TryRecvError::Empty));
        let _hold = io.grant();
        assert!(pending.ready().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
        assert!(pending.wait().unwrap().is_held());

        let pending = lock(&locks, "b").enqueue().unwrap();
        io.leave();
        io.refuse(Refusal::AlreadyHeld { holder: None });
        assert!(pending.ready().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
        assert!(matches!(pending.wait(), Err(LockError::AlreadyHeld { .. })));
    }

    #[test]
    fn dropping_a_pending_lock_leaves_the_queue_before_and_after_the_grant() {
        let (locks, mut io) = scripted_locks();
        let pending = lock(&locks, "a").enqueue().unwrap();
        let (acquire, _reply) = io.acquire();
        drop(pending);
        assert_eq!(io.leave().0, acquire.ticket);

        let pending = lock(&locks, "a").enqueue().unwrap();
        let _hold = io.grant();
        pending.ready().recv().unwrap_err();
        drop(pending);
        io.leave();
    }

    #[test]
    fn waiting_for_a_lock_lost_after_its_grant_returns_expired() {
        let (locks, mut io) = scripted_locks();
        let pending = lock(&locks, "a").enqueue().unwrap();
        let hold = io.grant();
        hold.state.end(Some(LossReason::ForceUnlocked));
        let lost = pending.wait();
        assert!(matches!(lost, Err(LockError::Expired { reason: LossReason::ForceUnlocked, .. })));
        io.leave();
    }

    #[test]
    fn ready_disconnects_when_the_i_o_thread_ends() {
        let (locks, io) = scripted_locks();
        let pending = lock(&locks, "a").enqueue().unwrap();
        drop(io);
        pending.ready().recv().unwrap_err();
        assert!(matches!(pending.wait(), Err(LockError::Crashed)));
    }
}
