//! What a close does, and how long it takes.

use super::*;

#[test]
fn closing_ends_everything_for_every_handle() {
    let store = MemoryCluster::new();
    let ((manager, _), (other, _)) = (manager(&store), self::manager(&store));
    let guard = lock(&manager).lock().unwrap();
    let clone = manager.clone();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| lock(&clone).lock().unwrap_err());
        wait_for_waiter(&manager);
        let handle = lock(&manager);
        manager.close().unwrap();
        assert!(matches!(waiting.join().unwrap(), LockError::Closed));
        assert!(matches!(handle.try_lock(), Err(LockError::Closed)));
    });
    assert!(closes(&guard) && !guard.is_held());
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    assert!(matches!(guard.unlock(), Err(LockError::Expired { reason: LossReason::Closed, .. })));
    assert!(matches!(clone.new_lock("b"), Err(LockError::Closed)));
    assert!(matches!(clone.list_locks(""), Err(LockError::Closed)));
    assert!(!clone.session().is_alive());
    assert_eq!(clone.stats().lost.closed, 1);
    assert!(lock(&other).try_lock().unwrap().is_some(), "the keys are deleted");
    clone.close().unwrap();
}

#[test]
fn closing_right_after_a_loss_revokes_the_lost_lease() {
    let store = MemoryCluster::new();
    let ((manager, client), (other, _)) = (manager(&store), self::manager(&store));
    let guard = lock(&manager).lock().unwrap();
    store.disconnect_client(client);
    // Past the deadline, but before the lease expires.
    store.advance(manager.session().remaining + 100 * MS);
    assert!(closes(&guard));
    store.reconnect_client(client);
    manager.close().unwrap();
    assert!(lock(&other).try_lock().unwrap().is_some());
}

#[test]
fn closing_a_partitioned_manager_fails_within_its_timeout() {
    let store = MemoryCluster::new();
    let (manager, client) = manager_with(&store, &options().close_timeout(200 * MS));
    let guard = lock(&manager).lock().unwrap();
    store.disconnect_client(client);
    let begun = Instant::now();
    assert!(matches!(manager.close(), Err(LockError::Unavailable { .. })));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(guard.loss(), Some(LossReason::Closed));
}
