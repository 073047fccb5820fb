//! The thread that ends holds on time even if the I/O thread hangs.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::mutex::Mutex;

use crate::clock::Clock;
use crate::error::LockError;
use crate::shared::report::Report;

/// Linux shows the first 15 bytes.
const NAME: &str = "etcd-lock-watchdog";

/// A manager's watchdog thread; its loop is [`HoldTable::watch`](crate::shared::hold_table::HoldTable::watch).
///
/// It calls no code of the program, writes no log line and waits for no other thread, so it ends as soon as the hold
/// table is shut.
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
            .map_err(|error| LockError::Internal {
                what: format!("cannot start the watchdog thread: {error}"),
            })?;
        Ok(Self { handle: Mutex::new(Some(handle)) })
    }

    /// A placeholder without a thread.
    pub(crate) fn none() -> Self {
        Self { handle: Mutex::new(None) }
    }

    /// Waits for the thread to end. The hold table must have been shut.
    pub(crate) fn join(&self) {
        if let Some(handle) = self.handle.lock().take() {
            let _ = handle.join();
        }
    }

    /// Forgets the thread without joining it: a forked child does not have it.
    pub(crate) fn forget(&mut self) {
        std::mem::forget(self.handle.get_mut().take());
    }
}
