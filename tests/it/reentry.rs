//! The thread that holds a lock gets it again; everybody else waits until the last guard has gone.

use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::never;
use etcd_lock::{DistributedLock, ForceUnlock, LockError, LockGuard, LossReason};

use crate::support::{Backend, disconnects, on_both_stores, take, take_elsewhere, wait_for_waiting};

on_both_stores! {
    the_holding_thread_gets_it_again_in_every_way_and_etcd_is_not_asked,
    the_last_guard_out_releases,
    a_clone_on_another_thread_keeps_the_lock_but_that_thread_waits_its_turn,
    the_thread_that_asked_reenters_wherever_its_guard_went,
    a_thread_that_holds_the_lock_keeps_a_thread_of_the_same_process_waiting,
    what_the_same_thread_enqueued_before_it_had_the_lock_is_part_of_the_hold,
    a_lost_hold_is_expired_on_reentry_until_its_last_guard_has_gone,
}

/// A further guard by every way there is.
fn again(lock: &DistributedLock) -> Vec<LockGuard> {
    vec![
        lock.lock().unwrap(),
        lock.try_lock().unwrap().unwrap(),
        lock.lock_timeout(Duration::ZERO).unwrap(),
        lock.lock_deadline(Instant::now()).unwrap(),
        lock.lock_or_cancel(&never()).unwrap(),
        lock.enqueue().unwrap().wait().unwrap(),
    ]
}

fn the_holding_thread_gets_it_again_in_every_way_and_etcd_is_not_asked(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let second_handle = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    let before = manager.stats();
    let mut more = again(&lock);
    more.extend(again(&second_handle));
    more.extend(again(&lock.clone()));
    let after = manager.stats();
    assert_eq!((after.rpcs.txn, after.rpcs.delete), (before.rpcs.txn, before.rpcs.delete));
    assert_eq!((after.acquired, after.held), (1, 1));
    assert!(more.iter().all(|other| other.token() == guard.token()));
    assert!(more.iter().all(|other| other.etcd_key() == guard.etcd_key()));
    assert!(more.iter().all(|other| other.done().same_channel(guard.done())));
    assert!(second_handle.is_locked());
}

fn the_last_guard_out_releases(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let rival = other.new_lock("a").unwrap();
    let first = take(&lock);
    let second = manager.new_lock("a").unwrap().lock().unwrap();
    let third = second.clone();
    let done = first.done().clone();
    drop(first);
    assert!(rival.try_lock().unwrap().is_none() && lock.is_locked());
    third.unlock().unwrap();
    assert!(rival.try_lock().unwrap().is_none() && second.is_held());
    assert_eq!(backend.contenders("a"), 1);
    second.unlock().unwrap();
    assert!(disconnects(&done));
    assert!(!lock.is_locked());
    assert_eq!(manager.stats().released, 1);
    assert!(rival.try_lock().unwrap().is_some());
}

fn a_clone_on_another_thread_keeps_the_lock_but_that_thread_waits_its_turn(backend: &Backend) {
    let manager = backend.manager_of("alice");
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    let clone = guard.clone();
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            assert!(clone.is_held());
            // To hold a guard is not to be the thread that asked for it.
            assert!(lock.try_lock().unwrap().is_none());
            let refused = lock.lock_timeout(Duration::from_millis(20));
            assert!(matches!(refused, Err(LockError::Timeout { .. })), "{refused:?}");
            let pending = lock.enqueue().unwrap();
            wait_for_waiting(&manager, 1);
            clone.unlock().unwrap();
            pending
        });
        let pending = other.join().unwrap();
        assert!(guard.is_held(), "its clone was not the last");
        let token = guard.token();
        drop(guard);
        let next = pending.wait().unwrap();
        assert!(next.token() > token);
    });
}

fn the_thread_that_asked_reenters_wherever_its_guard_went(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    let token = guard.token();
    thread::scope(|scope| {
        let (here, there) = etcd_lock::crossbeam_channel::bounded::<()>(0);
        let keeper = scope.spawn(move || {
            let _ = there.recv();
            guard.is_held()
        });
        let again = lock.lock().unwrap();
        assert_eq!(again.token(), token);
        drop(again);
        drop(here);
        assert!(keeper.join().unwrap());
    });
    let next = take(&lock);
    assert!(next.token() > token, "nothing was left to re-enter");
}

fn a_thread_that_holds_the_lock_keeps_a_thread_of_the_same_process_waiting(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| take(&lock).token());
        wait_for_waiting(&manager, 1);
        assert!(guard.is_held());
        assert_eq!(backend.contenders("a"), 1, "it waits in the process, not in etcd");
        let token = guard.token();
        drop(guard);
        assert!(waiter.join().unwrap() > token);
    });
}

fn what_the_same_thread_enqueued_before_it_had_the_lock_is_part_of_the_hold(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let in_the_way = take(&other.new_lock("a").unwrap());
    let (first, second) = (lock.enqueue().unwrap(), lock.enqueue().unwrap());
    wait_for_waiting(&manager, 2);
    drop(in_the_way);
    let (first, second) = (first.wait().unwrap(), second.wait().unwrap());
    assert_eq!(first.token(), second.token());
    drop(first);
    assert!(second.is_held());
    second.unlock().unwrap();
    backend.wait_for_contenders("a", 0);
    assert_eq!(manager.stats().acquired, 1);
}

fn a_lost_hold_is_expired_on_reentry_until_its_last_guard_has_gone(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    let clone = guard.clone();
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert!(disconnects(guard.done()));
    let attempts = || {
        [
            lock.lock().err(),
            lock.try_lock().err(),
            lock.lock_timeout(Duration::ZERO).err(),
            lock.lock_or_cancel(&never()).err(),
            lock.enqueue().err(),
            manager.new_lock("a").unwrap().lock().err(),
        ]
    };
    let all_expired = |errors: [Option<LockError>; 6]| {
        errors.iter().all(|error| {
            matches!(error, Some(LockError::Expired { reason: LossReason::ForceUnlocked, key, .. }) if key == "a")
        })
    };
    assert!(all_expired(attempts()));
    drop(guard);
    assert!(all_expired(attempts()), "one guard of the lost hold is still there");

    // Whoever has nothing to do with the lost hold gets the lock meanwhile.
    let token = clone.token();
    let elsewhere = take_elsewhere(&lock);
    assert!(elsewhere.token() > token);
    assert!(!clone.is_held(), "a lost guard stays lost");
    drop(elsewhere);
    assert!(all_expired(attempts()));
    drop(clone);
    let anew = take(&lock);
    assert!(anew.token() > token && anew.is_held());
}
