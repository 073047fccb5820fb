//! Identifies the calling thread, for the `thread` field of a contender's value.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of a calling thread, unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallerThread(pub(crate) u64);

impl CallerThread {
    /// The calling thread. Numbers are never reused. It also works in the destructors of thread-local values: a `Cell`
    /// has no destructor, so it is accessible until the thread ends.
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
