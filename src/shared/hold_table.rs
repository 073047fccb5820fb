//! All holds of a manager that may be open, shared by the I/O thread and the watchdog.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::deadline::Deadline;
use super::hold_state::HoldState;
use super::sync::{Condvar, Mutex};
use crate::clock::Time;
use crate::error::LossReason;
use crate::info::FencingToken;
use crate::kv::{Key, Revision};
use crate::name::LockName;
use crate::protocol::HoldId;
use crate::stats::StatsCell;

/// The longest sleep of the watchdog while a lock is held: a condition variable's timer stops during suspend, but the
/// deadline's clock does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The open holds, each with the only sender of its `done()` channel.
///
/// The mutex is held for a few instructions per hold, and never while logging, sending a message or doing anything else
/// that can block. So neither thread can block the other.
#[derive(Debug)]
pub(crate) struct HoldTable {
    table: Mutex<Table>,
    /// Notified when the watchdog must look earlier than planned.
    sooner: Condvar,
    stats: Arc<StatsCell>,
}

#[derive(Debug)]
struct Table {
    /// The holds of the current session: a session's end removes its holds before the next session begins. The I/O
    /// thread adds and removes them.
    holds: HashMap<HoldId, Listed>,
    /// The number of holds whose `done()` is open.
    open: u64,
    /// The deadline of the current session; replaced by the I/O thread.
    session: Arc<Deadline>,
    /// When the watchdog looks next; `None` while it sleeps without a timer. Written by the watchdog.
    next_look: Option<Time>,
    /// Set once the manager has ended: no hold is open, now or later.
    shut: Option<LossReason>,
}

/// A hold that the I/O thread has not removed yet; the watchdog may have ended it already.
#[derive(Debug)]
struct Listed {
    state: Arc<HoldState>,
    /// Carries no message; dropping it closes `done()`.
    done: Option<Sender<()>>,
}

/// A hold that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) state: Arc<HoldState>,
    /// How the hold ended. A guard or the watchdog may have seen its deadline pass before the I/O thread ended it for
    /// another reason.
    pub(crate) lost: Option<LossReason>,
}

impl HoldTable {
    pub(crate) fn new(stats: Arc<StatsCell>) -> Self {
        let table = Table {
            holds: HashMap::new(),
            open: 0,
            session: Arc::new(Deadline::over()),
            next_look: None,
            shut: None,
        };
        Self { table: Mutex::new(table), sooner: Condvar::new(), stats }
    }

