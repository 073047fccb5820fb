//! Viewing locks and breaking them: ours, another manager's, and those of foreign clients.

use std::time::{Duration, Instant, SystemTime};

use etcd_lock::{ForceUnlock, LockError, LockInfo, LockManager, LossReason};
use log::Level;

use crate::support::etcdctl::Etcdctl;
use crate::support::logs::Logs;
use crate::support::manager::{
    assert_still_waiting, connect, connect_with, enqueue, granted, lock, options, wait_for_contenders,
    wait_until_done,
};
use crate::support::{Etcd, Raw, SOON, eventually, fresh_root, lease_of, shared};

const BOTH: [ForceUnlock; 2] = [ForceUnlock::Lock, ForceUnlock::Session];

/// A manager with this owner.
fn named(root: &str, owner: &str) -> LockManager {
    let options = options(shared().access()).owner(owner).ttl(Duration::from_secs(20));
    connect_with(shared().access(), root, options)
}

/// The lock as `lock_info` and `list_locks` show it, which must agree except for the remaining time.
#[track_caller]
fn seen(manager: &LockManager, name: &str) -> LockInfo {
    let info = manager.lock_info(name).unwrap().expect("the lock is held");
    let listed = manager.list_locks("").unwrap().into_iter().find(|info| info.key == name);
    let mut listed = listed.expect("the lock is listed");
    assert_eq!(listed.ttl_remaining.is_some(), info.ttl_remaining.is_some());
    listed.ttl_remaining = info.ttl_remaining;
    assert_eq!(listed, info);
    info
}

#[test]
fn a_lock_of_the_library_is_shown_with_all_details_of_its_holder() {
    let (root, raw) = (fresh_root("admin"), Raw::connect(shared().access()));
    let (holder, waiter, onlooker) = (named(&root, "billing/7"), named(&root, "w"), named(&root, "o"));
    assert!(onlooker.lock_info("a").unwrap().is_none());
    assert!(onlooker.list_locks("").unwrap().is_empty(), "sessions are not listed as locks");

    // The value is in milliseconds.
    let before = SystemTime::now() - Duration::from_millis(1);
    let guard = lock(&holder, "a");
    let after = SystemTime::now();
    let info = seen(&onlooker, "a");
    assert_eq!((info.key.as_str(), info.owner.as_deref()), ("a", Some("billing/7")));
    let created_at = info.created_at.unwrap();
    assert!(before <= created_at && created_at <= after, "{before:?} {created_at:?} {after:?}");
    assert_eq!((info.lease_id, info.token), (holder.session().lease_id, guard.token()));
    let ttl = info.ttl_remaining.unwrap();
    assert!(!ttl.is_zero() && ttl <= holder.session().ttl, "{ttl:?}");
    assert_eq!(info.waiters, 0);

    // A process has one contender, however many of its threads wait; so does the holder's process.
    let _places = [enqueue(&waiter, "a"), enqueue(&waiter, "a"), enqueue(&onlooker, "a")];
    wait_for_contenders(&raw, &format!("{root}/a/"), 3);
    for manager in [&holder, &waiter, &onlooker] {
        let info = seen(manager, "a");
        assert_eq!((info.waiters, info.token, info.owner.as_deref()), (2, guard.token(), Some("billing/7")));
    }
}

