//! Locks that several hold together: read-write locks and semaphores, beside mutexes on the same names.

mod fleet;
mod held;
mod interop;
mod known_bugs;
mod leaving;
mod readers;
mod semaphores;

use std::sync::atomic::{AtomicU32, Ordering};

use etcd_lock::{DistributedLock, LockGuard, LockManager, LockOptions, Mode, PendingLock, Stats};

use crate::support::manager::granted;
use crate::support::take;

/// A handle of the lock `a` in this mode.
#[track_caller]
fn a(manager: &LockManager, mode: Mode) -> DistributedLock {
    manager.new_lock_with("a", LockOptions::default().mode(mode)).unwrap()
}

/// Takes the lock `a`, which admits this mode now or soon.
#[track_caller]
fn take_a(manager: &LockManager, mode: Mode) -> LockGuard {
    take(&a(manager, mode))
}

/// Queues for the lock `a`.
#[track_caller]
fn queue_for_a(manager: &LockManager, mode: Mode) -> PendingLock {
    a(manager, mode).enqueue().unwrap()
}

#[track_caller]
fn is_refused(manager: &LockManager, mode: Mode) -> bool {
    a(manager, mode).try_lock().unwrap().is_none()
}

const fn permits(take: u32, limit: u32) -> Mode {
    Mode::Permits { take, limit }
}

/// One mode of each kind.
const EACH: [Mode; 3] = [Mode::Exclusive, Mode::Shared, permits(2, 3)];

fn all_granted<const N: usize>(pending: [PendingLock; N]) -> [LockGuard; N] {
    pending.map(granted)
}

/// Transactions since `before`.
fn txns(manager: &LockManager, before: &Stats) -> u64 {
    manager.stats().rpcs.txn - before.rpcs.txn
}

/// Counts permits in use, and the most that ever were.
#[derive(Debug, Default)]
struct Gauge {
    used: AtomicU32,
    most: AtomicU32,
}

impl Gauge {
    fn enter(&self, take: u32) {
        let used = self.used.fetch_add(take, Ordering::SeqCst) + take;
        self.most.fetch_max(used, Ordering::SeqCst);
    }

    fn leave(&self, take: u32) {
        self.used.fetch_sub(take, Ordering::SeqCst);
    }

    fn most(&self) -> u32 {
        self.most.load(Ordering::SeqCst)
    }
}
