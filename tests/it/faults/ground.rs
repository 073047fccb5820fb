//! What the rows of the fault suite stand on.

use std::time::Duration;

use etcd_lock::{LockManager, LockManagerOptions};

pub(super) use crate::support::manager::connect_with;
use crate::support::{Access, Raw, eventually, manager};

/// Options for these servers, with this TTL; else as a user has them by default.
pub(super) fn options(access: &Access, ttl: Duration) -> LockManagerOptions {
    manager::options(access).ttl(ttl).request_timeout(Duration::from_secs(5))
}

#[track_caller]
pub(super) fn connect(access: &Access, root: &str, ttl: Duration) -> LockManager {
    connect_with(access, root, options(access, ttl))
}

/// Nothing is left under the root at the latest when every lease of `ttl` has ended: etcd may take half a second more
/// to notice, and half a second to act.
#[track_caller]
pub(super) fn assert_nothing_left(access: &Access, root: &str, ttl: Duration) {
    let raw = Raw::connect(access);
    let prefix = format!("{root}/");
    eventually(ttl + Duration::from_secs(1), "no key is left under the root", || raw.count(&prefix) == 0);
}
