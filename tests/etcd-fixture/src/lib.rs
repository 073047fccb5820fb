//! etcd servers for tests, examples and benchmarks: on free ports of the loopback interface, with a temporary folder,
//! and gone when the program that started them is, however it ends.
//!
//! [`Etcd`] is enough for a program that needs some etcd. Tests of what goes wrong with servers start [`Member`]s.
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
