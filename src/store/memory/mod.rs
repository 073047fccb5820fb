//! The store that is a model of etcd within this process.

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod fault;
pub(crate) mod model;
pub(crate) mod state;

#[cfg(test)]
mod tests;
