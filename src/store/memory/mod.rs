//! The in-process store: a model of etcd, and the clients that share it.

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod fault;
pub(crate) mod model;
pub(crate) mod state;

#[cfg(test)]
mod tests;
