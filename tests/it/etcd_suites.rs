//! The tests of locks in etcd's own suites, applied to this library: `clientv3/concurrency/mutex_test.go`,
//! `experimental/recipes/v3_lock_test.go`, `v3lock_grpc_test.go` and `e2e/ctl_v3_lock_test.go`.
//!
//! Not included: their read-write mutex, and the exit codes of `etcdctl lock <command>`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::LockOptions;
use etcd_lock::crossbeam_channel::unbounded;
use etcd_lock::{ForceUnlock, LockError, LockManager, LossReason};

use crate::support::etcdctl::Etcdctl;
use crate::support::manager::{
    assert_still_waiting, connect, enqueue, granted, lock, wait_for_contenders, wait_until_done,
};
use crate::support::setup::Access;
use crate::support::{Cluster, Raw, SOON, fresh_root, lease_of, shared};

/// A manager for each of `count` clients, at one member or spread over all.
fn managers(cluster: &Cluster, spread: bool, root: &str, count: usize) -> Vec<LockManager> {
    let at = |n: usize| {
        let member = if spread { n % cluster.members().len() } else { 0 };
        let access: Access = cluster.access().at([cluster.member(member).endpoint()]);
        connect(&access, root)
    };
    (0..count).map(at).collect()
}

/// `testMutexLock`.
fn five_waiters_get_it_one_at_a_time(managers: &[LockManager]) {
    let inside = AtomicUsize::new(0);
    let (locked, holders) = unbounded();
    std::thread::scope(|scope| {
        for manager in managers {
            let locked = locked.clone();
            let inside = &inside;
            scope.spawn(move || {
                let guard = manager.new_lock("test-mutex").unwrap().lock().unwrap();
                inside.fetch_add(1, Ordering::SeqCst);
                locked.send(guard).unwrap();
            });
        }
        let mut last = None;
        for waiter in 0..managers.len() {
            let guard = holders
                .recv_timeout(SOON)
                .unwrap_or_else(|_| panic!("no waiter is granted as number {waiter}"));
            let next = holders.recv_timeout(Duration::from_millis(50));
            assert!(next.is_err(), "{waiter}: the followers did not wait");
            assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
            assert!(last.replace(guard.token()) < Some(guard.token()));
            guard.unlock().unwrap();
        }
    });
}

/// `testMutexTryLock`.
fn one_of_five_tries_succeeds(managers: &[LockManager]) {
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> = managers
            .iter()
            .map(|manager| {
                scope.spawn(|| manager.new_lock("test-mutex-try-lock").unwrap().try_lock().unwrap())
            })
            .collect();
        tries.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().flatten().count(), 1);
}

/// `TestMutexLockSingleNode`, `TestMutexLockMultiNode`, and the same tests of `TryLock`.
#[test]
fn waiters_come_one_at_a_time_and_one_try_succeeds_on_one_member_and_on_three() {
    let cluster = Cluster::start(3);
    for spread in [false, true] {
        let managers = managers(&cluster, spread, &fresh_root("suites"), 5);
        five_waiters_get_it_one_at_a_time(&managers);
        one_of_five_tries_succeeds(&managers);
    }
}

/// `TestMutexSessionRelock`.
#[test]
fn a_session_that_locks_again_does_not_wait_for_itself() {
    let manager = connect(shared().access(), &fresh_root("suites"));
    let first = manager.new_reentrant_lock("test-mutex").unwrap().lock().unwrap();
    let second = manager.new_reentrant_lock("test-mutex").unwrap().lock().unwrap();
    assert_eq!(first.token(), second.token());
}

/// `TestMutexWaitsOnCurrentHolder`: the ways in which the waiter in the middle can leave.
#[derive(Clone, Copy, Debug)]
enum End {
    Closed,
    Revoked,
    KeyDeleted,
}

