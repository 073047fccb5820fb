//! Dropping and closing is bounded while nothing answers.

use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockGuard, LockManager, LockManagerOptions, LossReason};

use crate::support::{Access, Backend, Etcd, Raw, disconnects, fresh_root, on_both_stores, take, within};

on_both_stores! { own_server:
    the_last_drop_is_bounded_while_nothing_answers,
    close_is_bounded_while_nothing_answers_and_says_so,
    a_guards_drop_does_not_wait_while_nothing_answers,
}

const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Far above `CLOSE_TIMEOUT` for a busy machine, far below every other time limit.
const BOUND: Duration = Duration::from_secs(3);

fn options() -> LockManagerOptions {
    LockManagerOptions::default().close_timeout(CLOSE_TIMEOUT).request_timeout(Duration::from_secs(20))
}

/// Drops the guard of a manager, which is the last handle of it.
#[track_caller]
fn drops_in_time(manager: LockManager, guard: LockGuard) {
    let done = guard.done().clone();
    drop(manager);
    let took = within(5 * BOUND, "the last handle goes", || {
        let begun = Instant::now();
        drop(guard);
        begun.elapsed()
    });
    assert!(took < BOUND, "it took {took:?}");
    assert!(disconnects(&done));
}

fn the_last_drop_is_bounded_while_nothing_answers(backend: &Backend) {
    let manager = backend.manager_with(options());
    let guard = take(&manager.new_lock("a").unwrap());
    backend.cut_off(&manager);
    drops_in_time(manager, guard);
}

fn close_is_bounded_while_nothing_answers_and_says_so(backend: &Backend) {
    let manager = backend.manager_with(options());
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    backend.cut_off(&manager);
    let closing = manager.clone();
    let (result, took) = within(5 * BOUND, "close returns", || {
        let begun = Instant::now();
        (closing.close(), begun.elapsed())
    });
    assert!(matches!(result, Err(LockError::Unavailable { .. })), "{result:?}");
    assert!(took < BOUND, "it took {took:?}");
    assert!(disconnects(guard.done()));
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    drop(guard);
    assert!(matches!(lock.lock(), Err(LockError::Closed)));
}

fn a_guards_drop_does_not_wait_while_nothing_answers(backend: &Backend) {
    let manager = backend.manager_with(options());
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    backend.cut_off(&manager);
    let done = guard.done().clone();
    let took = within(5 * BOUND, "a guard goes", || {
        let begun = Instant::now();
        drop(guard);
        begun.elapsed()
    });
    assert!(took < BOUND, "it took {took:?}");
    assert!(disconnects(&done), "the hold is over here, whatever etcd says");
    assert!(!lock.is_locked());
    backend.rejoin(&manager);
    backend.wait_for_contenders("a", 0);
}

/// The process that serves is gone, and with it the connection: nobody is there to be told of the end.
#[test]
fn the_last_drop_is_bounded_when_etcd_is_gone() {
    let etcd = Etcd::start();
    let root = fresh_root("gone");
    let manager = LockManager::connect(etcd.endpoints(), &root, options()).unwrap();
    let guard = take(&manager.new_lock("a").unwrap());
    etcd.kill();
    drops_in_time(manager, guard);
}

/// Not for ever: what could not be told to etcd ends with the lease.
#[test]
fn what_the_last_drop_could_not_take_back_goes_with_the_lease() {
    let etcd = Etcd::start();
    let root = fresh_root("left-behind");
    let manager =
        LockManager::connect(etcd.endpoints(), &root, options().ttl(Duration::from_secs(2))).unwrap();
    let guard = take(&manager.new_lock("a").unwrap());
    etcd.stop();
    drops_in_time(manager, guard);
    etcd.cont();
    let access: &Access = etcd.access();
    let raw = Raw::connect(access);
    crate::support::eventually(crate::support::SOON, "no key, no lease", || {
        raw.count(&root) == 0 && raw.leases().is_empty()
    });
}
