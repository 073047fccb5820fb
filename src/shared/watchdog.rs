//! The thread that ends holds in time even where the I/O thread hangs.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::error::LockError;
use crate::shared::report::Report;

/// Linux shows 15 bytes of it.
const NAME: &str = "etcd-lock-watchdog";

/// A manager's watchdog; what it does is [`HoldTable::watch`](crate::shared::hold_table::HoldTable::watch).
///
/// It runs no code but the library's own, writes no log line and waits for no other thread, so it ends as soon as the
/// hold table is shut.
#[derive(Debug)]
pub(crate) struct Watchdog {
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Watchdog {
    pub(crate) fn start(report: &Arc<Report>, clock: Clock) -> Result<Self, LockError> {
        let report = Arc::clone(report);
        let handle = thread::Builder::new()
            .name(NAME.into())
            .spawn(move || report.holds.watch(|| clock.now()))
            .map_err(|error| LockError::Internal { what: format!("no thread for the watchdog: {error}") })?;
        Ok(Self { handle: Mutex::new(Some(handle)) })
    }

    /// Stands for a watchdog where there is nothing to watch.
    pub(crate) fn none() -> Self {
        Self { handle: Mutex::new(None) }
    }

    /// Waits for its end, once the hold table was shut.
    pub(crate) fn join(&self) {
        if let Some(handle) = self.handle.lock().take() {
            let _ = handle.join();
        }
    }

    /// Leaves the thread alone: this is a forked child, which does not have it.
    pub(crate) fn forget(&mut self) {
        std::mem::forget(self.handle.get_mut().take());
    }
}
