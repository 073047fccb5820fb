//! What holders in every mode see: done, losses, forced unlocks, the end of the session and of the manager.

use std::time::Duration;

use etcd_lock::memory::MemoryStore;
use etcd_lock::{
    ForceUnlock, LockError, LockManager, LockManagerOptions, LockState, LockViewer, LossReason, Mode,
};
use log::Level;

use super::{EACH, permits, queue_for_a, take_a};
use crate::support::logs::Logs;
use crate::support::manager::{assert_still_waiting, granted, wait_until_done};
use crate::support::{Backend, SOON, disconnects, eventually, on_both_stores, take};

on_both_stores! {
    done_closes_for_the_released_hold_alone,
    a_clone_keeps_its_own_hold_and_no_other,
    a_forced_unlock_of_one_reader_leaves_the_others,
    a_forced_unlock_of_a_session_ends_all_its_reads_and_no_other_s,
    a_lost_session_loses_every_hold_of_it_and_its_waiters_queue_again,
    close_ends_holds_and_waits_of_every_mode,
    the_remaining_time_and_the_token_are_those_of_any_hold,
    a_long_wait_and_an_acquired_permit_are_logged_with_their_modes,
}

on_both_stores! { own_server:
    all_readers_of_a_manager_that_is_cut_off_are_told_in_time,
}

/// Two modes that can be held together, each by itself.
const TOGETHER: [Mode; 2] = [Mode::Shared, permits(1, 4)];

fn done_closes_for_the_released_hold_alone(backend: &Backend) {
    for mode in TOGETHER {
        let (alice, bob) = (backend.manager(), backend.manager());
        let [first, second, third] = [&alice, &alice, &bob].map(|manager| take_a(manager, mode));
        let done = first.done().clone();
        first.unlock().unwrap();
        assert!(disconnects(&done));
        for guard in [&second, &third] {
            assert!(guard.is_held() && guard.done().try_recv().is_err_and(|error| error.is_empty()));
            assert_eq!(guard.loss(), None);
        }
        drop((second, third));
        backend.wait_for_contenders("a", 0);
    }
}

fn a_clone_keeps_its_own_hold_and_no_other(backend: &Backend) {
    let manager = backend.manager();
    let (first, second) = (take_a(&manager, Mode::Shared), take_a(&manager, Mode::Shared));
    let clone = first.clone();
    assert_eq!(clone.etcd_key(), first.etcd_key());
    assert_ne!(second.etcd_key(), first.etcd_key(), "every read is a hold of its own");
    drop(first);
    second.unlock().unwrap();
    assert_eq!((manager.stats().held, backend.contenders("a")), (1, 1));
    assert!(clone.is_held());
    clone.unlock().unwrap();
    assert_eq!(backend.contenders("a"), 0);
}

fn a_forced_unlock_of_one_reader_leaves_the_others(backend: &Backend) {
    let [alice, bob, admin] = ["alice", "bob", "admin"].map(|owner| backend.manager_of(owner));
    let [first, second, third] = [&alice, &bob, &alice].map(|manager| take_a(manager, Mode::Shared));
    let writer = queue_for_a(&admin, Mode::Exclusive);
    backend.wait_for_contenders("a", 4);
    let info = admin.lock_info("a").unwrap().unwrap();
    assert_eq!((info.mode, info.state, info.waiters), (Mode::Shared, LockState::Held, 1));

    let evicted = admin.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert_eq!((evicted.token, evicted.owner.as_deref()), (first.token(), Some("alice")));
    wait_until_done(&first);
    assert_eq!(first.loss(), Some(LossReason::ForceUnlocked));
    let lost = first.unlock().unwrap_err();
    assert!(matches!(lost, LockError::Expired { reason: LossReason::ForceUnlocked, .. }), "{lost:?}");
    assert!(second.is_held() && third.is_held());
    assert_still_waiting(&writer);
    assert_eq!(admin.lock_info("a").unwrap().unwrap().token, second.token(), "the next holder is shown");
    drop((second, third));
    assert!(granted(writer).is_held());
}

fn a_forced_unlock_of_a_session_ends_all_its_reads_and_no_other_s(backend: &Backend) {
    let [alice, bob, admin] = ["alice", "bob", "admin"].map(|owner| backend.manager_of(owner));
    let hers = [take_a(&alice, Mode::Shared), take_a(&alice, Mode::Shared)];
    let his = take_a(&bob, Mode::Shared);
    let evicted = admin.force_unlock("a", ForceUnlock::Session).unwrap();
    assert_eq!(evicted.owner.as_deref(), Some("alice"));
    hers.iter().for_each(wait_until_done);
    assert!(hers.iter().all(|guard| guard.loss() == Some(LossReason::SessionRevoked)));
    assert!(his.is_held());
    backend.wait_for_contenders("a", 1);
}

fn a_lost_session_loses_every_hold_of_it_and_its_waiters_queue_again(backend: &Backend) {
    for mode in TOGETHER {
        let (manager, other) = (backend.manager(), backend.manager());
        let lost = [take_a(&manager, mode), take_a(&manager, mode), take_a(&manager, mode)];
        let kept = take_a(&other, mode);
        let waiting = queue_for_a(&manager, Mode::Exclusive);
        backend.wait_for_contenders("a", 5);
        backend.end_session(&manager);
        lost.iter().for_each(wait_until_done);
        assert!(lost.iter().all(|guard| guard.loss() == Some(LossReason::SessionRevoked)));
        assert!(kept.is_held());
        drop(kept);
        let next = granted(waiting);
        assert!(lost.iter().all(|guard| guard.token() < next.token()));
        drop(next);
        backend.wait_for_contenders("a", 0);
    }
}

