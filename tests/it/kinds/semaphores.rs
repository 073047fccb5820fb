//! Semaphores: never more permits out than there are, and nobody starves.

use std::sync::Barrier;
use std::thread;

use etcd_lock::{LockError, LockManager, LockOptions, LockState, Mode};

use super::{Gauge, a, all_granted, is_refused, permits, queue_for_a, take_a, txns};
use crate::support::manager::{assert_still_waiting, granted, wait_until_done};
use crate::support::{Backend, on_both_stores, take, wait_for_waiting};

on_both_stores! {
    a_permit_is_free_again_when_one_is_given_back,
    managers_and_their_threads_never_have_more_than_the_limit_out,
    a_large_take_is_not_starved_by_small_ones,
    the_smallest_limit_before_a_waiter_counts,
    a_mutex_on_the_same_name_drains_a_semaphore,
    a_reader_counts_as_one_permit,
    a_lost_session_gives_all_its_permits_back,
    a_thousand_permits_are_out_at_once_and_not_one_more,
    a_permit_that_is_free_costs_few_transactions,
    bad_limits_and_takes_are_refused_before_anything_is_sent,
}

fn a_permit_is_free_again_when_one_is_given_back(backend: &Backend) {
    let (alice, bob) = (backend.manager(), backend.manager());
    let semaphore = alice.new_semaphore("a", 3).unwrap();
    assert_eq!(semaphore.mode(), permits(1, 3));
    let mut out = vec![take(&semaphore), take_a(&bob, permits(1, 3)), take(&semaphore)];
    assert!(out.iter().all(|guard| guard.mode() == permits(1, 3) && guard.is_held()));
    for manager in [&alice, &bob] {
        assert!(is_refused(manager, permits(1, 3)));
    }
    let pending = queue_for_a(&bob, permits(1, 3));
    assert_still_waiting(&pending);
    out.remove(1).unlock().unwrap();
    assert!(granted(pending).is_held());
}

fn managers_and_their_threads_never_have_more_than_the_limit_out(backend: &Backend) {
    const MANAGERS: usize = 4;
    const THREADS: usize = 4;
    const LIMIT: u32 = 3;
    let managers: Vec<LockManager> = (0..MANAGERS).map(|_| backend.manager()).collect();
    let (gauge, start) = (Gauge::default(), Barrier::new(MANAGERS * THREADS));
    let contend = |manager: &LockManager, thread: usize| {
        start.wait();
        for round in 0..10 {
            let take = ((thread + round) % 3) as u32 + 1;
            let lock = a(manager, permits(take, LIMIT));
            let guard = if round % 4 == 3 { lock.try_lock().unwrap() } else { Some(super::take(&lock)) };
            if let Some(guard) = guard {
                gauge.enter(take);
                thread::yield_now();
                assert!(guard.is_held());
                gauge.leave(take);
            }
        }
    };
    thread::scope(|scope| {
        for manager in &managers {
            for thread in 0..THREADS {
                scope.spawn(move || contend(manager, thread));
            }
        }
    });
    assert_eq!(gauge.most(), LIMIT, "all were out at times, and never more");
    backend.wait_for_contenders("a", 0);
    assert!(managers.iter().all(|manager| manager.stats().lost.total() == 0));
}

fn a_large_take_is_not_starved_by_small_ones(backend: &Backend) {
    let [one, two, large, small] = [(); 4].map(|()| backend.manager());
    let (first, second) = (take_a(&one, permits(1, 4)), take_a(&two, permits(1, 4)));
    let all = queue_for_a(&large, permits(4, 4));
    backend.wait_for_contenders("a", 3);
    let later = [&small, &one, &large].map(|manager| queue_for_a(manager, permits(1, 4)));
    backend.wait_for_contenders("a", 6);
    assert!(is_refused(&small, permits(1, 4)), "two permits are free, but somebody was there before");
    drop(first);
    assert_still_waiting(&all);
    later.iter().for_each(assert_still_waiting);
    drop(second);
    let all = granted(all);
    later.iter().for_each(assert_still_waiting);
    drop(all);
    assert!(all_granted(later).iter().all(|guard| guard.is_held()));
}

/// As during a deployment that changes the limit.
fn the_smallest_limit_before_a_waiter_counts(backend: &Backend) {
    let [old, new, third] = [(); 3].map(|()| backend.manager());
    let _wide = take_a(&old, permits(1, 5));
    let narrow = take_a(&new, permits(1, 2));
    let waits = queue_for_a(&third, permits(1, 5));
    assert_still_waiting(&waits);
    assert!(is_refused(&old, permits(1, 5)) && is_refused(&new, permits(1, 2)));
    drop(narrow);
    let third_hold = granted(waits);
    assert!(is_refused(&new, permits(1, 2)), "two are out already");
    assert!(a(&old, permits(3, 5)).try_lock().unwrap().is_some());
    drop(third_hold);
}

