//! What stands between a manager and the store: requests, answers and watch streams that are delayed, lost, parked,
//! reordered.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::world::{Event, TTL, World};
use crate::clock::Time;
use crate::memory::model::{Notice, Watcher};
use crate::protocol::RequestId;
use crate::store::{
    Answer, Failure, FailureClass, Request, Response, Revision, WatchEvent, WatchId, WatchSpec,
};

/// A dead stream is noticed within this: a progress request every 2 s, and 2 s for its answer.
const HEARTBEAT: Duration = Duration::from_secs(4);

/// A parked request takes effect within this.
pub(super) const LONGEST_PARKED: Duration = Duration::from_secs(20);

/// A manager's way to the store and back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    pub(super) requests_lost: bool,
    pub(super) answers_lost: bool,
    /// Requests, and answers, take up to this much longer.
    pub(super) slow_requests: Duration,
    pub(super) slow_answers: Duration,
    /// How often a single request goes wrong.
    pub(super) unreliable: f64,
}

impl Link {
    pub(super) fn is_bad(self) -> bool {
        let slow = self.slow_requests + self.slow_answers;
        self.requests_lost || self.answers_lost || !slow.is_zero()
    }
}

/// A request that the manager waits for.
#[derive(Debug)]
pub(super) struct Pending {
    /// When it stops waiting, and what it then believes.
    pub(super) gives_up: Time,
    verdict: FailureClass,
}

/// A manager's watch stream and what is open on it.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Which stream it is; what an older one still carries is lost.
    number: u64,
    /// It is dead, and nobody has noticed yet.
    pub(super) stalled: bool,
    wanted: BTreeMap<WatchId, WatchSpec>,
    open: BTreeMap<WatchId, Watcher>,
    /// For each watch, when its last event arrives: its events keep their order.
    last_told: BTreeMap<WatchId, Time>,
}

/// What becomes of one request.
enum Fate {
    Answered,
    /// Never carried out.
    Lost,
    /// Carried out, and nobody hears of it.
    Unheard,
    /// Carried out long after everybody stopped waiting.
    Parked,
    /// Refused in a way that says that it was not carried out.
    Refused,
}

impl World {
    pub(super) fn send(&mut self, node: usize, id: RequestId, request: Request, timeout: Duration) {
        let life = self.nodes[node].life;
        let sent = self.truth.stamp();
        let link = self.nodes[node].link;
        let (going, coming) = (self.delay(link.slow_requests), self.delay(link.slow_answers));
        let timeout = self.stretched(node, timeout);
        let mut gives_up = self.now + timeout;
        let mut verdict = FailureClass::Unknown;
        let fate = self.fate(link);
        match fate {
            Fate::Answered => {
                let event = Event::Arrive { node, life, id, request, sent, heard: Some(coming) };
                self.schedule(going, event);
            }
            Fate::Lost => self.note(|| format!("network: {id:?} is lost")),
            Fate::Unheard | Fate::Parked => {
                let late = match fate {
                    Fate::Parked => {
                        let longest = if self.rng.bool() { LONGEST_PARKED } else { TTL / 2 };
                        self.below(longest)
                    }
                    _ => going,
                };
                self.note(|| format!("network: {id:?} takes effect in {late:?}, unheard"));
                self.schedule(late, Event::Arrive { node, life, id, request, sent, heard: None });
            }
            Fate::Refused => verdict = FailureClass::NotDone,
        }
        // A broken connection is noticed at once, silence only at the time limit.
        if !matches!(fate, Fate::Answered) && self.rng.bool() || matches!(fate, Fate::Refused) {
            gives_up = self.now + coming.min(timeout);
        }
        self.nodes[node].pending.insert(id, Pending { gives_up, verdict });
    }

    fn fate(&mut self, link: Link) -> Fate {
        if link.requests_lost {
            return Fate::Lost;
        }
        if link.answers_lost {
            return Fate::Unheard;
        }
        if !self.chance(link.unreliable) {
            return Fate::Answered;
        }
        self.tally.faults += 1;
        self.disturbed = self.now;
        match self.rng.u8(0..4) {
            0 => Fate::Lost,
            1 => Fate::Unheard,
            2 => Fate::Parked,
            _ => Fate::Refused,
        }
    }

    fn delay(&mut self, slow: Duration) -> Duration {
        let usual = Duration::from_micros(self.rng.u64(100..3000));
        usual + self.below(slow)
    }

    pub(super) fn arrive(
        &mut self,
        node: usize,
        life: u32,
        id: RequestId,
        request: &Request,
        (sent, heard): (u64, Option<Duration>),
    ) {
        let reply = match self.answer_of_a_stale_member(node, request) {
            Some(response) => Ok(response),
            None => self.model.execute(self.now, request),
        };
        self.note(|| format!("etcd: {id:?} of manager {node}: {request:?} -> {reply:?}"));
        self.cause = Some((node, sent));
        if heard.is_none() {
            self.disturbed = self.now;
        }
        if let Some(after) = heard {
            let carried_out = self.now;
            self.schedule(after, Event::Reply { node, life, id, reply, carried_out });
        }
    }

    /// A member that missed an election may still answer a renewal, by its old term and without effect (etcd #15247).
    /// A manager can see through that only if it has heard of the new term.
    fn answer_of_a_stale_member(&mut self, node: usize, request: &Request) -> Option<Response> {
        let stale = self.stale_term.filter(|&stale| stale < self.nodes[node].seen_term)?;
        let Request::RenewLease { .. } = request else {
            return None;
        };
        self.rng.bool().then(|| Response {
            revision: self.model.revision(),
            term: stale,
            answer: Answer::LeaseRenewed { ttl: TTL },
        })
    }

