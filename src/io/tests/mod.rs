//! Tests of the etcd store against real servers.

mod connect;
mod fail_over;
mod requests;
mod watch;
