//! Whole managers on an in-process store: the I/O thread, its loop and the protocol, as callers see them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::*;
use crate::clock::Clock;
use crate::kv::Request;
use crate::store::ClientId;
use crate::store::memory::client::MemoryClient;
use crate::store::memory::cluster::MemoryCluster;
use crate::store::memory::fault::Fault;
use crate::{DistributedLock, LockGuard, LockManager, LockManagerOptions, LockOptions};

mod closing;
mod turns;

const MS: Duration = Duration::from_millis(1);

/// Long enough for any machine, short enough to end a test that would hang.
const SOON: Duration = Duration::from_secs(20);

/// A session of the shortest TTL, given up half a second before its end.
fn options() -> LockManagerOptions {
    LockManagerOptions::default().ttl(Duration::from_secs(2)).safety_margin(500 * MS)
}

fn manager(store: &Arc<MemoryCluster>) -> (LockManager, ClientId) {
    manager_with(store, &options())
}

fn manager_with(store: &Arc<MemoryCluster>, options: &LockManagerOptions) -> (LockManager, ClientId) {
    let client = MemoryClient::new(store);
    let id = client.id();
    (connect(client, options).unwrap(), id)
}

fn connect<S: Store>(store: S, options: &LockManagerOptions) -> Result<LockManager, LockError> {
    LockManager::connect_to("/test", options, Clock::default(), move || async move { Ok(store) })
}

fn lock(manager: &LockManager) -> DistributedLock {
    manager.new_lock("a").unwrap()
}

fn closes(guard: &LockGuard) -> bool {
    guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected())
}

/// Waits until a call waits for a lock of this manager.
fn wait_for_waiter(manager: &LockManager) {
    let begun = Instant::now();
    while manager.stats().waiting == 0 {
        assert!(begun.elapsed() < SOON);
        thread::yield_now();
    }
}

/// A store whose requests panic once `panics` is set.
#[derive(Clone)]
struct PanickingStore {
    store: MemoryClient,
    panics: Arc<AtomicBool>,
}

impl Store for PanickingStore {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        let panics = Arc::clone(&self.panics);
        let call = self.store.call(request, timeout);
        async move {
            assert!(!panics.load(Ordering::SeqCst), "a panic on purpose");
            call.await
        }
    }

    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.store.run_watches(orders, events)
    }
}

#[test]
fn a_lock_is_taken_with_one_transaction_and_released() {
    let (manager, _) = manager(&MemoryCluster::new());
    assert!(manager.session().is_alive());
    let before = manager.stats();
    let guard = lock(&manager).lock().unwrap();
    assert!(guard.is_held() && lock(&manager).is_locked());
    let taken = manager.stats();
    assert_eq!(taken.rpcs.txn - before.rpcs.txn, 1);
    assert_eq!((taken.acquired, taken.held, taken.waiting, taken.sessions), (1, 1, 0, 1));
    let done = guard.done().clone();
    guard.unlock().unwrap();
    assert!(done.recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    let released = manager.stats();
    assert_eq!((released.released, released.held, released.lost.total()), (1, 0, 0));
}

#[test]
fn managers_and_their_threads_exclude_each_other_and_tokens_grow() {
    let store = MemoryCluster::new();
    let managers = [manager(&store).0, manager(&store).0];
    let (inside, last) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for manager in managers.iter().cycle().take(8) {
            scope.spawn(|| {
                for _ in 0..25 {
                    let guard = lock(manager).lock().unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    let token = guard.token().as_u64();
                    assert!(last.swap(token, Ordering::SeqCst) < token);
                    assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                }
            });
        }
    });
    let total: u64 = managers.iter().map(|manager| manager.stats().acquired).sum();
    assert_eq!(total, 200);
}

