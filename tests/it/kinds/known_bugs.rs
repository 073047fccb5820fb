//! What went wrong in other read-write locks and semaphores, shown not to happen here.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use etcd_lock::{LockManager, LockManagerOptions, LockState, Mode};

use super::{Gauge, a, is_refused, permits, queue_for_a, take_a};
use crate::support::manager::{assert_still_waiting, connect_with, granted};
use crate::support::process::{self, Process};
use crate::support::{Access, Backend, SOON, fresh_root, on_both_stores, shared, take, wait_for_waiting};

on_both_stores! {
    a_queued_writer_is_not_let_in_beside_a_reader_when_another_reader_leaves,
    two_processes_that_both_take_two_semaphores_in_one_order_never_block_each_other,
    tries_at_the_same_moment_never_take_more_permits_than_there_are,
    dropped_waits_leak_no_permit,
    a_wait_that_outlives_its_session_leaves_no_orphan,
}

/// Curator #796: a writer held the lock beside a reader.
fn a_queued_writer_is_not_let_in_beside_a_reader_when_another_reader_leaves(backend: &Backend) {
    let [one, two, writing] = [(); 3].map(|()| backend.manager());
    for leaves_first in [true, false] {
        let (first, second) = (take_a(&one, Mode::Shared), take_a(&two, Mode::Shared));
        let writer = queue_for_a(&writing, Mode::Exclusive);
        backend.wait_for_contenders("a", 3);
        let (leaves, stays) = if leaves_first { (first, second) } else { (second, first) };
        drop(leaves);
        backend.wait_for_contenders("a", 2);
        assert_still_waiting(&writer);
        assert!(stays.is_held());
        // A reader that comes now waits, although only a reader holds it.
        assert!(is_refused(&one, Mode::Shared));
        drop(stays);
        drop(granted(writer));
        backend.wait_for_contenders("a", 0);
    }
}

/// databend #17986: two nodes that saw two permits in different orders each held one and waited for the other.
fn two_processes_that_both_take_two_semaphores_in_one_order_never_block_each_other(backend: &Backend) {
    let managers = [backend.manager(), backend.manager()];
    let start = Barrier::new(4);
    let gauges = [Gauge::default(), Gauge::default()];
    let work = |manager: &LockManager| {
        let locks = ["x", "y"].map(|name| manager.new_semaphore(name, 1).unwrap());
        start.wait();
        for _ in 0..15 {
            let guards = [take(&locks[0]), take(&locks[1])];
            gauges.iter().for_each(|gauge| gauge.enter(1));
            gauges.iter().for_each(|gauge| gauge.leave(1));
            drop(guards);
        }
    };
    thread::scope(|scope| {
        for manager in managers.iter().chain(&managers) {
            scope.spawn(move || work(manager));
        }
    });
    assert!(gauges.iter().all(|gauge| gauge.most() == 1));
}

