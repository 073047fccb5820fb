//! A held lock keeps out all threads, including its own; a reentrant lock lets its own thread enter again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{bounded, never};
use etcd_lock::{ForceUnlock, LockError, LossReason, ReentrantGuard, ReentrantLock};

use crate::support::{Backend, SOON, disconnects, on_both_stores, take, take_elsewhere, wait_for_waiting};

on_both_stores! {
    a_scheduler_that_hands_its_guards_to_jobs_starts_one_at_a_time,
    blocking_tasks_that_hand_their_guards_to_async_code_come_one_at_a_time,
    jobs_that_a_holding_thread_runs_while_it_waits_do_not_get_in,
    the_holding_thread_waits_its_turn_like_everybody_else,
    a_lost_guard_keeps_nobody_from_the_lock,
    a_thread_that_holds_a_reentrant_lock_gets_it_again_in_every_way_and_etcd_is_not_asked,
    the_last_guard_out_releases,
    a_shared_guard_on_another_thread_keeps_the_lock_and_that_thread_waits_its_turn,
    a_lost_reentrant_hold_is_expired_until_the_thread_s_last_guard_has_gone,
}

/// The number of threads inside now, and the maximum.
#[derive(Debug, Default)]
struct Room {
    inside: AtomicUsize,
    most: AtomicUsize,
}

impl Room {
    fn enter(&self) {
        let now = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    #[track_caller]
    fn never_had_two(&self) {
        assert_eq!(self.most.load(Ordering::SeqCst), 1);
    }
}

/// On every tick, a thread tries the lock, and passes a guard on to a job on another thread.
fn a_scheduler_that_hands_its_guards_to_jobs_starts_one_at_a_time(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("nightly").unwrap();
    let room = Room::default();
    let (finish, finished) = bounded::<()>(0);
    thread::scope(|scope| {
        let mut started = 0;
        for _tick in 0..5 {
            if let Some(guard) = lock.try_lock().unwrap() {
                started += 1;
                let (room, finished) = (&room, finished.clone());
                scope.spawn(move || {
                    room.enter();
                    let _ = finished.recv();
                    room.leave();
                    drop(guard);
                });
            }
        }
        assert_eq!(started, 1);
        drop(finish);
    });
    room.never_had_two();
    assert!(lock.try_lock().unwrap().is_some(), "the job is done");
}

/// Requests to a server whose `lock()` runs on the runtime's blocking threads, with the guard held over an `.await`.
fn blocking_tasks_that_hand_their_guards_to_async_code_come_one_at_a_time(backend: &Backend) {
    const REQUESTS: usize = 50;
    let manager = backend.manager();
    let lock = manager.new_lock("account").unwrap();
    let room = std::sync::Arc::new(Room::default());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let request = || {
            let (lock, room) = (lock.clone(), room.clone());
            tokio::spawn(async move {
                let guard = tokio::task::spawn_blocking(move || lock.lock()).await.unwrap().unwrap();
                room.enter();
                tokio::task::yield_now().await;
                room.leave();
                drop(guard);
            })
        };
        let requests: Vec<_> = (0..REQUESTS).map(|_| request()).collect();
        for request in requests {
            request.await.unwrap();
        }
    });
    room.never_had_two();
    assert_eq!(manager.stats().acquired, REQUESTS as u64);
}

/// A thread pool lets a waiting thread run other jobs meanwhile, so the holder's own thread calls `lock` again.
fn jobs_that_a_holding_thread_runs_while_it_waits_do_not_get_in(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("index").unwrap();
    let outer = take(&lock);
    // The job that the pool runs on this thread while the job above waits for its parts.
    let stolen = || lock.lock_timeout(Duration::from_millis(20));
    let refused = stolen();
    assert!(matches!(refused, Err(LockError::Timeout { .. })), "{refused:?}");
    assert!(outer.is_held());
}

fn the_holding_thread_waits_its_turn_like_everybody_else(backend: &Backend) {
    let manager = backend.manager_of("alice");
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    assert!(lock.try_lock().unwrap().is_none());
    match lock.lock_timeout(Duration::from_millis(50)) {
        Err(LockError::Timeout { holder: Some(holder), .. }) => {
            assert_eq!(holder.owner.as_deref(), Some("alice"));
            assert_eq!(
                holder.pid,
                Some(std::process::id()),
                "the error shows that the process waits for itself"
            );
            assert_eq!(holder.lease_id, manager.session().lease_id, "and that it is this manager");
            assert!(holder.thread.is_some(), "{holder:?}");
        }
        other => panic!("{other:?}"),
    }
    let pending = lock.enqueue().unwrap();
    wait_for_waiting(&manager, 1);
    assert_eq!(backend.contenders("a"), 1, "it waits in the process, not in etcd");
    let token = guard.token();
    drop(guard);
    assert!(pending.wait().unwrap().token() > token);
}

