//! The test fixtures: servers that never outlive the test run, faults on demand, and witnesses that share no code with
//! the library.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "some test binaries use only a part of the fixtures"
)]

pub(crate) mod setup;

pub(crate) mod cluster;
pub(crate) mod etcd;
#[cfg(feature = "tls")]
pub(crate) mod pki;

pub(crate) mod etcdctl;
pub(crate) mod raw;
pub(crate) mod witness;

pub(crate) mod doors;
mod http2;
mod mute;
pub(crate) mod proxy;

pub(crate) mod backend;
pub(crate) mod hold_end;
pub(crate) mod logs;
pub(crate) mod manager;
pub(crate) mod oracle;
pub(crate) mod parked;
pub(crate) mod process;
#[cfg(all(feature = "cli", target_os = "linux"))]
pub(crate) mod program;
#[cfg(all(feature = "cli", target_os = "linux"))]
pub(crate) mod pty;
pub(crate) mod referee;
pub(crate) mod register;
pub(crate) mod stalls;
pub(crate) mod wait;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) use backend::{
    Backend, SOON, disconnects, on_both_stores, take, take_elsewhere, wait_for_waiting,
};
pub(crate) use cluster::Cluster;
pub(crate) use doors::Doors;
pub(crate) use etcd::Etcd;
pub(crate) use manager::lease_of;
pub(crate) use proxy::Proxy;
pub(crate) use raw::Raw;
pub(crate) use referee::Referee;
pub(crate) use setup::{Access, Setup};
pub(crate) use wait::{eventually, within};

/// The server of every test that needs any etcd, started once per process. A test that stops, kills or fills a server
/// starts its own one.
pub(crate) fn shared() -> &'static Etcd {
    static SHARED: OnceLock<Etcd> = OnceLock::new();
    SHARED.get_or_init(Etcd::start)
}

/// A root that no other test uses, so that tests can share a server.
pub(crate) fn fresh_root(test: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/test/{test}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
