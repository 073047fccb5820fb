//! The primitives that the models replace.

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

pub(crate) use parking_lot::{Condvar, Mutex};
