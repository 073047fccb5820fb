//! etcd servers for tests, examples and benchmarks, on free loopback ports, with a temporary folder. They end with the
//! program that started them, however it ends.
//!
//! [`Etcd`] is enough for a program that needs any etcd. Tests of server faults start [`Member`]s.
#![allow(clippy::expect_used, clippy::panic, reason = "a fixture of tests fails by panicking")]

mod etcd;
mod member;

mod leash;
mod metrics;
mod ports;
mod version;

pub use etcd::Etcd;
pub use leash::{Leash, find_program, program};
pub use member::{Member, StartError, forget_settings, start, with_fresh_ports};
pub use ports::free_port;
pub use version::Version;
