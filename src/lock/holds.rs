//! What all handles of one lock share: its name, its manager, and its holds here.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::client::Client;
use crate::name::LockName;
use crate::protocol::Ticket;
use crate::shared::hold_state::HoldState;

/// One lock of a manager, whatever the number of its handles. Lives as long as a handle, a waiter or a guard of it.
pub(crate) struct Holds {
    pub(super) name: LockName,
    pub(super) client: Arc<Client>,
    entries: Mutex<Vec<Entry>>,
}

/// A granted ticket whose guards are not all gone. There is more than one only where an earlier hold was lost.
struct Entry {
    ticket: Ticket,
    state: Arc<HoldState>,
}

impl Holds {
    pub(crate) fn new(name: LockName, client: Arc<Client>) -> Self {
        Self { name, client, entries: Mutex::new(Vec::new()) }
    }

    /// A ticket was granted.
    pub(super) fn enter(&self, ticket: Ticket, state: Arc<HoldState>) {
        if let Some(mut entries) = self.entries() {
            // Mostly one; a vector would begin with room for four.
            entries.reserve_exact(1);
            entries.push(Entry { ticket, state });
        }
    }

    /// The ticket's last guard goes.
    pub(super) fn forget(&self, ticket: Ticket) {
        if let Some(mut entries) = self.entries() {
            entries.retain(|entry| entry.ticket != ticket);
        }
    }

    pub(super) fn is_held(&self) -> bool {
        let now = self.client.now();
        self.entries().is_some_and(|entries| entries.iter().any(|entry| entry.state.is_held(now)))
    }

    /// `None` in a forked child, where nothing is held and the mutex may be locked for ever.
    fn entries(&self) -> Option<MutexGuard<'_, Vec<Entry>>> {
        self.client.mailbox.is_here().then(|| self.entries.lock())
    }
}
