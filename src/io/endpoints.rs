//! The endpoints of the cluster: which one is in use, and which one comes next when it fails.
//!
//! All traffic goes to one pinned endpoint. (A balancer that spreads it would lose its share of the requests to a dead
//! member, for ever.) A failure there moves the pin to the endpoint that most likely works.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::failure::{Fault, FaultKind};

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
    /// Grows with every move of the pin.
    turn: u64,
    /// The cluster that this manager belongs to, and the endpoint that said so first.
    cluster: Option<(u64, usize)>,
    health: Vec<Health>,
}

#[derive(Clone, Copy, Default)]
struct Health {
    failed_at: Option<Instant>,
    worked_at: Option<Instant>,
    /// Belongs to another cluster: never to be used.
    foreign: bool,
    log: LogSeen,
}

/// What an endpoint's answers have shown of its cluster's log.
#[derive(Clone, Copy, Default)]
struct LogSeen {
    /// The highest term of its answers; 0: none yet.
    term: u64,
    /// When the latest of the answered writes was sent.
    written: Option<Instant>,
}

/// Where an endpoint's log stood when a request left. A member waits for its own part of the log only: a request that is
/// lost between it and a leader that dies is answered after seven seconds, while all that come later go through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    at: Instant,
    term: u64,
    is_write: bool,
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
        Self { list, left, state: Mutex::new(State { pinned: 0, turn: 0, cluster: None, health }) }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.list.iter().map(Arc::as_ref)
    }

    /// The endpoint to use now: the pinned one, or the best of those that were not `tried` yet. `None`: all were.
    pub(super) fn choose(&self, tried: &[usize]) -> Option<(Pin, Arc<Endpoint>)> {
        let state = self.state.lock();
        let usable = |index: usize| {
            !tried.contains(&index) && state.health.get(index).is_some_and(|health| !health.foreign)
        };
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

    /// An attempt at this endpoint failed through the endpoint's fault. If it is the one in use, and has been since
    /// the attempt began, the pin moves on. So the many attempts that fail together move it once.
    pub(super) fn failed(&self, pin: Pin, fault: &Fault) {
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
        let health = &state.health;
        let next = state.best(|index| index != pin.index && health.get(index).is_some_and(|h| !h.foreign));
        // With a single endpoint there is nowhere to go; but what fails later is a new failure.
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

    /// Ends when the pin moves away from this endpoint for a fault. Whoever still waits there for something would most
    /// likely wait in vain.
    pub(super) fn left(&self, pin: Pin) -> impl Future<Output = ()> + Send + use<> {
        let left = self.left.get(pin.index).map(watch::Sender::subscribe);
        async move {
            let Some(mut left) = left else { return pending().await };
            if left.wait_for(|&turn| turn > pin.turn).await.is_err() {
                // The manager is gone; nobody waits here any more.
                pending().await
            }
        }
    }

    /// What that means for a request that was under way there.
    pub(super) fn given_up(&self, pin: Pin) -> Fault {
        if self.state.lock().health.get(pin.index).is_some_and(|health| health.foreign) {
            // Whatever became of it there, nothing was carried out in our cluster.
            return Fault::new(
                FaultKind::Foreign,
                "given up, as the endpoint belongs to another etcd cluster",
            );
        }
        Fault::new(FaultKind::Impatient, "given up, as the endpoint has failed")
    }

    /// Whether this endpoint has answered something since then.
    pub(super) fn worked_since(&self, index: usize, since: Instant) -> bool {
        let health = self.state.lock().health.get(index).copied().unwrap_or_default();
        health.worked_at.is_some_and(|at| at >= since)
    }

    /// A request leaves for this endpoint now.
    pub(super) fn departs(&self, index: usize, is_write: bool) -> Departure {
        Departure { at: Instant::now(), term: self.log_seen(index).term, is_write }
    }

    /// The endpoint has answered a request that was sent then.
    pub(super) fn arrived(&self, index: usize, departure: Departure, term: u64) {
        self.saw_term(index, term);
        if departure.is_write
            && let Some(health) = self.state.lock().health.get_mut(index)
        {
            health.log.written = health.log.written.max(Some(departure.at));
        }
    }

    /// The endpoint has shown this raft term.
    pub(super) fn saw_term(&self, index: usize, term: u64) {
        if let Some(health) = self.state.lock().health.get_mut(index) {
            health.log.term = health.log.term.max(term);
        }
    }

    /// Whether a request without an answer has most likely been lost: there was an election since it left, or a write
    /// that left `ahead` later has been answered, and the log keeps to the order.
    pub(super) fn is_overtaken(&self, index: usize, departure: Departure, ahead: Duration) -> bool {
        let LogSeen { term, written } = self.log_seen(index);
        let elected = departure.term > 0 && term > departure.term;
        elected || departure.is_write && written.is_some_and(|later| later >= departure.at + ahead)
    }

    fn log_seen(&self, index: usize) -> LogSeen {
        self.state.lock().health.get(index).map(|health| health.log).unwrap_or_default()
    }

    /// Holds an answer's cluster against the one this manager belongs to; the first answer decides which that is.
    pub(super) fn check_cluster(&self, index: usize, cluster: u64) -> Result<(), Fault> {
        let mut state = self.state.lock();
        // 0: a proxy that does not say.
        if cluster == 0 {
            return Ok(());
        }
        let (own, first) = *state.cluster.get_or_insert((cluster, index));
        if own == cluster {
            return Ok(());
        }
        let known =
            state.health.get_mut(index).is_none_or(|health| std::mem::replace(&mut health.foreign, true));
        drop(state);
        let message = format!(
            "endpoint {} belongs to another etcd cluster ({cluster:x}) than {} ({own:x})",
            self.url(index),
            self.url(first)
        );
        if !known {
            log::warn!(target: "etcd_lock", "{message}; it is not used");
        }
        Err(Fault::new(FaultKind::Foreign, message))
    }

    pub(super) fn url(&self, index: usize) -> &str {
        self.list.get(index).map_or("?", |endpoint| endpoint.url())
    }
}

impl State {
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
mod tests {
    use super::*;
    use crate::io::target::Target;
    use crate::io::testing;
    use crate::store::FailureClass;

    fn endpoints(count: usize) -> Endpoints {
        let urls: Vec<String> = (1..=count).map(|port| format!("http://127.0.0.1:{port}")).collect();
        let targets = Target::parse_all(&urls, &testing::options()).unwrap();
        Endpoints::new(targets.into_iter().map(Endpoint::new).collect())
    }

    fn chosen(endpoints: &Endpoints, tried: &[usize]) -> Option<Pin> {
        endpoints.choose(tried).map(|(pin, _)| pin)
    }

    fn timeout() -> Fault {
        Fault::class(FailureClass::Unknown, "no answer")
    }

    #[test]
    fn failures_that_come_together_move_the_pin_once() {
        let endpoints = endpoints(3);
        let pin = chosen(&endpoints, &[]).unwrap();
        for _ in 0..5 {
            endpoints.failed(pin, &timeout());
        }
        assert_eq!(chosen(&endpoints, &[]).unwrap().index, 1);
    }

    #[test]
    fn a_late_failure_does_not_move_the_pin_that_came_back() {
        let endpoints = endpoints(2);
        let early = chosen(&endpoints, &[]).unwrap();
        endpoints.failed(early, &timeout());
        endpoints.failed(chosen(&endpoints, &[]).unwrap(), &timeout());
        let back = chosen(&endpoints, &[]).unwrap();
        assert_eq!(back.index, 0);
        endpoints.failed(early, &timeout());
        assert_eq!(chosen(&endpoints, &[]), Some(back));
    }

    #[tokio::test]
    async fn who_waits_at_an_endpoint_is_told_when_it_is_left_and_who_comes_later_is_not() {
        let endpoints = endpoints(2);
        let early = chosen(&endpoints, &[]).unwrap();
        let waiting = endpoints.left(early);
        endpoints.failed(early, &timeout());
        waiting.await;
        endpoints.left(early).await;
        endpoints.failed(chosen(&endpoints, &[]).unwrap(), &timeout());
        let back = chosen(&endpoints, &[]).unwrap();
        assert_eq!(back.index, early.index);
        let mut later = std::pin::pin!(endpoints.left(back));
        tokio::select! {
            biased;
            () = &mut later => panic!("it was not left since"),
            () = tokio::task::yield_now() => {}
        }
        endpoints.failed(back, &timeout());
        later.await;
    }

    #[test]
    fn a_request_is_overtaken_by_an_election_or_by_a_write_that_left_much_later() {
        let endpoints = endpoints(2);
        let ahead = Duration::from_millis(100);
        let blind = endpoints.departs(0, true);
        endpoints.saw_term(0, 7);
        let (write, read) = (endpoints.departs(0, true), endpoints.departs(0, false));
        assert!([blind, write, read].iter().all(|&sent| !endpoints.is_overtaken(0, sent, ahead)));

        let soon_after = Departure { at: write.at + ahead / 2, ..write };
        endpoints.arrived(0, soon_after, 7);
        assert!(!endpoints.is_overtaken(0, write, ahead));
        let later = Departure { at: write.at + ahead * 2, ..write };
        endpoints.arrived(1, later, 7);
        assert!(!endpoints.is_overtaken(0, write, ahead), "that was at another endpoint");
        endpoints.arrived(0, Departure { is_write: false, ..later }, 7);
        assert!(!endpoints.is_overtaken(0, write, ahead), "a read has no place in the log");
        endpoints.arrived(0, later, 7);
        assert!(endpoints.is_overtaken(0, write, ahead) && !endpoints.is_overtaken(0, read, ahead));

        endpoints.saw_term(1, 8);
        assert!(!endpoints.is_overtaken(0, read, ahead));
        endpoints.saw_term(0, 8);
        assert!(endpoints.is_overtaken(0, read, ahead));
    }

    #[test]
    fn endpoints_that_work_are_preferred_and_failed_ones_cool_down() {
        let endpoints = endpoints(4);
        let first = chosen(&endpoints, &[]).unwrap();
        endpoints.worked(3);
        endpoints.failed(first, &timeout());
        let second = chosen(&endpoints, &[]).unwrap();
        assert_eq!(second.index, 3, "the one that is known to work");
        endpoints.failed(second, &timeout());
        let third = chosen(&endpoints, &[]).unwrap();
        assert_eq!(third.index, 1, "not one of those that failed just now");
        endpoints.failed(third, &timeout());
        assert_eq!(chosen(&endpoints, &[]).unwrap().index, 2);
        for health in &mut endpoints.state.lock().health {
            health.failed_at = health.failed_at.and_then(|at| at.checked_sub(COOL_DOWN * 2));
        }
        endpoints.failed(chosen(&endpoints, &[]).unwrap(), &timeout());
        assert_eq!(chosen(&endpoints, &[]).unwrap().index, 3, "it has worked before");
    }

    #[test]
    fn each_endpoint_is_tried_once() {
        let endpoints = endpoints(3);
        let mut tried = Vec::new();
        while let Some(pin) = chosen(&endpoints, &tried) {
            tried.push(pin.index);
            endpoints.failed(pin, &timeout());
        }
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2]);
    }

    #[test]
    fn an_endpoint_of_another_cluster_is_never_used() {
        let endpoints = endpoints(2);
        endpoints.check_cluster(1, 0xa).unwrap();
        let fault = endpoints.check_cluster(0, 0xb).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Foreign);
        assert!(
            fault.message.contains("http://127.0.0.1:1 ") && fault.message.contains("http://127.0.0.1:2 ")
        );
        assert_eq!(chosen(&endpoints, &[]).unwrap().index, 1);
        assert_eq!(chosen(&endpoints, &[1]), None);
        endpoints.check_cluster(0, 0).unwrap();
        endpoints.check_cluster(1, 0xa).unwrap();
    }
}
