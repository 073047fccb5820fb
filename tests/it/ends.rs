//! Guards, managers and threads that end, in every way: nothing is left behind, and nothing hangs.

mod hung;
mod outages;
mod runtimes;
mod threads;

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{bounded, never};
use etcd_lock::{DistributedLock, ForceUnlock, LockError, LockGuard, LossReason};

use crate::support::{
    Backend, SOON, disconnects, on_both_stores, take, take_elsewhere, wait_for_waiting, within,
};

on_both_stores! {
    a_guard_dropped_while_panicking_releases,
    a_guard_dropped_in_a_thread_local_destructor_releases,
    a_thread_local_destructor_can_take_the_lock,
    after_close_every_guard_is_lost_and_every_call_says_so,
    close_ends_every_kind_of_wait,
    closing_again_changes_nothing,
    a_guard_outlives_its_lock_and_its_manager,
    a_leaked_guard_keeps_the_lock_until_the_manager_is_closed,
    clones_can_all_unlock_and_the_last_one_releases,
    unlocking_clones_at_the_same_moment_releases_once,
    every_guard_of_a_lost_hold_tells_in_unlock,
    after_a_close_another_manager_gets_released_and_held_locks_at_once,
}

thread_local! {
    /// The values that a thread drops at its end.
    static BAGGAGE: RefCell<Option<Baggage>> = const { RefCell::new(None) };
}

enum Baggage {
    Guard { _guard: LockGuard },
    LastWill { _will: LastWill },
}

/// Takes and releases a lock when it is dropped, and reports the result.
struct LastWill {
    lock: DistributedLock,
    report: etcd_lock::crossbeam_channel::Sender<Result<(), LockError>>,
}

impl Drop for LastWill {
    fn drop(&mut self) {
        let outcome = self.lock.lock_timeout(SOON).and_then(|guard| guard.unlock());
        self.report.send(outcome).unwrap();
    }
}

fn is_lost(result: Result<impl Sized, LockError>, why: LossReason) -> bool {
    matches!(result, Err(LockError::Expired { reason, .. }) if reason == why)
}

fn is_closed(result: Result<impl Sized, LockError>) -> bool {
    matches!(result, Err(LockError::Closed))
}

fn a_guard_dropped_while_panicking_releases(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let waiting = thread::scope(|scope| {
        let died = scope.spawn(|| {
            let _guard = take(&lock);
            let _clone = _guard.clone();
            let waiting = other.new_lock("a").unwrap().enqueue().unwrap();
            backend.wait_for_contenders("a", 2);
            // Unwinds like any panic, without a message on the terminal.
            panic::resume_unwind(Box::new(waiting));
        });
        died.join().expect_err("it panicked")
    });
    let waiting = waiting.downcast::<etcd_lock::PendingLock>().expect("the payload of the panic");
    assert!(disconnects(waiting.ready()));
    assert!(waiting.wait().unwrap().is_held());
    assert!(!lock.is_locked());
    assert_eq!((manager.stats().released, manager.stats().lost.total()), (1, 0));
}

fn a_guard_dropped_in_a_thread_local_destructor_releases(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let ended = thread::spawn(move || {
        let guard = take(&lock);
        BAGGAGE.set(Some(Baggage::Guard { _guard: guard }));
    });
    within(SOON, "a thread that holds a lock ends", || ended.join().unwrap());
    assert!(take(&other.new_lock("a").unwrap()).is_held());
    assert_eq!(manager.stats().released, 1);
}

fn a_thread_local_destructor_can_take_the_lock(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let (report, reports) = bounded(1);
    thread::spawn(move || BAGGAGE.set(Some(Baggage::LastWill { _will: LastWill { lock, report } })));
    reports.recv_timeout(SOON).expect("the destructor runs").expect("and gets the lock");
    assert_eq!((manager.stats().acquired, manager.stats().released), (1, 1));
}

fn after_close_every_guard_is_lost_and_every_call_says_so(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    let (clone, done) = (guard.clone(), guard.done().clone());
    let granted = manager.new_lock("granted").unwrap().enqueue().unwrap();
    assert!(disconnects(granted.ready()));
    manager.clone().close().unwrap();

    assert!(disconnects(&done));
    assert_eq!((guard.loss(), guard.is_held()), (Some(LossReason::Closed), false));
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert!(is_lost(guard.ensure(Duration::ZERO), LossReason::Closed));
    assert!(is_lost(granted.wait(), LossReason::Closed));
    drop(clone);
    assert!(is_lost(guard.unlock(), LossReason::Closed));

    assert!(!lock.is_locked());
    assert!(is_closed(lock.lock()) && is_closed(lock.try_lock()) && is_closed(lock.enqueue()));
    assert!(is_closed(lock.lock_timeout(SOON)) && is_closed(lock.lock_or_cancel(&never())));
    assert!(is_closed(manager.new_lock("b")));
    assert!(is_closed(manager.lock_info("a")) && is_closed(manager.list_locks("")));
    assert!(is_closed(manager.force_unlock("a", ForceUnlock::Lock)));
    assert!(!manager.session().is_alive());
    assert_eq!(backend.contenders("a") + backend.contenders("granted"), 0);
}

