//! The protocol against a model of etcd, in virtual time.

mod batching;
mod giving_up;
mod locking;
mod losing;
mod unknown_outcomes;
mod world;
