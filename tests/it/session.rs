//! A lost session ends every hold, and is replaced by itself. Waiters keep waiting.

use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockManager, LockManagerOptions, LossReason};

use crate::support::{
    Backend, SOON, disconnects, eventually, lease_of, on_both_stores, take, take_elsewhere, wait_for_waiting,
};

on_both_stores! {
    a_lost_session_ends_every_guard_and_is_replaced,
    a_lost_session_is_nothing_to_other_managers,
    waiters_stay_queued_and_get_the_lock_under_the_next_session,
    a_thread_that_waits_behind_a_lost_hold_gets_the_lock_under_the_next_session,
    a_waiter_whose_session_is_lost_keeps_its_own_time_limit,
    a_session_can_be_lost_again_and_again,
}
on_both_stores! { own_server:
    a_manager_that_is_cut_off_gives_up_its_holds_by_itself_and_comes_back,
}

#[track_caller]
fn wait_for_session_after(manager: &LockManager, lost: i64) {
    eventually(SOON, "the next session is up", || {
        let session = manager.session();
        session.is_alive() && session.lease_id != Some(lost)
    });
}

/// Whether the key belongs to the present session.
fn is_of_this_session(key: &str, manager: &LockManager) -> bool {
    key.contains(&format!("/{:x}-", lease_of(manager)))
}

fn a_lost_session_ends_every_guard_and_is_replaced(backend: &Backend) {
    let manager = backend.manager();
    let locks: Vec<_> = (0..20).map(|n| manager.new_lock(&format!("name-{n}")).unwrap()).collect();
    let guards: Vec<_> = locks.iter().map(take).collect();
    let clone = guards[0].clone();
    let first = manager.session();
    assert!(first.is_alive() && is_of_this_session(guards[0].etcd_key(), &manager));
    backend.end_session(&manager);
    for guard in &guards {
        assert!(disconnects(guard.done()));
        assert_eq!((guard.loss(), guard.is_held()), (Some(LossReason::SessionRevoked), false));
        assert_eq!(guard.remaining(), Duration::ZERO);
    }
    assert!(locks.iter().all(|lock| !lock.is_locked()));
    assert_eq!(clone.loss(), Some(LossReason::SessionRevoked));
    wait_for_session_after(&manager, first.lease_id.expect("there was a session"));
    assert_eq!((manager.stats().sessions, manager.stats().held), (2, 0));

    let tokens: Vec<_> = guards.iter().map(|guard| guard.token()).collect();
    for guard in guards.into_iter().skip(1) {
        let unlocked = guard.unlock();
        let expired = matches!(unlocked, Err(LockError::Expired { reason: LossReason::SessionRevoked, .. }));
        assert!(expired, "{unlocked:?}");
    }
    for (lock, token) in locks.iter().zip(tokens).skip(1) {
        let guard = take(lock);
        assert!(guard.token() > token && is_of_this_session(guard.etcd_key(), &manager));
    }
    assert!(!clone.is_held(), "a lost guard stays lost");
}

fn a_lost_session_is_nothing_to_other_managers(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let guard = take(&other.new_lock("a").unwrap());
    let session = lease_of(&other);
    let lost = take(&manager.new_lock("b").unwrap());
    backend.end_session(&manager);
    assert!(disconnects(lost.done()));
    // The lock lost here is free for others.
    assert!(take(&other.new_lock("b").unwrap()).token() > lost.token());
    assert!(guard.is_held() && guard.loss().is_none());
    assert_eq!((lease_of(&other), other.stats().sessions), (session, 1));
}

