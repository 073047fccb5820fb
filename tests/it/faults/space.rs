//! An etcd without space: held locks stay held, new ones are refused with the reason, and all recovers once there is
//! space.

use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockManager};

use crate::faults::ground::{REQUEST_TIMEOUT, assert_nothing_left, connect, options};
use crate::support::etcdctl::Etcdctl;
use crate::support::proxy::{Loss, Proxy};
use crate::support::stalls::assert_within;
use crate::support::{Etcd, Raw, Referee, Setup, eventually, fresh_root, lease_of, within};

const TTL: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(20);
const AT_ONCE: Duration = Duration::from_secs(1);

/// Writes until etcd refuses.
fn fill(raw: &Raw) {
    for n in 0.. {
        let value = vec![b'x'; 1 << 20];
        let key = format!("/fill/{n}");
        if let Err(error) = raw.call(|mut client| async move { client.put(key, value, None).await }) {
            assert!(error.to_string().contains("database space exceeded"), "{error}");
            return;
        }
        assert!(n < 100, "the quota was never reached");
    }
}

/// Frees space, and clears the alarm.
fn make_space(etcd: &Etcd, raw: &Raw) {
    raw.delete_prefix("/fill/");
    raw.compact(raw.revision());
    raw.call(|mut client| async move { client.defragment().await }).unwrap();
    Etcdctl::new(etcd.access()).run(&["alarm", "disarm"]).unwrap();
}

#[track_caller]
fn refused_at_once<T: std::fmt::Debug>(what: &str, call: impl FnOnce() -> Result<T, LockError>) {
    let start = Instant::now();
    let outcome = call();
    assert!(matches!(outcome, Err(LockError::NoSpace)), "{what}: {outcome:?}");
    println!("row 16: {what}: NoSpace after {:?}", assert_within(start, AT_ONCE, what));
}

fn set_up() -> (Etcd, Raw, String) {
    let etcd = Setup::default().quota_backend_bytes(8 << 20).start();
    let raw = Raw::connect(etcd.access());
    (etcd, raw, fresh_root("space"))
}

/// The alarm is raised while a lock is held and waited for, and while other callers start to lock.
#[test]
fn a_full_etcd_ends_no_hold_and_refuses_new_locks_with_the_reason() {
    let (etcd, raw, root) = set_up();
    let holder = connect(etcd.access(), &root, TTL);
    let waiter = connect(etcd.access(), &root, TTL);
    let held = holder.new_lock("x").unwrap().lock().unwrap();
    let referee = Referee::new();
    let inside = referee.inside(&held);
    let queued = waiter.new_lock("x").unwrap().enqueue().unwrap();
    eventually(SOON, "the waiter is queued", || raw.count(&format!("{root}/x/")) == 2);
    // A second thread of the waiter's process: its grant needs a new key, in the transaction that deletes the first
    // one.
    let local = waiter.new_lock("x").unwrap();
    let local = std::thread::spawn(move || local.lock());
    eventually(SOON, "the thread waits", || waiter.stats().waiting == 2);
    fill(&raw);

    let other = holder.new_lock("y").unwrap();
    refused_at_once("lock()", || other.lock());
    refused_at_once("lock_timeout()", || other.lock_timeout(SOON));
    refused_at_once("try_lock()", || other.try_lock());
    let pending = other.enqueue().unwrap();
    refused_at_once("enqueue", || pending.wait());
    refused_at_once("connect()", || {
        LockManager::connect(etcd.endpoints(), &root, options(etcd.access(), TTL))
    });

    std::thread::sleep(TTL * 2);
    assert!(held.is_held(), "renewals succeed");
    drop(inside);
    referee.timed("unlock", REQUEST_TIMEOUT, || held.unlock()).unwrap();
    let granted = within(SOON, "the waiter gets the lock", move || queued.wait()).unwrap();
    assert!(granted.is_held());
    referee.use_and_unlock(granted, REQUEST_TIMEOUT).unwrap();
    let refused = within(SOON, "the thread behind it is refused", move || local.join().unwrap());
    assert!(matches!(refused, Err(LockError::NoSpace)), "{refused:?}");
    eventually(SOON, "released keys are deleted", || raw.count(&format!("{root}/x/")) == 0);

    make_space(&etcd, &raw);
    let again = other.lock_timeout(SOON).unwrap();
    referee.use_and_unlock(again, REQUEST_TIMEOUT).unwrap();
    referee.judge();
    for manager in [&holder, &waiter] {
        assert_eq!((manager.stats().lost.total(), manager.stats().sessions), (0, 1));
    }
    drop((holder, waiter, other));
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// After a repeated acquire, the release is final only under a new epoch, for which there is no space.
#[test]
fn a_full_etcd_frees_a_lock_whose_release_needs_a_new_epoch() {
    let (etcd, raw, root) = set_up();
    let proxy = Proxy::of(&etcd);
    let holder = LockManager::connect(&[proxy.endpoint()], &root, options(etcd.access(), TTL)).unwrap();
    let waiter = connect(etcd.access(), &root, TTL);
    let lock = holder.new_lock("x").unwrap();
    let lost = proxy.lost_answers();
    proxy.lose_next_answer(Loss::Reset);
    let held = lock.lock().unwrap();
    eventually(SOON, "an answer was lost", || proxy.lost_answers() > lost);
    let queued = waiter.new_lock("x").unwrap().enqueue().unwrap();
    eventually(SOON, "the waiter is queued", || raw.count(&format!("{root}/x/")) == 2);
    fill(&raw);

    drop(held);
    let granted = within(SOON, "the waiter gets the lock", move || queued.wait()).unwrap();
    assert!(granted.is_held());
    granted.unlock().unwrap();
    assert_eq!(raw.count(&format!("{root}/x/")), 0);

    make_space(&etcd, &raw);
    assert_eq!(holder.stats().sessions, 1);
    lock.lock_timeout(SOON).unwrap().unlock().unwrap();
    drop((holder, waiter, lock));
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// A session lost while there is no space cannot be replaced: calls report why, and the next session is created once
/// there is space.
#[test]
fn a_lost_session_is_replaced_once_there_is_space() {
    let (etcd, raw, root) = set_up();
    let manager = connect(etcd.access(), &root, TTL);
    let lock = manager.new_lock("x").unwrap();
    let guard = lock.lock().unwrap();
    fill(&raw);
    raw.revoke(lease_of(&manager));
    assert!(guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    drop(guard);
    let limit = Duration::from_secs(5);
    let refused = lock.lock_timeout(limit);
    assert!(matches!(refused, Err(LockError::NoSpace)), "{refused:?}");
    make_space(&etcd, &raw);
    // Until the next session is up, a call may still get the error once.
    let guard = crate::support::wait::eventually_some(SOON, "the lock is granted again", || {
        lock.lock_timeout(limit).ok()
    });
    guard.unlock().unwrap();
    drop((lock, manager));
    assert_nothing_left(etcd.access(), &root, TTL);
}