#[test]
fn a_try_a_timeout_and_retries_end_at_their_limits() {
    let store = MemoryCluster::new();
    let ((holder, _), (other, _)) = (manager(&store), manager(&store));
    let _guard = lock(&holder).lock().unwrap();
    assert!(lock(&other).try_lock().unwrap().is_none());
    let begun = Instant::now();
    let error = lock(&other).lock_timeout(100 * MS).unwrap_err();
    assert!(matches!(error, LockError::Timeout { holder: Some(_), .. }), "{error:?}");
    assert!((100 * MS..1000 * MS).contains(&begun.elapsed()));
    let options = LockOptions::default().retry_interval(10 * MS).max_retries(10);
    let error = other.new_lock_with("a", options).unwrap().lock().unwrap_err();
    assert!(matches!(error, LockError::AlreadyHeld { holder: Some(_), .. }), "{error:?}");
    let stats = other.stats();
    assert_eq!((stats.timed_out, stats.waiting, stats.held), (1, 0, 0));
}

#[test]
fn a_cancelled_call_ends_at_once_and_leaves_the_lock_free() {
    let store = MemoryCluster::new();
    let ((holder, _), (other, _)) = (manager(&store), manager(&store));
    for _ in 0..100 {
        let guard = lock(&holder).lock().unwrap();
        let (cancel, cancelled) = crossbeam_channel::bounded::<()>(0);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(&other).lock_or_cancel(&cancelled));
            wait_for_waiter(&other);
            // The cancellation races with the release. In either order the lock is free afterwards.
            let release = scope.spawn(|| drop(guard));
            drop(cancel);
            let outcome = waiting.join().unwrap();
            assert!(matches!(outcome, Ok(_) | Err(LockError::Cancelled { .. })));
            release.join().unwrap();
        });
        assert!(lock(&holder).lock_timeout(SOON).unwrap().unlock().is_ok());
    }
}

#[test]
fn a_lost_session_ends_its_holds_and_is_replaced() {
    let store = MemoryCluster::new();
    let (manager, client) = manager(&store);
    let lease = manager.session().lease_id;
    let (lost, other) = (lock(&manager).lock().unwrap(), manager.new_lock("b").unwrap().lock().unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| manager.new_lock("b").unwrap().lock());
        wait_for_waiter(&manager);
        store.expire_leases_of(client);
        for guard in [&lost, &other] {
            assert!(closes(guard) && !guard.is_held());
            assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
        }
        let inherited = waiting.join().unwrap().unwrap();
        assert!(inherited.is_held(), "a waiter goes on waiting under the next session");
        assert!(inherited.token() > other.token());
    });
    assert!(lock(&manager).lock().unwrap().is_held(), "a lost guard does not block the lock");
    drop(lost);
    assert_ne!(manager.session().lease_id, lease);
    let stats = manager.stats();
    assert_eq!((stats.sessions, stats.lost.session_revoked), (2, 2));
}

/// More requests than may be in flight, most of them queued when the session ends.
#[test]
fn a_flood_of_callers_outlives_its_session() {
    let store = MemoryCluster::new();
    let (manager, client) = manager(&store);
    let ask = |n: u32| manager.new_lock(&n.to_string()).unwrap().enqueue().unwrap();
    let flood: Vec<_> = (0..2000).map(ask).collect();
    store.expire_leases_of(client);
    for pending in flood {
        match pending.wait() {
            Ok(guard) => drop(guard),
            Err(error) => assert!(matches!(error, LockError::Expired { .. }), "{error:?}"),
        }
    }
    lock(&manager).lock().unwrap().unlock().unwrap();
    let stats = manager.stats();
    assert_eq!((stats.sessions, stats.waiting, stats.held), (2, 0, 0));
}

/// A partition: the hold must end before the store can grant the lock to another manager.
#[test]
fn a_partitioned_holder_is_notified_before_the_next_grant() {
    let store = MemoryCluster::new();
    let ((cut, client), (other, _)) = (manager(&store), manager(&store));
    let guard = lock(&cut).lock().unwrap();
    store.disconnect_client(client);
    let (notified, granted) = thread::scope(|scope| {
        let notified = scope.spawn(|| {
            assert!(closes(&guard));
            Instant::now()
        });
        let next = lock(&other).lock().unwrap();
        let granted = Instant::now();
        assert!(!guard.is_held());
        assert!(next.token() > guard.token());
        (notified.join().unwrap(), granted)
    });
    assert!(notified < granted, "{:?} late", notified - granted);
    assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    assert!(!cut.session().is_alive());
}

