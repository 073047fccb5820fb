//! Tests of the etcd store, against real servers and hostile ones.

pub(crate) mod cluster;
mod connect;
mod fail_over;
mod hostile;
mod replaced;
mod requests;
#[cfg(feature = "tls")]
mod tls;
mod watch_set;
mod watch_stream;
