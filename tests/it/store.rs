//! The model of etcd, at its place.

pub(crate) mod memory;
