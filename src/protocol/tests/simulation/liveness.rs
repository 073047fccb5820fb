//! Nobody waits for a lock that is free: while nothing is wrong, a release reaches the next one within a few round trips.

use std::time::Duration;

use super::checks::Violation;
use super::world::World;
use crate::clock::Time;
use crate::memory::model::Space;

/// So long after the last fault everything has settled: back-offs and heartbeats are shorter.
pub(super) const SETTLED: Duration = Duration::from_secs(6);

/// A lock that is free and wanted is taken within this. Well below the two seconds after which every waiter looks for
/// itself, so that no dead watch hides behind that look; above the 100 ms in which etcd serves a watch that was opened
/// while it was writing.
const BOUND: Duration = Duration::from_millis(300);

/// Since when each name has been free and wanted.
#[derive(Debug, Default)]
pub(super) struct Liveness(Vec<Option<Time>>);

impl World {
    pub(super) fn check_nobody_waits_in_vain(&mut self) -> Result<(), Violation> {
        if self.is_disturbed() {
            self.disturbed = self.now;
        }
        // A pause may have ended without any event before that.
        let pauses = self.nodes.iter().map(|node| node.paused_until.max(node.overslept).min(self.now));
        self.disturbed = pauses.fold(self.disturbed, Time::max);
        self.liveness.0.resize(self.names.len(), None);
        if self.calm_for() < SETTLED {
            self.liveness.0.fill(None);
            return Ok(());
        }
        let late = self.nodes.iter().map(|node| node.turns.lateness).max().unwrap_or_default();
        for name in 0..self.names.len() {
            let free = self.is_free_and_wanted(name);
            let since = self.liveness.0[name];
            if since.is_some_and(|since| self.now.since(since) > BOUND + late * 10) {
                return Err(Violation::new(format!(
                    "P7: {:?} was free since {since:?}, and somebody waited until {:?}",
                    self.names[name], self.now
                )));
            }
            self.liveness.0[name] = since.filter(|_| free).or(free.then_some(self.now));
        }
        Ok(())
    }

    /// How long nothing has been wrong.
    pub(super) fn calm_for(&self) -> Duration {
        self.now.since(self.disturbed)
    }

    /// Something is wrong right now.
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