/// kazoo #213: tries read the count and took their lease without being alone between the two.
fn tries_at_the_same_moment_never_take_more_permits_than_there_are(backend: &Backend) {
    const TRIES: usize = 8;
    let managers: Vec<_> = (0..TRIES / 2).map(|_| backend.manager()).collect();
    for limit in [1, 2, 3] {
        let start = Barrier::new(TRIES);
        let guards: Vec<_> = thread::scope(|scope| {
            let tries: Vec<_> = (0..TRIES)
                .map(|at| {
                    let (lock, start) = (a(&managers[at / 2], permits(1, limit)), &start);
                    scope.spawn(move || {
                        start.wait();
                        lock.try_lock().unwrap()
                    })
                })
                .collect();
            tries.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert!((1..=limit as usize).contains(&guards.len()), "{} of {limit}", guards.len());
        assert!(guards.iter().all(|guard| guard.is_held()));
        assert_eq!(backend.contenders("a"), guards.len());
        drop(guards);
        backend.wait_for_contenders("a", 0);
    }
}

/// databend #18003: waits that were dropped kept their permits.
fn dropped_waits_leak_no_permit(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    for _ in 0..10 {
        let all = take_a(&other, permits(3, 3));
        let waits: Vec<_> = (0..6).map(|_| queue_for_a(&manager, permits(1, 3))).collect();
        wait_for_waiting(&manager, 6);
        let (kept, dropped): (Vec<_>, Vec<_>) =
            waits.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
        drop(dropped);
        drop(all);
        let kept: Vec<_> = kept.into_iter().map(|(_, pending)| granted(pending)).collect();
        assert!(kept.iter().all(|guard| guard.is_held()), "all three permits are out");
        assert!(is_refused(&other, permits(1, 3)));
    }
    assert!(take_a(&other, permits(3, 3)).is_held());
}

/// Curator #835: a client that reconnected during its wait left the key of its first attempt.
fn a_wait_that_outlives_its_session_leaves_no_orphan(backend: &Backend) {
    let (holder, manager) = (backend.manager(), backend.manager());
    for mode in [Mode::Shared, permits(2, 2)] {
        let writer = take_a(&holder, Mode::Exclusive);
        let pending = queue_for_a(&manager, mode);
        backend.wait_for_contenders("a", 2);
        let first = holder.queue("a").unwrap().remove(1);
        backend.end_session(&manager);
        crate::support::eventually(SOON, "it queues again", || {
            let queue = holder.queue("a").unwrap();
            queue.len() == 2 && queue[1].token > first.token
        });
        drop(writer);
        let guard = granted(pending);
        let queue = holder.queue("a").unwrap();
        assert_eq!((queue.len(), queue[0].token, queue[0].state), (1, guard.token(), LockState::Held));
        drop(guard);
        backend.wait_for_contenders("a", 0);
    }
}

/// Curator #982: a wait that was interrupted at the wrong time left its lease node. Here the call is cancelled at any
/// time, before its key is there too.
#[test]
fn a_wait_that_is_cancelled_at_any_time_leaves_no_orphan() {
    let backend = Backend::etcd("orphans");
    let (holder, manager) = (backend.manager(), backend.manager());
    let guard = take_a(&holder, permits(2, 2));
    for wait in 0..30 {
        let (stop, cancel) = etcd_lock::crossbeam_channel::bounded::<()>(0);
        let lock = a(&manager, permits(1, 2));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock.lock_or_cancel(&cancel).map(drop));
            // The pause is what is varied.
            thread::sleep(Duration::from_micros(200 * wait));
            drop(stop);
            waiting.join().unwrap().unwrap_err();
        });
    }
    backend.wait_for_contenders("a", 1);
    drop(guard);
    assert!(take_a(&manager, permits(2, 2)).is_held());
}

/// Redisson #4462 and #2045: the permits of a process that died were gone for good.
#[test]
fn the_permits_of_a_killed_process_come_back_with_its_lease() {
    const TTL: Duration = Duration::from_secs(2);
    let var = |name: &str| std::env::var(name).unwrap();
    if let Some(role) = process::role() {
        let access = Access::default().at(var("TEST_ENDPOINTS").split(',').map(String::from));
        let manager = connect_with(&access, &var("TEST_ROOT"), LockManagerOptions::default().ttl(TTL));
        let _guards = [take_a(&manager, permits(1, 3)), take_a(&manager, permits(2, 3))];
        role.say("held");
        assert_eq!(role.hear(), None, "it is killed");
        return;
    }
    let root = fresh_root("kinds");
    let endpoints = shared().endpoints().join(",");
    let environment = [("TEST_ENDPOINTS", &*endpoints), ("TEST_ROOT", &root)];
    let test = "kinds::known_bugs::the_permits_of_a_killed_process_come_back_with_its_lease";
    let mut child = Process::spawn_with(test, "holder", &environment);
    assert_eq!(child.hear(SOON), "held");
    let manager = connect_with(shared().access(), &root, LockManagerOptions::default());
    assert!(is_refused(&manager, permits(1, 3)));
    let pending = queue_for_a(&manager, permits(3, 3));
    child.kill();
    assert_still_waiting(&pending);
    let guard = granted(pending);
    assert_eq!(manager.queue("a").unwrap().len(), 1);
    drop(guard);
}
