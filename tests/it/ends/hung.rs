//! The application's logger blocks the I/O thread: holders still learn of a loss in time, and no call hangs.

use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{after, never, select};
use etcd_lock::{LockError, LockManager, LockManagerOptions, LossReason};

use crate::support::parked::ParkingLogger;
use crate::support::wait::threads_named;
use crate::support::{Backend, SOON, disconnects, eventually, on_both_stores, take, wait_for_waiting};

on_both_stores! { alone:
    with_a_hung_i_o_thread_a_holder_learns_of_the_loss_in_time,
    with_a_hung_i_o_thread_every_call_ends_within_its_limit,
    with_a_hung_i_o_thread_close_ends_every_wait_and_every_hold,
    with_a_hung_i_o_thread_the_last_drop_is_bounded,
    a_logger_that_blocks_at_the_close_does_not_keep_the_lease,
}

const TTL: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The time that the library adds to a limit before it regards the I/O thread as hung, and that of a busy machine.
const SLACK: Duration = Duration::from_millis(600);

fn options() -> LockManagerOptions {
    let options = LockManagerOptions::default().ttl(TTL).request_timeout(REQUEST_TIMEOUT);
    options.close_timeout(CLOSE_TIMEOUT)
}

#[track_caller]
fn ends_within<T>(limit: Duration, what: &str, call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = call();
    assert!(begun.elapsed() < limit + SLACK, "{what} took {:?}", begun.elapsed());
    result
}

/// The number of this process's manager threads; a backend may have a manager of its own.
#[track_caller]
fn threads() -> usize {
    // A new thread takes a moment to set its own name.
    let watchdogs = || threads_named("etcd-lock-watch");
    eventually(SOON, "a watchdog for each manager", || threads_named("etcd-lock-io") == watchdogs());
    2 * watchdogs()
}

#[track_caller]
fn wait_for_threads(count: usize) {
    eventually(SOON, "the manager's threads have ended", || threads_named("etcd-lock-") == count);
}

fn with_a_hung_i_o_thread_a_holder_learns_of_the_loss_in_time(backend: &Backend) {
    let (manager, other) = (backend.manager_with(options()), backend.manager());
    let logger = ParkingLogger::park_at("lock \"a\" acquired");
    let guard = take(&manager.new_lock("a").unwrap());
    logger.wait_until_parked(SOON);
    let deadline = Instant::now() + guard.remaining();
    let (ended, next) = thread::scope(|scope| {
        let ended = scope.spawn(|| {
            select! {
                recv(guard.done()) -> _ => Some(Instant::now()),
                recv(after(SOON)) -> _ => None,
            }
        });
        let next = scope.spawn(|| (take(&other.new_lock("a").unwrap()), Instant::now()));
        (ended.join().unwrap(), next.join().unwrap())
    });
    let ended = ended.expect("done() does not disconnect");
    assert!(ended >= deadline - Duration::from_millis(50), "{:?} early", deadline - ended);
    assert!(ended < deadline + Duration::from_millis(200), "{:?} late", ended - deadline);
    assert!(ended < next.1, "the next holder was granted {:?} before", ended - next.1);
    assert!(!guard.is_held() && guard.remaining().is_zero() && next.0.token() > guard.token());
    assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    assert!(!manager.session().is_alive());
    assert_eq!((manager.stats().held, manager.stats().lost.session_expired), (0, 1));
    let lost = guard.unlock();
    assert!(matches!(lost, Err(LockError::Expired { reason: LossReason::SessionExpired, .. })), "{lost:?}");

    // The thread continues: it notices the loss, and serves again.
    logger.release();
    drop(next);
    let again = take(&manager.new_lock("a").unwrap());
    assert!(again.is_held());
    assert_eq!(manager.stats().lost.session_expired, 1, "counted once");
}

fn with_a_hung_i_o_thread_every_call_ends_within_its_limit(backend: &Backend) {
    let manager = backend.manager_with(options());
    let logger = ParkingLogger::park_at("lock \"a\" acquired");
    let held = take(&manager.new_lock("a").unwrap());
    logger.wait_until_parked(SOON);
    let lock = manager.new_lock("b").unwrap();

    let short = Duration::from_millis(200);
    let late = ends_within(short, "lock_timeout", || lock.lock_timeout(short));
    assert!(matches!(late, Err(LockError::Timeout { .. } | LockError::Unavailable { .. })), "{late:?}");
    let tried = ends_within(REQUEST_TIMEOUT, "try_lock", || lock.try_lock());
    assert!(matches!(tried, Err(LockError::Unavailable { .. })), "{tried:?}");
    let cancel = after(short);
    let (forward, cancelled) = etcd_lock::crossbeam_channel::bounded::<()>(0);
    let waited = thread::scope(|scope| {
        scope.spawn(move || {
            let _ = cancel.recv();
            drop(forward);
        });
        ends_within(short, "lock_or_cancel", || lock.lock_or_cancel(&cancelled))
    });
    assert!(matches!(waited, Err(LockError::Cancelled { .. })), "{waited:?}");
    let info = ends_within(REQUEST_TIMEOUT, "lock_info", || manager.lock_info("a"));
    assert!(matches!(info, Err(LockError::Unavailable { .. })), "{info:?}");
    assert!(ends_within(REQUEST_TIMEOUT, "list_locks", || manager.list_locks("")).is_err());
    let unlocked = ends_within(REQUEST_TIMEOUT, "unlock", || held.unlock());
    assert!(unlocked.is_err(), "the release is not confirmed");
    ends_within(Duration::ZERO, "calls without I/O", || {
        assert!(!lock.is_locked());
        let _ = (manager.session(), manager.stats(), manager.new_lock("c").unwrap());
        drop(lock.enqueue().unwrap());
    });
    logger.release();
}

