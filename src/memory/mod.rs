//! An in-process store.

mod model;
