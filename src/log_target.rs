//! The name under which the library logs.

/// The target of every log line.
pub(crate) const LOG: &str = "etcd_lock";