fn with_a_hung_i_o_thread_close_ends_every_wait_and_every_hold(backend: &Backend) {
    let of_the_test = threads();
    let (manager, other) = (backend.manager_with(options()), backend.manager());
    let theirs = take(&other.new_lock("theirs").unwrap());
    let queued = manager.new_lock("theirs").unwrap().enqueue().unwrap();
    backend.wait_for_contenders("theirs", 2);
    let logger = ParkingLogger::park_at("lock \"a\" acquired");
    let guard = take(&manager.new_lock("a").unwrap());
    logger.wait_until_parked(SOON);
    let unread = manager.new_lock("free").unwrap().enqueue().unwrap();
    let (before, after) = (manager.new_lock("theirs").unwrap(), manager.new_lock("free").unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| before.lock());
        let cancellable = scope.spawn(|| after.lock_or_cancel(&never()));
        let closed = ends_within(CLOSE_TIMEOUT, "close", || manager.clone().close());
        assert!(matches!(closed, Err(LockError::Unavailable { .. })), "{closed:?}");
        for waited in [waiting.join().unwrap(), cancellable.join().unwrap()] {
            assert!(matches!(waited, Err(LockError::Closed)), "{waited:?}");
        }
    });
    for pending in [queued, unread] {
        assert!(disconnects(pending.ready()));
        assert!(matches!(pending.wait(), Err(LockError::Closed)));
    }
    assert!(disconnects(guard.done()) && !guard.is_held());
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    assert_eq!((manager.stats().held, manager.stats().waiting), (0, 0));
    assert!(matches!(manager.new_lock("d"), Err(LockError::Closed)));
    assert!(ends_within(Duration::ZERO, "closing again", || manager.clone().close()).is_err());
    assert!(matches!(guard.unlock(), Err(LockError::Expired { reason: LossReason::Closed, .. })));

    // The thread continues much later: it grants nothing, and revokes the lease at once.
    logger.release();
    let released = Instant::now();
    drop(theirs);
    assert!(take(&other.new_lock("a").unwrap()).is_held());
    assert!(take(&other.new_lock("theirs").unwrap()).is_held());
    assert!(released.elapsed() < TTL / 2, "{:?}", released.elapsed());
    drop((manager, before, after, other));
    wait_for_threads(of_the_test);
}

fn with_a_hung_i_o_thread_the_last_drop_is_bounded(backend: &Backend) {
    let of_the_test = threads();
    let manager = backend.manager_with(options());
    let logger = ParkingLogger::park_at("lock \"a\" acquired");
    let guard = take(&manager.new_lock("a").unwrap());
    let (clone, done) = (guard.clone(), guard.done().clone());
    logger.wait_until_parked(SOON);
    ends_within(Duration::ZERO, "dropping handles", || drop((manager, clone)));
    ends_within(CLOSE_TIMEOUT, "dropping the last handle", || drop(guard));
    assert!(done.try_recv().is_err_and(|error| error.is_disconnected()));
    logger.release();
    wait_for_threads(of_the_test);
    backend.wait_for_contenders("a", 0);

    // A manager that hangs before it is ready.
    let logger = ParkingLogger::park_at("session");
    let begun = Instant::now();
    let manager: LockManager = backend.manager_with(options());
    logger.wait_until_parked(SOON);
    assert!(begun.elapsed() < SOON);
    ends_within(CLOSE_TIMEOUT, "dropping the last handle", || drop(manager));
    logger.release();
    wait_for_threads(of_the_test);
}

/// The logger's time does not count against the requests of the close.
fn a_logger_that_blocks_at_the_close_does_not_keep_the_lease(backend: &Backend) {
    let (manager, other) = (backend.manager_with(options().ttl(20 * TTL)), backend.manager());
    let guard = take(&manager.new_lock("a").unwrap());
    let waiting = other.new_lock("a").unwrap().enqueue().unwrap();
    wait_for_waiting(&other, 1);
    let logger = ParkingLogger::park_at("ended with its manager");
    assert!(ends_within(CLOSE_TIMEOUT, "close", || manager.clone().close()).is_err());
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    logger.wait_until_parked(SOON);
    logger.release();
    let begun = Instant::now();
    assert!(disconnects(waiting.ready()) && waiting.wait().unwrap().is_held());
    assert!(begun.elapsed() < TTL, "{:?}", begun.elapsed());
}