fn a_mutex_on_the_same_name_drains_a_semaphore(backend: &Backend) {
    let [one, two, draining, late] = [(); 4].map(|()| backend.manager());
    let out = [take_a(&one, permits(1, 8)), take_a(&two, permits(3, 8))];
    let mutex = queue_for_a(&draining, Mode::Exclusive);
    backend.wait_for_contenders("a", 3);
    let permit = queue_for_a(&late, permits(1, 8));
    backend.wait_for_contenders("a", 4);
    for guard in out {
        assert_still_waiting(&mutex);
        assert_still_waiting(&permit);
        guard.unlock().unwrap();
    }
    let mutex = granted(mutex);
    assert_still_waiting(&permit);
    drop(mutex);
    assert!(granted(permit).is_held());
}

fn a_reader_counts_as_one_permit(backend: &Backend) {
    let (alice, bob) = (backend.manager(), backend.manager());
    let (reader, permit) = (take_a(&alice, Mode::Shared), take_a(&bob, permits(1, 2)));
    assert!(is_refused(&alice, permits(1, 2)) && is_refused(&bob, Mode::Shared));
    drop(reader);
    let reader = take_a(&bob, Mode::Shared);
    assert!(reader.is_held() && permit.is_held());
}

fn a_lost_session_gives_all_its_permits_back(backend: &Backend) {
    let (lost, other) = (backend.manager(), backend.manager());
    let guards = [take_a(&lost, permits(1, 4)), take_a(&lost, permits(2, 4)), take_a(&lost, permits(1, 4))];
    let all = queue_for_a(&other, permits(4, 4));
    backend.wait_for_contenders("a", 4);
    backend.end_session(&lost);
    guards.iter().for_each(wait_until_done);
    let all = granted(all);
    let shown = other.queue("a").unwrap();
    assert_eq!((shown.len(), shown[0].token, shown[0].state), (1, all.token(), LockState::Held));
    assert_eq!(lost.stats().lost.session_revoked, 3);
}

fn a_thousand_permits_are_out_at_once_and_not_one_more(backend: &Backend) {
    const LIMIT: u32 = 1000;
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_semaphore("a", LIMIT).unwrap();
    let pending: Vec<_> = (0..LIMIT).map(|_| lock.enqueue().unwrap()).collect();
    let mut guards: Vec<_> = pending.into_iter().map(granted).collect();
    assert_eq!(manager.stats().held, u64::from(LIMIT));
    assert!(is_refused(&other, permits(1, LIMIT)));
    let next = queue_for_a(&other, permits(1, LIMIT));
    assert_still_waiting(&next);
    drop(guards.pop());
    let next = granted(next);
    assert!(is_refused(&manager, permits(1, LIMIT)));
    let info = other.lock_info("a").unwrap().unwrap();
    assert_eq!((info.waiters, info.token), (0, guards[0].token()));
    drop((next, guards));
    wait_for_waiting(&manager, 0);
}

fn a_permit_that_is_free_costs_few_transactions(backend: &Backend) {
    let (other, manager) = (backend.manager(), backend.manager());
    let _others = [take_a(&other, permits(2, 8)), take_a(&other, permits(1, 8))];
    let before = manager.stats();
    let guard = a(&manager, permits(1, 8)).lock().unwrap();
    assert_eq!(txns(&manager, &before), 1);
    guard.unlock().unwrap();
    let before = manager.stats();
    let guard = a(&manager, permits(1, 8)).try_lock().unwrap().expect("four permits are free");
    assert!(txns(&manager, &before) <= 2, "a read, and the put that compares it");
    drop(guard);
}

fn bad_limits_and_takes_are_refused_before_anything_is_sent(backend: &Backend) {
    let manager = backend.manager();
    let before = manager.stats();
    let bad = [
        (permits(0, 1), "at least 1"),
        (permits(1, 0), "limit of at least 1"),
        (permits(3, 2), "3 permits"),
        (permits(1, 4097), "4096"),
        (permits(u32::MAX, u32::MAX), "4096"),
    ];
    for (mode, part) in bad {
        let refused = manager.new_lock_with("a", LockOptions::default().mode(mode)).unwrap_err();
        let LockError::InvalidOptions { why, .. } = &refused else { panic!("{refused:?}") };
        assert!(why.contains(part), "{mode:?}: {why}");
    }
    for limit in [0, 4097, u32::MAX] {
        assert!(matches!(manager.new_semaphore("a", limit), Err(LockError::InvalidOptions { .. })));
    }
    assert!(matches!(manager.new_semaphore("", 1), Err(LockError::InvalidKey { .. })));
    assert!(matches!(manager.new_read_lock(""), Err(LockError::InvalidKey { .. })));
    assert!(take_a(&manager, permits(4096, 4096)).is_held());
    assert!(txns(&manager, &before) >= 1);
}
