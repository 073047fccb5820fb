//! What holders read and write through their guards, and their notes.

use std::thread;
use std::time::Duration;

use etcd_lock::{ErrorCode, ForceUnlock, LockError, LockManagerOptions, LockOptions, LossReason, WriteBatch};

use crate::support::{Backend, disconnects, on_both_stores, take};

on_both_stores! {
    a_holder_reads_what_it_wrote_in_one_transaction_each,
    a_batch_is_written_as_a_whole,
    a_holder_that_does_not_know_of_its_loss_writes_nothing,
    a_loss_that_is_known_costs_no_request,
    the_locks_own_keys_and_the_empty_key_are_invalid,
    a_value_over_etcd_s_limit_is_too_large,
    every_clone_on_every_thread_can_write,
    a_write_goes_again_when_another_lock_s_trouble_has_moved_the_epoch,
    a_note_is_seen_by_others_until_it_is_replaced,
    each_waiter_takes_its_own_note_along,
    a_note_has_at_most_a_kilobyte,
}

on_both_stores! { own_server: a_write_without_an_answer_is_unknown_and_the_next_one_final }

/// A key of the test, outside of its root.
fn key(backend: &Backend, name: &str) -> String {
    format!("{}-data/{name}", backend.root())
}

fn a_holder_reads_what_it_wrote_in_one_transaction_each(backend: &Backend) {
    let manager = backend.manager();
    let guard = take(&manager.new_lock("a").unwrap());
    let (etcd, cursor) = (guard.etcd(), key(backend, "cursor"));
    let before = manager.stats().rpcs.txn;
    assert_eq!(etcd.get(&cursor).unwrap(), None);
    etcd.put(&cursor, "1").unwrap();
    assert_eq!(etcd.get(&cursor).unwrap().as_deref(), Some(&b"1"[..]));
    assert!(etcd.delete(&cursor).unwrap());
    assert!(!etcd.delete(&cursor).unwrap());
    etcd.put(&cursor, vec![0xff, 0]).unwrap();
    assert_eq!(manager.stats().rpcs.txn - before, 6);
    guard.unlock().unwrap();
    let guard = take(&backend.manager().new_lock("b").unwrap());
    assert_eq!(guard.etcd().get(&cursor).unwrap(), Some(vec![0xff, 0]), "it outlives the hold");
}

fn a_batch_is_written_as_a_whole(backend: &Backend) {
    let guard = take(&backend.manager().new_lock("a").unwrap());
    let row = |n: usize| key(backend, &format!("{n:03}"));
    let batch = |count| (0..count).fold(WriteBatch::new(), |batch, n| batch.put(row(n), n.to_string()));
    guard.etcd().commit(batch(100)).unwrap();
    assert_eq!(guard.etcd().get(&row(99)).unwrap().as_deref(), Some(&b"99"[..]));
    guard.etcd().commit(WriteBatch::new().put(row(0), "x").delete(row(1)).delete(row(0))).unwrap();
    assert_eq!((guard.etcd().get(&row(0)).unwrap(), guard.etcd().get(&row(1)).unwrap()), (None, None));
    let refused = guard.etcd().commit(batch(101)).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TooLarge);
    guard.etcd().commit(WriteBatch::new()).unwrap();
    let one_bad = WriteBatch::new().put(row(2), "x").put("", "x");
    assert_eq!(guard.etcd().commit(one_bad).unwrap_err().code(), ErrorCode::InvalidKey);
    assert_eq!(guard.etcd().get(&row(2)).unwrap().as_deref(), Some(&b"2"[..]));
}

fn a_holder_that_does_not_know_of_its_loss_writes_nothing(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let cursor = key(backend, "cursor");
    for end in [ForceUnlock::Lock, ForceUnlock::Session] {
        let guard = take(&manager.new_lock("a").unwrap());
        guard.etcd().put(&cursor, "first").unwrap();
        other.force_unlock("a", end).unwrap();
        // The watch may have told it by now, or not.
        let late = guard.etcd().put(&cursor, "late").unwrap_err();
        let reason = match end {
            ForceUnlock::Lock => LossReason::ForceUnlocked,
            ForceUnlock::Session => LossReason::SessionRevoked,
        };
        assert!(matches!(late, LockError::Expired { reason: why, .. } if why == reason), "{late:?}");
        assert!(!guard.is_held() && disconnects(guard.done()));
        let next = take(&other.new_lock("a").unwrap());
        assert_eq!(next.etcd().get(&cursor).unwrap().as_deref(), Some(&b"first"[..]));
    }
}

