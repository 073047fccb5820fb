//! The library under test, connected to a test's etcd.

use std::time::Duration;

use etcd_lock::{LockManager, LockManagerOptions};

use super::etcd::Access;
use super::raw::Raw;

/// Options for these servers, with this TTL.
pub(crate) fn options(access: &Access, ttl: Duration) -> LockManagerOptions {
    // A freshly started cluster on a busy machine takes its time.
    let mut options = LockManagerOptions::default().ttl(ttl).connect_timeout(Duration::from_secs(20));
    if let Some((user, password)) = &access.user {
        options = options.credentials(user, password);
    }
    options
}

#[track_caller]
pub(crate) fn connect(access: &Access, root: &str, ttl: Duration) -> LockManager {
    connect_with(access, root, options(access, ttl))
}

#[track_caller]
pub(crate) fn connect_with(access: &Access, root: &str, options: LockManagerOptions) -> LockManager {
    LockManager::connect(&access.endpoints, root, options)
        .unwrap_or_else(|error| panic!("no manager on {:?}: {error:?}", access.endpoints))
}

/// Nothing is left under the root at the latest when every lease of `ttl` has ended: etcd may take half a second more
/// to notice, and half a second to act.
#[track_caller]
pub(crate) fn assert_nothing_left(access: &Access, root: &str, ttl: Duration) {
    let raw = Raw::connect(access);
    let prefix = format!("{root}/");
    super::eventually(ttl + Duration::from_secs(1), "no key is left under the root", || {
        raw.count(&prefix) == 0
    });
}
