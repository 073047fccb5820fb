//! The part of the I/O thread's state that other threads of the manager share.

use std::sync::Arc;

use super::feeds::Feeds;
use super::hold_table::HoldTable;
use super::tickets::Tickets;
use crate::clock::Sleeper;
use crate::error::LossReason;
use crate::shared::session_cell::SessionCell;
use crate::stats::StatsCell;

/// State that callers read, and that must be ended for them even if the I/O thread hangs.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) stats: Arc<StatsCell>,
    pub(crate) session: SessionCell,
    pub(crate) holds: HoldTable,
    pub(crate) tickets: Tickets,
    pub(crate) feeds: Arc<Feeds>,
}

impl Report {
    pub(crate) fn new() -> Self {
        let stats = Arc::new(StatsCell::default());
        Self {
            session: SessionCell::default(),
            holds: HoldTable::new(Arc::clone(&stats)),
            tickets: Tickets::new(Arc::clone(&stats)),
            feeds: Arc::default(),
            stats,
        }
    }

    /// Ends everything for good; the mailbox must have been closed before. The order matters: end the session (and so
    /// every hold) with one store, close every `done()`, drop every ticket, and then the channels of observers. Seeing a later step implies the earlier
    /// ones.
    pub(crate) fn end(&self, lost: LossReason) {
        self.session.down(lost);
        self.holds.shut(lost);
        self.tickets.close(lost);
        self.feeds.close();
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
