//! Tests on a real etcd. One binary, so that the servers and the build are shared.
//!
//! No test needs a server that somebody started by hand, and none is skipped when etcd is missing: it fails and says
//! what to do.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, and a fixture of tests, fails by panicking"
)]

// The simulation drives the protocol and the model of etcd themselves, which no user of the library can reach: their
// sources are part of this binary too.
#[allow(dead_code, reason = "the simulation needs only a part of them")]
#[path = "../../src/clock.rs"]
mod clock;
#[allow(dead_code)]
#[path = "../../src/error.rs"]
pub mod error;
#[allow(dead_code)]
#[path = "../../src/info.rs"]
pub mod info;
#[allow(dead_code)]
#[path = "../../src/kv.rs"]
mod kv;
mod memory;
#[allow(dead_code)]
#[path = "../../src/name.rs"]
mod name;
#[allow(dead_code)]
#[path = "../../src/protocol/mod.rs"]
mod protocol;
#[allow(dead_code)]
#[path = "../../src/value.rs"]
mod value;

mod simulation;
mod support;

mod costs;
mod crash;
mod ends;
mod errors;
mod exclusion;
mod grant_race;
mod limits;
mod logged;
mod reentry;
mod session;

mod support_works;

mod admin;
mod connecting;
mod etcd_suites;
mod growth;
mod interop;
mod lazy;
mod names;
mod one_session;
mod viewer;

mod documented_roles;
