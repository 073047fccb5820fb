//! The requests that locks cost, and their counts in `stats()`.

use std::thread;
use std::time::Duration;

use etcd_lock::{DistributedLock, ForceUnlock, LockError, LockManager, LockManagerOptions, RpcCounts, Stats};

use crate::support::{
    Backend, SOON, disconnects, eventually, on_both_stores, take, take_elsewhere, wait_for_waiting,
};

on_both_stores! {
    an_uncontended_lock_and_its_release_cost_one_transaction_each,
    a_hand_over_between_threads_of_a_process_costs_one_transaction,
    threads_that_wait_for_their_own_process_cost_etcd_nothing,
    holds_waits_and_their_ends_are_counted,
    losses_are_counted_by_reason,
    sessions_and_requests_are_counted_by_kind,
}

/// Requests since `before`, except those that time alone causes on a slow machine: renewals, and the watch on the
/// holder's own key a while after the grant.
fn since(manager: &LockManager, before: &Stats) -> RpcCounts {
    let (now, mut spent) = (manager.stats().rpcs, RpcCounts::default());
    spent.lease_grant = now.lease_grant - before.rpcs.lease_grant;
    spent.lease_revoke = now.lease_revoke - before.rpcs.lease_revoke;
    spent.lease_time_to_live = now.lease_time_to_live - before.rpcs.lease_time_to_live;
    spent.delete = now.delete - before.rpcs.delete;
    spent.txn = now.txn - before.rpcs.txn;
    spent
}

#[track_caller]
fn spent(manager: &LockManager, before: &Stats, txn: u64) {
    let mut expected = RpcCounts::default();
    expected.txn = txn;
    assert_eq!(since(manager, before), expected);
}

fn an_uncontended_lock_and_its_release_cost_one_transaction_each(backend: &Backend) {
    let manager = backend.manager();
    for name in ["a", "b", "a"] {
        let lock = manager.new_lock(name).unwrap();
        let before = manager.stats();
        let guard = lock.lock().unwrap();
        spent(&manager, &before, 1);
        guard.unlock().unwrap();
        spent(&manager, &before, 2);
        drop(lock.try_lock().unwrap().expect("the lock is free"));
        backend.wait_for_contenders(name, 0);
        spent(&manager, &before, 4);
    }
}

fn a_hand_over_between_threads_of_a_process_costs_one_transaction(backend: &Backend) {
    const THREADS: u64 = 10;
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take_elsewhere(&lock);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| lock.lock().unwrap());
        wait_for_waiting(&manager, 1);
        let before = manager.stats();
        drop(guard);
        let guard = waiter.join().unwrap();
        spent(&manager, &before, 1);

        // Each hand-over along the queue costs the same.
        for waiting in 1..=THREADS {
            scope.spawn(|| drop(lock.lock().unwrap()));
            wait_for_waiting(&manager, waiting);
        }
        let before = manager.stats();
        drop(guard);
        eventually(SOON, "every thread has released", || {
            manager.stats().released == before.released + THREADS + 1
        });
        backend.wait_for_contenders("a", 0);
        spent(&manager, &before, THREADS + 1);
    });
}

fn threads_that_wait_for_their_own_process_cost_etcd_nothing(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take_elsewhere(&lock);
    let before = manager.stats();
    let pending: Vec<_> = (0..100).map(|_| lock.enqueue().unwrap()).collect();
    wait_for_waiting(&manager, 100);
    assert!(lock.try_lock().unwrap().is_none());
    assert_eq!(backend.contenders("a"), 1);
    drop(pending);
    wait_for_waiting(&manager, 0);
    spent(&manager, &before, 0);
    assert!(guard.is_held());
}

