//! When a holder learned that its hold is over.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use etcd_lock::LockGuard;

use super::oracle::Inside;

/// A thread that waits for a guard's `done()` and records when it disconnects.
#[derive(Debug)]
pub(crate) struct HoldEnd {
    at: Receiver<Instant>,
}

impl HoldEnd {
    pub(crate) fn of(guard: &LockGuard) -> Self {
        Self::then_drop(guard, ())
    }

    /// The holder believes to hold the lock until then, as its `inside` records.
    pub(crate) fn of_holder(guard: &LockGuard, inside: Inside<'static>) -> Self {
        Self::then_drop(guard, inside)
    }

    fn then_drop(guard: &LockGuard, inside: impl Send + 'static) -> Self {
        let (record, at) = channel();
        let done = guard.done().clone();
        std::thread::spawn(move || {
            assert!(done.recv().is_err(), "done() carries nothing");
            let now = Instant::now();
            drop(inside);
            let _ = record.send(now);
        });
        Self { at }
    }

    /// Waits until `done()` disconnects, and returns when it did.
    #[track_caller]
    pub(crate) fn wait(&self, limit: Duration) -> Instant {
        self.within(limit).unwrap_or_else(|| panic!("done() has not disconnected within {limit:?}"))
    }

    /// When `done()` disconnected; `None` if it did not within `limit`.
    pub(crate) fn within(&self, limit: Duration) -> Option<Instant> {
        self.at.recv_timeout(limit).ok()
    }

    pub(crate) fn not_yet(&self) -> bool {
        self.at.try_recv() == Err(TryRecvError::Empty)
    }
}
