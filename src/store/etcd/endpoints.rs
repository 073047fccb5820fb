//! The endpoints of the cluster: which one is in use, and which one comes next when it fails.
//!
//! All traffic uses one pinned endpoint. (A balancer that spreads it would keep sending a share of the requests to a dead
//! member.) A failure moves the pin to the endpoint that most likely works.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use crate::mutex::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::fault::{EtcdFault, FaultKind};
use super::log_seen::{History, LogSeen, SentRequest};
use crate::kv::Response;

/// An endpoint that failed is the last choice for this long: about what a member needs to restart.
const COOL_DOWN: Duration = Duration::from_secs(5);

/// The endpoints of one cluster, with their health.
pub(super) struct Endpoints {
    list: Vec<Arc<Endpoint>>,
    /// For each endpoint, the turn that began when the pin last moved away from it for a fault.
    left: Vec<watch::Sender<u64>>,
    state: Mutex<State>,
}

struct State {
    pinned: usize,
    /// Incremented whenever the pin moves.
    turn: u64,
    /// The cluster that this manager belongs to, and the endpoint that reported it first.
    cluster: Option<(u64, usize)>,
    /// How often another cluster has replaced it.
    era: u64,
    history: History,
    health: Vec<Health>,
}

#[derive(Clone, Copy, Default)]
struct Health {
    failed_at: Option<Instant>,
    worked_at: Option<Instant>,
    /// The cluster that its last answer came from.
    cluster: Option<u64>,
    /// Has answered for our cluster.
    was_ours: bool,
    log: LogSeen,
}

/// The endpoint that one attempt uses, as it was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) index: usize,
    turn: u64,
}

