//! Common set-up of the fault suite.

use std::time::Duration;

use etcd_lock::{LockManager, LockManagerOptions};

pub(super) use crate::support::manager::connect_with;
use crate::support::referee::nothing_left;
use crate::support::{Access, Raw, manager};

/// Options for these servers with this TTL, otherwise with the defaults.
pub(super) fn options(access: &Access, ttl: Duration) -> LockManagerOptions {
    manager::options(access).ttl(ttl).request_timeout(REQUEST_TIMEOUT)
}

#[track_caller]
pub(super) fn connect(access: &Access, root: &str, ttl: Duration) -> LockManager {
    connect_with(access, root, options(access, ttl))
}

/// The time limit of one request in these tests.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks O4 with a client of its own.
#[track_caller]
pub(super) fn assert_nothing_left(access: &Access, root: &str, ttl: Duration) {
    nothing_left(&Raw::connect(access), root, ttl);
}
