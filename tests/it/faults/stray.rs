//! Foreign keys under a lock's name: they count as they would for Go's mutex, and break nothing.

use std::time::{Duration, Instant};

use etcd_lock::{ForceUnlock, LockError, LockInfo, LockManager};

use crate::faults::ground::{assert_nothing_left, connect};
use crate::support::etcdctl::Etcdctl;
use crate::support::stalls::assert_within;
use crate::support::{Raw, Setup, fresh_root, shared};

const TTL: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(20);
/// Calls that time out one after the other.
const CALLS: usize = 5;

/// The holder that a timed-out call names. The call has some 30 ms to read it, which a busy machine may exceed, so one
/// of several calls has to succeed.
#[track_caller]
fn blocker(manager: &LockManager, name: &str) -> LockInfo {
    let limit = Duration::from_millis(200);
    let mut named = Vec::new();
    for _ in 0..CALLS {
        let start = Instant::now();
        let refused = manager.new_lock(name).unwrap().lock_timeout(limit);
        assert_within(start, limit + Duration::from_millis(100), "a timed out call returns");
        match refused {
            Err(LockError::Timeout { holder, .. }) => named.extend(holder),
            other => panic!("{name}: {other:?}"),
        }
    }
    println!("row 18: {} of {CALLS} calls that timed out named the holder", named.len());
    *named.pop().expect("the holder is named")
}

/// A key without a lease blocks the lock for ever, named by its own key, until an administrator deletes it.
#[test]
fn a_key_without_a_lease_is_named_and_can_be_deleted() {
    let root = fresh_root("stray");
    let raw = Raw::connect(shared().access());
    let manager = connect(shared().access(), &root, TTL);
    let created = raw.put(&format!("{root}/x/stray"), "left behind", 0);
    let holder = blocker(&manager, "x");
    assert_eq!((holder.lease_id, holder.owner, holder.created_at), (None, None, None));
    assert_eq!(holder.token.as_u64(), created.unsigned_abs());
    assert_eq!(holder.ttl_remaining, None);
    assert!(manager.new_lock("x").unwrap().try_lock().unwrap().is_none());
    for scope in [ForceUnlock::Lock, ForceUnlock::Session] {
        let pending = manager.new_lock("x").unwrap().enqueue().unwrap();
        manager.force_unlock("x", scope).unwrap();
        let guard = pending.wait().unwrap();
        assert!(guard.token() > holder.token);
        guard.unlock().unwrap();
        raw.put(&format!("{root}/x/stray"), "left behind", 0);
    }
    raw.delete(&format!("{root}/x/stray"));
    drop(manager);
    assert_nothing_left(shared().access(), &root, TTL);
}

/// etcd's own client and this library exclude each other, in the order of arrival.
#[test]
fn etcdctl_and_the_library_exclude_each_other() {
    let root = fresh_root("foreign");
    let access = shared().access();
    let manager = connect(access, &root, TTL);
    let etcdctl = Etcdctl::new(access);
    let foreign = etcdctl.lock_process(&format!("{root}/x"));
    let holder = blocker(&manager, "x");
    assert!(holder.lease_id.is_some() && holder.owner.is_none(), "{holder:?}");
    assert_eq!(manager.lock_info("x").unwrap().unwrap().token, holder.token);
    let pending = manager.new_lock("x").unwrap().enqueue().unwrap();
    foreign.release();
    let guard = pending.wait().unwrap();
    assert!(guard.token() > holder.token);
    let queued = etcdctl.queue_for_lock(&format!("{root}/x"));
    let queued = queued.wait(Duration::from_millis(500)).expect_err("it waits for our release");
    guard.unlock().unwrap();
    let foreign = queued.wait(SOON).expect("it is the next holder");
    assert!(foreign.key().starts_with(&format!("{root}/x/")));
    foreign.release();
    drop(manager);
    assert_nothing_left(access, &root, TTL);
}

/// A value of five megabytes in a foreign contender's key causes no trouble.
#[test]
fn a_huge_foreign_value_breaks_nothing() {
    let etcd = Setup::default().arg(format!("--max-request-bytes={}", 8 << 20)).start();
    let root = fresh_root("huge");
    let raw = Raw::connect(etcd.access());
    let manager = connect(etcd.access(), &root, TTL);
    let lease = raw.grant(60);
    raw.put(&format!("{root}/x/{lease:x}"), vec![0xff; 5 << 20], lease);
    let holder = blocker(&manager, "x");
    assert_eq!((holder.lease_id, holder.owner), (Some(lease), None));
    let info = manager.lock_info("x").unwrap().unwrap();
    assert_eq!((info.lease_id, info.waiters), (Some(lease), 0));
    assert_eq!(manager.list_locks("").unwrap().len(), 1);
    let pending = manager.new_lock("x").unwrap().enqueue().unwrap();
    // Ours behind theirs, and theirs behind ours.
    let behind = raw.grant(60);
    let evicted = manager.force_unlock("x", ForceUnlock::Session).unwrap();
    assert_eq!(evicted.lease_id, Some(lease));
    let guard = pending.wait().unwrap();
    raw.put(&format!("{root}/x/{behind:x}"), vec![0xff; 5 << 20], behind);
    assert_eq!(manager.lock_info("x").unwrap().unwrap().waiters, 1);
    guard.unlock().unwrap();
    raw.revoke(behind);
    assert_eq!(manager.stats().lost.total(), 0);
    drop(manager);
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Locks work beside any other keys under the root, and listings skip keys that are not locks.
#[test]
fn rubbish_under_the_root_breaks_nothing() {
    let root = fresh_root("rubbish");
    let raw = Raw::connect(shared().access());
    let rubbish: [&[u8]; 8] =
        [b"", b"/", b"//", b"/x", b"/~session/rubbish", b"/~session/", b"/%zz/key", b"/\xff\xfe/\xff"];
    for rest in rubbish {
        let key = [root.as_bytes(), rest].concat();
        raw.call(|mut client| async move { client.put(key, vec![0xff, 0], None).await }).unwrap();
    }
    let manager = connect(shared().access(), &root, TTL);
    let guard = manager.new_lock("x").unwrap().lock_timeout(SOON).unwrap();
    let nested = manager.new_lock("x/y").unwrap().lock_timeout(SOON).unwrap();
    let names: Vec<String> = manager.list_locks("x").unwrap().into_iter().map(|info| info.key).collect();
    assert_eq!(names, ["x", "x/y"]);
    manager.list_locks("").unwrap();
    for guard in [guard, nested] {
        guard.unlock().unwrap();
    }
    drop(manager);
    raw.delete_prefix(&root);
}
