//! Tests of the etcd store against real servers.

mod admin;
mod connect;
mod fail_over;
mod requests;
#[cfg(feature = "tls")]
mod tls;
mod watch;
mod watches;
