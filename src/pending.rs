//! A place in a lock's queue.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use crate::error::LockError;
use crate::guard::LockGuard;
use crate::lock::LockShared;
use crate::options::LockOptions;
use crate::protocol::Patience;
use crate::waiting::Waiting;

/// A place in a lock's queue, from [`DistributedLock::enqueue`](crate::DistributedLock::enqueue). Dropping it leaves
/// the queue, and releases the lock if it was granted meanwhile.
#[must_use = "if unused the place in the queue is given up at once"]
pub struct PendingLock {
    state: State,
    ready: Receiver<()>,
}

enum State {
    Waiting(Waiting),
    /// The asking thread held the lock already.
    Held(LockGuard),
}

impl PendingLock {
    pub(crate) fn ask(
        lock: &Arc<LockShared>,
        options: &LockOptions,
        patience: Patience,
    ) -> Result<Self, LockError> {
        let (decided, ready) = crossbeam_channel::bounded(0);
        let waiting = Waiting::ask(lock, options, patience, Some(decided))?;
        Ok(Self { state: State::Waiting(waiting), ready })
    }

    pub(crate) fn held(guard: LockGuard) -> Self {
        let (_decided, ready) = crossbeam_channel::bounded(0);
        Self { state: State::Held(guard), ready }
    }

    /// A channel that carries nothing and disconnects when the outcome is known: [`wait`](Self::wait) then returns at
    /// once. Made for [`select!`](crate::crossbeam_channel::select).
    ///
    /// From then on the lock may be held, and keep others waiting.
    pub fn ready(&self) -> &Receiver<()> {
        &self.ready
    }

    /// Waits for the outcome.
    ///
    /// # Blocking
    ///
    /// Until the lock is granted, its [retries](crate::LockOptions::max_retries) run out, or the manager is closed; not
    /// at all once [`ready`](Self::ready) is disconnected.
    ///
    /// # Errors
    ///
    /// As for [`DistributedLock::lock`](crate::DistributedLock::lock); [`LockError::Expired`] also if the lock was
    /// granted but lost again before this call.
    pub fn wait(self) -> Result<LockGuard, LockError> {
        let guard = match self.state {
            State::Waiting(waiting) => waiting.wait()?,
            State::Held(guard) => guard,
        };
        match guard.loss() {
            None => Ok(guard),
            Some(reason) => Err(LockError::Expired { key: guard.key().into(), reason }),
        }
    }
}

impl fmt::Debug for PendingLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match &self.state {
            State::Waiting(waiting) => waiting.key(),
            State::Held(guard) => guard.key(),
        };
        f.debug_struct("PendingLock").field("key", &key).finish_non_exhaustive()
    }
}