    pub(super) fn reply(
        &mut self,
        node: usize,
        life: u32,
        id: RequestId,
        reply: Result<Response, Failure>,
        carried_out: Time,
    ) {
        if self.nodes[node].life == life {
            self.rouse(node);
            self.nodes[node].turns.replies.push_back((id, reply, carried_out));
        }
    }

    /// Ends the wait for requests that were not answered in time.
    pub(super) fn expire_requests(&mut self, node: usize) {
        let local = self.local(node);
        let now = self.now;
        let pending = &mut self.nodes[node].pending;
        let due: Vec<RequestId> =
            pending.iter().filter(|(_, pending)| pending.gives_up <= now).map(|(&id, _)| id).collect();
        for id in due {
            let Some(Pending { verdict, .. }) = self.nodes[node].pending.remove(&id) else { continue };
            self.note(|| format!("manager {node} stops waiting for {id:?}: {verdict:?}"));
            let failure = Failure::new(verdict, "simulated");
            self.nodes[node].protocol.handle_reply(local, id, Err(failure));
        }
    }

    pub(super) fn watch(&mut self, node: usize, watch: WatchId, spec: WatchSpec) {
        self.nodes[node].stream.wanted.insert(watch, spec);
        self.ask_for_watch(node, watch);
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
            // What starts in the past waits for etcd's next tick.
            after += self.below(Duration::from_millis(100));
        }
        self.schedule(after, Event::OpenWatch { node, stream, watch });
    }

    pub(super) fn unwatch(&mut self, node: usize, watch: WatchId) {
        let stream = &mut self.nodes[node].stream;
        stream.wanted.remove(&watch);
        stream.last_told.remove(&watch);
        if let Some(watcher) = stream.open.remove(&watch) {
            self.model.unwatch(watcher);
        }
    }

    pub(super) fn open_watch(&mut self, node: usize, stream: u64, watch: WatchId) {
        let it = &self.nodes[node].stream;
        if it.number != stream {
            return;
        }
        let Some(mut spec) = it.wanted.get(&watch).cloned() else {
            return;
        };
        let behind = if spec.from_revision == 0 { self.member_is_behind() } else { 0 };
        if behind > 0 {
            self.disturbed = self.now;
            spec.from_revision = self.model.revision() - behind + 1;
        }
        let Ok((watcher, revision)) = self.model.watch(&spec) else {
            return;
        };
        let revision = revision - behind;
        self.nodes[node].stream.open.insert(watch, watcher);
        self.deliver(node, watch, WatchEvent::Created { watch, revision });
    }

    /// By so many revisions the member that opens a watch is behind; it tells of them later.
    fn member_is_behind(&mut self) -> Revision {
        let most = self.model.revision() - self.model.compacted() - 1;
        if most < 1 || self.rng.u8(..) >= 32 { 0 } else { self.rng.i64(1..=most.min(8)) }
    }

    /// Sends every watcher what it has to hear.
    pub(super) fn tell_watchers(&mut self) {
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
                Notice::Compacted { .. } => {
                    // The driver opens such a watch again, from now on.
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
        let last = self.nodes[node].stream.last_told.entry(watch).or_default();
        *last = (*last).max(at);
        let after = last.since(self.now);
        self.schedule(after, Event::Tell { node, stream: number, event, happened: self.now });
    }

    pub(super) fn tell(&mut self, node: usize, stream: u64, event: WatchEvent, happened: Time) {
        let it = &self.nodes[node].stream;
        let (WatchEvent::Created { watch, .. } | WatchEvent::Deleted { watch, .. }) = &event;
        if it.number == stream && !it.stalled && it.wanted.contains_key(watch) {
            self.rouse(node);
            self.nodes[node].turns.events.push_back((event, happened));
        }
    }

    /// The stream is dead from now on; that is noticed at the next heartbeat.
    pub(super) fn stall(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].stream.stalled, true) {
            let stream = self.nodes[node].stream.number;
            let after = self.below(HEARTBEAT);
            self.note(|| format!("network: the watch stream of manager {node} goes silent"));
            self.schedule(after, Event::Reopen { node, stream });
        }
    }

    /// The stream broke (at once noticed), or a dead one was noticed: all watches are opened anew on another.
    pub(super) fn reopen(&mut self, node: usize, stream: u64) {
        if self.nodes[node].stream.number != stream {
            return;
        }
        self.disturbed = self.now;
        self.note(|| format!("manager {node} opens a new watch stream"));
        self.drop_stream(node);
        let wanted: Vec<WatchId> = self.nodes[node].stream.wanted.keys().copied().collect();
        for watch in wanted {
            self.ask_for_watch(node, watch);
        }
    }

    pub(super) fn break_stream(&mut self, node: usize) {
        let stream = self.nodes[node].stream.number;
        let after = self.below(Duration::from_millis(200));
        // Until then nothing comes through.
        self.nodes[node].stream.stalled = true;
        self.schedule(after, Event::Reopen { node, stream });
    }

    fn drop_stream(&mut self, node: usize) {
        let stream = &mut self.nodes[node].stream;
        stream.number += 1;
        stream.stalled = false;
        stream.last_told.clear();
        for watcher in std::mem::take(&mut stream.open).into_values() {
            self.model.unwatch(watcher);
        }
    }

    /// The manager died: nobody reads its answers or its watches any more. What it has sent goes on.
    pub(super) fn forget_manager(&mut self, node: usize) {
        self.drop_stream(node);
        self.nodes[node].stream.wanted.clear();
        self.nodes[node].pending.clear();
        self.nodes[node].turns.clear();
    }
}