    /// Whether no hold is open. A hold whose deadline passed counts until a thread notices.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.lock().open == 0
    }

    pub(crate) fn get(&self, hold: HoldId) -> Option<Arc<HoldState>> {
        self.table.lock().holds.get(&hold).map(|listed| Arc::clone(&listed.state))
    }

    /// Begins a session: holds opened from now on have this deadline.
    pub(crate) fn begin_session(&self, deadline: Arc<Deadline>) {
        let mut table = self.table.lock();
        if let Some(reason) = table.shut {
            deadline.end(reason);
        }
        table.session = deadline;
    }

    /// Extends the session's deadline. False if it has passed or was ended; that is final.
    #[must_use]
    pub(crate) fn extend_session(&self, to: Time) -> bool {
        let table = self.table.lock();
        let extended = table.session.extend(to);
        // The new deadline may be earlier, if etcd granted a shorter TTL.
        self.wake_watchdog_before(&table, to);
        extended
    }

    /// Opens a hold of the current session. If the session is over, the hold is over from the start and its `done()` is
    /// closed.
    pub(crate) fn open(
        &self,
        now: Time,
        hold: HoldId,
        name: LockName,
        token: Revision,
        key: Key,
    ) -> Arc<HoldState> {
        let (done, closed) = crossbeam_channel::bounded(0);
        let mut table = self.table.lock();
        let session = Arc::clone(&table.session);
        let state = Arc::new(HoldState::new(name, FencingToken::new(token), key, closed, session));
        let mut listed = Listed { state: Arc::clone(&state), done: Some(done) };
        table.open += 1;
        self.stats.record(|stats| {
            stats.acquired += 1;
            stats.held = table.open;
        });
        // `end_session` ends the session first and then closes its holds under this mutex. So whichever of the two
        // comes second closes this `done()`.
        match table.session.look(now).and_then(|_| table.session.instant()) {
            Ok(due) => self.wake_watchdog_before(&table, due),
            Err(lost) => {
                listed.close(Some(lost), &mut table.open, &self.stats);
            }
        }
        table.holds.insert(hold, listed);
        state
    }

    /// Ends a hold and returns how it ended: if it had ended before, with the earlier reason. `None` if there is no
    /// such hold.
    pub(crate) fn end(&self, hold: HoldId, lost: Option<LossReason>) -> Option<Ended> {
        let mut table = self.table.lock();
        let mut listed = table.holds.remove(&hold)?;
        let lost = listed.close(lost, &mut table.open, &self.stats);
        Some(Ended { state: listed.state, lost })
    }

    /// Ends the session with a single atomic store, and then closes the `done()` of each of its holds. Returns all
    /// listed holds, including those that the watchdog has ended.
    pub(crate) fn end_session(&self, reason: LossReason) -> Vec<Ended> {
        let mut table = self.table.lock();
        table.session.end(reason);
        table.close_all(&self.stats);
        let holds = std::mem::take(&mut table.holds);
        drop(table);
        let ended = |(_, Listed { state, .. }): (HoldId, Listed)| Ended { lost: state.lost(), state };
        holds.into_iter().map(ended).collect()
    }

    /// Ends the table for good: holds opened later are over from the start. The watchdog ends, too.
    pub(crate) fn shut(&self, reason: LossReason) {
        let mut table = self.table.lock();
        table.shut.get_or_insert(reason);
        table.session.end(reason);
        table.close_all(&self.stats);
        self.sooner.notify_all();
    }

    /// In a forked child: drops the copies of the senders, unless a thread had the mutex at the time of the fork.
    pub(crate) fn abandon_copy(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.holds.clear();
        }
    }

    /// The watchdog's loop. When the session's deadline passes it ends the session's holds, whatever the I/O thread
    /// does.
    ///
    /// It decides by the deadline's compare-exchange alone, as callers do, and leaves logging and the lease to the I/O
    /// thread. While no lock is held it sleeps without a timer.
    pub(crate) fn watch(&self, now: impl Fn() -> Time) {
        let mut table = self.table.lock();
        while table.shut.is_none() {
            table = match self.look(&mut table, now()) {
                Some(pause) => self.sooner.wait_for(table, pause),
                None => self.sooner.wait(table),
            };
        }
    }

    /// One iteration of the watchdog. Returns how long it sleeps until the next; `None`: until a hold is opened.
    fn look(&self, table: &mut Table, now: Time) -> Option<Duration> {
        table.next_look = None;
        if table.open == 0 {
            return None;
        }
        let Some(left) = table.session.remaining(now) else {
            table.close_all(&self.stats);
            return None;
        };
        let pause = left.min(LONGEST_SLEEP);
        table.next_look = Some(now + pause);
        Some(pause)
    }

    /// Makes the watchdog compare the clock with the deadline at once.
    pub(crate) fn wake_watchdog(&self) {
        // With the mutex locked, so that the notification cannot fall between the watchdog's look and its sleep.
        let _table = self.table.lock();
        self.sooner.notify_all();
    }

    /// Wakes the watchdog if it would sleep past `due`. Costs a system call only then, as for the first hold after a
    /// while.
    fn wake_watchdog_before(&self, table: &Table, due: Time) {
        if table.open > 0 && table.next_look.is_none_or(|look| look > due) {
            self.sooner.notify_all();
        }
    }

    /// Fires the watchdog's timer, if it is due.
    #[cfg(test)]
    pub(crate) fn fire_timer(&self, now: Time) {
        let table = self.table.lock();
        if table.next_look.is_some_and(|look| look <= now) {
            self.sooner.notify_all();
        }
    }
}

impl Table {
    /// Closes every open `done()`; the session must have ended before. Does not allocate.
    fn close_all(&mut self, stats: &StatsCell) {
        for listed in self.holds.values_mut() {
            listed.close(None, &mut self.open, stats);
        }
    }
}

impl Listed {
    /// Ends the hold, and then closes `done()`, so that a thread that sees it closed finds the reason. Returns how the
    /// hold ended.
    fn close(&mut self, lost: Option<LossReason>, open: &mut u64, stats: &StatsCell) -> Option<LossReason> {
        let lost = self.state.end(lost);
        if let Some(done) = self.done.take() {
            *open -= 1;
            // Counted before a thread can see it closed.
            stats.record(|stats| {
                stats.held = *open;
                match lost {
                    None => stats.released += 1,
                    Some(reason) => *stats.lost.of(reason) += 1,
                }
            });
            drop(done);
        }
        lost
    }
}
