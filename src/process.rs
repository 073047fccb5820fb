//! Which process this is: a manager works only in the process that made it.
//!
//! A child of `fork()` has a copy of every handle, but no I/O thread: nothing would answer it, and nothing it did to
//! the parent's locks could be right.

use std::sync::LazyLock;

use crossbeam_channel::Receiver;

use crate::error::LockError;

/// The process in which something was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Self {
        Self(std::process::id())
    }

    /// Whether this still is that process. Costs one system call of the cheapest kind.
    pub(crate) fn is_current(self) -> bool {
        Self::current() == self
    }

    /// What a call fails with in any other process.
    pub(crate) fn left(self) -> LockError {
        let what = format!("the lock manager belongs to process {}, of which this is a fork", self.0);
        LockError::Internal { what }
    }
}

/// A channel that is disconnected: what a forked child has instead of one that nobody would ever disconnect.
pub(crate) fn disconnected() -> &'static Receiver<()> {
    static DISCONNECTED: LazyLock<Receiver<()>> = LazyLock::new(|| crossbeam_channel::bounded(0).1);
    &DISCONNECTED
}
