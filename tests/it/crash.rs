//! When the I/O thread panics, holds end, calls fail, and nothing hangs.
//!
//! The logger of these tests panics on the I/O thread, where the library logs a line. That needs no hook in the
//! library, but a process has only one logger, so each test runs in a process of its own.

use std::panic;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::never;
use etcd_lock::{DistributedLock, ForceUnlock, LockError, LockManager, LockManagerOptions, LossReason};
use log::{LevelFilter, Log, Metadata, Record};

use crate::support::wait::threads_named;
use crate::support::{
    Backend, SOON, disconnects, eventually, on_both_stores, take, take_elsewhere, wait_for_waiting, within,
};

on_both_stores! { alone:
    a_crash_at_a_grant_ends_every_hold_and_every_call,
    a_crash_at_a_question_ends_every_hold_and_every_call,
    a_crash_at_a_loss_ends_every_hold_and_every_call,
    a_crash_at_the_close_still_ends_it,
    keys_left_by_a_crash_expire_with_the_lease,
}

/// Panics on the I/O thread when the library logs a line with this text.
static FATAL: Mutex<Option<String>> = Mutex::new(None);

struct Saboteur;

impl Log for Saboteur {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "etcd_lock"
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || thread::current().name() != Some("etcd-lock-io") {
            return;
        }
        let line = record.args().to_string();
        let mut fatal = FATAL.lock().unwrap_or_else(PoisonError::into_inner);
        if fatal.as_ref().is_some_and(|text| line.contains(text)) {
            *fatal = None;
            drop(fatal);
            // A panic like any other, without the message on the terminal.
            panic::resume_unwind(Box::new("on purpose"));
        }
    }

    fn flush(&self) {}
}

fn crash_at(line: &str) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        log::set_logger(&Saboteur).expect("the process has no other logger");
        log::set_max_level(LevelFilter::Debug);
    });
    *FATAL.lock().unwrap() = Some(line.into());
}

/// A manager that holds one lock and waits for another in every way, while its I/O thread panics at `line`, which
/// `cause` causes to be logged.
fn crash(backend: &Backend, line: &str, cause: impl FnOnce(&LockManager) + Send) {
    let (manager, other) = (backend.manager(), backend.manager());
    let threads = threads_named("etcd-lock-io");
    let in_the_way = take(&other.new_lock("busy").unwrap());
    let (held, busy) = (manager.new_lock("held").unwrap(), manager.new_lock("busy").unwrap());
    let guard = take(&held);
    let kept = take_elsewhere(&manager.new_lock("kept").unwrap());
    let pending = busy.enqueue().unwrap();
    let never = never();

    crash_at(line);
    thread::scope(|scope| {
        let waits = [
            scope.spawn(|| busy.lock().map(drop)),
            scope.spawn(|| busy.lock_timeout(10 * SOON).map(drop)),
            scope.spawn(|| busy.lock_or_cancel(&never).map(drop)),
        ];
        wait_for_waiting(&manager, 4);
        cause(&manager);
        for wait in waits {
            eventually(SOON, "a waiting call ends", || wait.is_finished());
            assert!(is_crashed(wait.join().unwrap()));
        }
    });
    for guard in [&guard, &kept] {
        assert!(disconnects(guard.done()));
        assert_eq!((guard.loss(), guard.is_held()), (Some(LossReason::Crashed), false));
        assert!(is_lost(guard.ensure(Duration::ZERO)));
    }
    assert!(disconnects(pending.ready()));
    assert!(is_crashed(pending.wait()));
    every_call_fails(&manager, &busy);
    assert!(is_crashed(held.lock()));
    assert!(is_lost(guard.unlock()));
    drop(kept);
    let stats = manager.stats();
    assert_eq!((stats.held, stats.waiting, stats.acquired), (0, 0, stats.released + stats.lost.total()));
    assert!(stats.lost.crashed >= 2, "{stats:?}");

    assert!(is_crashed(manager.clone().close()));
    eventually(SOON, "the thread has ended", || threads_named("etcd-lock-io") == threads - 1);
    drop((manager, held, busy));
    assert!(in_the_way.is_held(), "other managers are not affected");
}

