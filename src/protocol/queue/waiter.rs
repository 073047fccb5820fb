//! A ticket that waits in this process for its turn.

use std::ops::Deref;

use crate::protocol::messages::Acquire;

/// A ticket that waits, and what is known about its wait.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    acquire: Acquire,
    /// Callers of this process were waiting in the queue when it asked.
    pub(super) came_behind: bool,
    /// A hold of this process has kept it out since it asked.
    pub(super) kept_out: bool,
    /// It has taken over a contender that was put for an earlier waiter, and the position has been read for it since.
    pub(super) position_read: bool,
}

impl Waiter {
    pub(super) fn new(acquire: Acquire, came_behind: bool) -> Self {
        Self { acquire, came_behind, kept_out: false, position_read: false }
    }
}

impl Deref for Waiter {
    type Target = Acquire;

    fn deref(&self) -> &Acquire {
        &self.acquire
    }
}