#[test]
fn when_the_middle_waiter_dies_the_next_still_waits_for_the_holder() {
    for end in [End::Closed, End::Revoked, End::KeyDeleted] {
        let (root, raw) = (fresh_root("suites"), Raw::connect(shared().access()));
        let keys = format!("{root}/a/");
        let [owner, victim, next] = [(); 3].map(|()| connect(shared().access(), &root));
        let guard = lock(&owner, "a");
        let doomed = enqueue(&victim, "a");
        wait_for_contenders(&raw, &keys, 2);
        let waiting = enqueue(&next, "a");
        wait_for_contenders(&raw, &keys, 3);

        let session = lease_of(&victim);
        let key = raw.keys(&keys).into_iter().find(|kv| kv.lease == session).unwrap();
        match end {
            End::Closed => victim.clone().close().unwrap(),
            End::Revoked => raw.revoke(session),
            End::KeyDeleted => assert!(raw.delete(&key.key)),
        }
        assert!(raw.get(&key.key).is_none(), "{end:?}");
        assert_still_waiting(&waiting);
        assert!(guard.is_held());

        guard.unlock().unwrap();
        let guard = granted(waiting);
        match end {
            End::Closed => assert!(matches!(doomed.wait(), Err(LockError::Closed))),
            // It queues again by itself, behind all earlier contenders.
            End::Revoked | End::KeyDeleted => {
                assert_still_waiting(&doomed);
                guard.unlock().unwrap();
                assert!(granted(doomed).is_held());
            }
        }
    }
}

/// The same with an `etcdctl` in the middle that is killed: its key stays until its lease expires.
#[test]
fn when_a_foreign_middle_waiter_is_killed_the_next_still_waits_for_the_holder() {
    let (root, raw) = (fresh_root("suites"), Raw::connect(shared().access()));
    let keys = format!("{root}/a/");
    let (owner, next) = (connect(shared().access(), &root), connect(shared().access(), &root));
    let guard = lock(&owner, "a");
    let victim = Etcdctl::new(shared().access()).queue_for_lock(&format!("{root}/a"));
    wait_for_contenders(&raw, &keys, 2);
    let waiting = enqueue(&next, "a");
    wait_for_contenders(&raw, &keys, 3);
    drop(victim);
    wait_for_contenders(&raw, &keys, 2);
    assert_still_waiting(&waiting);
    guard.unlock().unwrap();
    assert!(granted(waiting).is_held());
}

/// `TestMutexLockSessionExpired`.
#[test]
fn a_waiter_whose_session_is_closed_never_gets_the_lock() {
    let (root, raw) = (fresh_root("suites"), Raw::connect(shared().access()));
    let (first, second) = (connect(shared().access(), &root), connect(shared().access(), &root));
    let guard = lock(&first, "my-lock");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| second.new_lock("my-lock").unwrap().lock());
        wait_for_contenders(&raw, &format!("{root}/my-lock/"), 2);
        second.clone().close().unwrap();
        guard.unlock().unwrap();
        assert!(matches!(waiting.join().unwrap(), Err(LockError::Closed)));
    });
    assert_eq!(raw.count(&format!("{root}/my-lock/")), 0);
    assert_eq!(second.stats().acquired, 0);
}

/// The same with a lease that is revoked in etcd: its contender's position is lost for good. (The call itself continues
/// under the next session, at the end of the queue.)
#[test]
fn a_waiter_whose_lease_is_revoked_loses_its_position() {
    let (root, raw) = (fresh_root("suites"), Raw::connect(shared().access()));
    let keys = format!("{root}/my-lock/");
    let [first, second, third] = [(); 3].map(|()| connect(shared().access(), &root));
    let guard = lock(&first, "my-lock");
    let overtaken = enqueue(&second, "my-lock");
    wait_for_contenders(&raw, &keys, 2);
    let overtaking = enqueue(&third, "my-lock");
    wait_for_contenders(&raw, &keys, 3);
    let lost = lease_of(&second);
    raw.revoke(lost);
    // It is queued again, at the end.
    wait_for_contenders(&raw, &keys, 3);
    guard.unlock().unwrap();
    let guard = granted(overtaking);
    assert_still_waiting(&overtaken);
    let token = guard.token();
    guard.unlock().unwrap();
    let guard = granted(overtaken);
    assert!(guard.token() > token);
    assert_ne!(raw.get(guard.etcd_key()).unwrap().lease, lost);
}

