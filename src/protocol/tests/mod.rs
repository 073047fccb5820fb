//! The protocol against a model of etcd, in virtual time.

mod answers;
mod batching;
mod contention;
mod far_back;
mod fenced;
mod giving_up;
mod leaving_nothing;
mod locking;
mod losing;
mod modes;
mod node;
mod old_answers;
mod outcomes;
mod reports;
mod simulation;
mod sketch;
mod unknown_outcomes;
mod world;
