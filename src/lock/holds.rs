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
    tickets: Mutex<Vec<GrantedTicket>>,
}

/// A granted ticket whose guards are not all gone. There is more than one only where an earlier hold was lost.
struct GrantedTicket {
    ticket: Ticket,
    state: Arc<HoldState>,
}

impl Holds {
    pub(crate) fn new(name: LockName, client: Arc<Client>) -> Self {
        Self { name, client, tickets: Mutex::new(Vec::new()) }
    }

    /// A ticket was granted.
    pub(super) fn enter(&self, ticket: Ticket, state: Arc<HoldState>) {
        if let Some(mut tickets) = self.tickets() {
            // Mostly one; a vector would begin with room for four.
            tickets.reserve_exact(1);
            tickets.push(GrantedTicket { ticket, state });
        }
    }

    /// The ticket's last guard goes.
    pub(super) fn forget(&self, ticket: Ticket) {
        if let Some(mut tickets) = self.tickets() {
            tickets.retain(|granted| granted.ticket != ticket);
        }
    }

    pub(super) fn is_held(&self) -> bool {
        let now = self.client.now();
        self.tickets().is_some_and(|tickets| tickets.iter().any(|granted| granted.state.is_held(now)))
    }

    /// `None` in a forked child, where nothing is held and the mutex may be locked for ever.
    fn tickets(&self) -> Option<MutexGuard<'_, Vec<GrantedTicket>>> {
        self.client.mailbox.is_here().then(|| self.tickets.lock())
    }
}