fn a_lost_guard_keeps_nobody_from_the_lock(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let lost = take(&lock);
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert!(disconnects(lost.done()));
    let anew = lock.lock_timeout(SOON).unwrap();
    assert!(anew.token() > lost.token() && !lost.is_held(), "a lost guard stays lost");
}

/// Another guard, in each possible way.
fn again(lock: &ReentrantLock) -> Vec<ReentrantGuard> {
    vec![
        lock.lock().unwrap(),
        lock.try_lock().unwrap().unwrap(),
        lock.lock_timeout(Duration::ZERO).unwrap(),
        lock.lock_deadline(Instant::now()).unwrap(),
        lock.lock_or_cancel(&never()).unwrap(),
        lock.lock_timeout_or_cancel(Duration::ZERO, &never()).unwrap(),
    ]
}

fn a_thread_that_holds_a_reentrant_lock_gets_it_again_in_every_way_and_etcd_is_not_asked(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_reentrant_lock("a").unwrap();
    let second_handle = manager.new_reentrant_lock("a").unwrap();
    let guard = lock.lock().unwrap();
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
    let lock = manager.new_reentrant_lock("a").unwrap();
    let rival = other.new_lock("a").unwrap();
    let first = lock.lock().unwrap();
    let second = manager.new_reentrant_lock("a").unwrap().lock().unwrap();
    let shared = second.share();
    let done = first.done().clone();
    drop(first);
    assert!(rival.try_lock().unwrap().is_none() && lock.is_locked());
    shared.unlock().unwrap();
    assert!(rival.try_lock().unwrap().is_none() && second.is_held());
    assert_eq!(backend.contenders("a"), 1);
    second.unlock().unwrap();
    assert!(disconnects(&done));
    assert!(!lock.is_locked());
    assert_eq!(manager.stats().released, 1);
    assert!(rival.try_lock().unwrap().is_some());
}

fn a_shared_guard_on_another_thread_keeps_the_lock_and_that_thread_waits_its_turn(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_reentrant_lock("a").unwrap();
    let guard = lock.lock().unwrap();
    let shared = guard.share();
    let token = guard.token();
    thread::scope(|scope| {
        let (dropped, is_dropped) = bounded::<()>(0);
        let other = scope.spawn({
            let lock = &lock;
            move || {
                // A shared guard does not let its thread enter again.
                assert!(lock.try_lock().unwrap().is_none());
                let _ = is_dropped.recv();
                assert!(shared.is_held() && lock.is_locked(), "it keeps the hold");
                assert!(lock.try_lock().unwrap().is_none());
                drop(shared);
                lock.lock_timeout(SOON).unwrap().token()
            }
        });
        drop(guard);
        drop(dropped);
        assert!(other.join().unwrap() > token);
    });
}

fn a_lost_reentrant_hold_is_expired_until_the_thread_s_last_guard_has_gone(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_reentrant_lock("a").unwrap();
    let guard = lock.lock().unwrap();
    let again = lock.lock().unwrap();
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert!(disconnects(guard.done()));
    let attempts = || {
        [
            lock.lock().err(),
            lock.try_lock().err(),
            lock.lock_timeout(Duration::ZERO).err(),
            lock.lock_or_cancel(&never()).err(),
            manager.new_reentrant_lock("a").unwrap().lock().err(),
        ]
    };
    let all_expired = |errors: [Option<LockError>; 5]| {
        errors.iter().all(|error| {
            matches!(error, Some(LockError::Expired { reason: LossReason::ForceUnlocked, key, .. }) if key == "a")
        })
    };
    assert!(all_expired(attempts()));
    drop(guard);
    assert!(all_expired(attempts()), "one guard of the lost hold is not dropped yet");

    // A thread without a guard of the lost hold gets the lock meanwhile.
    let token = again.token();
    let elsewhere = take_elsewhere(&manager.new_lock("a").unwrap());
    assert!(elsewhere.token() > token);
    drop(elsewhere);
    assert!(all_expired(attempts()));
    drop(again);
    let anew = lock.lock().unwrap();
    assert!(anew.token() > token && anew.is_held());
}
