//! A queue from many threads to one that any thread can close. A closed queue is empty and accepts no message.

use std::collections::VecDeque;

use super::sync::Mutex;

/// The capacity that an empty queue retains; a burst's larger buffer is freed.
const KEPT_CAPACITY: usize = 256;

/// First in, first out. The mutex is held for a few instructions only.
///
/// Unbounded, because a sender must not block on the I/O thread: dropping a guard never waits. Each call that acquires
/// a lock sends at most two messages, its `Acquire` and its `Leave`, and the I/O thread reads them all in each turn.
/// They accumulate only while that thread hangs.
///
/// A channel would do, except for [`close`](Self::close), which any thread may call while the receiving thread hangs.
/// Closing drops the messages, and with them the channels on which callers wait for answers, so no message may enter
/// after it.
#[derive(Debug)]
pub(crate) struct MessageQueue<T>(Mutex<Option<VecDeque<T>>>);

impl<T> MessageQueue<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Some(VecDeque::new())))
    }

    /// Appends a message. False if the queue is closed.
    #[must_use]
    pub(crate) fn push(&self, message: T) -> bool {
        let mut queue = self.0.lock();
        match &mut *queue {
            Some(messages) => {
                messages.push_back(message);
                true
            }
            None => {
                // Dropped after the mutex is unlocked: dropping it runs arbitrary code.
                drop(queue);
                drop(message);
                false
            }
        }
    }

    pub(crate) fn pop(&self) -> Option<T> {
        let mut queue = self.0.lock();
        let messages = queue.as_mut()?;
        let message = messages.pop_front();
        if messages.is_empty() && messages.capacity() > KEPT_CAPACITY {
            messages.shrink_to(0);
        }
        message
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().as_ref().is_none_or(VecDeque::is_empty)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().is_none()
    }

    /// In a forked child: drops the copies of the messages, unless a thread had the mutex at the time of the fork.
    pub(crate) fn abandon_copy(&self) {
        if let Some(mut queue) = self.0.try_lock() {
            drop(queue.take());
        }
    }

    /// Closes the queue and drops its messages.
    pub(crate) fn close(&self) {
        let messages = self.0.lock().take();
        drop(messages);
    }
}
