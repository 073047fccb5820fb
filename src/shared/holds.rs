//! Every hold of a manager that may be open, shared by the I/O thread and the watchdog.

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

/// The longest the watchdog sleeps while something is held: a condition variable's timer stands still while the machine
/// is suspended, the deadline does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The open holds, each with the only sender of its `done()`.
///
/// Its mutex is held for a few instructions for each hold, and never across anything that blocks: no log line, no
/// message. So neither thread can keep the other from it.
#[derive(Debug)]
pub(crate) struct HoldTable {
    table: Mutex<Table>,
    /// The watchdog has to look earlier than it meant to.
    sooner: Condvar,
    stats: Arc<StatsCell>,
}

#[derive(Debug)]
struct Table {
    /// All of one session: a session's end takes its holds away before the next begins.
    holds: HashMap<HoldId, Listed>,
    /// Those whose `done()` is open.
    open: u64,
    session: Arc<Deadline>,
    /// When the watchdog looks next; `None` while it sleeps until it is woken.
    next_look: Option<Time>,
    /// Nothing is held any more, ever.
    shut: Option<LossReason>,
}

/// A hold of which the I/O thread has not heard the end, though the watchdog may have ended it.
#[derive(Debug)]
struct Listed {
    state: Arc<HoldState>,
    /// Never sent on; its drop closes `done()`.
    done: Option<Sender<()>>,
}

/// A hold that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) state: Arc<HoldState>,
    /// How it ended in the end: its own guard or the watchdog may have seen its time run out before.
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

    /// Whether nothing is held, as far as anybody has found out.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.lock().open == 0
    }

    pub(crate) fn get(&self, hold: HoldId) -> Option<Arc<HoldState>> {
        self.table.lock().holds.get(&hold).map(|listed| Arc::clone(&listed.state))
    }

    /// What is opened from now on belongs to the session with this deadline.
    pub(crate) fn begin_session(&self, deadline: Arc<Deadline>) {
        let mut table = self.table.lock();
        if let Some(reason) = table.shut {
            deadline.end(reason);
        }
        table.session = deadline;
    }

    /// Moves the session's deadline. False if it is over: then it stays over.
    #[must_use]
    pub(crate) fn extend_session(&self, to: Time) -> bool {
        let table = self.table.lock();
        let extended = table.session.extend(to);
        // etcd may have shortened the TTL.
        self.wake_watchdog_before(&table, to);
        extended
    }

    /// A new hold of the session. Where that is over, the hold is over from the start, and its `done()` closed.
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
        // Looked at under the lock that the sweep of an ended session takes after the end: whichever of the two comes
        // second closes this `done()`.
        match table.session.look(now).and_then(|_| table.session.instant()) {
            Ok(due) => self.wake_watchdog_before(&table, due),
            Err(lost) => {
                listed.close(Some(lost), &mut table.open, &self.stats);
            }
        }
        table.holds.insert(hold, listed);
        state
    }

    /// Ends a hold, and tells how it ended: otherwise than thus, if it had ended before. `None` if there is no such hold.
    pub(crate) fn end(&self, hold: HoldId, lost: Option<LossReason>) -> Option<Ended> {
        let mut table = self.table.lock();
        let mut listed = table.holds.remove(&hold)?;
        let lost = listed.close(lost, &mut table.open, &self.stats);
        Some(Ended { state: listed.state, lost })
    }

    /// Ends the session by one store, and then closes the `done()` of each of its holds. All that were listed are
    /// returned, those that the watchdog has ended too.
    pub(crate) fn end_session(&self, reason: LossReason) -> Vec<Ended> {
        let mut table = self.table.lock();
        table.session.end(reason);
        table.close_all(&self.stats);
        let holds = std::mem::take(&mut table.holds);
        drop(table);
        let ended = |(_, Listed { state, .. }): (HoldId, Listed)| Ended { lost: state.lost(), state };
        holds.into_iter().map(ended).collect()
    }

    /// Ends everything for good: what is opened later is over from the start. The watchdog ends, too.
    pub(crate) fn shut(&self, reason: LossReason) {
        let mut table = self.table.lock();
        table.shut.get_or_insert(reason);
        table.session.end(reason);
        table.close_all(&self.stats);
        self.sooner.notify_all();
    }

    /// In a forked child: drops the copies of the senders, if no thread had the table at the fork.
    pub(crate) fn abandon_copy(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.holds.clear();
        }
    }

    /// The watchdog's whole life: when the session's deadline passes it ends its holds, whatever the I/O thread does.
    ///
    /// It decides by the deadline's compare-exchange alone, as callers do, and leaves the rest (log lines, the lease) to
    /// the I/O thread. While nothing is held it sleeps without a timer.
    pub(crate) fn watch(&self, now: impl Fn() -> Time) {
        let mut table = self.table.lock();
        while table.shut.is_none() {
            match self.look(&mut table, now()) {
                Some(pause) => {
                    self.sooner.wait_for(&mut table, pause);
                }
                None => self.sooner.wait(&mut table),
            }
        }
    }

    /// One look of the watchdog: how long it sleeps until the next, or `None` for as long as nothing is opened.
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

    /// It looks at the clock at once.
    pub(crate) fn wake_watchdog(&self) {
        // Under the lock, so that it cannot come between a look and the sleep that follows.
        let _table = self.table.lock();
        self.sooner.notify_all();
    }

    /// Costs a system call only if the watchdog would sleep longer, as it does when nothing was held for a while.
    fn wake_watchdog_before(&self, table: &Table, due: Time) {
        if table.open > 0 && table.next_look.is_none_or(|look| look > due) {
            self.sooner.notify_all();
        }
    }

    /// The watchdog's timer fires, if it is due.
    #[cfg(test)]
    pub(crate) fn fire_timer(&self, now: Time) {
        let table = self.table.lock();
        if table.next_look.is_some_and(|look| look <= now) {
            self.sooner.notify_all();
        }
    }
}

impl Table {
    /// Closes every `done()` that is open; the session has ended before. Allocates nothing.
    fn close_all(&mut self, stats: &StatsCell) {
        for listed in self.holds.values_mut() {
            listed.close(None, &mut self.open, stats);
        }
    }
}

impl Listed {
    /// Ends the hold, and then closes `done()`: whoever sees it closed finds out why. Returns how the hold ended.
    fn close(&mut self, lost: Option<LossReason>, open: &mut u64, stats: &StatsCell) -> Option<LossReason> {
        let lost = self.state.end(lost);
        if let Some(done) = self.done.take() {
            *open -= 1;
            // Counted before anybody can see it closed.
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
