//! A viewer reads everything, needs only read permission, and leaves no trace.

use std::time::{Duration, Instant};

use etcd_client::Permission;
use etcd_lock::{ErrorCode, ForceUnlock, LockError, LockInfo, LockState, LockViewer};

use crate::support::manager::{connect, connect_with, enqueue, lock, options, wait_for_contenders};
use crate::support::setup::Access;
use crate::support::{Etcd, Raw, Setup, fresh_root, lease_of, shared};

#[track_caller]
fn view(access: &Access, root: &str) -> LockViewer {
    LockViewer::connect(&access.endpoints, root, options(access))
        .unwrap_or_else(|why| panic!("no viewer at {:?}: {why:?}", access.endpoints))
}

/// Clears the values that differ between two reads.
fn timeless(infos: Vec<LockInfo>) -> Vec<LockInfo> {
    let mut infos = infos;
    infos.iter_mut().for_each(|info| info.ttl_remaining = None);
    infos
}

#[test]
fn a_viewer_sees_what_a_manager_sees_and_leaves_no_trace() {
    let etcd = Etcd::start();
    let (root, raw) = ("/locks", Raw::connect(etcd.access()));
    let manager = connect(etcd.access(), root);
    let _guards = [lock(&manager, "a"), lock(&manager, "a/b")];
    let keys = raw.keys("");
    assert_eq!(raw.leases(), [lease_of(&manager)]);

    let viewer = view(etcd.access(), "/locks/");
    assert_eq!(viewer.root(), root);
    let info = viewer.lock_info("a").unwrap().expect("the lock is held");
    assert!(info.ttl_remaining.is_some() && info.pid == Some(std::process::id()));
    assert_eq!(timeless(vec![info]), timeless(manager.lock_info("a").unwrap().into_iter().collect()));
    assert_eq!(timeless(viewer.list_locks("").unwrap()), timeless(manager.list_locks("").unwrap()));
    assert_eq!(viewer.list_locks("a/").unwrap().len(), 1);
    assert_eq!(viewer.lock_info("free").unwrap(), None);
    assert!(viewer.queue("free").unwrap().is_empty());
    assert_eq!(viewer.lock_info("").unwrap_err().code(), ErrorCode::InvalidKey);
    assert_eq!(raw.keys(""), keys);
    assert_eq!(raw.leases(), [lease_of(&manager)]);
}

/// The create revision decides, not the key, and a foreign client is listed like any other.
#[test]
fn a_queue_shows_all_contenders_in_their_order() {
    let (root, raw) = (fresh_root("viewer"), Raw::connect(shared().access()));
    let named = |owner: &str| connect_with(shared().access(), &root, options(shared().access()).owner(owner));
    let (one, two, three) = (named("one"), named("two"), named("three"));
    let guard = lock(&two, "a");
    let contenders = format!("{root}/a/");
    // A key that sorts before all others.
    raw.put(&format!("{root}/a/0"), "", 0);
    let _third = enqueue(&three, "a");
    wait_for_contenders(&raw, &contenders, 3);
    let _fourth = [enqueue(&one, "a"), enqueue(&one, "a")];
    wait_for_contenders(&raw, &contenders, 4);

    for queue in [one.queue("a").unwrap(), view(shared().access(), &root).queue("a").unwrap()] {
        let order: Vec<_> = queue.iter().map(|info| (info.owner.as_deref(), info.waiters)).collect();
        assert_eq!(order, [(Some("two"), 3), (None, 2), (Some("three"), 1), (Some("one"), 0)]);
        assert_eq!(queue[0].token, guard.token());
        assert!(queue.is_sorted_by(|a, b| a.token < b.token));
        let held: Vec<_> = queue.iter().map(|info| info.state == LockState::Held).collect();
        assert_eq!(held, [true, false, false, false]);
        let ttls: Vec<_> = queue.iter().map(|info| info.ttl_remaining.is_some()).collect();
        assert_eq!(ttls, [true, false, true, true], "the foreign key has no lease");
        assert!(queue.iter().all(|info| info.key == "a"));
    }
    raw.delete(&format!("{root}/a/0"));
}

/// The user of a dashboard: read permission below the root shows everything, and allows no change.
#[test]
fn a_user_with_read_permission_can_view_and_cannot_lock() {
    let root = "/app/locks";
    let etcd = Setup::default()
        .arg("--bcrypt-cost=4")
        .user("locker", "secret", "/app/")
        .user("reader", "s", "/no/")
        .start();
    Raw::connect(etcd.access())
        .call(move |mut client| async move {
            let read = Permission::read(format!("{root}/")).with_prefix();
            client.role_grant_permission("reader", read).await
        })
        .unwrap();
    let manager = connect(&etcd.access().as_user("locker", "secret"), root);
    let (guard, _waiting) = (lock(&manager, "a"), enqueue(&manager, "a"));

    let reader = etcd.access().as_user("reader", "s");
    let viewer = view(&reader, root);
    assert_eq!(viewer.lock_info("a").unwrap().unwrap().token, guard.token());
    assert_eq!(viewer.list_locks("").unwrap().len(), 1);
    assert_eq!(viewer.queue("a").unwrap()[0].token, guard.token());

    let refused = etcd_lock::LockManager::connect(&reader.endpoints, root, options(&reader));
    assert!(matches!(refused, Err(LockError::PermissionDenied { .. })), "{refused:?}");
    let elsewhere = view(&reader, "/elsewhere").list_locks("");
    assert!(matches!(elsewhere, Err(LockError::PermissionDenied { .. })), "{elsewhere:?}");
    let anonymous = Access { user: None, ..etcd.access().clone() };
    let refused = LockViewer::connect(&anonymous.endpoints, root, options(&anonymous)).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Unauthenticated);
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert_ne!(viewer.queue("a").unwrap().first().map(|info| info.token), Some(guard.token()));
}

/// While etcd is down, queries end at their limit, and the last handle is dropped at once.
#[test]
fn a_viewer_whose_etcd_is_down_fails_in_time_and_is_dropped_at_once() {
    let etcd = Etcd::start();
    let limit = Duration::from_millis(500);
    let options = options(etcd.access()).request_timeout(limit);
    let viewer = LockViewer::connect(etcd.endpoints(), "/locks", options).unwrap();
    etcd.stop();
    let begun = Instant::now();
    let error = viewer.list_locks("").unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error:?}");
    assert!(begun.elapsed() < limit + Duration::from_secs(1), "{:?}", begun.elapsed());

    let asking = viewer.clone();
    let asked = std::thread::spawn(move || asking.lock_info("a"));
    assert!(asked.join().unwrap().is_err());
    let begun = Instant::now();
    drop(viewer);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    etcd.cont();
    assert!(LockViewer::connect(etcd.endpoints(), "/locks", Default::default()).is_ok());
}
