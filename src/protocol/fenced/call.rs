//! One fenced request, from its command to its answer.

use crate::clock::Time;
use crate::kv::{Failure, Key, Revision};
use crate::protocol::messages::{FencedCall, FencedRequest, Ticket};

/// A fenced request that is not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// The ticket of its hold.
    pub(super) ticket: Ticket,
    pub(super) request: FencedRequest,
    /// When its caller stops waiting.
    pub(super) until: Time,
    pub(super) state: State,
    /// Attempts that failed in a row.
    pub(super) failures: u32,
    pub(super) last_failure: Option<Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be sent. Exits: InFlight, AwaitsEpoch, answered.
    Ready,
    /// To be sent once the epoch has moved. Exits: InFlight, answered.
    AwaitsEpoch,
    /// Exits: answered, Ready (the epoch had moved), BackingOff.
    InFlight {
        epoch: Revision,
        /// The keys that it compares.
        keys: Vec<(Key, Revision)>,
    },
    /// Until `Timer::Fenced`. Exits: Ready, answered.
    BackingOff,
}

impl Call {
    pub(super) fn new(call: FencedCall) -> Self {
        let FencedCall { ticket, request, until, .. } = call;
        Self { ticket, request, until, state: State::Ready, failures: 0, last_failure: None }
    }

    /// It changes nothing, so it may be repeated.
    pub(super) fn is_read(&self) -> bool {
        match &self.request {
            FencedRequest::Get(_) => true,
            FencedRequest::Write(writes) => writes.is_empty(),
            FencedRequest::Note(_) => false,
        }
    }

    /// A write in flight under this epoch whose caller may have stopped waiting: it counts as unanswered before its
    /// failure arrives.
    pub(super) fn is_overdue_write(&self, current: Revision, now: Time) -> bool {
        matches!(self.state, State::InFlight { epoch, .. } if epoch >= current)
            && !self.is_read()
            && self.until <= now
    }
}
