//! The I/O thread's side of every hold.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::Sender;

use crate::error::LossReason;
use crate::guard::HoldState;
use crate::info::FencingToken;
use crate::name::LockName;
use crate::protocol::HoldId;
use crate::session::Deadline;
use crate::stats::{Counters, count};
use crate::store::{Key, Revision};

/// The holds that stand. However it is dropped, every `done()` of it closes, as [`LossReason::Crashed`] at the least.
#[derive(Debug)]
pub(super) struct HoldTable {
    holds: HashMap<HoldId, OpenHold>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct OpenHold {
    state: Arc<HoldState>,
    /// Never sent on; its drop closes `done()`.
    done: Sender<()>,
}

impl OpenHold {
    /// Everything but closing `done()`: whoever sees it closed finds out why. Returns how the hold ended.
    fn end(&self, lost: Option<LossReason>, counters: &Counters) -> Option<LossReason> {
        let lost = self.state.end(lost);
        match lost {
            None => count(&counters.released),
            Some(reason) => counters.count_lost(reason),
        }
        lost
    }
}

/// A hold that is over.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) state: Arc<HoldState>,
    /// How it ended in the end: its own guard may have seen its time run out before.
    pub(super) lost: Option<LossReason>,
}

impl HoldTable {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self { holds: HashMap::new(), counters }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    pub(super) fn get(&self, hold: HoldId) -> Option<&Arc<HoldState>> {
        self.holds.get(&hold).map(|open| &open.state)
    }

    pub(super) fn open(
        &mut self,
        hold: HoldId,
        name: LockName,
        token: Revision,
        key: Key,
        deadline: Arc<Deadline>,
    ) -> Arc<HoldState> {
        let (done, closed) = crossbeam_channel::bounded(0);
        let token = FencingToken::new(token);
        let state = Arc::new(HoldState::new(name, token, key, closed, deadline));
        self.holds.insert(hold, OpenHold { state: Arc::clone(&state), done });
        count(&self.counters.acquired);
        self.note_size();
        state
    }

    /// `None` if there is no such hold.
    pub(super) fn end(&mut self, hold: HoldId, lost: Option<LossReason>) -> Option<Ended> {
        let open = self.holds.remove(&hold)?;
        let lost = open.end(lost, &self.counters);
        self.note_size();
        drop(open.done);
        Some(Ended { state: open.state, lost })
    }

    /// Ends all that are left. Every `done()` closes when the result is dropped.
    pub(super) fn sweep(&mut self, lost: LossReason) -> Vec<(Ended, Sender<()>)> {
        let ends: Vec<_> = self.holds.values().map(|open| open.end(Some(lost), &self.counters)).collect();
        let closing = self.holds.drain().zip(ends);
        let closing =
            closing.map(|((_, open), lost)| (Ended { state: open.state, lost }, open.done)).collect();
        self.note_size();
        closing
    }

    fn note_size(&self) {
        self.counters.held.store(self.holds.len() as u64, Relaxed);
    }
}

impl Drop for HoldTable {
    fn drop(&mut self) {
        self.sweep(LossReason::Crashed);
    }
}
