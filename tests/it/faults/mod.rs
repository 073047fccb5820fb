//! The fault suite: what goes wrong between a program and its etcd, and what a holder must know of it.

mod admin;
mod auth;
mod fork;
mod ground;
mod idle;
mod orphans;
mod processes;
mod rolling;
mod soak;
mod space;
mod stray;
mod streams;
