//! What a manager's threads and its handles share of the I/O thread's state.

use std::sync::Arc;

use super::hold_table::HoldTable;
use super::tickets::Tickets;
use crate::clock::Sleeper;
use crate::error::LossReason;
use crate::shared::session_cell::SessionCell;
use crate::stats::StatsCell;

/// What callers can read of the I/O thread's work, and what has to be ended for them even where that thread hangs.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) stats: Arc<StatsCell>,
    pub(crate) session: SessionCell,
    pub(crate) holds: HoldTable,
    pub(crate) tickets: Tickets,
}

impl Report {
    pub(crate) fn new() -> Self {
        let stats = Arc::new(StatsCell::default());
        Self {
            session: SessionCell::default(),
            holds: HoldTable::new(Arc::clone(&stats)),
            tickets: Tickets::new(Arc::clone(&stats)),
            stats,
        }
    }

    /// Ends everything for good, after the mailbox was closed. The order matters: the session, and with it every hold,
    /// by one store; every `done()`; every ticket. Who sees a later step can rely on the earlier ones.
    pub(crate) fn end(&self, lost: LossReason) {
        self.session.down(lost);
        self.holds.shut(lost);
        self.tickets.close(lost);
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl Sleeper for Report {
    fn wake(&self) {
        self.holds.wake_watchdog();
    }
}