fn a_loss_that_is_known_costs_no_request(backend: &Backend) {
    let manager = backend.manager();
    let guard = take(&manager.new_lock("a").unwrap());
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert!(disconnects(guard.done()));
    let before = manager.stats().rpcs.txn;
    let cursor = key(backend, "cursor");
    let refused = [
        guard.etcd().put(&cursor, "1").unwrap_err(),
        guard.etcd().get(&cursor).unwrap_err(),
        guard.etcd().delete(&cursor).unwrap_err(),
        guard.etcd().commit(WriteBatch::new()).unwrap_err(),
        guard.set_note("x").unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.code() == ErrorCode::LockExpired), "{refused:?}");
    // The release of the deleted key, at most.
    assert!(manager.stats().rpcs.txn <= before + 1);
    manager.close().unwrap();
    assert_eq!(guard.etcd().get(&cursor).unwrap_err().code(), ErrorCode::LockExpired);
}

fn the_locks_own_keys_and_the_empty_key_are_invalid(backend: &Backend) {
    let guard = take(&backend.manager().new_lock("a").unwrap());
    let root = backend.root();
    for bad in [String::new(), format!("{root}/a"), format!("{root}/~session/1"), guard.etcd_key().into()] {
        let code = |error: LockError| error.code();
        assert_eq!(guard.etcd().put(&bad, "x").map_err(code), Err(ErrorCode::InvalidKey), "{bad:?}");
        assert_eq!(guard.etcd().get(&bad).map_err(code), Err(ErrorCode::InvalidKey), "{bad:?}");
        assert_eq!(guard.etcd().delete(&bad).map_err(code), Err(ErrorCode::InvalidKey), "{bad:?}");
    }
    guard.etcd().put(root, "not below itself").unwrap();
    guard.etcd().delete(root).unwrap();
}

fn a_value_over_etcd_s_limit_is_too_large(backend: &Backend) {
    let guard = take(&backend.manager().new_lock("a").unwrap());
    let blob = key(backend, "blob");
    guard.etcd().put(&blob, vec![7; 1_500_000]).unwrap();
    // etcd refuses the first by its own limit, gRPC the second.
    for size in [1_600_000, 3_000_000] {
        let refused = guard.etcd().put(&blob, vec![8; size]).unwrap_err();
        assert!(matches!(refused, LockError::TooLarge { .. }), "{refused:?}");
    }
    assert!(guard.is_held());
    assert_eq!(guard.etcd().get(&blob).unwrap(), Some(vec![7; 1_500_000]));
    guard.etcd().delete(&blob).unwrap();
}

fn every_clone_on_every_thread_can_write(backend: &Backend) {
    let guard = take(&backend.manager().new_lock("a").unwrap());
    thread::scope(|scope| {
        for n in 0..8 {
            let (guard, row) = (guard.clone(), key(backend, &n.to_string()));
            scope.spawn(move || (0..20).for_each(|i| guard.etcd().put(&row, i.to_string()).unwrap()));
        }
    });
    for n in 0..8 {
        assert_eq!(guard.etcd().get(&key(backend, &n.to_string())).unwrap(), Some(b"19".to_vec()));
    }
    let reentrant = backend.manager().new_reentrant_lock("b").unwrap().lock().unwrap();
    reentrant.etcd().put(&key(backend, "0"), "reentrant").unwrap();
}

fn a_write_goes_again_when_another_lock_s_trouble_has_moved_the_epoch(backend: &Backend) {
    let manager = backend.manager();
    let guard = take(&manager.new_lock("a").unwrap());
    for n in 0..20 {
        // Giving up a place while its request is in flight may move the epoch.
        drop(manager.new_lock(&format!("b{n}")).unwrap().enqueue().unwrap());
        guard.etcd().put(&key(backend, "cursor"), n.to_string()).unwrap();
    }
}