/// This thread has no guard of `lock`.
fn every_call_fails(manager: &LockManager, lock: &DistributedLock) {
    assert!(!manager.session().is_alive());
    assert!(is_crashed(lock.lock()) && is_crashed(lock.try_lock()) && is_crashed(lock.enqueue()));
    assert!(is_crashed(lock.lock_timeout(SOON)) && is_crashed(lock.lock_or_cancel(&never())));
    assert!(!lock.is_locked());
    assert!(is_crashed(manager.new_lock("new")));
    assert!(is_crashed(manager.lock_info("held")));
    assert!(is_crashed(manager.list_locks("")));
    assert!(is_crashed(manager.force_unlock("held", ForceUnlock::Lock)));
}

fn is_crashed(result: Result<impl Sized, LockError>) -> bool {
    matches!(result, Err(LockError::Crashed))
}

fn is_lost(result: Result<impl Sized, LockError>) -> bool {
    matches!(result, Err(LockError::Expired { reason: LossReason::Crashed, .. }))
}

/// The line is logged when the grant has already been sent: its guard exists, and must be over at once.
fn a_crash_at_a_grant_ends_every_hold_and_every_call(backend: &Backend) {
    crash(backend, r#"lock "fatal" acquired"#, |manager| {
        let fatal = manager.new_lock("fatal").unwrap();
        match fatal.lock_timeout(SOON) {
            Ok(guard) => {
                assert!(disconnects(guard.done()));
                assert_eq!(guard.loss(), Some(LossReason::Crashed));
                assert!(is_lost(guard.unlock()));
            }
            // The panic came between the grant and its arrival.
            Err(error) => assert!(is_crashed(Err::<(), _>(error))),
        }
    });
}

/// The line is logged before the call is recorded, so its only answer is that the channel disconnects.
fn a_crash_at_a_question_ends_every_hold_and_every_call(backend: &Backend) {
    crash(backend, r#"lock "fatal" asked for"#, |manager| {
        let fatal = manager.new_lock("fatal").unwrap();
        assert!(is_crashed(fatal.lock_timeout(SOON)));
        assert!(is_crashed(fatal.lock()));
    });
}

fn a_crash_at_a_loss_ends_every_hold_and_every_call(backend: &Backend) {
    crash(backend, r#"lock "fatal" lost"#, |manager| {
        let guard = take(&manager.new_lock("fatal").unwrap());
        // The answer may be lost with the thread.
        let _ = manager.force_unlock("fatal", ForceUnlock::Lock);
        assert!(disconnects(guard.done()));
        assert_eq!(guard.loss(), Some(LossReason::ForceUnlocked), "the first reason is kept");
    });
}

/// How far a `close` got decides whether it succeeds. In any case it returns, and ends every hold.
fn a_crash_at_the_close_still_ends_it(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    crash_at("session closed");
    let closing = manager.clone();
    let closed = within(SOON, "close returns", move || closing.close());
    assert!(FATAL.lock().unwrap().is_none(), "the I/O thread has panicked");
    assert!(closed.is_ok() || is_crashed(closed));
    assert!(disconnects(guard.done()));
    assert!(matches!(guard.loss(), Some(LossReason::Closed | LossReason::Crashed)));
    drop(guard);
    assert!(matches!(lock.lock(), Err(LockError::Closed | LockError::Crashed)));
}

/// The lease is not renewed any more: the next holder gets the lock after it, long after the old one was over.
fn keys_left_by_a_crash_expire_with_the_lease(backend: &Backend) {
    let manager = backend.manager_with(LockManagerOptions::default().ttl(Duration::from_secs(2)));
    let other = backend.manager();
    let guard = take(&manager.new_lock("a").unwrap());
    let pending = other.new_lock("a").unwrap().enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    crash_at(r#"lock "fatal" asked for"#);
    assert!(is_crashed(manager.new_lock("fatal").unwrap().lock_timeout(SOON)));
    assert!(disconnects(guard.done()));
    assert!(!guard.is_held());
    assert!(disconnects(pending.ready()));
    assert!(pending.wait().unwrap().token() > guard.token());
}
