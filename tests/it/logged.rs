//! Each transition is logged once, and only after it has happened.

use std::time::Duration;

use etcd_lock::{LockError, LockManagerOptions, LockOptions};
use log::Level;

use crate::support::logs::Logs;
use crate::support::process::alone;
use crate::support::{Backend, SOON, disconnects, eventually, lease_of, on_both_stores, take};

on_both_stores! {
    a_long_wait_names_its_holder_once,
    a_wait_behind_the_own_process_is_logged_as_such,
    a_wait_that_is_not_long_a_try_and_a_wait_without_the_warning_log_nothing,
    taking_and_giving_back_is_debug_and_logged_when_it_is_done,
}

// Leases in memory have the same numbers in every store.
on_both_stores! { alone:
    a_guard_that_is_alive_at_a_clean_close_is_no_warning,
}

#[test]
fn an_unconfirmed_release_is_not_logged_as_released() {
    alone("logged::an_unconfirmed_release_is_not_logged_as_released", SOON, || {
        nothing_unconfirmed_is_logged_as_done(&Backend::own_etcd("unconfirmed"));
        nothing_unconfirmed_is_logged_as_done(&Backend::memory("unconfirmed"));
    });
}

/// The lines of `of` about the lock with this name.
fn of_lock(name: &str) -> Logs {
    Logs::with(&format!("lock {name:?}"))
}

/// No two tests use the same name, because they share the log.
fn unique(backend: &Backend, name: &str) -> String {
    format!("{name} of {}", backend.root().replace('/', "-"))
}

fn soon() -> LockOptions {
    LockOptions::default().warn_after(Duration::from_millis(100))
}

fn a_long_wait_names_its_holder_once(backend: &Backend) {
    let (holder, waiter) = (backend.manager_of("billing/7"), backend.manager());
    let name = unique(backend, "slow");
    let guard = take(&holder.new_lock(&name).unwrap());
    let logs = of_lock(&name);
    let lock = waiter.new_lock_with(&name, soon()).unwrap();
    let refused = lock.lock_timeout(Duration::from_millis(600));
    assert!(matches!(refused, Err(LockError::Timeout { .. })), "{refused:?}");
    let warnings = logs.of_level(Level::Warn);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let facts = [
        format!("held by billing/7 (pid {}, asked for it ", std::process::id()),
        format!("token {}; 1 waiting in etcd", guard.token()),
        "and 1 in this process".into(),
    ];
    assert!(facts.iter().all(|fact| warnings[0].contains(fact)), "{warnings:#?} {facts:?}");
}

fn a_wait_behind_the_own_process_is_logged_as_such(backend: &Backend) {
    let manager = backend.manager();
    let name = unique(backend, "own");
    let _guard = take(&manager.new_lock(&name).unwrap());
    let logs = of_lock(&name);
    let pending = manager.new_lock_with(&name, soon()).unwrap().enqueue().unwrap();
    eventually(SOON, "a warning", || !logs.of_level(Level::Warn).is_empty());
    let warnings = logs.of_level(Level::Warn);
    assert!(warnings[0].contains("(this process, thread "), "{warnings:#?}");
    drop(pending);
}

fn a_wait_that_is_not_long_a_try_and_a_wait_without_the_warning_log_nothing(backend: &Backend) {
    let (holder, waiter) = (backend.manager(), backend.manager());
    let name = unique(backend, "short");
    let _guard = take(&holder.new_lock(&name).unwrap());
    let logs = of_lock(&name);
    let wait = |after, limit| {
        let lock = waiter.new_lock_with(&name, LockOptions::default().warn_after(after)).unwrap();
        assert!(lock.lock_timeout(limit).is_err());
        assert!(lock.try_lock().unwrap().is_none());
    };
    wait(Duration::from_secs(10), Duration::from_millis(20));
    wait(Duration::MAX, Duration::from_millis(200));
    let lock =
        waiter.new_lock_with(&name, LockOptions::default().warn_after(Duration::from_nanos(1))).unwrap();
    assert!(lock.try_lock().unwrap().is_none());
    assert_eq!(logs.of_level(Level::Warn), Vec::<String>::new());
}

fn taking_and_giving_back_is_debug_and_logged_when_it_is_done(backend: &Backend) {
    let manager = backend.manager();
    let name = unique(backend, "quiet");
    let logs = of_lock(&name);
    let guard = take(&manager.new_lock(&name).unwrap());
    let token = guard.token();
    guard.unlock().unwrap();
    let released = format!("lock {name:?} released, token {token}");
    eventually(SOON, "the release is logged", || logs.lines().contains(&(Level::Debug, released.clone())));
    assert!(logs.lines().contains(&(Level::Debug, format!("lock {name:?} acquired, token {token}"))));
    assert!(logs.lines().iter().all(|line| line.0 >= Level::Debug), "{:#?}", logs.lines());
}

fn a_guard_that_is_alive_at_a_clean_close_is_no_warning(backend: &Backend) {
    let manager = backend.manager();
    let name = unique(backend, "alive");
    let (logs, lease) = (of_lock(&name), format!("lease {:x}", lease_of(&manager)));
    let closed = Logs::with(&format!("session closed, {lease}"));
    let guard = take(&manager.new_lock(&name).unwrap());
    manager.close().unwrap();
    assert!(disconnects(guard.done()));
    assert_eq!(logs.of_level(Level::Warn), Vec::<String>::new());
    assert_eq!(logs.of_level(Level::Info).len(), 1, "{:#?}", logs.lines());
    assert_eq!(closed.of_level(Level::Info).len(), 1);
}

fn nothing_unconfirmed_is_logged_as_done(backend: &Backend) {
    let limit = Duration::from_millis(300);
    let manager = backend.manager_with(LockManagerOptions::default().close_timeout(limit));
    let name = unique(backend, "cut");
    let lease = lease_of(&manager);
    let (logs, closed) = (of_lock(&name), Logs::with(&format!("session closed, lease {lease:x}")));
    let unconfirmed = Logs::with("did not confirm within 300ms");
    let guard = take(&manager.new_lock(&name).unwrap());
    backend.cut_off(&manager);
    drop(guard);
    assert!(matches!(manager.close(), Err(LockError::Unavailable { .. })));
    assert!(logs.lines().iter().all(|line| !line.1.contains("released")), "{:#?}", logs.lines());
    assert_eq!(closed.lines(), []);
    assert!(!unconfirmed.of_level(Level::Warn).is_empty());
}