#[test]
fn a_foreign_holder_is_shown_with_the_details_that_etcd_has() {
    let (root, raw) = (fresh_root("admin"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let ctl = Etcdctl::new(shared().access());
    let theirs = ctl.lock_process(&format!("{root}/a"));
    let kv = raw.get(theirs.key()).unwrap();
    let info = seen(&manager, "a");
    assert_eq!((info.owner, info.created_at, info.waiters), (None, None, 0));
    assert_eq!((info.lease_id, info.token.as_u64()), (Some(kv.lease), kv.create_revision.unsigned_abs()));
    assert!(info.ttl_remaining.is_some_and(|ttl| ttl <= Duration::from_secs(5)));

    let _behind = ctl.queue_for_lock(&format!("{root}/a"));
    let _ours = enqueue(&manager, "a");
    wait_for_contenders(&raw, &format!("{root}/a/"), 3);
    assert_eq!(seen(&manager, "a").waiters, 2);

    // Values that other programs may write, and a key without a lease.
    for (n, value) in ["", "{}", "\u{0}", r#"{"owner":7}"#, "holder-1"].into_iter().enumerate() {
        let name = format!("by-hand-{n}");
        let token = raw.put(&format!("{root}/{name}/somebody"), value, 0);
        let info = seen(&manager, &name);
        assert_eq!((info.owner, info.created_at, info.lease_id), (None, None, None), "{value:?}");
        assert_eq!((info.ttl_remaining, info.token.as_u64()), (None, token.unsigned_abs()));
        assert!(manager.new_lock(&name).unwrap().try_lock().unwrap().is_none());
    }
}

/// Ten pages, held by one manager. Prints the time.
#[test]
fn ten_thousand_locks_of_one_manager_are_listed() {
    const LOCKS: usize = 10_000;
    let etcd = Etcd::start();
    let manager = connect_with(etcd.access(), "/locks", options(etcd.access()).close_timeout(SOON));
    let onlooker = connect(etcd.access(), "/locks");
    let begun = Instant::now();
    let pending: Vec<_> = (0..LOCKS).map(|n| enqueue(&manager, &format!("lock-{n:05}"))).collect();
    let guards: Vec<_> = pending.into_iter().map(granted).collect();
    println!("{LOCKS} locks taken in {:.2?}", begun.elapsed());
    let _waiter = enqueue(&onlooker, "lock-04999");
    let raw = Raw::connect(etcd.access());
    wait_for_contenders(&raw, "/locks/lock-04999/", 2);

    let begun = Instant::now();
    let locks = onlooker.list_locks("").unwrap();
    println!("{LOCKS} locks listed in {:.2?}", begun.elapsed());
    assert_eq!(locks.len(), LOCKS);
    let owner = locks[0].owner.clone();
    assert!(owner.is_some());
    for (n, (info, guard)) in locks.iter().zip(&guards).enumerate() {
        assert_eq!((info.key.as_str(), info.token), (guard.key(), guard.token()));
        assert_eq!((info.lease_id, &info.owner), (manager.session().lease_id, &owner));
        assert!(info.ttl_remaining.is_some() && info.created_at.is_some());
        assert_eq!(info.waiters, usize::from(n == 4999), "{n}");
    }
    assert_eq!(onlooker.list_locks("lock-012").unwrap().len(), 100);
    assert!(guards.iter().all(|guard| guard.is_held()));

    let begun = Instant::now();
    manager.close().unwrap();
    println!("closed with {LOCKS} locks held in {:.2?}", begun.elapsed());
    assert!(guards.iter().all(|guard| guard.loss() == Some(LossReason::Closed)));
    eventually(SOON, "only the onlooker's lock is left", || raw.count("/locks/lock-") == 1);
}

#[test]
fn force_unlock_of_the_lock_takes_this_lock_alone() {
    let (root, raw) = (fresh_root("admin"), Raw::connect(shared().access()));
    let (holder, waiter, admin) = (named(&root, "holder"), named(&root, "waiter"), named(&root, "admin"));
    let (lost, kept) = (lock(&holder, "a"), lock(&holder, "b"));
    let session = holder.session();
    let next = enqueue(&waiter, "a");
    wait_for_contenders(&raw, &format!("{root}/a/"), 2);

    let evicted = admin.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert_eq!((evicted.key.as_str(), evicted.owner.as_deref()), ("a", Some("holder")));
    assert_eq!((evicted.token, evicted.lease_id, evicted.waiters), (lost.token(), session.lease_id, 1));
    assert!(evicted.created_at.is_some() && evicted.ttl_remaining.is_some());

    wait_until_done(&lost);
    assert_eq!(lost.loss(), Some(LossReason::ForceUnlocked));
    let next = granted(next);
    assert!(next.token() > lost.token());
    assert!(matches!(lost.unlock(), Err(LockError::Expired { reason: LossReason::ForceUnlocked, .. })));
    assert!(kept.is_held() && next.is_held(), "no other hold is affected");
    assert_eq!(holder.session().lease_id, session.lease_id);
    let stats = holder.stats();
    assert_eq!((stats.lost.force_unlocked, stats.lost.total(), stats.held, stats.sessions), (1, 1, 1, 1));
}

#[test]
fn force_unlock_of_the_session_ends_all_holds_of_the_holder() {
    let (root, raw) = (fresh_root("admin"), Raw::connect(shared().access()));
    let (holder, waiter, admin) = (named(&root, "holder"), named(&root, "waiter"), named(&root, "admin"));
    let (lost, also_lost) = (lock(&holder, "a"), lock(&holder, "b"));
    let elsewhere = lock(&waiter, "c");
    let place = enqueue(&holder, "c");
    wait_for_contenders(&raw, &format!("{root}/c/"), 2);
    let lease = lease_of(&holder);

    let evicted = admin.force_unlock("a", ForceUnlock::Session).unwrap();
    assert_eq!(
        (evicted.owner.as_deref(), evicted.lease_id, evicted.token),
        (Some("holder"), Some(lease), lost.token())
    );
    assert!(raw.ttl(lease).is_none());
    for guard in [&lost, &also_lost] {
        wait_until_done(guard);
        assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
    }
    for name in ["a", "b"] {
        assert!(lock(&waiter, name).is_held());
    }
    // It is queued again under the next session.
    drop(elsewhere);
    let guard = granted(place);
    assert_ne!(raw.get(guard.etcd_key()).unwrap().lease, lease);
}

/// A manager breaks its own lock, for example that of a thread that hangs.
#[test]
fn a_manager_can_force_unlock_its_own_locks() {
    let root = fresh_root("admin");
    let manager = named(&root, "self");
    for (scope, reason) in BOTH.into_iter().zip([LossReason::ForceUnlocked, LossReason::SessionRevoked]) {
        let guard = lock(&manager, "a");
        let evicted = manager.force_unlock("a", scope).unwrap();
        assert_eq!((evicted.owner.as_deref(), evicted.token), (Some("self"), guard.token()));
        wait_until_done(&guard);
        assert_eq!(guard.loss(), Some(reason));
        assert!(!manager.new_lock("a").unwrap().is_locked());
        assert!(lock(&manager, "a").token() > guard.token(), "the lost hold does not block the lock");
    }
}

#[test]
fn a_foreign_lock_and_a_key_without_a_lease_can_be_force_unlocked_in_both_scopes() {
    let (root, raw) = (fresh_root("admin"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    for scope in BOTH {
        let mut theirs = Etcdctl::new(shared().access()).lock_process(&format!("{root}/a"));
        let lease = raw.get(theirs.key()).unwrap().lease;
        let next = enqueue(&manager, "a");
        wait_for_contenders(&raw, &format!("{root}/a/"), 2);
        let evicted = manager.force_unlock("a", scope).unwrap();
        assert_eq!((evicted.owner, evicted.lease_id, evicted.waiters), (None, Some(lease), 1));
        assert!(granted(next).is_held());
        assert!(raw.get(theirs.key()).is_none());
        assert_eq!(raw.ttl(lease).is_some(), scope == ForceUnlock::Lock);
        if scope == ForceUnlock::Session {
            eventually(SOON, "etcdctl notices that its session is over", || theirs.has_ended());
        }

        let key = format!("{root}/b/by-hand");
        let token = raw.put(&key, "", 0);
        let next = enqueue(&manager, "b");
        assert_still_waiting(&next);
        let evicted = manager.force_unlock("b", scope).unwrap();
        assert_eq!((evicted.lease_id, evicted.ttl_remaining), (None, None));
        assert_eq!((evicted.owner, evicted.token.as_u64()), (None, token.unsigned_abs()));
        assert!(granted(next).is_held());
        assert!(raw.get(&key).is_none());
    }
}

#[test]
fn force_unlock_of_a_free_lock_is_an_error() {
    let (root, raw) = (fresh_root("admin"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    // Locks of other names that sort before, after and below it.
    let guards: Vec<_> = ["a/", "a/b", "A", "aa", "~session"].map(|name| lock(&manager, name)).into();
    lock(&manager, "a").unlock().unwrap();
    let revision = raw.revision();
    for scope in BOTH {
        let error = manager.force_unlock("a", scope).unwrap_err();
        assert!(matches!(&error, LockError::NotHeld { key, .. } if key == "a"), "{error:?}");
        assert_eq!(error.code().as_str(), "LOCK_NOT_HELD");
    }
    assert!(guards.iter().all(|guard| guard.is_held()));
    assert_eq!(raw.keys(&format!("{root}/")).iter().filter(|kv| kv.mod_revision > revision).count(), 0);
}

#[test]
fn a_forced_unlock_is_logged_once_by_each_of_the_two_managers() {
    let root = fresh_root("admin");
    let (holder, admin) = (named(&root, "logged-holder"), named(&root, "logged-admin"));
    for (scope, name) in BOTH.into_iter().zip(["logged-a", "logged-b"]) {
        let logs = Logs::with(name);
        let guard = lock(&holder, name);
        admin.force_unlock(name, scope).unwrap();
        wait_until_done(&guard);
        drop(guard);
        eventually(SOON, "both have logged it", || logs.of_level(Level::Warn).len() >= 2);
        // A second line would be logged before the next session's first lock.
        drop(lock(&holder, name));
        let warnings = logs.of_level(Level::Warn);
        let by_us: Vec<_> = warnings.iter().filter(|line| line.contains("force-unlocked by us")).collect();
        assert_eq!((warnings.len(), by_us.len()), (2, 1), "{warnings:#?}");
        assert!(by_us[0].contains("logged-holder") && by_us[0].contains(&format!("{scope:?}")), "{by_us:?}");
        assert!(warnings.iter().any(|line| line.contains("lost")), "{warnings:#?}");
    }
}
