//! Who is waiting for an answer of the I/O thread, and for which.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use oneshot::Sender;

use crate::command::{Grant, Left, Reply};
use crate::error::LossReason;
use crate::guard::HoldState;
use crate::protocol::{Refusal, ReleaseFailure, Ticket};
use crate::stats::{Counters, count};

/// Every ticket from its `Acquire` to its last answer.
#[derive(Debug)]
pub(super) struct Tickets {
    tickets: HashMap<Ticket, State>,
    waiting: u64,
    counters: Arc<Counters>,
}

#[derive(Debug)]
enum State {
    /// Ends in `granted`, `refused` or `leave`.
    Waiting(Reply),
    /// Ends in `leave`.
    Granted(Arc<HoldState>),
    /// It waited, or held this. Ends in `refused` or `confirmed`.
    Leaving(Sender<Left>, Option<Arc<HoldState>>),
}

impl Tickets {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self { tickets: HashMap::new(), waiting: 0, counters }
    }

    pub(super) fn wait(&mut self, ticket: Ticket, reply: Reply) {
        self.tickets.insert(ticket, State::Waiting(reply));
        self.note_waiting(self.waiting + 1);
    }

    pub(super) fn granted(&mut self, ticket: Ticket, state: Arc<HoldState>) {
        // A ticket that has left meanwhile is the protocol's to release: its `Leave` has been passed on.
        if let Some(place) = self.tickets.get_mut(&ticket)
            && let State::Waiting(_) = place
            && let State::Waiting(reply) = std::mem::replace(place, State::Granted(Arc::clone(&state)))
        {
            self.note_waiting(self.waiting.saturating_sub(1));
            reply.answer(Ok(Grant { state }));
        }
    }

    pub(super) fn refused(&mut self, ticket: Ticket, refusal: Refusal) {
        match self.tickets.remove(&ticket) {
            Some(State::Waiting(reply)) => {
                if matches!(refusal, Refusal::Timeout { .. }) {
                    count(&self.counters.timed_out);
                }
                self.note_waiting(self.waiting.saturating_sub(1));
                reply.answer(Err(refusal));
            }
            Some(State::Leaving(reply, _)) => {
                let _ = reply.send(Ok(()));
            }
            Some(State::Granted(_)) | None => {}
        }
    }

    /// The caller does not want it any more. True if the protocol is to say when that is done.
    pub(super) fn leave(&mut self, ticket: Ticket, reply: Option<Sender<Left>>) -> bool {
        let hold = match self.tickets.remove(&ticket) {
            Some(State::Waiting(_)) => {
                self.note_waiting(self.waiting.saturating_sub(1));
                None
            }
            Some(State::Granted(hold)) => Some(hold),
            // Its answer is on the way already; dropping `reply` says so.
            Some(State::Leaving(..)) | None => return false,
        };
        let Some(reply) = reply else { return false };
        if let Some(reason) = hold.as_ref().and_then(|hold| hold.lost()) {
            let _ = reply.send(Err(ReleaseFailure::Lost(reason)));
            return false;
        }
        self.tickets.insert(ticket, State::Leaving(reply, hold));
        true
    }

    pub(super) fn confirmed(&mut self, ticket: Ticket, result: Left) {
        if let Some(State::Leaving(reply, hold)) = self.tickets.remove(&ticket) {
            // A hold that was lost just before its release has no key any more, and this is why.
            let lost = hold.and_then(|hold| hold.lost());
            let _ = reply.send(lost.map_or(result, |reason| Err(ReleaseFailure::Lost(reason))));
        }
    }

    /// The I/O thread ends: who still waits for a release learns what became of the hold.
    pub(super) fn sweep(&mut self, lost: LossReason) {
        for (_, state) in self.tickets.drain() {
            if let State::Leaving(reply, _) = state {
                let _ = reply.send(Err(ReleaseFailure::Lost(lost)));
            }
        }
        self.note_waiting(0);
    }

    fn note_waiting(&mut self, waiting: u64) {
        self.waiting = waiting;
        self.counters.waiting.store(waiting, Relaxed);
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        self.sweep(LossReason::Crashed);
    }
}
