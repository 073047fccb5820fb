//! No caller waits for a free lock: without faults, the next waiter gets a released lock within a few round trips, and
//! so does everyone for whom the holders leave room.

use std::time::Duration;

use super::checks::Violation;
use super::truth::Due;
use super::world::World;
use crate::clock::Time;
use crate::store::memory::model::Space;

/// This long after the last fault, all back-offs and heartbeats have ended.
pub(super) const SETTLED: Duration = Duration::from_secs(6);

/// A free lock with waiters is taken within this time. It is well below the two seconds after which every waiter
/// re-reads its position, so that re-read cannot hide a dead watch, and above the 100 ms that etcd takes to serve a
/// watch that was opened during a write.
const BOUND: Duration = Duration::from_millis(300);

/// For each name, what should be taken, and since when.
#[derive(Debug, Default)]
pub(super) struct Liveness(Vec<Option<(Due, Time)>>);

impl World {
    pub(super) fn check_free_locks_are_taken(&mut self) -> Result<(), Violation> {
        if self.is_disturbed() {
            self.disturbed = self.now;
        }
        // A pause may have ended without an event at its end.
        let pauses = self.nodes.iter().map(|node| node.paused_until.max(node.overslept).min(self.now));
        self.disturbed = pauses.fold(self.disturbed, Time::max);
        self.liveness.0.resize(self.names.len(), None);
        if self.calm_for() < SETTLED {
            self.liveness.0.fill(None);
            return Ok(());
        }
        let late = self.nodes.iter().map(|node| node.turns.lateness).max().unwrap_or_default();
        for name in 0..self.names.len() {
            if let Some((due, since)) = &self.liveness.0[name]
                && self.now.since(*since) > BOUND + late * 10
            {
                return Err(Violation::new(format!(
                    "P7: {:?} was to be taken by {due:?} since {since:?}, and was not until {:?}",
                    self.names[name], self.now
                )));
            }
            let due = self.is_due(name);
            let same = self.liveness.0[name].take().filter(|(was, _)| Some(was) == due.as_ref());
            self.liveness.0[name] = same.or_else(|| Some((due?, self.now)));
        }
        Ok(())
    }

    /// The time since the last disturbance.
    pub(super) fn calm_for(&self) -> Duration {
        self.now.since(self.disturbed)
    }

    /// Whether a fault is active now.
    fn is_disturbed(&self) -> bool {
        self.stale_term.is_some()
            || self.denied
            || self.model.space() != Space::Enough
            || self.nodes.iter().any(|node| {
                node.link.is_bad()
                    || node.link.unreliable > 0.0
                    || node.stream.stalled
                    || node.paused_until.max(node.overslept) > self.now
                    || node.lease.is_none()
            })
    }
}
