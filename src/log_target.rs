//! The target of the library's log lines.

/// The target of every log line.
pub(crate) const LOG: &str = "etcd_lock";
