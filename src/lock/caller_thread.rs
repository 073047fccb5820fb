//! Which thread calls: re-entry is for the thread that still has a guard.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names a calling thread, uniquely within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallerThread(pub(crate) u64);

impl CallerThread {
    /// The calling thread. No number is ever given twice. Works to the very end of a thread, in the destructors of its
    /// thread-locals too: a `Cell` without one of its own is never gone.
    pub(crate) fn current() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        thread_local! {
            static NUMBER: Cell<u64> = const { Cell::new(0) };
        }
        NUMBER.with(|number| {
            if number.get() == 0 {
                number.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
            }
            Self(number.get())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_its_own_number_and_keeps_it() {
        let mine = CallerThread::current();
        assert_eq!(CallerThread::current(), mine);
        assert_ne!(std::thread::spawn(CallerThread::current).join().unwrap(), mine);
    }
}
