//! What all handles of one lock share: its name, its manager, and its holds here.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Time;
use crate::guard::{Hold, LockGuard};
use crate::inner::Inner;
use crate::name::LockName;
use crate::protocol::Ticket;
use crate::shared::hold_state::HoldState;

/// One lock of a manager, whatever the number of its handles. Lives as long as a handle, a waiter or a guard of it.
pub(crate) struct LockShared {
    pub(super) name: LockName,
    pub(super) manager: Arc<Inner>,
    holds: Mutex<Vec<Entry>>,
}

/// A granted ticket whose guards are not all gone. There is more than one only where an earlier hold was lost.
struct Entry {
    ticket: Ticket,
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

    /// The first guard of a ticket that was asked for at `asked` and granted.
    pub(crate) fn admit(self: &Arc<Self>, ticket: Ticket, asked: Time, state: Arc<HoldState>) -> LockGuard {
        let hold = Arc::new(Hold::new(ticket, asked, Arc::clone(&state), Arc::clone(self)));
        let mut holds = self.holds.lock();
        // Mostly one; a vector would begin with room for four.
        holds.reserve_exact(1);
        holds.push(Entry { ticket, state });
        LockGuard::new(hold)
    }

    /// The ticket's last guard goes.
    pub(crate) fn forget(&self, ticket: Ticket) {
        self.holds.lock().retain(|entry| entry.ticket != ticket);
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
