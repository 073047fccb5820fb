//! Detects forks: a manager works only in the process that created it.
//!
//! A child of `fork()` has a copy of every handle, but no I/O thread: no call could be answered, and the child must not
//! touch the parent's locks. A fork by a raw `clone` system call, past the C library, is not detected.

use std::sync::LazyLock;

use crossbeam_channel::Receiver;

/// The process in which a value was created.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    id: u32,
    /// Detects forks without a system call; `None` if it could not be set up.
    forks: Option<forkguard::Guard>,
}

impl Process {
    pub(crate) fn current() -> Self {
        Self { id: std::process::id(), forks: forkguard::Guard::try_new().ok() }
    }

    /// Whether the current process is that process, and not a child of it.
    pub(crate) fn is_current(&self) -> bool {
        match &self.forks {
            // `detected_fork` reports a fork only once per guard, so each check uses a fresh clone.
            Some(forks) => !forks.clone().detected_fork(),
            None => std::process::id() == self.id,
        }
    }
}

/// A disconnected channel. A forked child gets it in place of channels that would never disconnect there.
pub(crate) fn disconnected() -> &'static Receiver<()> {
    static DISCONNECTED: LazyLock<Receiver<()>> = LazyLock::new(|| crossbeam_channel::bounded(0).1);
    &DISCONNECTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_fork_guard_the_process_id_detects_a_fork() {
        let here = Process { forks: None, ..Process::current() };
        assert!(here.is_current());
        assert!(!Process { id: here.id + 1, ..here }.is_current());
    }
}
