//! Every name is a lock of its own, with the same key in this library and etcd's own clients.

use etcd_lock::{ForceUnlock, LockError, LockManager};

use crate::support::etcdctl::Etcdctl;
use crate::support::manager::{connect, enqueue, granted, lock, wait_for_contenders};
use crate::support::{Raw, SOON, fresh_root, shared};

/// Names, and their path segments in etcd.
fn names() -> Vec<(String, String)> {
    let plain = [
        ("a", "a"),
        ("a/b", "a%2Fb"),
        ("a/", "a%2F"),
        ("/", "%2F"),
        ("%2F", "%252F"),
        ("~session", "%7Esession"),
        ("~", "%7E"),
        ("a~b", "a~b"),
        (" ", " "),
        ("-", "-"),
        ("line\nbreak\0", "line%0Abreak%00"),
        ("naïve/锁🔒", "naïve%2F锁🔒"),
        // Composed and decomposed characters make two names: the bytes count, not their look.
        ("é", "é"),
        ("e\u{301}", "e\u{301}"),
    ];
    let mut names: Vec<_> = plain.map(|(name, key)| (name.to_owned(), key.to_owned())).into();
    names.push(("x".repeat(512), "x".repeat(512)));
    names.push(("é".repeat(256), "é".repeat(256)));
    // The longest key that a name can have: 1,536 bytes after the root.
    names.push(("/".repeat(512), "%2F".repeat(512)));
    names
}

#[test]
fn all_names_can_be_held_at_once_each_at_its_own_key() {
    let (root, raw) = (fresh_root("names"), Raw::connect(shared().access()));
    let (manager, other) = (connect(shared().access(), &root), connect(shared().access(), &root));
    let guards: Vec<_> = names().iter().map(|(name, _)| lock(&manager, name)).collect();
    for ((name, key), guard) in names().iter().zip(&guards) {
        let keys = format!("{root}/{key}/");
        assert!(guard.etcd_key().starts_with(&keys), "{name:?} has the key {:?}", guard.etcd_key());
        assert_eq!(raw.count(&keys), 1, "{name:?}");
        assert_eq!(guard.key(), name);
        assert!(other.new_lock(name).unwrap().try_lock().unwrap().is_none(), "{name:?}");
        let info = other.lock_info(name).unwrap().unwrap();
        assert_eq!((&info.key, info.token, info.waiters), (name, guard.token(), 0));
    }
    let mut expected: Vec<String> = names().into_iter().map(|(name, _)| name).collect();
    expected.sort();
    let listed: Vec<String> = other.list_locks("").unwrap().into_iter().map(|info| info.key).collect();
    assert_eq!(listed, expected);

    // One is released, and the others stay held.
    for (gone, guard) in guards.into_iter().enumerate() {
        assert!(guard.is_held());
        guard.unlock().unwrap();
        let name = &names()[gone].0;
        expected.retain(|other| other != name);
        assert!(other.lock_info(name).unwrap().is_none(), "{name:?}");
        assert_eq!(other.list_locks("").unwrap().len(), expected.len());
    }
}

#[test]
fn a_listing_takes_the_beginning_of_names_literally() {
    let root = fresh_root("names");
    let manager = connect(shared().access(), &root);
    let _guards: Vec<_> = names().iter().map(|(name, _)| lock(&manager, name)).collect();
    for prefix in
        ["", "a", "a/", "a/b", "%", "%2F", "/", "~", "~session", "~s", "é", "naïve/", "x", "zz", "\0"]
    {
        let mut expected: Vec<_> =
            names().into_iter().map(|(name, _)| name).filter(|name| name.starts_with(prefix)).collect();
        expected.sort();
        let listed: Vec<_> = manager.list_locks(prefix).unwrap().into_iter().map(|info| info.key).collect();
        assert_eq!(listed, expected, "prefix {prefix:?}");
    }
}

/// In both directions, for every name that a command line can carry: each blocks the other.
#[test]
fn etcdctl_and_the_library_use_the_same_lock_for_every_name() {
    let (root, raw) = (fresh_root("names"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let ctl = Etcdctl::new(shared().access());
    let theirs: Vec<_> =
        names().iter().map(|(_, key)| ctl.queue_for_lock(&format!("{root}/{key}"))).collect();
    let theirs: Vec<_> =
        theirs.into_iter().map(|theirs| theirs.wait(SOON).expect("the lock is free")).collect();
    let listed = manager.list_locks("").unwrap();
    assert_eq!(listed.len(), names().len());
    assert!(listed.iter().all(|info| info.owner.is_none()));

    let ours: Vec<_> = names().iter().map(|(name, _)| enqueue(&manager, name)).collect();
    for (((name, key), ours), theirs) in names().iter().zip(ours).zip(theirs) {
        let keys = format!("{root}/{key}/");
        wait_for_contenders(&raw, &keys, 2);
        assert!(!manager.new_lock(name).unwrap().is_locked(), "{name:?}");
        theirs.release();
        let ours = granted(ours);
        let next = ctl.queue_for_lock(&format!("{root}/{key}"));
        wait_for_contenders(&raw, &keys, 2);
        assert_eq!(manager.lock_info(name).unwrap().unwrap().waiters, 1, "{name:?}");
        ours.unlock().unwrap();
        assert!(next.wait(SOON).is_ok(), "{name:?}");
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, LockError>, what: &str) {
    let error = result.expect_err(what);
    assert!(matches!(error, LockError::InvalidKey { .. }), "{what}: {error:?}");
    assert_eq!(error.code().as_str(), "INVALID_KEY");
    assert!(!error.is_retryable());
    assert!(error.to_string().len() < 400, "a refused name is abbreviated");
}

#[test]
fn an_empty_name_and_one_of_513_bytes_are_refused_by_every_call() {
    let manager: LockManager = connect(shared().access(), &fresh_root("names"));
    let before = manager.stats();
    for name in ["", &"x".repeat(513), &"é".repeat(257), &"/".repeat(1 << 20)] {
        let what = format!("{} bytes", name.len());
        refused(manager.new_lock(name), &what);
        refused(manager.new_lock_with(name, Default::default()), &what);
        refused(manager.lock_info(name), &what);
        refused(manager.force_unlock(name, ForceUnlock::Lock), &what);
        refused(manager.force_unlock(name, ForceUnlock::Session), &what);
    }
    let after = manager.stats();
    assert_eq!(after.rpcs.txn, before.rpcs.txn, "no request was sent");
}

#[test]
fn roots_are_separate_and_lose_their_trailing_slash() {
    let root = fresh_root("names");
    let access = shared().access();
    let (plain, slash) = (connect(access, &root), connect(access, &format!("{root}/")));
    let beside = [connect(access, &format!("{root}b")), connect(access, &format!("/a{root}"))];
    assert_eq!((plain.root(), slash.root()), (root.as_str(), root.as_str()));
    let guard = lock(&plain, "a");
    assert!(slash.new_lock("a").unwrap().try_lock().unwrap().is_none());
    for manager in &beside {
        assert!(manager.new_lock("a").unwrap().try_lock().unwrap().is_some());
    }
    drop(guard);
    for root in ["", "/", "//"] {
        let error = LockManager::connect(&access.endpoints, root, Default::default()).unwrap_err();
        assert!(matches!(error, LockError::InvalidOptions { .. }), "{root:?}: {error:?}");
    }
}
