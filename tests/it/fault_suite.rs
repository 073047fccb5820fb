//! The fault suite: faults of a cluster, its network and its users, on real servers. It takes minutes, most of them
//! waiting, and is a target of its own: `cargo test --test faults`.
//!
//! The tests start their own servers. None is skipped when etcd is missing: it fails with instructions.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, and a fixture of tests, fails by panicking"
)]

mod faults;
mod support;
