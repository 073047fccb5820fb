//! An in-process store.

pub(crate) mod model;
