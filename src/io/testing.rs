//! Real etcd servers for the tests of this folder.

use std::time::Duration;

use crate::options::LockManagerOptions;

/// Options with short timeouts, so that a test of a failure is quick.
pub(super) fn options() -> LockManagerOptions {
    LockManagerOptions {
        ttl: Duration::from_secs(5),
        owner: None,
        credentials: None,
        #[cfg(feature = "tls")]
        tls: None,
        connect_timeout: Duration::from_secs(3),
        request_timeout: Duration::from_secs(3),
        safety_margin: None,
        close_timeout: Duration::from_secs(2),
    }
}