fn waiters_stay_queued_and_get_the_lock_under_the_next_session(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let guard = take(&other.new_lock("a").unwrap());
    let lock = manager.new_lock("a").unwrap();
    let first = thread::scope(|scope| scope.spawn(|| lock.enqueue().unwrap()).join().unwrap());
    backend.wait_for_contenders("a", 2);
    let second = lock.enqueue().unwrap();
    wait_for_waiting(&manager, 2);
    let lease = lease_of(&manager);

    backend.end_session(&manager);
    wait_for_session_after(&manager, lease);
    backend.wait_for_contenders("a", 2);
    assert_eq!(manager.stats().waiting, 2);
    assert!(guard.is_held());
    assert!(
        first.ready().try_recv().is_err_and(|error| error.is_empty()),
        "the loss grants the lock to no waiter"
    );

    drop(guard);
    assert!(disconnects(first.ready()));
    assert!(second.ready().try_recv().is_err_and(|error| error.is_empty()), "the waiters keep their order");
    let first = first.wait().unwrap();
    assert!(is_of_this_session(first.etcd_key(), &manager) && first.is_held());
    let token = first.token();
    drop(first);
    assert!(second.wait().unwrap().token() > token);
}

fn a_thread_that_waits_behind_a_lost_hold_gets_the_lock_under_the_next_session(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let next = take(&lock);
            assert!(next.is_held() && is_of_this_session(next.etcd_key(), &manager));
            next.token()
        });
        wait_for_waiting(&manager, 1);
        backend.end_session(&manager);
        // Before the lost guard is dropped.
        eventually(SOON, "the waiting thread has held the lock", || waiter.is_finished());
        assert!(!guard.is_held());
        assert!(waiter.join().unwrap() > guard.token());
    });
    assert_eq!(manager.stats().sessions, 2);
}

fn a_waiter_whose_session_is_lost_keeps_its_own_time_limit(backend: &Backend) {
    let (manager, other) = (backend.manager_of("bob"), backend.manager_of("alice"));
    let guard = take(&other.new_lock("a").unwrap());
    let lock = manager.new_lock("a").unwrap();
    let (limit, begun) = (Duration::from_millis(1500), Instant::now());
    thread::scope(|scope| {
        let call = scope.spawn(|| lock.lock_timeout(limit));
        wait_for_waiting(&manager, 1);
        let lease = lease_of(&manager);
        backend.end_session(&manager);
        wait_for_session_after(&manager, lease);
        let refused = call.join().unwrap();
        let took = begun.elapsed();
        let Err(LockError::Timeout { waited, .. }) = refused else { panic!("{refused:?}") };
        assert!(waited + Duration::from_millis(1) >= limit, "it gave up after only {waited:?}");
        assert!(took < SOON, "it took {took:?}");
    });
    backend.wait_for_contenders("a", 1);
    assert!(guard.is_held());
}

fn a_session_can_be_lost_again_and_again(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let mut last = None;
    for sessions in 1..=5 {
        let guard = take(&lock);
        assert!(last < Some(guard.token()));
        last = Some(guard.token());
        assert_eq!(manager.stats().sessions, sessions);
        backend.end_session(&manager);
        assert!(disconnects(guard.done()));
    }
    let held = take_elsewhere(&lock);
    assert!(held.is_held() && held.loss().is_none());
}

/// etcd does not answer for longer than the lease lasts. The holder ends its holds by the clock alone, before etcd
/// could grant the lock to another, and recovers by itself once etcd answers again.
fn a_manager_that_is_cut_off_gives_up_its_holds_by_itself_and_comes_back(backend: &Backend) {
    let ttl = Duration::from_secs(2);
    let manager = backend.manager_with(LockManagerOptions::default().ttl(ttl));
    let lock = manager.new_lock("a").unwrap();
    let guard = take_elsewhere(&lock);
    let lease = manager.session();
    assert_eq!(lease.ttl, ttl);
    let begun = Instant::now();
    let promised = guard.remaining();
    backend.cut_off(&manager);
    assert!(disconnects(guard.done()));
    let lasted = begun.elapsed();
    assert_eq!((guard.loss(), guard.is_held()), (Some(LossReason::SessionExpired), false));
    assert!(lasted >= promised, "assured for {promised:?}, ended after {lasted:?}");
    assert!(!manager.session().is_alive());
    assert_eq!(manager.stats().lost.session_expired, 1);

    backend.rejoin(&manager);
    let next = take(&lock);
    assert!(next.token() > guard.token() && next.is_held());
    assert_eq!(manager.stats().sessions, 2);
}
