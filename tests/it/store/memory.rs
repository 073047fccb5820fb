//! The model of etcd, without the store that users get around it.

#[allow(dead_code)]
#[path = "../../../src/store/memory/model/mod.rs"]
pub(crate) mod model;