fn close_ends_every_kind_of_wait(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let guard = take(&other.new_lock("a").unwrap());
    let lock = manager.new_lock("a").unwrap();
    let (_stop, cancel) = bounded::<()>(0);
    let pending = lock.enqueue().unwrap();
    thread::scope(|scope| {
        let waits = [
            scope.spawn(|| lock.lock()),
            scope.spawn(|| lock.lock_timeout(2 * SOON)),
            scope.spawn(|| lock.lock_or_cancel(&cancel)),
        ];
        wait_for_waiting(&manager, 4);
        backend.wait_for_contenders("a", 2);
        manager.clone().close().unwrap();
        for wait in waits {
            assert!(is_closed(within_join(wait)));
        }
    });
    assert!(disconnects(pending.ready()) && is_closed(pending.wait()));
    assert_eq!((backend.contenders("a"), manager.stats().waiting), (1, 0));
    assert!(guard.is_held());
}

/// Joins a thread whose call must have ended.
/// `close` is sufficient to end it at a shutdown.
fn after_a_close_another_manager_gets_released_and_held_locks_at_once(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let names = ["dropped", "held", "leaked"];
    let [dropped, held, leaked] = names.map(|name| take(&manager.new_lock(name).unwrap()));
    std::mem::forget(leaked);
    drop(dropped);
    manager.close().unwrap();
    for name in names {
        assert!(other.new_lock(name).unwrap().try_lock().unwrap().is_some(), "{name}");
    }
    assert_eq!(held.loss(), Some(LossReason::Closed));
}

fn within_join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    crate::support::eventually(SOON, "the call ends", || thread.is_finished());
    thread.join().unwrap()
}

fn closing_again_changes_nothing(backend: &Backend) {
    let manager = backend.manager();
    let guard = take(&manager.new_lock("a").unwrap());
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let manager = manager.clone();
                start.wait();
                manager.close().unwrap();
                assert_eq!(guard.loss(), Some(LossReason::Closed));
            });
        }
    });
    manager.close().unwrap();
    assert_eq!(backend.contenders("a"), 0);
}

fn a_guard_outlives_its_lock_and_its_manager(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    drop((manager, lock));
    assert!(guard.is_held());
    let rival = other.new_lock("a").unwrap();
    assert!(rival.try_lock().unwrap().is_none());
    assert!(guard.ensure(Duration::from_secs(1)).is_ok());
    // The last handle: the manager ends with it.
    let done = guard.done().clone();
    drop(guard);
    assert!(disconnects(&done));
    assert!(rival.try_lock().unwrap().is_some(), "the manager had ended when the drop returned");
}

fn a_leaked_guard_keeps_the_lock_until_the_manager_is_closed(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    let done = guard.done().clone();
    std::mem::forget(guard);
    let rival = other.new_lock("a").unwrap();
    assert!(lock.is_locked() && rival.try_lock().unwrap().is_none());
    assert!(lock.try_lock().unwrap().is_none(), "a leaked guard keeps the lock held");
    manager.close().unwrap();
    assert!(disconnects(&done));
    assert!(rival.try_lock().unwrap().is_some());
}

fn clones_can_all_unlock_and_the_last_one_releases(backend: &Backend) {
    let manager = backend.manager();
    let first = take(&manager.new_lock("a").unwrap());
    let second = first.clone();
    first.unlock().unwrap();
    assert!(second.is_held());
    assert_eq!(backend.contenders("a"), 1);
    second.unlock().unwrap();
    assert_eq!(backend.contenders("a"), 0, "unlock returns once the key is deleted");
    assert_eq!(manager.stats().released, 1);
}

fn unlocking_clones_at_the_same_moment_releases_once(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    for round in 1..=50 {
        let guard = take(&lock);
        let done = guard.done().clone();
        let clones: Vec<LockGuard> = (0..4).map(|_| guard.clone()).collect();
        drop(guard);
        let start = Barrier::new(clones.len());
        thread::scope(|scope| {
            for clone in clones {
                scope.spawn(|| {
                    start.wait();
                    clone.unlock().unwrap();
                });
            }
        });
        assert!(disconnects(&done));
        assert_eq!((manager.stats().acquired, manager.stats().released), (round, round));
    }
    backend.wait_for_contenders("a", 0);
}

fn every_guard_of_a_lost_hold_tells_in_unlock(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take_elsewhere(&lock);
    let clone = guard.clone();
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert!(disconnects(guard.done()));
    let next = take(&lock);
    assert!(is_lost(clone.unlock(), LossReason::ForceUnlocked));
    assert!(is_lost(guard.unlock(), LossReason::ForceUnlocked));
    assert!(next.is_held(), "the end of a lost hold does not affect the next");
    assert_eq!(backend.contenders("a"), 1);
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| drop(next)));
    assert!(panicked.is_ok());
}
