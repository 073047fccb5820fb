//! The watch streams between the managers and the store.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::checks::Violation;
use super::world::{Event, World};
use crate::clock::Time;
use crate::kv::{Revision, WatchEvent, WatchId, WatchSpec};
use crate::store::memory::model::{Notice, Watcher};

/// Silence before a health probe, and the probe's own timeout, as in the driver.
const QUIET: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A timer that fires this late shows that the thread was suspended, not that the stream is dead.
const MAX_TIMER_DELAY: Duration = Duration::from_secs(1);

/// The interval at which etcd serves the watches that are not synchronised.
const TICK: Duration = Duration::from_millis(100);

/// After this time, a refused watch is requested again.
const REFUSED_AGAIN: Duration = Duration::from_millis(500);

/// A manager's watch stream and its open watches.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The stream's number; events of an older stream are lost.
    number: u64,
    /// The stream is dead, and the manager has not noticed yet.
    pub(super) stalled: bool,
    /// When the last event arrived, and when a health probe was sent since then.
    last_event: Time,
    asked: Option<Time>,
    /// The stream works, but etcd does not answer probes on it.
    unanswerable: bool,
    /// The heartbeat runs since the first watch was requested.
    beats: bool,
    pub(super) wanted: BTreeMap<WatchId, WatchSpec>,
    open: BTreeMap<WatchId, Watcher>,
    /// For each watch, when its last event arrives: the events of a watch arrive in order.
    last_arrival: BTreeMap<WatchId, Time>,
}

impl World {
    pub(super) fn watch(&mut self, node: usize, watch: WatchId, spec: WatchSpec) {
        let it = &mut self.nodes[node].stream;
        if it.wanted.is_empty() {
            // The first watch starts the heartbeat.
            (it.last_event, it.asked) = (self.now, None);
        }
        it.wanted.insert(watch, spec);
        if !std::mem::replace(&mut it.beats, true) {
            let stream = it.number;
            self.schedule(QUIET, Event::Heartbeat { node, stream });
        }
        self.ask_for_watch(node, watch);
    }

    /// The stream's heartbeat timer fires.
    pub(super) fn beat(&mut self, node: usize, stream: u64) {
        let now = self.now;
        let it = &mut self.nodes[node].stream;
        if it.number != stream {
            return;
        }
        if it.wanted.is_empty() {
            it.beats = false;
            return;
        }
        let due = it.asked.map_or(it.last_event + QUIET, |asked| asked + PROBE_TIMEOUT);
        if now < due {
            self.schedule(due.since(now), Event::Heartbeat { node, stream });
            return;
        }
        if now.since(due) > MAX_TIMER_DELAY {
            (it.last_event, it.asked) = (now, None);
        } else if it.asked.is_some() {
            if it.unanswerable {
                self.broken = Some(Violation::new(format!(
                    "manager {node} drops a healthy watch stream: etcd answers no probe while a watch starts in the future"
                )));
            }
            self.reopen(node, stream);
            return;
        } else {
            it.asked = Some(now);
            self.probe(node, stream);
            self.schedule(PROBE_TIMEOUT, Event::Heartbeat { node, stream });
            return;
        }
        self.schedule(QUIET, Event::Heartbeat { node, stream });
    }

    /// etcd answers a probe once all watches of the stream are served, which excludes watches that start in the future.
    fn probe(&mut self, node: usize, stream: u64) {
        let it = &self.nodes[node];
        let revision = self.model.revision();
        let future = it.stream.open.keys().filter_map(|watch| it.stream.wanted.get(watch));
        let answered = !future.into_iter().any(|spec| spec.from_revision > revision);
        let link = it.link;
        self.nodes[node].stream.unanswerable = !answered;
        if link.requests_lost || link.answers_lost {
            self.stall(node);
        } else if answered && !self.nodes[node].stream.stalled {
            let after = self.delay(link.slow_requests) + self.delay(link.slow_answers);
            self.schedule(after, Event::ProbeAnswered { node, stream });
        }
    }

    pub(super) fn answer_probe(&mut self, node: usize, stream: u64) {
        let now = self.now;
        let it = &mut self.nodes[node].stream;
        if it.number == stream && !it.stalled {
            (it.last_event, it.asked) = (now, None);
        }
    }

    fn ask_for_watch(&mut self, node: usize, watch: WatchId) {
        let it = &self.nodes[node];
        let (link, stream) = (it.link, it.stream.number);
        if it.stream.stalled || link.requests_lost {
            self.stall(node);
            return;
        }
        let mut after = self.delay(link.slow_requests);
        if self.nodes[node].stream.wanted.get(&watch).is_some_and(|spec| spec.from_revision > 0) {
            // A watch that starts in the past waits for etcd's next tick.
            after += self.below(TICK);
        }
        self.schedule(after, Event::OpenWatch { node, stream, watch });
    }

    pub(super) fn unwatch(&mut self, node: usize, watch: WatchId) {
        let stream = &mut self.nodes[node].stream;
        stream.wanted.remove(&watch);
        stream.last_arrival.remove(&watch);
        if let Some(watcher) = stream.open.remove(&watch) {
            self.model.unwatch(watcher);
        }
    }

