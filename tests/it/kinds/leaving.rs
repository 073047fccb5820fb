//! Waiters of every mode that give up, are cancelled, or die: they leave nothing, and let nobody through.

use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{bounded, never};
use etcd_lock::memory::{Fault, MemoryStore};
use etcd_lock::{ErrorCode, LockError, LockManager, LockOptions, Mode};

use super::{EACH, a, is_refused, permits, queue_for_a, take_a};
use crate::support::manager::{assert_still_waiting, granted};
use crate::support::{Backend, SOON, eventually, on_both_stores, wait_for_waiting};

on_both_stores! {
    every_way_to_wait_ends_by_its_limit_and_leaves_nothing,
    every_way_to_wait_is_granted_what_is_free,
    a_waiter_that_leaves_the_middle_lets_those_behind_it_hold_together,
    waiters_that_leave_while_they_are_granted_lose_no_permit,
    a_try_never_stands_in_the_queue,
}

const SHORT: Duration = Duration::from_millis(50);

/// A mode that keeps `mode` out.
fn against(mode: Mode) -> Mode {
    if mode == Mode::Exclusive { Mode::Shared } else { Mode::Exclusive }
}

fn code(result: Result<impl Sized, LockError>) -> Option<ErrorCode> {
    result.err().map(|error| error.code())
}

/// A short call on a busy machine may end before the library has read who holds the lock.
fn timed_out(call: impl Fn() -> Result<(), LockError>, code: ErrorCode) {
    let ends: Vec<_> = (0..20).map(|_| call().unwrap_err().code()).take_while(|&end| end != code).collect();
    assert!(ends.len() < 20, "never {code}: {ends:?}");
    assert!(ends.iter().all(|&end| end == ErrorCode::Unavailable), "{ends:?}");
}

fn every_way_to_wait_ends_by_its_limit_and_leaves_nothing(backend: &Backend) {
    let (holder, manager) = (backend.manager(), backend.manager());
    for mode in EACH {
        let in_the_way = take_a(&holder, against(mode));
        let lock = a(&manager, mode);
        assert!(lock.try_lock().unwrap().is_none());
        timed_out(|| lock.lock_timeout(SHORT).map(drop), ErrorCode::LockTimeout);
        timed_out(|| lock.lock_deadline(Instant::now() + SHORT).map(drop), ErrorCode::LockTimeout);
        let both = || lock.lock_timeout_or_cancel(SHORT, &never()).map(drop);
        timed_out(both, ErrorCode::LockTimeout);
        let options = LockOptions::default().mode(mode).retry_interval(SHORT).max_retries(1);
        let budget = manager.new_lock_with("a", options).unwrap();
        timed_out(|| budget.lock().map(drop), ErrorCode::LockAlreadyHeld);
        let (stop, cancel) = bounded::<()>(0);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock.lock_or_cancel(&cancel).map(drop));
            backend.wait_for_contenders("a", 2);
            drop(stop);
            assert_eq!(code(waiting.join().unwrap()), Some(ErrorCode::Cancelled));
        });
        let pending = lock.enqueue().unwrap();
        backend.wait_for_contenders("a", 2);
        drop(pending);
        backend.wait_for_contenders("a", 1);
        assert!(in_the_way.is_held());
        assert_eq!((manager.stats().waiting, manager.stats().held), (0, 0), "{mode:?}");
        in_the_way.unlock().unwrap();
    }
    assert_eq!(manager.stats().acquired, 0);
    backend.wait_for_contenders("a", 0);
}

fn every_way_to_wait_is_granted_what_is_free(backend: &Backend) {
    let (other, manager) = (backend.manager(), backend.manager());
    for mode in [Mode::Shared, permits(1, 3)] {
        let beside = take_a(&other, mode);
        let lock = a(&manager, mode);
        let guards = [lock.lock().unwrap(), lock.try_lock().unwrap().expect("there is room for three")];
        drop(guards);
        drop(lock.lock_timeout(SOON).unwrap());
        drop(lock.lock_deadline(Instant::now() + SOON).unwrap());
        drop(lock.lock_or_cancel(&never()).unwrap());
        drop(lock.lock_timeout_or_cancel(SOON, &never()).unwrap());
        drop(granted(lock.enqueue().unwrap()));
        assert!(beside.is_held());
        beside.unlock().unwrap();
        backend.wait_for_contenders("a", 0);
    }
}