/// `TestMutexUnlock`. (The compiler rejects unlocking a guard twice; a clone and an administrator can still try.)
#[test]
fn unlocking_a_lock_that_is_not_held_is_an_error() {
    let (root, raw) = (fresh_root("suites"), Raw::connect(shared().access()));
    let (manager, other) = (connect(shared().access(), &root), connect(shared().access(), &root));
    let not_held = |what: &str| {
        let error = manager.force_unlock("my-lock", ForceUnlock::Lock).unwrap_err();
        assert!(matches!(&error, LockError::NotHeld { key, .. } if key == "my-lock"), "{what}: {error:?}");
    };
    not_held("never locked");
    let guard = lock(&manager, "my-lock");
    let clone = guard.clone();
    guard.unlock().unwrap();
    assert!(clone.is_held(), "one guard is left");
    assert_eq!(raw.count(&format!("{root}/my-lock/")), 1);
    clone.unlock().unwrap();
    assert_eq!(raw.count(&format!("{root}/my-lock/")), 0, "unlock has waited for etcd");
    not_held("unlocked");

    let guard = lock(&manager, "my-lock");
    let clone = guard.clone();
    other.force_unlock("my-lock", ForceUnlock::Lock).unwrap();
    wait_until_done(&guard);
    // Another client holds it by now, and keeps it.
    let next = lock(&other, "my-lock");
    for guard in [clone, guard] {
        let error = guard.unlock().unwrap_err();
        let LockError::Expired { reason, .. } = error else { panic!("{error:?}") };
        assert_eq!(reason, LossReason::ForceUnlocked);
    }
    assert!(raw.get(next.etcd_key()).is_some() && next.is_held());
}

/// `TestV3LockLockWaiter`, against etcd's own lock service.
#[test]
fn the_library_and_the_lock_service_of_etcd_wait_for_each_other() {
    let (root, raw) = (fresh_root("suites"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let (name, keys) = (format!("{root}/foo"), format!("{root}/foo/"));
    let lease = raw.grant(60);
    let serve = |name: String| {
        move |mut client: etcd_client::Client| async move {
            client.lock(name, Some(LockOptions::new().with_lease(lease))).await
        }
    };

    let theirs = raw.call(serve(name.clone())).unwrap();
    let theirs_key = String::from_utf8(theirs.key().to_vec()).unwrap();
    let waiting = enqueue(&manager, "foo");
    wait_for_contenders(&raw, &keys, 2);
    assert_still_waiting(&waiting);
    let first = raw.get(&theirs_key).unwrap().create_revision.unsigned_abs();
    raw.call(|mut client| async move { client.unlock(theirs_key).await }).unwrap();
    let guard = granted(waiting);
    assert!(guard.token().as_u64() > first);

    let token = guard.token().as_u64();
    std::thread::scope(|scope| {
        let theirs = scope.spawn(|| raw.call(serve(name)));
        // Read through another connection, because that one waits.
        wait_for_contenders(&Raw::connect(shared().access()), &keys, 2);
        guard.unlock().unwrap();
        let theirs = String::from_utf8(theirs.join().unwrap().unwrap().key().to_vec()).unwrap();
        assert!(raw.get(&theirs).unwrap().create_revision.unsigned_abs() > token);
    });
    assert!(manager.new_lock("foo").unwrap().try_lock().unwrap().is_none());
    raw.revoke(lease);
}

/// `TestCtlV3Lock`, with each client in turn replaced by ours.
#[test]
fn an_interrupted_waiter_does_not_block_the_next_one() {
    let raw = Raw::connect(shared().access());
    let ctl = Etcdctl::new(shared().access());

    // Ours holds; theirs waits and is interrupted; theirs behind it gets the lock.
    let root = fresh_root("suites");
    let (name, keys) = (format!("{root}/a"), format!("{root}/a/"));
    let ours = connect(shared().access(), &root);
    let guard = lock(&ours, "a");
    let blocked = ctl.queue_for_lock(&name);
    wait_for_contenders(&raw, &keys, 2);
    let behind = ctl.queue_for_lock(&name);
    wait_for_contenders(&raw, &keys, 3);
    blocked.leave();
    wait_for_contenders(&raw, &keys, 2);
    let behind = behind.wait(Duration::from_millis(100)).expect_err("the lock is held");
    drop(guard);
    let holder = behind.wait(SOON).expect("the lock is free");

    // Theirs holds; ours waits and gives up; theirs behind it gets the lock.
    let blocked = enqueue(&ours, "a");
    wait_for_contenders(&raw, &keys, 2);
    let behind = ctl.queue_for_lock(&name);
    wait_for_contenders(&raw, &keys, 3);
    drop(blocked);
    wait_for_contenders(&raw, &keys, 2);
    let behind = behind.wait(Duration::from_millis(100)).expect_err("the lock is held");
    holder.release();
    let holder = behind.wait(SOON).expect("the lock is free");

    // Theirs holds; theirs waits and is interrupted; ours behind it gets the lock.
    let blocked = ctl.queue_for_lock(&name);
    wait_for_contenders(&raw, &keys, 2);
    let behind = enqueue(&ours, "a");
    wait_for_contenders(&raw, &keys, 3);
    blocked.leave();
    assert_still_waiting(&behind);
    holder.release();
    assert!(granted(behind).is_held());
}
