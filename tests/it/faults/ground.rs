//! What the rows of the fault suite stand on.

use std::time::Duration;

use etcd_lock::{LockManager, LockManagerOptions};

pub(super) use crate::support::manager::connect_with;
use crate::support::referee::nothing_left;
use crate::support::{Access, Raw, manager};

/// Options for these servers, with this TTL; else as a user has them by default.
pub(super) fn options(access: &Access, ttl: Duration) -> LockManagerOptions {
    manager::options(access).ttl(ttl).request_timeout(REQUEST_TIMEOUT)
}

#[track_caller]
pub(super) fn connect(access: &Access, root: &str, ttl: Duration) -> LockManager {
    connect_with(access, root, options(access, ttl))
}

/// The time of one request in these rows.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// O4, by a client of its own.
#[track_caller]
pub(super) fn assert_nothing_left(access: &Access, root: &str, ttl: Duration) {
    nothing_left(&Raw::connect(access), root, ttl);
}
