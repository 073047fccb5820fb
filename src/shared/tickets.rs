//! The tickets that wait for an answer of the I/O thread.

use std::collections::HashMap;
use std::sync::Arc;

use crate::mutex::Mutex;
use oneshot::Sender;

use super::hold_state::HoldState;
use crate::error::LossReason;
use crate::protocol::{Refusal, ReleaseFailure, Ticket};
use crate::shared::message::{Grant, Left, Reply};
use crate::stats::StatsCell;

/// All tickets, from their `Acquire` to their last answer.
///
/// Used by the I/O thread only, except for [`close`](Self::close). The mutex is never held while a caller is answered.
#[derive(Debug)]
pub(crate) struct Tickets {
    table: Mutex<Table>,
    stats: Arc<StatsCell>,
}

#[derive(Debug, Default)]
struct Table {
    tickets: HashMap<Ticket, State>,
    /// The number of tickets in `Waiting`.
    waiting: u64,
    /// Set by `close`: no ticket is added or answered any more.
    closed: bool,
}

#[derive(Debug)]
enum State {
    /// Waits for the lock. Exits: `granted`, `refused`, `leave`.
    Waiting(Reply),
    /// Holds the lock. Exit: `leave`.
    Granted(Arc<HoldState>),
    /// Leaves the queue, or releases this hold. Exits: `refused`, `confirmed`.
    Leaving(Sender<Left>, Option<Arc<HoldState>>),
}

impl Tickets {
    pub(crate) fn new(stats: Arc<StatsCell>) -> Self {
        Self { table: Mutex::default(), stats }
    }

    pub(crate) fn wait(&self, ticket: Ticket, reply: Reply) {
        let mut table = self.table.lock();
        // With a closed table `reply` is dropped after the mutex is unlocked, so its caller learns of the end.
        if !table.closed {
            table.tickets.insert(ticket, State::Waiting(reply));
            table.waiting += 1;
            self.note_waiting(&table);
        }
    }

    pub(crate) fn granted(&self, ticket: Ticket, state: Arc<HoldState>) {
        // If the ticket has left meanwhile, its `Leave` was passed on and the protocol releases the grant.
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
                // A caller that gave up by itself returned another error.
                if matches!(refusal, Refusal::Timeout { .. }) && !reply.outcome.is_closed() {
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

    /// The caller gives up the ticket. True if the protocol must report when that is done.
    pub(crate) fn leave(&self, ticket: Ticket, reply: Option<Sender<Left>>) -> bool {
        let hold = match self.remove(ticket) {
            Some(State::Waiting(_)) => None,
            Some(State::Granted(hold)) => Some(hold),
            // Its answer is already on its way; dropping `reply` reports that.
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
            // A hold lost just before its release has no key any more; the loss is the reason.
            let lost = hold.and_then(|hold| hold.lost());
            let _ = reply.send(lost.map_or(result, |reason| Err(ReleaseFailure::Lost(reason))));
        }
    }

    /// Drops all tickets, and every later one. Callers that wait for a release get the reason for which the hold was
    /// lost.
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

    /// In a forked child: drops the copies of the replies, unless a thread had the mutex at the time of the fork.
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
