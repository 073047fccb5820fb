//! What all handles of one lock share: its name, its manager, and its holds here.

use std::sync::Arc;

use parking_lot::Mutex;

use super::guard::LockGuard;
use super::hold::Hold;
use crate::client::Client;
use crate::clock::Time;
use crate::name::LockName;
use crate::protocol::Ticket;
use crate::shared::hold_state::HoldState;

/// One lock of a manager, whatever the number of its handles. Lives as long as a handle, a waiter or a guard of it.
pub(crate) struct Holds {
    pub(super) name: LockName,
    pub(super) client: Arc<Client>,
    holds: Mutex<Vec<Entry>>,
}

/// A granted ticket whose guards are not all gone. There is more than one only where an earlier hold was lost.
struct Entry {
    ticket: Ticket,
    state: Arc<HoldState>,
}

impl Holds {
    pub(crate) fn new(name: LockName, client: Arc<Client>) -> Self {
        Self { name, client, holds: Mutex::new(Vec::new()) }
    }

    pub(crate) fn name(&self) -> &LockName {
        &self.name
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
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
        if self.client.check_process().is_err() {
            return false;
        }
        let now = self.client.now();
        self.holds.lock().iter().any(|entry| entry.state.is_held(now))
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.client.forget_lock(&self.name);
    }
}
