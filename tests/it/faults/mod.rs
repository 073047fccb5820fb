//! Faults of the cluster, its network and its users, on real servers.
//!
//! The oracles: O1 no two holders at a time; O2 tokens grow; O3 no write under a lock is lost; O4 nothing is left in
//! etcd a TTL and a second later; O5 a holder learns of the loss before the server deletes its key; O6 no call exceeds
//! its limit. [`Referee`](crate::support::Referee) judges most of them.

mod admin;
mod auth;
mod connections;
mod fork;
mod ground;
mod idle;
mod lost_writes;
mod members;
mod orphans;
mod partitions;
mod processes;
#[cfg(all(feature = "cli", target_os = "linux"))]
mod program;
mod restore;
mod rolling;
mod soak;
mod space;
mod stray;
mod streams;
