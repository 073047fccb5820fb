//! Options of managers and locks, with their defaults.

use std::fmt;
use std::time::Duration;

use crate::error::LockError;
#[cfg(feature = "tls")]
use crate::tls::TlsOptions;

/// How a [`LockManager`](crate::LockManager) connects and keeps its session.
#[derive(Clone)]
pub struct LockManagerOptions {
    pub(crate) ttl: Duration,
    pub(crate) owner: Option<String>,
    pub(crate) credentials: Option<Credentials>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) safety_margin: Option<Duration>,
    pub(crate) close_timeout: Duration,
}

/// A user of etcd. Its `Debug` shows no password.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How a lock waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOptions {
    pub(crate) retry_interval: Duration,
    pub(crate) max_retries: u32,
}

impl LockManagerOptions {
    /// What is wrong with these options, if anything.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        Ok(())
    }
}