#[test]
fn dropping_the_last_handle_ends_the_manager() {
    let store = MemoryCluster::new();
    let ((manager, _), (other, _)) = (manager(&store), self::manager(&store));
    let guard = lock(&manager).lock().unwrap();
    drop(manager);
    assert!(guard.is_held(), "a guard keeps its manager alive");
    assert!(lock(&other).try_lock().unwrap().is_none());
    let done = guard.done().clone();
    drop(guard);
    assert!(done.recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    assert!(lock(&other).try_lock().unwrap().is_some());
}

/// The I/O thread dies: every hold ends, and no call hangs.
#[test]
fn a_crash_closes_every_done_and_fails_every_call() {
    let panics = Arc::new(AtomicBool::new(false));
    let store =
        PanickingStore { store: MemoryClient::new(&MemoryCluster::new()), panics: Arc::clone(&panics) };
    let manager = connect(store, &options()).unwrap();
    let held = lock(&manager).lock().unwrap();
    let pending = thread::scope(|scope| scope.spawn(|| lock(&manager).enqueue().unwrap()).join().unwrap());
    let also = manager.new_lock("b").unwrap().lock().unwrap();
    panics.store(true, Ordering::SeqCst);
    let error = manager.new_lock("c").unwrap().lock().unwrap_err();
    assert!(matches!(error, LockError::Crashed), "{error:?}");
    for guard in [&held, &also] {
        assert!(closes(guard) && !guard.is_held());
        assert_eq!(guard.loss(), Some(LossReason::Crashed));
    }
    let error = pending.wait().unwrap_err();
    assert!(matches!(error, LockError::Crashed), "{error:?}");
    assert!(matches!(held.unlock(), Err(LockError::Expired { reason: LossReason::Crashed, .. })));
    assert!(matches!(manager.new_lock("d"), Err(LockError::Crashed)));
    assert!(matches!(manager.lock_info("a"), Err(LockError::Crashed)));
    assert!(!manager.session().is_alive());
    let stats = manager.stats();
    assert_eq!((stats.lost.crashed, stats.held, stats.waiting), (2, 0, 0));
    assert!(matches!(manager.close(), Err(LockError::Crashed)));
}

#[test]
fn connecting_fails_at_once_on_a_permanent_error() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    store.fail_next_of(client.id(), Fault::PermissionDenied);
    let begun = Instant::now();
    let refused = connect(client, &options().connect_timeout(SOON));
    assert!(matches!(refused, Err(LockError::PermissionDenied { .. })), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn connecting_is_retried_after_temporary_errors() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    store.fail_next_of(client.id(), Fault::NoLeader);
    store.fail_next_of(client.id(), Fault::NoLeader);
    let manager = connect(client, &options()).unwrap();
    assert!(manager.session().is_alive());
}

#[test]
fn connecting_to_a_silent_store_ends_within_its_timeout() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    store.disconnect_client(client.id());
    let begun = Instant::now();
    let refused = connect(client, &options().connect_timeout(200 * MS).close_timeout(100 * MS));
    assert!(matches!(refused, Err(LockError::Unavailable { .. })), "{refused:?}");
    assert!((200 * MS..1000 * MS).contains(&begun.elapsed()), "{:?}", begun.elapsed());

    let never =
        LockManager::connect_to("/test", &options().connect_timeout(200 * MS), Clock::default(), || {
            std::future::pending::<Result<MemoryClient, LockError>>()
        });
    assert!(matches!(never, Err(LockError::Unavailable { .. })), "{never:?}");
}

#[test]
fn an_i_o_thread_that_dies_during_start_up_is_an_error() {
    async fn die() -> Result<MemoryClient, LockError> {
        panic!("a panic on purpose")
    }
    let died = LockManager::connect_to("/test", &options(), Clock::default(), die);
    assert!(matches!(died, Err(LockError::Internal { .. })), "{died:?}");
}

#[test]
fn locks_can_be_used_within_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (manager, _) = manager(&MemoryCluster::new());
        assert!(lock(&manager).lock().unwrap().unlock().is_ok());
        let blocking = manager.clone();
        let worked = tokio::task::spawn_blocking(move || lock(&blocking).lock().unwrap().unlock());
        assert!(worked.await.unwrap().is_ok());
        manager.close().unwrap();
    });
}