fn a_waiter_that_leaves_the_middle_lets_those_behind_it_hold_together(backend: &Backend) {
    let [reading, leaving, waiting] = [(); 3].map(|()| backend.manager());
    let reader = take_a(&reading, Mode::Shared);
    let writer = queue_for_a(&leaving, Mode::Exclusive);
    backend.wait_for_contenders("a", 2);
    let behind = queue_for_a(&waiting, Mode::Shared);
    backend.wait_for_contenders("a", 3);
    assert_still_waiting(&behind);
    drop(writer);
    let behind = granted(behind);
    assert!(reader.is_held() && behind.is_held());

    // The same with a large take of permits.
    drop((reader, behind));
    let first = take_a(&reading, permits(1, 3));
    let large = queue_for_a(&leaving, permits(3, 3));
    backend.wait_for_contenders("a", 2);
    let behind = [(); 2].map(|()| queue_for_a(&waiting, permits(1, 3)));
    backend.wait_for_contenders("a", 4);
    behind.iter().for_each(assert_still_waiting);
    drop(large);
    assert!(behind.map(granted).iter().all(|guard| guard.is_held()) && first.is_held());
}

/// The grant and the departure cross each other, over and over.
fn waiters_that_leave_while_they_are_granted_lose_no_permit(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    for round in 0..40 {
        let guard = take_a(&other, permits(2, 2));
        let pending = [(); 3].map(|()| queue_for_a(&manager, permits(1, 2)));
        if round % 2 == 0 {
            backend.wait_for_contenders("a", 4);
        }
        let leaves = thread::spawn(move || drop(pending));
        drop(guard);
        leaves.join().unwrap();
    }
    // All permits are there.
    assert!(take_a(&other, permits(2, 2)).is_held());
    wait_for_waiting(&manager, 0);
    backend.wait_for_contenders("a", 0);
}

/// Others never see the key of a failed try, so tries keep nobody out.
fn a_try_never_stands_in_the_queue(backend: &Backend) {
    let (holder, trying) = (backend.manager(), backend.manager());
    for mode in EACH {
        let guard = take_a(&holder, against(mode));
        for _ in 0..20 {
            assert!(is_refused(&trying, mode));
            assert_eq!(holder.queue("a").unwrap().len(), 1);
        }
        drop(guard);
        backend.wait_for_contenders("a", 0);
    }
}

fn in_memory(store: &MemoryStore) -> LockManager {
    LockManager::in_memory(store, "/app", Default::default()).unwrap()
}

/// The answers get lost, and the callers give up meanwhile.
#[test]
fn a_call_of_any_mode_that_gives_up_without_an_answer_leaves_no_key() {
    for mode in EACH {
        for fault in [Fault::LoseResponse, Fault::LoseRequest] {
            let store = MemoryStore::new();
            let (manager, other) = (in_memory(&store), in_memory(&store));
            for _ in 0..10 {
                store.fail_next(&manager, fault);
                drop(a(&manager, mode).enqueue().unwrap());
                store.fail_next(&manager, fault);
                let _ = a(&manager, mode).try_lock().map(drop);
            }
            eventually(SOON, "nothing is left", || other.queue("a").unwrap().is_empty());
            assert!(take_a(&other, Mode::Exclusive).is_held(), "{mode:?} {fault:?}");
        }
    }
}

/// The library finds out that it holds the permit, and takes no second one.
#[test]
fn a_lost_answer_takes_no_second_permit() {
    let store = MemoryStore::new();
    let (manager, other) = (in_memory(&store), in_memory(&store));
    for mode in [Mode::Shared, permits(1, 2)] {
        store.fail_next(&manager, Fault::LoseResponse);
        let guard = take_a(&manager, mode);
        assert_eq!(other.queue("a").unwrap().len(), 1);
        let beside = take_a(&other, mode);
        store.fail_next(&manager, Fault::LoseResponse);
        guard.unlock().unwrap();
        assert!(take_a(&manager, mode).is_held());
        drop(beside);
        eventually(SOON, "nothing is left", || other.queue("a").unwrap().is_empty());
    }
}
