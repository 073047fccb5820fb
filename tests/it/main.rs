//! Tests on a real etcd. One binary, so that the servers and the build are shared.
//!
//! The tests start their own servers. None is skipped when etcd is missing: it fails with instructions.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, and a fixture of tests, fails by panicking"
)]

mod support;

mod costs;
mod crash;
mod ends;
mod errors;
mod exclusion;
mod fenced;
mod grant_race;
mod limits;
mod logged;
mod long_queue;
mod reentry;
mod session;

mod support_works;

mod admin;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod command_line;
mod connecting;
mod etcd_suites;
mod growth;
mod interop;
mod kinds;
mod lazy;
mod names;
mod observers;
mod one_session;
mod viewer;

mod documented_roles;
mod layout;
