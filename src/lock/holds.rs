//! The state shared by all handles of one lock: its name, its manager, and its holds in this process.
//!
//! A lock is its name. Handles of one name share it whatever their modes are, because they wait in one queue; the mode
//! belongs to the handle, as its other options do.

use std::sync::Arc;

use crate::mutex::{Mutex, MutexGuard};

use crate::client::Client;
use crate::name::LockName;
use crate::protocol::Ticket;
use crate::shared::hold_state::HoldState;

/// One lock of a manager, whatever the number of its handles. It exists as long as one of its handles, waiters or
/// guards.
pub(crate) struct Holds {
    pub(super) name: LockName,
    pub(super) client: Arc<Client>,
    /// The holds in this process; callers' threads add and remove them.
    tickets: Mutex<Vec<GrantedTicket>>,
}

/// A granted ticket that still has a guard. There is more than one if the lock is held together, or if an earlier hold
/// was lost.
struct GrantedTicket {
    ticket: Ticket,
    state: Arc<HoldState>,
}

impl Holds {
    pub(crate) fn new(name: LockName, client: Arc<Client>) -> Self {
        Self { name, client, tickets: Mutex::new(Vec::new()) }
    }

    /// Adds a granted ticket.
    pub(super) fn enter(&self, ticket: Ticket, state: Arc<HoldState>) {
        if let Some(mut tickets) = self.tickets() {
            if tickets.is_empty() {
                // There is usually one; `push` alone would reserve room for four.
                tickets.reserve_exact(1);
            }
            tickets.push(GrantedTicket { ticket, state });
        }
    }

    /// Removes a ticket whose last guard is dropped.
    pub(super) fn forget(&self, ticket: Ticket) {
        if let Some(mut tickets) = self.tickets() {
            tickets.retain(|granted| granted.ticket != ticket);
        }
    }

    /// Whether a guard in this process holds the lock, in any mode.
    pub(super) fn is_held(&self) -> bool {
        let now = self.client.now();
        self.tickets().is_some_and(|tickets| tickets.iter().any(|granted| granted.state.is_held(now)))
    }

    /// `None` in a forked child, where no lock is held and the mutex may be locked for ever.
    fn tickets(&self) -> Option<MutexGuard<'_, Vec<GrantedTicket>>> {
        self.client.mailbox.is_here().then(|| self.tickets.lock())
    }
}
