//! When a holder was told that its hold is over.

use std::time::{Duration, Instant};

use etcd_lock::LockGuard;

/// A thread that waits for a guard's `done()` and notes when it closes.
#[derive(Debug)]
pub(crate) struct Told {
    at: std::sync::mpsc::Receiver<Instant>,
}

impl Told {
    pub(crate) fn of(guard: &LockGuard) -> Self {
        let (note, at) = std::sync::mpsc::channel();
        let done = guard.done().clone();
        std::thread::spawn(move || {
            let _ = done.recv();
            let _ = note.send(Instant::now());
        });
        Self { at }
    }

    /// When it was told; waits for it.
    #[track_caller]
    pub(crate) fn wait(&self, limit: Duration) -> Instant {
        self.at.recv_timeout(limit).unwrap_or_else(|_| panic!("done() still open after {limit:?}"))
    }

    pub(crate) fn not_yet(&self) -> bool {
        self.at.try_recv().is_err()
    }
}