fn a_write_without_an_answer_is_unknown_and_the_next_one_final(backend: &Backend) {
    let options = LockManagerOptions::default().request_timeout(Duration::from_millis(300));
    let manager = backend.manager_with(options);
    let guard = take(&manager.new_lock("a").unwrap());
    let cursor = key(backend, "cursor");
    guard.etcd().put(&cursor, "1").unwrap();
    backend.cut_off(&manager);
    let unknown = guard.etcd().put(&cursor, "2").unwrap_err();
    assert!(matches!(unknown, LockError::Unavailable { .. }), "{unknown:?}");
    backend.rejoin(&manager);
    let seen = loop {
        match guard.etcd().get(&cursor) {
            Ok(seen) => break seen,
            Err(LockError::Unavailable { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(matches!(seen.as_deref(), Some(b"1" | b"2")), "{seen:?}");
    while guard.etcd().put(&cursor, "3").is_err() {}
    assert_eq!(guard.etcd().get(&cursor).unwrap().as_deref(), Some(&b"3"[..]));
    assert!(guard.is_held());
}

fn a_note_is_seen_by_others_until_it_is_replaced(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let noted =
        |key: &str, note: &str| manager.new_lock_with(key, LockOptions::default().note(note)).unwrap();
    let note_of = |key: &str| other.lock_info(key).unwrap().expect("it is held").note;
    let plain = take(&manager.new_lock("plain").unwrap());
    assert_eq!((plain.note(), note_of("plain")), (None, None));
    let guard = take(&noted("a", "10.0.0.7:80"));
    let expected = Some("10.0.0.7:80".to_owned());
    assert_eq!((guard.note(), note_of("a")), (expected.clone(), expected));
    let before = (guard.token(), other.lock_info("a").unwrap().unwrap());
    let waiting = other.new_lock("a").unwrap().enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    for note in ["\"quoted\" é 锁", "", "again"] {
        guard.set_note(note).unwrap();
        let expected = Some(note.to_owned()).filter(|note| !note.is_empty());
        assert_eq!((guard.note(), note_of("a")), (expected.clone(), expected));
    }
    let after = other.lock_info("a").unwrap().unwrap();
    assert_eq!((guard.token(), after.token), before_token(&before));
    assert_eq!(
        (after.lease_id, after.created_at, after.owner),
        (before.1.lease_id, before.1.created_at, before.1.owner)
    );
    assert!(
        guard.is_held()
            && waiting.ready().try_recv() == Err(etcd_lock::crossbeam_channel::TryRecvError::Empty)
    );
    assert!(other.new_lock("a").unwrap().try_lock().unwrap().is_none());
    guard.unlock().unwrap();
    assert!(waiting.wait().unwrap().is_held());
}

fn before_token(
    before: &(etcd_lock::FencingToken, etcd_lock::LockInfo),
) -> (etcd_lock::FencingToken, etcd_lock::FencingToken) {
    (before.0, before.1.token)
}

fn each_waiter_takes_its_own_note_along(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let noted = |note: &str| manager.new_lock_with("a", LockOptions::default().note(note)).unwrap();
    let theirs = take(&other.new_lock("a").unwrap());
    let first = noted("first").enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    let second = noted("second").enqueue().unwrap();
    drop(first);
    theirs.unlock().unwrap();
    let guard = second.wait().unwrap();
    assert_eq!(guard.note().as_deref(), Some("second"));
    // It acquired with the key that was put for the first.
    crate::support::eventually(Duration::from_secs(10), "the note is replaced", || {
        other.lock_info("a").unwrap().unwrap().note.as_deref() == Some("second")
    });
}

fn a_note_has_at_most_a_kilobyte(backend: &Backend) {
    let manager = backend.manager();
    let options = |bytes: usize| LockOptions::default().note("x".repeat(bytes));
    assert_eq!(manager.new_lock_with("a", options(1025)).unwrap_err().code(), ErrorCode::InvalidOptions);
    let guard = take(&manager.new_lock_with("a", options(1024)).unwrap());
    assert_eq!(guard.set_note(&"y".repeat(1025)).unwrap_err().code(), ErrorCode::InvalidOptions);
    guard.set_note(&"y".repeat(1024)).unwrap();
    assert_eq!(manager.lock_info("a").unwrap().unwrap().note.map(|note| note.len()), Some(1024));
}
