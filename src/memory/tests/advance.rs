//! Time that a test advances.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::{LockError, LossReason};
use crate::manager::LockManager;
use crate::memory::MemoryStore;
use crate::options::LockManagerOptions;

const TTL: Duration = Duration::from_secs(30);
/// A limit of real time that is far below the TTL.
const AT_ONCE: Duration = Duration::from_secs(10);

fn manager(store: &MemoryStore, ttl: Duration) -> LockManager {
    LockManager::in_memory(store, "/test", LockManagerOptions::default().ttl(ttl)).unwrap()
}

#[test]
fn a_partition_longer_than_the_ttl_takes_no_real_time() {
    let (store, begun) = (MemoryStore::new(), Instant::now());
    let (cut_off, other) = (manager(&store, TTL), manager(&store, TTL));
    for _ in 0..10 {
        let guard = cut_off.new_lock("a").unwrap().lock_timeout(TTL).unwrap();
        let kept = other.new_lock("b").unwrap().lock_timeout(TTL).unwrap();
        let next = other.new_lock("a").unwrap().enqueue().unwrap();
        store.disconnect(&cut_off);
        store.advance(TTL - TTL / 10 - Duration::from_secs(1));
        assert!(guard.is_held() && next.ready().try_recv().is_err_and(|error| error.is_empty()));
        store.advance(Duration::from_secs(2));
        assert!(guard.done().recv_timeout(AT_ONCE).is_err_and(|error| error.is_disconnected()));
        assert!(!guard.is_held() && !cut_off.session().is_alive());
        assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
        assert!(
            next.ready().try_recv().is_err_and(|error| error.is_empty()),
            "reported before the next grant"
        );
        store.advance(TTL);
        let next = next.wait().unwrap();
        assert!(next.token() > guard.token() && kept.is_held());
        store.reconnect(&cut_off);
        drop((guard, kept, next));
    }
    assert_eq!(other.stats().sessions, 1, "a connected manager renews meanwhile");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[test]
fn connected_managers_stay_holders_however_far_the_time_is_advanced() {
    let (store, begun) = (MemoryStore::new(), Instant::now());
    let managers = [Duration::from_secs(2), TTL].map(|ttl| manager(&store, ttl));
    let guards = ["a", "b"].map(|name| (name, managers[usize::from(name == "b")].new_lock(name).unwrap()));
    let guards = guards.map(|(_, lock)| lock.lock().unwrap());
    store.advance(Duration::from_secs(600));
    assert!(guards.iter().all(|guard| guard.is_held()));
    for manager in &managers {
        assert_eq!(manager.stats().sessions, 1);
    }
    assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}", begun.elapsed());
}

#[test]
fn delayed_answers_arrive_by_the_store_s_time_and_renew_the_session() {
    for (ttl, delay) in [(TTL, 1500), (TTL, 200), (Duration::from_secs(4), 400)] {
        let (store, begun) = (MemoryStore::new(), Instant::now());
        let manager = manager(&store, ttl);
        let guard = manager.new_lock("a").unwrap().lock().unwrap();
        store.delay(&manager, Duration::from_millis(delay));
        store.advance(Duration::from_secs(300));
        assert!(guard.is_held(), "lost: {:?}, with a delay of {delay} ms", guard.loss());
        assert_eq!(manager.stats().sessions, 1);
        store.delay(&manager, Duration::ZERO);
        drop((guard, manager));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?} with a delay of {delay} ms");
    }
}

#[test]
fn an_answer_later_than_its_request_s_limit_never_arrives() {
    let (store, begun) = (MemoryStore::new(), Instant::now());
    let manager = manager(&store, TTL);
    let guard = manager.new_lock("a").unwrap().lock().unwrap();
    store.delay(&manager, TTL);
    store.advance(2 * TTL);
    assert_eq!(guard.loss(), Some(LossReason::SessionExpired), "as on a real cluster with this delay");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    store.delay(&manager, Duration::ZERO);
    store.advance(TTL);
    assert!(manager.new_lock("a").unwrap().lock_timeout(TTL).unwrap().is_held());
}

#[test]
fn waits_time_out_by_the_store_s_time() {
    let store = MemoryStore::new();
    let (holder, other) = (manager(&store, TTL), manager(&store, TTL));
    let _guard = holder.new_lock("a").unwrap().lock().unwrap();
    let lock = other.new_lock("a").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| (lock.lock_timeout(100 * TTL), Instant::now()));
        while other.stats().waiting == 0 {
            thread::yield_now();
        }
        let begun = Instant::now();
        store.advance(100 * TTL + TTL);
        let (error, ended) = waiting.join().unwrap();
        assert!(matches!(error, Err(LockError::Timeout { waited, .. }) if waited >= 100 * TTL), "{error:?}");
        assert!(ended - begun < 3 * AT_ONCE);
    });
}