impl Endpoints {
    pub(super) fn new(list: Vec<Endpoint>) -> Self {
        let health = vec![Health::default(); list.len()];
        let left = list.iter().map(|_| watch::Sender::new(0)).collect();
        let list = list.into_iter().map(Arc::new).collect();
        let history = History::default();
        let state = State { pinned: 0, turn: 0, cluster: None, era: 0, history, health };
        Self { list, left, state: Mutex::new(state) }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The endpoint to use now: the pinned one, or the best of those that were not `tried` yet. `None`: all were.
    pub(super) fn choose(&self, tried: &[usize]) -> Option<(Pin, Arc<Endpoint>)> {
        let state = self.state.lock();
        let usable = |index: usize| !tried.contains(&index) && !state.is_foreign(index);
        let index = if usable(state.pinned) { state.pinned } else { state.best(usable)? };
        let endpoint = self.list.get(index)?.clone();
        Some((Pin { index, turn: state.turn }, endpoint))
    }

    /// This very endpoint, whichever is pinned.
    pub(super) fn at(&self, index: usize) -> Option<(Pin, Arc<Endpoint>)> {
        let endpoint = self.list.get(index)?.clone();
        Some((Pin { index, turn: self.state.lock().turn }, endpoint))
    }

    /// Makes this endpoint the one in use.
    pub(super) fn pin(&self, index: usize) {
        let mut state = self.state.lock();
        if index < self.list.len() && state.pinned != index {
            state.pinned = index;
            state.turn += 1;
        }
    }

    /// An attempt at this endpoint had an answer.
    pub(super) fn worked(&self, index: usize) {
        if let Some(health) = self.state.lock().health.get_mut(index) {
            health.worked_at = Some(Instant::now());
            health.failed_at = None;
        }
    }

    /// An attempt failed and the endpoint is to blame. The pin moves on if it is on this endpoint and has not moved since
    /// the attempt began, so many attempts that fail together move it only once.
    pub(super) fn failed(&self, pin: Pin, fault: &EtcdFault) {
        let mut state = self.state.lock();
        if pin.turn != state.turn {
            return;
        }
        if let Some(health) = state.health.get_mut(pin.index) {
            health.failed_at = Some(Instant::now());
        }
        if state.pinned != pin.index {
            return;
        }
        let next = state.best(|index| index != pin.index && !state.is_foreign(index));
        // A single endpoint stays pinned, but the new turn makes a later failure count again.
        state.turn += 1;
        if let Some(next) = next {
            state.pinned = next;
            if let Some(left) = self.left.get(pin.index) {
                left.send_replace(state.turn);
            }
            drop(state);
            let (from, to) = (self.url(pin.index), self.url(next));
            log::debug!(target: "etcd_lock", "etcd endpoint {from} failed ({fault}); going on with {to}");
        }
    }

    /// Resolves when this endpoint is abandoned; its pending requests should be retried elsewhere.
    pub(super) fn left(&self, pin: Pin) -> impl Future<Output = ()> + Send + use<> {
        let left = self.left.get(pin.index).map(watch::Sender::subscribe);
        async move {
            let Some(mut left) = left else { return pending().await };
            if left.wait_for(|&turn| turn > pin.turn).await.is_err() {
                // The manager has ended.
                pending().await
            }
        }
    }

    /// The fault of a request that was in flight when its endpoint was abandoned.
    pub(super) fn abandoned(&self, pin: Pin) -> EtcdFault {
        if self.state.lock().is_foreign(pin.index) {
            // The request may have reached another cluster, but certainly not ours.
            return EtcdFault::new(
                FaultKind::Foreign,
                "given up, as the endpoint belongs to another etcd cluster",
            );
        }
        EtcdFault::new(FaultKind::Abandoned, "given up, as the endpoint has failed")
    }

    /// Whether this endpoint has answered any request since this time.
    pub(super) fn worked_since(&self, index: usize, since: Instant) -> bool {
        let health = self.state.lock().health.get(index).copied().unwrap_or_default();
        health.worked_at.is_some_and(|at| at >= since)
    }

    /// Records what is known as a request is sent to this endpoint.
    pub(super) fn sending(&self, index: usize, is_write: bool) -> SentRequest {
        let state = self.state.lock();
        let log = state.health.get(index).map(|health| health.log).unwrap_or_default();
        log.sending(state.history, is_write)
    }

    /// The endpoint has answered this request.
    pub(super) fn arrived(&self, index: usize, sent: SentRequest, response: &Response) {
        let mut state = self.state.lock();
        let went_back = state.history.saw(sent, response);
        if went_back.is_some() {
            state.health.iter_mut().for_each(|health| health.log = LogSeen::default());
        }
        if let Some(health) = state.health.get_mut(index) {
            health.log.saw_term(response.term);
            health.log.wrote(sent);
        }
        drop(state);
        if let Some(went_back) = went_back {
            log::error!(target: "etcd_lock", "{went_back}");
        }
    }

    /// The endpoint has answered this write, without a revision and term.
    pub(super) fn wrote(&self, index: usize, sent: SentRequest) {
        if let Some(health) = self.state.lock().health.get_mut(index) {
            health.log.wrote(sent);
        }
    }

    /// This request is abandoned as lost.
    pub(super) fn gave_up(&self, index: usize, sent: SentRequest) {
        if let Some(health) = self.state.lock().health.get_mut(index) {
            health.log.gave_up(sent);
        }
    }

    /// The endpoint has reported this raft term.
    pub(super) fn saw_term(&self, index: usize, term: u64) {
        if let Some(health) = self.state.lock().health.get_mut(index) {
            health.log.saw_term(term);
        }
    }

    /// What is known of the log from the endpoint's answers.
    pub(super) fn log_seen(&self, index: usize) -> LogSeen {
        self.state.lock().health.get(index).map(|health| health.log).unwrap_or_default()
    }

    /// Compares an answer's cluster with the one this manager belongs to, which the first answer determines.
    pub(super) fn check_cluster(&self, index: usize, cluster: u64) -> Result<(), EtcdFault> {
        let mut state = self.state.lock();
        // 0: a proxy that does not report the cluster.
        if cluster == 0 {
            return Ok(());
        }
        let (own, first) = *state.cluster.get_or_insert((cluster, index));
        let mut known = true;
        if let Some(health) = state.health.get_mut(index) {
            known = health.cluster.replace(cluster) == Some(cluster);
            health.was_ours |= own == cluster;
        }
        drop(state);
        if own == cluster {
            return Ok(());
        }
        let belongs =
            format!("endpoint {} belongs to another etcd cluster ({cluster:x}) than", self.url(index));
        let message = if index == first {
            format!("{belongs} before ({own:x})")
        } else {
            format!("{belongs} {} ({own:x})", self.url(first))
        };
        if !known {
            log::warn!(target: "etcd_lock", "{message}; it is not used");
        }
        Err(EtcdFault::new(FaultKind::Foreign, message))
    }

    /// The error message if an endpoint that belonged to our cluster now belongs to another one.
    pub(super) fn changed(&self) -> Option<String> {
        let state = self.state.lock();
        let (own, _) = state.cluster?;
        let changed = |health: &Health| health.was_ours && health.cluster != Some(own);
        let index = state.health.iter().position(changed)?;
        let cluster = state.health.get(index)?.cluster?;
        Some(format!(
            "endpoint {} was of the etcd cluster {own:x} and is of {cluster:x} now; that one is used once all \
             endpoints are of it",
            self.url(index)
        ))
    }

    /// All endpoints have just reported this cluster. If it is not ours yet, it replaces ours, and everything in the old
    /// cluster is lost.
    pub(super) fn all_belong_to(&self, cluster: u64) {
        let mut state = self.state.lock();
        let Some((own, first)) = state.cluster.filter(|&(own, _)| own != cluster) else { return };
        state.cluster = Some((cluster, first));
        state.era += 1;
        state.history.restart();
        for health in &mut state.health {
            *health = Health { cluster: Some(cluster), was_ours: true, ..Health::default() };
        }
        drop(state);
        log::error!(
            target: "etcd_lock",
            "all endpoints belong to another etcd cluster ({cluster:x}) than before ({own:x}); going on with that one"
        );
    }

    /// Incremented when another cluster replaces ours.
    pub(super) fn era(&self) -> u64 {
        self.state.lock().era
    }

    pub(super) fn url(&self, index: usize) -> &str {
        self.list.get(index).map_or("?", |endpoint| endpoint.url())
    }
}

impl State {
    /// Belongs to another cluster: not to be used.
    fn is_foreign(&self, index: usize) -> bool {
        let cluster = self.health.get(index).and_then(|health| health.cluster);
        cluster.is_some_and(|cluster| self.cluster.is_some_and(|(own, _)| own != cluster))
    }

    /// The most promising of these endpoints: not one that failed just now; rather one that worked since it last
    /// failed; then the next in line.
    fn best(&self, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.health.len();
        (0..count).filter(|&index| allowed(index)).min_by_key(|&index| {
            let health = self.health.get(index).copied().unwrap_or_default();
            let cooling = health.failed_at.filter(|at| at.elapsed() < COOL_DOWN);
            let distance = (index + count - self.pinned) % count;
            // Among those that all failed just now, the one whose failure is the oldest.
            (cooling, health.failed_at.is_some(), health.worked_at.is_none(), distance)
        })
    }
}

#[cfg(test)]
mod tests;
