//! Managers set up for the test servers, and common steps of tests.

use std::time::Duration;

use etcd_lock::crossbeam_channel::RecvTimeoutError;
use etcd_lock::{LockGuard, LockManager, LockManagerOptions, PendingLock};

use super::raw::Raw;
use super::setup::Access;
use super::{SOON, disconnects, take};

/// How long a test waits to show that something does not happen.
const A_WHILE: Duration = Duration::from_millis(200);

/// Options that the test servers accept, with long timeouts for a busy machine.
pub(crate) fn options(access: &Access) -> LockManagerOptions {
    let mut options = LockManagerOptions::default().connect_timeout(SOON).request_timeout(SOON / 2);
    if let Some((name, password)) = &access.user {
        options = options.credentials(name, password);
    }
    #[cfg(feature = "tls")]
    if let Some(tls) = &access.tls {
        options = options.tls(tls_options(tls));
    }
    options
}

#[cfg(feature = "tls")]
pub(crate) fn tls_options(tls: &super::pki::ClientTls) -> etcd_lock::TlsOptions {
    let options = etcd_lock::TlsOptions::default().ca_certificate_pem(tls.ca.clone());
    match &tls.identity {
        Some(identity) => options.identity_pem(identity.certificate.clone(), identity.key.clone()),
        None => options,
    }
}

#[track_caller]
pub(crate) fn connect(access: &Access, root: &str) -> LockManager {
    connect_with(access, root, options(access))
}

#[track_caller]
pub(crate) fn connect_with(access: &Access, root: &str, options: LockManagerOptions) -> LockManager {
    LockManager::connect(&access.endpoints, root, options)
        .unwrap_or_else(|why| panic!("no manager at {:?}: {why:?}", access.endpoints))
}

/// Queues for a lock.
#[track_caller]
pub(crate) fn enqueue(manager: &LockManager, name: &str) -> PendingLock {
    manager.new_lock(name).and_then(|lock| lock.enqueue()).unwrap_or_else(|why| panic!("no place: {why:?}"))
}

/// Takes a lock that is free, or about to be.
#[track_caller]
pub(crate) fn lock(manager: &LockManager, name: &str) -> LockGuard {
    take(&manager.new_lock(name).unwrap_or_else(|why| panic!("no lock: {why:?}")))
}

/// The guard of a pending lock that is granted now.
#[track_caller]
pub(crate) fn granted(pending: PendingLock) -> LockGuard {
    assert!(disconnects(pending.ready()), "not granted: {pending:?}");
    pending.wait().unwrap_or_else(|why| panic!("not granted: {why:?}"))
}

/// Panics if this pending lock is granted now or soon.
#[track_caller]
pub(crate) fn assert_still_waiting(pending: &PendingLock) {
    let ready = pending.ready().recv_timeout(A_WHILE);
    assert_eq!(ready, Err(RecvTimeoutError::Timeout), "the outcome of the wait is known");
}

/// Waits until a lock has `count` contenders in etcd. `keys` is its prefix there, `<root>/<encoded name>/`.
#[track_caller]
pub(crate) fn wait_for_contenders(raw: &Raw, keys: &str, count: u64) {
    super::eventually(SOON, &format!("{count} contenders at {keys}"), || raw.count(keys) == count);
}

/// Waits until the guard's hold is over.
#[track_caller]
pub(crate) fn wait_until_done(guard: &LockGuard) {
    assert!(disconnects(guard.done()), "the hold of {guard:?} is not over");
}

/// The lease of the manager's session, which must exist.
#[track_caller]
pub(crate) fn lease_of(manager: &LockManager) -> i64 {
    manager.session().lease_id.expect("the manager has a session")
}
