//! The synchronisation primitives, which the models in `tests/models.rs` replace by loom's.

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

pub(crate) use crate::mutex::{Condvar, Mutex};