fn holds_waits_and_their_ends_are_counted(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let fresh = manager.stats();
    assert_eq!((fresh.acquired, fresh.released, fresh.timed_out, fresh.waiting, fresh.held), (0, 0, 0, 0, 0));
    let locks: Vec<DistributedLock> =
        ["a", "b", "c"].iter().map(|name| manager.new_lock(name).unwrap()).collect();
    let guards: Vec<_> = locks.iter().map(take).collect();
    // A clone is not another hold.
    let more = guards[0].clone();
    let stats = manager.stats();
    assert_eq!((stats.acquired, stats.released, stats.held), (3, 0, 3));

    let rivals: Vec<_> =
        ["a", "b"].iter().map(|name| other.new_lock(name).unwrap().enqueue().unwrap()).collect();
    wait_for_waiting(&other, 2);
    drop(rivals);
    wait_for_waiting(&other, 0);
    for _ in 0..2 {
        let refused = other.new_lock("a").unwrap().lock_timeout(Duration::from_millis(200));
        assert!(matches!(refused, Err(LockError::Timeout { .. })), "{refused:?}");
    }
    assert!(other.new_lock("a").unwrap().try_lock().unwrap().is_none(), "a failed try is not a timeout");
    let stats = other.stats();
    assert_eq!((stats.acquired, stats.timed_out, stats.waiting, stats.held), (0, 2, 0, 0));

    drop(more);
    drop(guards);
    eventually(SOON, "three holds are released", || manager.stats().released == 3);
    let stats = manager.stats();
    assert_eq!((stats.acquired, stats.held, stats.lost.total(), stats.timed_out), (3, 0, 0, 0));
}

fn losses_are_counted_by_reason(backend: &Backend) {
    let manager = backend.manager();
    let [a, b, c] = ["a", "b", "c"].map(|name| manager.new_lock(name).unwrap());
    let guard = take(&a);
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert!(disconnects(guard.done()));
    drop(guard);
    assert_eq!((manager.stats().lost.force_unlocked, manager.stats().lost.total()), (1, 1));

    let guards = [take(&a), take(&b)];
    backend.end_session(&manager);
    assert!(guards.iter().all(|guard| disconnects(guard.done())));
    drop(guards);
    assert_eq!((manager.stats().lost.session_revoked, manager.stats().lost.total()), (2, 3));

    let guards = [take(&a), take(&b), take(&c)];
    manager.clone().close().unwrap();
    assert!(guards.iter().all(|guard| disconnects(guard.done())));
    let stats = manager.stats();
    assert_eq!((stats.lost.closed, stats.lost.total(), stats.released, stats.held), (3, 6, 0, 0));
    assert_eq!(stats.acquired, 6);
}

fn sessions_and_requests_are_counted_by_kind(backend: &Backend) {
    let manager = backend.manager_with(LockManagerOptions::default().ttl(Duration::from_secs(2)));
    let other = backend.manager();
    let first = manager.stats();
    assert_eq!((first.sessions, first.rpcs.lease_grant, first.rpcs.lease_revoke), (1, 1, 0));
    assert!(
        first.rpcs.txn >= 1 && first.rpcs.watch >= 1,
        "the session's key, and the watch on it: {first:?}"
    );
    eventually(SOON, "the session is renewed", || manager.stats().rpcs.lease_renew >= 2);

    let guard = take(&manager.new_lock("a").unwrap());
    let before = other.stats();
    other.lock_info("a").unwrap().expect("somebody holds it");
    assert_eq!(since(&other, &before).lease_time_to_live, 1, "the remaining time of the holder's lease");
    let pending = other.new_lock("a").unwrap().enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    eventually(SOON, "it watches its predecessor", || other.stats().rpcs.watch > before.rpcs.watch);
    other.force_unlock("a", ForceUnlock::Session).unwrap();
    assert_eq!(since(&other, &before).lease_revoke, 1);
    let asked = other.stats();
    pending.wait().unwrap().unlock().unwrap();
    assert!(since(&other, &asked).txn >= 1);

    assert!(disconnects(guard.done()));
    eventually(SOON, "the session is replaced", || manager.stats().sessions == 2);
    let stats = manager.stats();
    assert_eq!(stats.rpcs.lease_grant, 2);
    let rpcs = stats.rpcs;
    let sum = rpcs.lease_grant + rpcs.lease_renew + rpcs.lease_revoke + rpcs.lease_time_to_live;
    assert_eq!(rpcs.total(), sum + rpcs.delete + rpcs.txn + rpcs.watch);
}
