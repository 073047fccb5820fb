//! Who is waiting for an answer of the I/O thread, and for which.

use std::collections::HashMap;
use std::sync::Arc;

use oneshot::Sender;
use parking_lot::Mutex;

use super::hold_state::HoldState;
use crate::command::{Grant, Left, Reply};
use crate::error::LossReason;
use crate::protocol::{Refusal, ReleaseFailure, Ticket};
use crate::stats::StatsCell;

/// Every ticket from its `Acquire` to its last answer.
///
/// The I/O thread's, but for [`close`](Self::close). Its mutex is never held while a caller is answered.
#[derive(Debug)]
pub(crate) struct Tickets {
    table: Mutex<Table>,
    stats: Arc<StatsCell>,
}

#[derive(Debug, Default)]
struct Table {
    tickets: HashMap<Ticket, State>,
    waiting: u64,
    /// Nobody is answered any more.
    closed: bool,
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
    pub(crate) fn new(stats: Arc<StatsCell>) -> Self {
        Self { table: Mutex::default(), stats }
    }

    pub(crate) fn wait(&self, ticket: Ticket, reply: Reply) {
        let mut table = self.table.lock();
        // What is not put into a closed table is dropped, when it is unlocked: its caller learns of the end.
        if !table.closed {
            table.tickets.insert(ticket, State::Waiting(reply));
            table.waiting += 1;
            self.note_waiting(&table);
        }
    }

    pub(crate) fn granted(&self, ticket: Ticket, state: Arc<HoldState>) {
        // A ticket that has left meanwhile is the protocol's to release: its `Leave` has been passed on.
        let mut table = self.table.lock();
        if let Some(place) = table.tickets.get_mut(&ticket)
            && let State::Waiting(_) = place
            && let State::Waiting(reply) = std::mem::replace(place, State::Granted(Arc::clone(&state)))
        {
            table.waiting -= 1;
            self.note_waiting(&table);
            drop(table);
            reply.answer(Ok(Grant { state }));
        }
    }

    pub(crate) fn refused(&self, ticket: Ticket, refusal: Refusal) {
        match self.remove(ticket) {
            Some(State::Waiting(reply)) => {
                if matches!(refusal, Refusal::Timeout { .. }) {
                    self.stats.record(|stats| stats.timed_out += 1);
                }
                reply.answer(Err(refusal));
            }
            Some(State::Leaving(reply, _)) => {
                let _ = reply.send(Ok(()));
            }
            Some(State::Granted(_)) | None => {}
        }
    }

    /// The caller does not want it any more. True if the protocol is to say when that is done.
    pub(crate) fn leave(&self, ticket: Ticket, reply: Option<Sender<Left>>) -> bool {
        let hold = match self.remove(ticket) {
            Some(State::Waiting(_)) => None,
            Some(State::Granted(hold)) => Some(hold),
            // Its answer is on the way already; dropping `reply` says so.
            Some(State::Leaving(..)) | None => return false,
        };
        let Some(reply) = reply else { return false };
        if let Some(reason) = hold.as_ref().and_then(|hold| hold.lost()) {
            let _ = reply.send(Err(ReleaseFailure::Lost(reason)));
            return false;
        }
        let mut table = self.table.lock();
        if table.closed {
            drop(table);
            drop(reply);
            return false;
        }
        table.tickets.insert(ticket, State::Leaving(reply, hold));
        true
    }

    pub(crate) fn confirmed(&self, ticket: Ticket, result: Left) {
        if let Some(State::Leaving(reply, hold)) = self.remove(ticket) {
            // A hold that was lost just before its release has no key any more, and this is why.
            let lost = hold.and_then(|hold| hold.lost());
            let _ = reply.send(lost.map_or(result, |reason| Err(ReleaseFailure::Lost(reason))));
        }
    }

    /// Nobody is answered any more, now or later; who waits for a release learns what became of the hold.
    pub(crate) fn close(&self, lost: LossReason) {
        let mut table = self.table.lock();
        let tickets = std::mem::take(&mut *table).tickets;
        table.closed = true;
        self.note_waiting(&table);
        drop(table);
        for state in tickets.into_values() {
            if let State::Leaving(reply, _) = state {
                let _ = reply.send(Err(ReleaseFailure::Lost(lost)));
            }
        }
    }

    /// In a forked child: drops the copies of the replies, if no thread had the table at the fork.
    pub(crate) fn abandon_copy(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.tickets.clear();
        }
    }

    fn remove(&self, ticket: Ticket) -> Option<State> {
        let mut table = self.table.lock();
        let state = table.tickets.remove(&ticket)?;
        if let State::Waiting(_) = state {
            table.waiting -= 1;
            self.note_waiting(&table);
        }
        Some(state)
    }

    fn note_waiting(&self, table: &Table) {
        self.stats.record(|stats| stats.waiting = table.waiting);
    }
}
