//! Which process this is: a manager works only in the process that made it.
//!
//! A child of `fork()` has a copy of every handle, but no I/O thread: nothing would answer it, and nothing it did to
//! the parent's locks could be right. A fork past the C library, by a raw `clone` system call, is not noticed.

use std::sync::LazyLock;

use crossbeam_channel::Receiver;

/// The process in which something was made.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    id: u32,
    /// Counts the forks that lead here, so that looking costs no system call. `None`: it could not be set up.
    forks: Option<forkguard::Guard>,
}

impl Process {
    pub(crate) fn current() -> Self {
        Self { id: std::process::id(), forks: forkguard::Guard::try_new().ok() }
    }

    /// Whether this still is that process, and no child of it.
    pub(crate) fn is_current(&self) -> bool {
        match &self.forks {
            // Looking makes a guard forget what it saw; each look is a copy's first.
            Some(forks) => !forks.clone().detected_fork(),
            None => std::process::id() == self.id,
        }
    }
}

/// A channel that is disconnected: what a forked child has instead of one that nobody would ever disconnect.
pub(crate) fn disconnected() -> &'static Receiver<()> {
    static DISCONNECTED: LazyLock<Receiver<()>> = LazyLock::new(|| crossbeam_channel::bounded(0).1);
    &DISCONNECTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_counter_the_process_id_tells() {
        let here = Process { forks: None, ..Process::current() };
        assert!(here.is_current());
        assert!(!Process { id: here.id + 1, ..here }.is_current());
    }
}