/// Without an answer from etcd, and before it could let a writer in.
fn all_readers_of_a_manager_that_is_cut_off_are_told_in_time(backend: &Backend) {
    let manager = backend.manager_with(LockManagerOptions::default().ttl(Duration::from_secs(2)));
    let other = backend.manager();
    let readers = [(); 3].map(|()| take_a(&manager, Mode::Shared));
    let permits = take(&manager.new_semaphore("b", 2).unwrap());
    backend.cut_off(&manager);
    for guard in readers.iter().chain([&permits]) {
        assert!(disconnects(guard.done()));
        assert_eq!((guard.loss(), guard.is_held()), (Some(LossReason::SessionExpired), false));
        assert!(guard.remaining().is_zero());
    }
    backend.rejoin(&manager);
    let writer = take_a(&other, Mode::Exclusive);
    assert!(readers.iter().all(|guard| guard.token() < writer.token()));
    assert!(take(&other.new_lock("b").unwrap()).is_held(), "the permit is back");
}

#[test]
fn a_viewer_sees_all_holders_and_their_modes() {
    let store = MemoryStore::new();
    let manager = LockManager::in_memory(&store, "/app", Default::default()).unwrap();
    let viewer = LockViewer::in_memory(&store, "/app", Default::default()).unwrap();
    let guards = [permits(1, 4), permits(2, 4)].map(|mode| take_a(&manager, mode));
    let _waits = queue_for_a(&manager, permits(2, 4));
    eventually(SOON, "the waiter is in the queue", || viewer.queue("a").unwrap().len() == 3);
    let shown: Vec<_> =
        viewer.queue("a").unwrap().iter().map(|info| (info.mode, info.state, info.waiters)).collect();
    let (held, waiting) = (LockState::Held, LockState::Waiting);
    assert_eq!(shown, [(permits(1, 4), held, 1), (permits(2, 4), held, 1), (permits(2, 4), waiting, 0)]);
    let first = viewer.lock_info("a").unwrap().unwrap();
    assert_eq!((first.token, first.waiters), (guards[0].token(), 1));
    assert_eq!(viewer.list_locks("").unwrap()[0].mode, permits(1, 4));
}

fn close_ends_holds_and_waits_of_every_mode(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let held = [take_a(&manager, Mode::Shared), take_a(&manager, Mode::Shared)];
    let waits = EACH.map(|mode| queue_for_a(&manager, mode));
    manager.close().unwrap();
    assert!(held.iter().all(|guard| disconnects(guard.done()) && guard.loss() == Some(LossReason::Closed)));
    for wait in waits {
        assert!(disconnects(wait.ready()));
        assert!(matches!(wait.wait(), Err(LockError::Closed | LockError::Expired { .. })));
    }
    for mode in EACH {
        assert!(matches!(manager.new_read_lock("a"), Err(LockError::Closed)));
        assert!(take_a(&other, mode).is_held());
        backend.wait_for_contenders("a", 0);
    }
}

fn the_remaining_time_and_the_token_are_those_of_any_hold(backend: &Backend) {
    let manager = backend.manager();
    for mode in EACH {
        let guard = take_a(&manager, mode);
        assert!(!guard.remaining().is_zero());
        assert_eq!(guard.ensure(Duration::from_millis(1)).unwrap(), guard.token());
        let refused = guard.ensure(Duration::from_secs(3600));
        assert!(matches!(refused, Err(LockError::InsufficientTime { .. })));
        let shown = manager.lock_info("a").unwrap().unwrap();
        assert_eq!((shown.token, shown.mode), (guard.token(), mode));
        guard.unlock().unwrap();
    }
}

fn a_long_wait_and_an_acquired_permit_are_logged_with_their_modes(backend: &Backend) {
    let (holder, waiter): (LockManager, LockManager) = (backend.manager_of("billing/7"), backend.manager());
    let name = format!("modes of {}", backend.root().replace('/', "-"));
    let logs = Logs::with(&format!("lock {name:?}"));
    let options = |mode| etcd_lock::LockOptions::default().mode(mode).warn_after(Duration::from_millis(100));
    let lock = |manager: &LockManager, mode| manager.new_lock_with(&name, options(mode)).unwrap();
    let guard = take(&lock(&holder, permits(2, 3)));
    let pending = lock(&waiter, permits(3, 3)).enqueue().unwrap();
    eventually(SOON, "a warning", || !logs.of_level(Level::Warn).is_empty());
    let warnings = logs.of_level(Level::Warn);
    assert!(warnings[0].contains("held by billing/7 (2 of 3 permits, pid "), "{warnings:#?}");
    assert!(warnings[0].contains(" (3 of 3 permits) for "), "{warnings:#?}");
    drop((pending, guard));
    // A line is written after its caller was answered.
    let logged = |part: &str| {
        eventually(SOON, part, || logs.of_level(Level::Debug).iter().any(|line| line.contains(part)));
    };
    let acquired = format!("lock {name:?} (2 of 3 permits) acquired, token ");
    logged(&acquired);
    // A mutex is logged as it always was.
    drop(take(&lock(&holder, Mode::Exclusive)));
    let acquired = format!("lock {name:?} acquired, token ");
    logged(&acquired);
}
