//! The fault suite: everything that can go wrong with a cluster, its network and its users, on real servers. It takes
//! minutes, most of them waiting, and is a target of its own: `cargo test --test faults`.
//!
//! No test needs a server that somebody started by hand, and none is skipped when etcd is missing: it fails and says
//! what to do.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, and a fixture of tests, fails by panicking"
)]

mod faults;
mod support;
