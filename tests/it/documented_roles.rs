//! The roles from the operations chapter, on a real etcd.

use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{RecvTimeoutError, TryRecvError};
use etcd_lock::{
    ErrorCode, ForceUnlock, LockError, LockGuard, LockManager, LockManagerOptions, LockViewer, LossReason,
};

use crate::support::etcdctl::Etcdctl;
use crate::support::{Etcd, eventually};

const OPERATIONS: &str = include_str!("../../src/docs/operations.md");
/// The root of these roles.
const ROOT: &str = "/app/locks";
const LIMIT: Duration = Duration::from_secs(20);

/// An etcd with authentication and the documented roles, created by the documented commands.
fn etcd_with_the_documented_roles() -> Etcd {
    let etcd = Etcd::start();
    let ctl = Etcdctl::new(etcd.access());
    let run = |command: &str| {
        let words: Vec<&str> = command.split_whitespace().collect();
        ctl.run(&words).unwrap_or_else(|why| panic!("etcdctl {command}: {why}"));
    };
    let commands: Vec<&str> = OPERATIONS
        .lines()
        .filter_map(|line| line.strip_prefix("etcdctl "))
        .filter(|command| command.starts_with("role ") || command.starts_with("user "))
        .collect();
    assert_eq!(commands.len(), 9, "{commands:?}");
    commands.into_iter().for_each(run);
    for user in ["locks-viewer", "report-locker", "nobody"] {
        run(&format!("user add {user}:PASSWORD"));
    }
    for user in ["locks-viewer", "report-locker"] {
        run(&format!("user grant-role {user} {user}"));
    }
    run("user add root:PASSWORD");
    run("user grant-role root root");
    run("auth enable");
    etcd
}

fn connect(etcd: &Etcd, user: &str) -> Result<LockManager, LockError> {
    let options = LockManagerOptions::default().ttl(Duration::from_secs(2)).credentials(user, "PASSWORD");
    LockManager::connect(etcd.endpoints(), ROOT, options)
}

fn loss_of(guard: &LockGuard) -> LossReason {
    assert_eq!(guard.done().recv_timeout(LIMIT), Err(RecvTimeoutError::Disconnected));
    guard.loss().expect("it was lost, not released")
}

/// The documented role is sufficient for every call, for renewals, and for the watches that hand over locks and report
/// losses.
#[test]
fn the_documented_role_is_enough() {
    let etcd = etcd_with_the_documented_roles();
    let (one, two) = (connect(&etcd, "locker").unwrap(), connect(&etcd, "locker").unwrap());

    let guard = one.new_lock("a/b").unwrap().lock().unwrap();
    let pending = two.new_lock("a/b").unwrap().enqueue().unwrap();
    eventually(LIMIT, "the second one is queued in etcd", || {
        one.lock_info("a/b").unwrap().is_some_and(|info| info.waiters == 1)
    });
    // Longer than its lease lasts without renewals.
    let renewed = Instant::now() + one.session().ttl + Duration::from_millis(1500);
    assert_eq!(guard.done().recv_deadline(renewed), Err(RecvTimeoutError::Timeout));
    assert_eq!(pending.ready().try_recv(), Err(TryRecvError::Empty));
    guard.unlock().unwrap();
    let guard = pending.wait().unwrap();
    assert!(one.new_lock("a/b").unwrap().try_lock().unwrap().is_none());
    assert_eq!(one.list_locks("").unwrap().len(), 1);

    one.force_unlock("a/b", ForceUnlock::Lock).unwrap();
    assert_eq!(loss_of(&guard), LossReason::ForceUnlocked);
    let guard = two.new_lock("c").unwrap().lock().unwrap();
    one.force_unlock("c", ForceUnlock::Session).unwrap();
    assert_eq!(loss_of(&guard), LossReason::SessionRevoked);
    one.close().unwrap();
    two.close().unwrap();
}

#[test]
fn the_documented_roles_with_fewer_permissions_are_sufficient_for_their_purpose_only() {
    let etcd = etcd_with_the_documented_roles();
    let denied = |error: Option<LockError>| {
        assert_eq!(error.map(|error| error.code()), Some(ErrorCode::PermissionDenied));
    };
    denied(connect(&etcd, "nobody").err());

    let locker = connect(&etcd, "report-locker").unwrap();
    let report = locker.new_lock("report").unwrap().lock().unwrap();
    assert!(locker.lock_info("report").unwrap().is_some());
    denied(locker.list_locks("").err());
    denied(locker.new_lock("other").unwrap().lock().err());
    denied(locker.new_lock("other").unwrap().try_lock().err());

    denied(connect(&etcd, "locks-viewer").err());
    let options = LockManagerOptions::default().credentials("locks-viewer", "PASSWORD");
    let viewer = LockViewer::connect(etcd.endpoints(), ROOT, options).unwrap();
    let info = viewer.lock_info("report").unwrap().unwrap();
    assert_eq!(info.token, report.token());
    assert_eq!(viewer.list_locks("").unwrap().len(), 1);
    assert_eq!(viewer.queue("report").unwrap().len(), 1);
    assert!(report.is_held());
    report.unlock().unwrap();
    locker.close().unwrap();
}
