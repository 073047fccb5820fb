//! Outages are reported as such, and drops and closes are bounded while nothing answers.

use std::time::{Duration, Instant};

use etcd_lock::{ErrorCode, LockError, LockGuard, LockManager, LockManagerOptions, LockOptions, LossReason};
use log::Level;

use crate::support::logs::Logs;
use crate::support::process::alone;
use crate::support::{Access, Backend, Etcd, Raw, disconnects, fresh_root, on_both_stores, take, within};

on_both_stores! { own_server:
    the_last_drop_is_bounded_while_nothing_answers,
    close_is_bounded_while_nothing_answers_and_says_so,
    a_guards_drop_does_not_wait_while_nothing_answers,
}

const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Far above `CLOSE_TIMEOUT` for a busy machine, far below every other time limit.
const BOUND: Duration = Duration::from_secs(3);

fn options() -> LockManagerOptions {
    LockManagerOptions::default().close_timeout(CLOSE_TIMEOUT).request_timeout(Duration::from_secs(20))
}

/// Drops the guard of a manager, which is its last handle.
#[track_caller]
fn drops_in_time(manager: LockManager, guard: LockGuard) {
    let done = guard.done().clone();
    drop(manager);
    let took = within(5 * BOUND, "the last handle is dropped", || {
        let begun = Instant::now();
        drop(guard);
        begun.elapsed()
    });
    assert!(took < BOUND, "it took {took:?}");
    assert!(disconnects(&done));
}

fn the_last_drop_is_bounded_while_nothing_answers(backend: &Backend) {
    let manager = backend.manager_with(options());
    let guard = take(&manager.new_lock("a").unwrap());
    backend.cut_off(&manager);
    drops_in_time(manager, guard);
}

fn close_is_bounded_while_nothing_answers_and_says_so(backend: &Backend) {
    let manager = backend.manager_with(options());
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    backend.cut_off(&manager);
    let closing = manager.clone();
    let (result, took) = within(5 * BOUND, "close returns", move || {
        let begun = Instant::now();
        (closing.close(), begun.elapsed())
    });
    assert!(matches!(result, Err(LockError::Unavailable { .. })), "{result:?}");
    assert!(took < BOUND, "it took {took:?}");
    assert!(disconnects(guard.done()));
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    drop(guard);
    assert!(matches!(lock.lock(), Err(LockError::Closed)));
}

fn a_guards_drop_does_not_wait_while_nothing_answers(backend: &Backend) {
    let manager = backend.manager_with(options());
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    backend.cut_off(&manager);
    let done = guard.done().clone();
    let took = within(5 * BOUND, "a guard is dropped", || {
        let begun = Instant::now();
        drop(guard);
        begun.elapsed()
    });
    assert!(took < BOUND, "it took {took:?}");
    assert!(disconnects(&done), "the hold ends without etcd");
    assert!(!lock.is_locked());
    backend.rejoin(&manager);
    backend.wait_for_contenders("a", 0);
}

/// The server process has ended, and with it the connection, so no request is delivered.
#[test]
fn the_last_drop_is_bounded_when_etcd_has_ended() {
    let etcd = Etcd::start();
    let root = fresh_root("gone");
    let manager = LockManager::connect(etcd.endpoints(), &root, options()).unwrap();
    let guard = take(&manager.new_lock("a").unwrap());
    etcd.kill();
    drops_in_time(manager, guard);
}

/// Only for a while: keys that could not be deleted expire with the lease.
#[test]
fn keys_that_the_last_drop_could_not_delete_expire_with_the_lease() {
    let etcd = Etcd::start();
    let root = fresh_root("left-behind");
    let manager =
        LockManager::connect(etcd.endpoints(), &root, options().ttl(Duration::from_secs(2))).unwrap();
    let guard = take(&manager.new_lock("a").unwrap());
    etcd.stop();
    drops_in_time(manager, guard);
    etcd.cont();
    let access: &Access = etcd.access();
    let raw = Raw::connect(access);
    crate::support::eventually(crate::support::SOON, "no key, no lease", || {
        raw.count(&root) == 0 && raw.leases().is_empty()
    });
}

/// Long enough that a restarted etcd still has the session's lease, even on a slow machine.
const OUTAGE_TTL: Duration = Duration::from_secs(12);

/// The outage of a whole etcd, as a program sees it: errors report the outage and no contention; the log reports it
/// well before the holds are lost, and reports its end; and the counters show it.
#[test]
fn an_outage_is_reported_as_such_in_errors_logs_and_counters() {
    alone(
        "ends::outages::an_outage_is_reported_as_such_in_errors_logs_and_counters",
        2 * crate::support::SOON,
        || {
            let etcd = Etcd::start();
            let options = LockManagerOptions::default().ttl(OUTAGE_TTL);
            let manager = LockManager::connect(etcd.endpoints(), &fresh_root("outage"), options).unwrap();
            let guard = take(&manager.new_lock("held").unwrap());
            let before = manager.session().last_answer.expect("etcd has answered");
            assert!(before < OUTAGE_TTL / 3 && manager.stats().rpc_failures.total() == 0);
            let (silent, back) = (Logs::with("etcd has not answered"), Logs::with("etcd answers again"));
            etcd.kill();
            let killed = Instant::now();

            let assert_tells_the_outage = |refused: Result<LockGuard, LockError>| {
                let error = refused.unwrap_err();
                assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
                let text = error.to_string();
                assert!(text.contains(&etcd.endpoint()) && text.contains("refused"), "{text}");
            };
            let other = manager.new_lock("other").unwrap();
            let begun = Instant::now();
            assert_tells_the_outage(other.lock_timeout(Duration::from_secs(2)));
            assert!(begun.elapsed() >= Duration::from_secs(2), "it waits for etcd until its limit");
            let impatient = LockOptions::default().max_retries(3);
            assert_tells_the_outage(manager.new_lock_with("other", impatient).unwrap().lock());

            let warned =
                crate::support::wait::eventually_some(OUTAGE_TTL / 2, "a warning", || silent.lines().pop());
            assert!(guard.is_held() && manager.session().is_alive(), "long before the loss");
            assert!(killed.elapsed() < OUTAGE_TTL / 2);
            assert!(
                warned.1.contains(&etcd.endpoint()) && warned.1.contains("assured for another"),
                "{warned:?}"
            );
            let (session, failures) = (manager.session(), manager.stats().rpc_failures);
            assert!(session.last_answer >= Some(killed.elapsed() - Duration::from_secs(1)), "{session:?}");
            assert!(failures.txn > 0 && failures.lease_renew > 0, "{failures:?}");

            etcd.restart();
            crate::support::eventually(crate::support::SOON, "the end of the outage is logged", || {
                !back.lines().is_empty()
            });
            assert!(manager.session().last_answer < Some(Duration::from_secs(5)));
            drop(take(&other));
            assert_eq!((silent.of_level(Level::Warn).len(), back.of_level(Level::Warn).len()), (1, 1));
        },
    );
}
