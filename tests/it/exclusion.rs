//! At most one holder of a name, first come first served, and increasing tokens.

use std::collections::HashMap;
use std::sync::{Barrier, Mutex};
use std::thread;

use etcd_lock::crossbeam_channel::TryRecvError;
use etcd_lock::{FencingToken, LockManager, PendingLock};

use crate::support::oracle::Oracle;
use crate::support::{Backend, SOON, disconnects, on_both_stores, take, take_elsewhere, wait_for_waiting};

on_both_stores! {
    managers_and_their_threads_exclude_each_other_and_tokens_grow,
    threads_of_one_manager_exclude_each_other_and_tokens_grow,
    a_thousand_names_are_held_at_once_by_one_manager_and_then_by_another,
    managers_get_the_lock_in_the_order_of_their_keys,
    threads_of_one_manager_get_the_lock_in_the_order_of_their_arrival,
    a_waiter_that_leaves_the_middle_of_the_queue_lets_nobody_through,
}

/// This many threads of each manager take one name repeatedly; afterwards it is free, and no violation was recorded.
fn contend(backend: &Backend, managers: usize, threads: usize, rounds: usize) {
    let managers: Vec<LockManager> = (0..managers).map(|_| backend.manager()).collect();
    let oracle = Oracle::new();
    let start = Barrier::new(managers.len() * threads);
    let contend = |manager: &LockManager| {
        let lock = manager.new_lock("a").unwrap();
        start.wait();
        for _ in 0..rounds {
            let guard = take(&lock);
            let inside = oracle.enter("a", guard.token().as_u64());
            thread::yield_now();
            assert!(guard.is_held());
            drop(inside);
        }
    };
    thread::scope(|scope| {
        for manager in &managers {
            for _ in 0..threads {
                scope.spawn(|| contend(manager));
            }
        }
    });
    assert_eq!(oracle.count(), managers.len() * threads * rounds);
    oracle.judge();
    backend.wait_for_contenders("a", 0);
    assert!(managers.iter().all(|manager| manager.stats().lost.total() == 0));
}

fn managers_and_their_threads_exclude_each_other_and_tokens_grow(backend: &Backend) {
    contend(backend, 8, 4, 8);
}

fn threads_of_one_manager_exclude_each_other_and_tokens_grow(backend: &Backend) {
    contend(backend, 1, 16, 16);
}

fn a_thousand_names_are_held_at_once_by_one_manager_and_then_by_another(backend: &Backend) {
    let (first, second) = (backend.manager(), backend.manager());
    let names: Vec<String> = (0..1000).map(|n| format!("name-{n:03}")).collect();
    let enqueue = |manager: &LockManager| -> Vec<PendingLock> {
        names.iter().map(|name| manager.new_lock(name).unwrap().enqueue().unwrap()).collect()
    };
    let get = |pending: Vec<PendingLock>| -> Vec<_> {
        assert!(pending.iter().all(|pending| disconnects(pending.ready())));
        pending.into_iter().map(|pending| pending.wait().unwrap()).collect()
    };

    let held = get(enqueue(&first));
    assert_eq!(first.stats().held, 1000);
    let waiting = enqueue(&second);
    wait_for_waiting(&second, 1000);
    let shown = first.list_locks("name-").unwrap();
    assert!(shown.iter().map(|info| &info.key).eq(&names), "sorted, and each once");
    assert!(waiting.iter().all(|pending| pending.ready().try_recv() == Err(TryRecvError::Empty)));
    assert!(held.iter().all(|guard| guard.is_held()));

    let before: HashMap<String, FencingToken> =
        held.iter().map(|guard| (guard.key().into(), guard.token())).collect();
    drop(held);
    let held = get(waiting);
    assert_eq!((first.stats().held, second.stats().held), (0, 1000));
    assert!(held.iter().all(|guard| guard.is_held() && guard.token() > before[guard.key()]));
}

fn managers_get_the_lock_in_the_order_of_their_keys(backend: &Backend) {
    let holder = backend.manager();
    let guard = take(&holder.new_lock("a").unwrap());
    let managers: Vec<LockManager> = (0..6).map(|_| backend.manager()).collect();
    let mut queue = Vec::new();
    for (before, manager) in managers.iter().enumerate() {
        queue.push(manager.new_lock("a").unwrap().enqueue().unwrap());
        // Its key is in etcd before the next manager queues.
        backend.wait_for_contenders("a", before + 2);
    }
    let mut last = guard.token();
    drop(guard);
    for at in 0..queue.len() {
        let pending = queue.remove(0);
        assert!(disconnects(pending.ready()), "number {at} is next");
        let guard = pending.wait().unwrap();
        let overtaken = queue.iter().any(|later| later.ready().try_recv() != Err(TryRecvError::Empty));
        assert!(!overtaken, "no other lock is granted while number {at} holds it");
        assert!(guard.token() > last);
        last = guard.token();
        guard.unlock().unwrap();
    }
}

fn threads_of_one_manager_get_the_lock_in_the_order_of_their_arrival(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take_elsewhere(&lock);
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for n in 0..8 {
            let (lock, order) = (&lock, &order);
            scope.spawn(move || {
                let guard = take(lock);
                order.lock().unwrap().push((n, guard.token()));
            });
            wait_for_waiting(&manager, n + 1);
        }
        drop(guard);
    });
    let order = order.into_inner().unwrap();
    assert!(order.iter().map(|(n, _)| *n).eq(0..8), "{order:?}");
    assert!(order.windows(2).all(|pair| pair[0].1 < pair[1].1), "{order:?}");
}

/// A waiter watches its predecessor. If that one leaves the queue, the waiter must not take this for a hand-over.
fn a_waiter_that_leaves_the_middle_of_the_queue_lets_nobody_through(backend: &Backend) {
    let [holder, middle, last] = [(); 3].map(|()| backend.manager());
    let guard = take(&holder.new_lock("a").unwrap());
    let leaves = middle.new_lock("a").unwrap().enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    let stays = last.new_lock("a").unwrap().enqueue().unwrap();
    backend.wait_for_contenders("a", 3);
    let asked = last.stats().rpcs.txn;
    drop(leaves);
    backend.wait_for_contenders("a", 2);
    // It has noticed the deletion and read its new predecessor.
    crate::support::eventually(SOON, "the last one reads its position", || last.stats().rpcs.txn > asked);
    assert_eq!(stays.ready().try_recv(), Err(TryRecvError::Empty));
    assert!(guard.is_held());
    drop(guard);
    assert!(disconnects(stays.ready()));
    assert!(stays.wait().unwrap().is_held());
}
