//! The cluster that all clients of a store share.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mutex::Mutex;
use tokio::sync::watch;

#[cfg(test)]
use super::fault::Fault;
use super::state::State;
use crate::clock::{Clock, Time};
use crate::store::ClientId;

/// The step in which time is advanced: short enough that a session of the shortest TTL, 2 s, is renewed in time, and
/// that a holder with the default safety margin of at least 250 ms loses its hold at least one step before the lease
/// expires.
const STEP: Duration = Duration::from_millis(150);

/// After this real time in one step, a manager is considered hung and no longer waited for.
const STUCK: Duration = Duration::from_secs(1);

/// How often to check whether the managers have caught up, if none reports progress: a disconnection is not reported, and
/// of two threads that advance the time each report wakes only one.
const RECHECK: Duration = Duration::from_millis(1);

/// The model of etcd, and what the store records about each client.
pub(crate) struct MemoryCluster {
    pub(crate) state: Mutex<State>,
    pub(crate) clock: Clock,
    /// Notified whenever a lease was granted, which may expire before all others.
    pub(crate) granted: watch::Sender<()>,
}

impl MemoryCluster {
    /// An empty cluster.
    pub(crate) fn new() -> Arc<Self> {
        let (state, clock) = (Mutex::new(State::new()), Clock::movable());
        Arc::new(Self { state, clock, granted: watch::Sender::new(()) })
    }

    /// Advances the time in small steps, and waits after each for the managers to do what is due.
    pub(crate) fn advance(&self, by: Duration) {
        let mut stuck = BTreeSet::new();
        let mut left = by;
        while !left.is_zero() {
            let step = left.min(STEP);
            left -= step;
            self.step(step, &mut stuck);
            self.state.lock().expire_due(self.clock.now());
        }
        // Let the managers handle what the last step ended.
        self.step(Duration::ZERO, &mut stuck);
    }

    fn step(&self, step: Duration, stuck: &mut BTreeSet<ClientId>) {
        // The managers read at least this time after the move.
        let now = self.clock.now() + step;
        self.clock.advance(step);
        self.wait_for_managers(now, stuck);
    }

    /// Waits until every manager has done what was due at `now`, and every connected one has its answers.
    fn wait_for_managers(&self, now: Time, stuck: &mut BTreeSet<ClientId>) {
        let begun = Instant::now();
        loop {
            let behind = self.state.lock().behind(now);
            if behind.iter().all(|id| stuck.contains(id)) {
                return;
            }
            if begun.elapsed() > STUCK {
                stuck.extend(behind);
                return;
            }
            self.clock.wait_for_progress(RECHECK);
        }
    }
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("MemoryCluster")
            .field("revision", &state.model.revision())
            .field("leases", &state.model.leases().count())
            .finish_non_exhaustive()
    }
}

/// For tests.
#[cfg(test)]
impl MemoryCluster {
    pub(crate) fn expire_leases_of(&self, client: ClientId) {
        self.state.lock().expire_leases_of(client);
    }

    pub(crate) fn disconnect_client(&self, client: ClientId) {
        self.state.lock().disconnect(client);
    }

    pub(crate) fn reconnect_client(&self, client: ClientId) {
        self.state.lock().reconnect(client);
    }

    pub(crate) fn delay_of(&self, client: ClientId, delay: Duration) {
        self.state.lock().delay(client, delay);
    }

    pub(crate) fn fail_next_of(&self, client: ClientId, fault: Fault) {
        self.state.lock().fail_next(client, fault);
    }
}