    pub(super) fn open_watch(&mut self, node: usize, stream: u64, watch: WatchId) {
        let it = &self.nodes[node].stream;
        if it.number != stream {
            return;
        }
        let Some(spec) = it.wanted.get(&watch).cloned() else {
            return;
        };
        let behind = if spec.from_revision == 0 { self.member_lag() } else { 0 };
        let Ok((watcher, revision)) = self.model.watch(&spec) else {
            // Permission denied: the driver tries again.
            self.schedule(REFUSED_AGAIN, Event::OpenWatch { node, stream, watch });
            return;
        };
        self.nodes[node].stream.open.insert(watch, watcher);
        let revision = revision - behind;
        self.deliver(node, watch, WatchEvent::Created { watch, revision });
        if behind > 0 {
            self.disturbed = self.now;
            for event in self.reported_late(watch, &spec.span, behind) {
                self.deliver(node, watch, event);
            }
        } else if self.rng.u8(0..8) == 0 {
            // It was opened during a write, which etcd detects at its next tick.
            let served = self.now + self.below(TICK);
            let last = self.nodes[node].stream.last_arrival.entry(watch).or_default();
            *last = served.max(*last);
        }
    }

    /// How many revisions the member that opens a watch lags behind; it reports them later.
    fn member_lag(&mut self) -> Revision {
        if self.is_calm() {
            return 0;
        }
        let compacted = if self.weather.stale_reads { 0 } else { self.model.compacted() };
        let (most, often) = if self.weather.stale_reads { (24, 128) } else { (8, 32) };
        let most = (self.model.revision() - compacted - 1).min(most);
        if most < 1 || self.rng.u8(..) >= often { 0 } else { self.rng.i64(1..=most) }
    }

    /// Sends every watcher its events.
    pub(super) fn notify_watchers(&mut self) {
        let mut notices = VecDeque::new();
        while let Some(notice) = self.model.poll_notice() {
            notices.push_back(notice);
        }
        for (watcher, notice) in notices {
            let found = self.nodes.iter().enumerate().find_map(|(node, it)| {
                let open = it.stream.open.iter().find(|&(_, &open)| open == watcher);
                open.map(|(&watch, _)| (node, watch))
            });
            let Some((node, watch)) = found else {
                continue;
            };
            match notice {
                Notice::Deleted { keys, revision } => {
                    self.deliver(node, watch, WatchEvent::Deleted { watch, keys, revision });
                }
                Notice::Put { .. } => {}
                Notice::Compacted { .. } => {
                    // The driver reopens such a watch from the present revision.
                    self.nodes[node].stream.open.remove(&watch);
                    self.model.unwatch(watcher);
                    if let Some(spec) = self.nodes[node].stream.wanted.get_mut(&watch) {
                        spec.from_revision = 0;
                    }
                    self.ask_for_watch(node, watch);
                }
            }
        }
    }

    fn deliver(&mut self, node: usize, watch: WatchId, event: WatchEvent) {
        let it = &self.nodes[node];
        let (link, number) = (it.link, it.stream.number);
        if it.stream.stalled || link.answers_lost {
            self.stall(node);
            return;
        }
        let at = self.now + self.delay(link.slow_answers);
        let last = self.nodes[node].stream.last_arrival.entry(watch).or_default();
        *last = (*last).max(at);
        let after = last.since(self.now);
        let happened = self.past.superseded(event.revision()).unwrap_or(self.now);
        self.schedule(after, Event::Deliver { node, stream: number, event, happened });
    }

    pub(super) fn receive_event(&mut self, node: usize, stream: u64, event: WatchEvent, happened: Time) {
        let it = &self.nodes[node].stream;
        let watch = &event.watch();
        if it.number == stream && !it.stalled && it.wanted.contains_key(watch) {
            let it = &mut self.nodes[node].stream;
            (it.last_event, it.asked) = (self.now, None);
            self.wake_for_input(node);
            self.nodes[node].turns.events.push_back((event, happened));
        }
    }

    /// The stream is dead from now on, and its heartbeat will notice.
    pub(super) fn stall(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].stream.stalled, true) {
            self.note(|| format!("network: the watch stream of manager {node} goes silent"));
        }
    }

    /// The stream broke, or was found dead: all watches are opened again on another stream.
    pub(super) fn reopen(&mut self, node: usize, stream: u64) {
        if self.nodes[node].stream.number != stream {
            return;
        }
        self.disturbed = self.now;
        self.note(|| format!("manager {node} opens a new watch stream"));
        self.drop_stream(node);
        let it = &mut self.nodes[node].stream;
        (it.last_event, it.beats) = (self.now, true);
        let stream = it.number;
        self.schedule(QUIET, Event::Heartbeat { node, stream });
        let wanted: Vec<WatchId> = self.nodes[node].stream.wanted.keys().copied().collect();
        for watch in wanted {
            self.ask_for_watch(node, watch);
        }
    }

    pub(super) fn break_stream(&mut self, node: usize) {
        let stream = self.nodes[node].stream.number;
        let after = self.below(Duration::from_millis(200));
        // Until then no event arrives.
        self.nodes[node].stream.stalled = true;
        self.schedule(after, Event::Reopen { node, stream });
    }

    pub(super) fn drop_stream(&mut self, node: usize) {
        let stream = &mut self.nodes[node].stream;
        stream.number += 1;
        (stream.stalled, stream.asked, stream.beats) = (false, None, false);
        stream.last_arrival.clear();
        for watcher in std::mem::take(&mut stream.open).into_values() {
            self.model.unwatch(watcher);
        }
    }
}
