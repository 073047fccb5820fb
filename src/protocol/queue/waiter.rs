//! A ticket that waits in this process for its turn.

use std::ops::Deref;

use crate::protocol::messages::Acquire;

/// A ticket that waits, and what is known about its wait.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    acquire: Acquire,
    /// A hold of this process has kept it out since it asked.
    pub(super) kept_out: bool,
}

impl Waiter {
    pub(super) fn new(acquire: Acquire) -> Self {
        Self { acquire, kept_out: false }
    }
}

impl Deref for Waiter {
    type Target = Acquire;

    fn deref(&self) -> &Acquire {
        &self.acquire
    }
}
