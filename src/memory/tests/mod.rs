//! The events that a test can cause for a manager on a store.

mod advance;

use std::time::Duration;

use super::*;
use crate::error::LossReason;

/// The upper limit of every wait in these tests.
const PATIENCE: Duration = Duration::from_secs(10);

fn manager(store: &MemoryStore) -> LockManager {
    LockManager::in_memory(store, "/app", Default::default()).unwrap()
}

/// In both cases the holder gets another session afterwards; the way in which it learns of the end differs.
#[test]
fn a_session_expires_as_its_holder_sees_it_and_is_revoked_behind_its_back() {
    for (end, reason) in [
        (MemoryStore::expire_session as fn(&MemoryStore, &LockManager), LossReason::SessionExpired),
        (MemoryStore::revoke_session, LossReason::SessionRevoked),
    ] {
        let store = MemoryStore::new();
        let (holder, other) = (manager(&store), manager(&store));
        let lock = holder.new_lock("a").unwrap();
        let guards = [lock.lock().unwrap(), holder.new_lock("b").unwrap().lock().unwrap()];
        let waiting = other.new_lock("a").unwrap().enqueue().unwrap();
        let session = holder.session().lease_id;
        end(&store, &holder);
        if reason == LossReason::SessionExpired {
            // By its own clock, before the lock can be granted to another.
            assert!(
                guards
                    .iter()
                    .all(|guard| !guard.is_held()
                        && guard.done().try_recv().is_err_and(|e| e.is_disconnected()))
            );
        }
        for guard in guards {
            assert!(guard.done().recv_timeout(PATIENCE).is_err_and(|error| error.is_disconnected()));
            assert_eq!(guard.loss(), Some(reason));
        }
        drop(waiting.wait().unwrap());
        assert!(lock.lock_timeout(PATIENCE).unwrap().is_held());
        assert_ne!(holder.session().lease_id, session);
        let stats = holder.stats();
        assert_eq!((stats.sessions, stats.lost.total()), (2, 2));
        assert!(other.session().is_alive() && other.stats().sessions == 1);
    }
}

#[test]
fn sessions_that_expire_one_after_the_other_are_counted_and_replaced() {
    let store = MemoryStore::new();
    let manager = manager(&store);
    for sessions in 1..=50 {
        let guard = manager.new_lock("a").unwrap().lock_timeout(PATIENCE).unwrap();
        assert_eq!(manager.stats().sessions, sessions);
        store.expire_session(&manager);
        assert!(!guard.is_held());
    }
    assert_eq!(manager.stats().lost.session_expired, 50);
    assert_eq!(manager.stats().lost.total(), 50);
}

#[test]
fn another_store_s_manager_is_left_alone() {
    let (store, other) = (MemoryStore::new(), MemoryStore::new());
    let manager = manager(&other);
    let guard = manager.new_lock("a").unwrap().lock().unwrap();
    store.expire_session(&manager);
    store.revoke_session(&manager);
    store.delay(&manager, PATIENCE);
    assert!(guard.is_held());
    guard.unlock().unwrap();
}
