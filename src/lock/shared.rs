//! What all handles of one lock share: its name, its manager, and which thread holds it here.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::LockError;
use crate::guard::{Hold, LockGuard};
use crate::inner::Inner;
use crate::name::LockName;
use crate::protocol::{Thread, Ticket};
use crate::shared::HoldState;

/// One lock of a manager, whatever the number of its handles. Lives as long as a handle, a waiter or a guard of it.
pub(crate) struct LockShared {
    pub(super) name: LockName,
    pub(super) manager: Arc<Inner>,
    holds: Mutex<Vec<Entry>>,
}

/// A granted ticket whose guards are not all gone. There is more than one only where a thread had asked several times
/// before it held the lock.
struct Entry {
    ticket: Ticket,
    thread: Thread,
    /// Only ever upgraded by the thread that asked, to re-enter: an upgrade is one more guard.
    hold: Weak<Hold>,
    state: Arc<HoldState>,
}

impl LockShared {
    pub(crate) fn new(name: LockName, manager: Arc<Inner>) -> Self {
        Self { name, manager, holds: Mutex::new(Vec::new()) }
    }

    pub(crate) fn name(&self) -> &LockName {
        &self.name
    }

    pub(crate) fn manager(&self) -> &Inner {
        &self.manager
    }

    /// The first guard of a ticket that was granted to `thread`.
    pub(crate) fn admit(
        self: &Arc<Self>,
        ticket: Ticket,
        thread: Thread,
        state: Arc<HoldState>,
    ) -> LockGuard {
        let hold = Arc::new(Hold::new(ticket, Arc::clone(&state), Arc::clone(self)));
        let mut holds = self.holds.lock();
        // Mostly one; a vector would begin with room for four.
        holds.reserve_exact(1);
        holds.push(Entry { ticket, thread, hold: Arc::downgrade(&hold), state });
        LockGuard::new(hold)
    }

    /// The ticket's last guard goes.
    pub(crate) fn forget(&self, ticket: Ticket) {
        self.holds.lock().retain(|entry| entry.ticket != ticket);
    }

    /// One more guard, if this thread holds the lock; an error if it has lost it.
    pub(super) fn reenter(&self) -> Result<Option<LockGuard>, LockError> {
        self.manager.check_process()?;
        let now = self.manager.now();
        let me = Thread::current();
        let mut lost = None;
        let mine = {
            let holds = self.holds.lock();
            let mut mine = holds.iter().filter(|entry| entry.thread == me && entry.hold.strong_count() > 0);
            mine.find_map(|entry| {
                if entry.state.is_held(now) {
                    return entry.hold.upgrade();
                }
                lost = Some(entry.state.expired(now));
                None
            })
            // The list is unlocked before anything is dropped: the end of a hold takes its entry off the list.
        };
        match (mine, lost) {
            (Some(hold), _) => Ok(Some(LockGuard::new(hold))),
            (None, Some(lost)) => Err(lost),
            (None, None) => Ok(None),
        }
    }

    pub(super) fn is_held(&self) -> bool {
        if self.manager.check_process().is_err() {
            return false;
        }
        let now = self.manager.now();
        self.holds.lock().iter().any(|entry| entry.state.is_held(now))
    }
}

impl Drop for LockShared {
    fn drop(&mut self) {
        self.manager.forget_lock(&self.name);
    }
}
