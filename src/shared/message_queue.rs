//! Messages from many threads to one, until it is closed: nothing lies in a closed queue, and nothing gets into it.

use std::collections::VecDeque;

use super::sync::Mutex;

/// A capacity that is kept when the queue is empty again; what a burst needed beyond it is given back.
const KEPT_CAPACITY: usize = 256;

/// Unbounded, first in first out. Its mutex is held for a few instructions only.
///
/// A channel's receiver would do but for [`close`](Self::close), which any thread may call while the receiving thread
/// hangs: what is dropped then holds the channels on which callers wait for an answer, so nothing may slip in behind it.
#[derive(Debug)]
pub(crate) struct MessageQueue<T>(Mutex<Option<VecDeque<T>>>);

impl<T> MessageQueue<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Some(VecDeque::new())))
    }

    /// False once it is closed.
    #[must_use]
    pub(crate) fn push(&self, message: T) -> bool {
        let mut queue = self.0.lock();
        match &mut *queue {
            Some(messages) => {
                messages.push_back(message);
                true
            }
            None => {
                // It is dropped when nobody is kept waiting.
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

    /// In a forked child: drops the copies of the messages, if no thread had the queue at the fork.
    pub(crate) fn abandon_copy(&self) {
        if let Some(mut queue) = self.0.try_lock() {
            drop(queue.take());
        }
    }

    /// Drops what lies in it.
    pub(crate) fn close(&self) {
        let messages = self.0.lock().take();
        drop(messages);
    }
}
