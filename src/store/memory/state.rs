//! The state that a store's mutex protects: the model, and the store's record of each client.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::fault::{Fault, connection_lost};
use super::model::{Model, Notice, Watcher};
use crate::clock::{Clock, Time};
use crate::kv::{Answer, Failure, LeaseId, Request, Response, Revision, WatchEvent, WatchId, WatchSpec};
use crate::store::ClientId;

/// The number of revisions retained for reads and watches of the past. The library reads at most a few requests back,
/// and no other program has access to the store.
const KEPT_REVISIONS: Revision = 10_000;

pub(crate) struct State {
    pub(crate) model: Model,
    clients: BTreeMap<ClientId, ClientState>,
    /// The client and the watch of each watcher in the model.
    watchers: HashMap<Watcher, (ClientId, WatchId)>,
}

struct ClientState {
    /// The manager's clock.
    clock: Clock,
    /// Whether the client is connected.
    line: watch::Sender<bool>,
    faults: VecDeque<Fault>,
    /// The delay of each answer.
    delay: Duration,
    /// For each delayed answer on its way, when it arrives or its request times out.
    under_way: Vec<Time>,
    /// The client's leases that have not ended.
    leases: Vec<LeaseId>,
    /// The channel for its watch events; `None` while no watch stream is open.
    events: Option<UnboundedSender<WatchEvent>>,
    watches: BTreeMap<WatchId, Watch>,
}

struct Watch {
    spec: WatchSpec,
    /// `None` while the client is disconnected.
    watcher: Option<Watcher>,
}

impl State {
    pub(crate) fn new() -> Self {
        Self { model: Model::new(), clients: BTreeMap::new(), watchers: HashMap::new() }
    }

    pub(crate) fn register(&mut self, id: ClientId, clock: Clock) {
        let client = ClientState {
            clock,
            line: watch::Sender::new(true),
            faults: VecDeque::new(),
            delay: Duration::ZERO,
            under_way: Vec::new(),
            leases: Vec::new(),
            events: None,
            watches: BTreeMap::new(),
        };
        self.clients.insert(id, client);
    }

    pub(crate) fn forget(&mut self, id: ClientId) {
        self.close_stream(id);
        self.clients.remove(&id);
    }

    pub(crate) fn knows(&self, id: ClientId) -> bool {
        self.clients.contains_key(&id)
    }

    /// The delay of an answer to this client.
    pub(crate) fn delay_of(&self, id: ClientId) -> Duration {
        self.clients.get(&id).map_or(Duration::ZERO, |client| client.delay)
    }

    /// Records that an answer to this client is delayed until `due`.
    pub(crate) fn begin_delay(&mut self, id: ClientId, due: Time) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.under_way.push(due);
            client.clock.note_progress();
        }
    }

    /// Removes the record of a delayed answer, which has arrived or is no longer wanted.
    pub(crate) fn end_delay(&mut self, id: ClientId, due: Time) {
        if let Some(client) = self.clients.get_mut(&id)
            && let Some(at) = client.under_way.iter().position(|&other| other == due)
        {
            client.under_way.swap_remove(at);
        }
    }

    /// The clock of the client's manager.
    pub(crate) fn clock(&self, id: ClientId) -> Clock {
        self.clients.get(&id).map(|client| client.clock.clone()).unwrap_or_default()
    }

    /// The clients whose managers have not yet done what was due at `now`.
    pub(crate) fn behind(&self, now: Time) -> Vec<ClientId> {
        let clients = self.clients.iter();
        let behind = clients.filter(|(_, client)| !client.clock.has_caught_up(now, client.not_due(now)));
        behind.map(|(&id, _)| id).collect()
    }

    /// A channel with the client's connection state.
    pub(crate) fn line(&self, id: ClientId) -> Option<watch::Receiver<bool>> {
        self.clients.get(&id).map(|client| client.line.subscribe())
    }

    /// Executes a client's request; `None` while the client is disconnected.
    pub(crate) fn execute(
        &mut self,
        now: Time,
        id: ClientId,
        request: &Request,
    ) -> Option<Result<Response, Failure>> {
        self.expire_due(now);
        let client = self.clients.get_mut(&id).filter(|client| client.is_connected())?;
        let fault = match request {
            Request::RenewLease { .. } => None,
            _ => client.faults.pop_front(),
        };
        if let Some(refusal) = fault.and_then(Fault::instead_of_execution) {
            return Some(Err(refusal));
        }
        let result = self.model.execute(now, request);
        if let Ok(Response { answer: Answer::LeaseGranted { lease, .. }, .. }) = result {
            client.leases.push(lease);
        }
        if matches!(request, Request::RevokeLease { .. }) && result.is_ok() {
            self.forget_ended_leases();
        }
        self.deliver();
        self.forget_history();
        Some(if fault == Some(Fault::LoseResponse) { Err(connection_lost()) } else { result })
    }

    pub(crate) fn expire_due(&mut self, now: Time) {
        if self.model.next_expiry().is_some_and(|due| due <= now) {
            self.model.expire_due(now);
            self.forget_ended_leases();
            self.deliver();
        }
    }

    /// Removes ended leases from the clients' records, whichever client ended them.
    fn forget_ended_leases(&mut self) {
        let left: BTreeSet<_> = self.model.leases().collect();
        for client in self.clients.values_mut() {
            client.leases.retain(|lease| left.contains(lease));
        }
    }

    /// Compacts every `KEPT_REVISIONS` revisions, so that the cost per write is constant.
    fn forget_history(&mut self) {
        let kept_from = self.model.revision() - KEPT_REVISIONS;
        if kept_from > self.model.compacted() + KEPT_REVISIONS {
            // Cannot fail: the revision is between the last compaction and now.
            let _compacted = self.model.compact(kept_from);
        }
    }

    /// Delivers the model's notices to the clients of the watchers.
    fn deliver(&mut self) {
        while let Some((watcher, notice)) = self.model.poll_notice() {
            let Some(&(id, watch)) = self.watchers.get(&watcher) else { continue };
            match notice {
                Notice::Deleted { keys, revision } => {
                    self.report(id, WatchEvent::Deleted { watch, keys, revision });
                }
                Notice::Put { keys, revision } => self.report(id, WatchEvent::Put { watch, keys, revision }),
                Notice::Compacted { .. } => self.reopen_from_now(id, watch),
            }
        }
    }

    fn report(&self, id: ClientId, event: WatchEvent) {
        if let Some(events) = self.clients.get(&id).and_then(|client| client.events.as_ref()) {
            // If the receiver is dropped, the client no longer wants events.
            let _sent = events.send(event);
        }
    }
}

/// Watches.
impl State {
    pub(crate) fn open_stream(&mut self, id: ClientId, events: UnboundedSender<WatchEvent>) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.events = Some(events);
        }
    }

    pub(crate) fn close_stream(&mut self, id: ClientId) {
        self.close_watchers(id);
        if let Some(client) = self.clients.get_mut(&id) {
            client.events = None;
            client.watches.clear();
        }
    }

    pub(crate) fn open_watch(&mut self, id: ClientId, watch: WatchId, spec: WatchSpec) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.watches.insert(watch, Watch { spec, watcher: None });
            if client.is_connected() {
                self.reopen(id, watch);
            }
        }
    }

    pub(crate) fn close_watch(&mut self, id: ClientId, watch: WatchId) {
        let closed = self.clients.get_mut(&id).and_then(|client| client.watches.remove(&watch));
        if let Some(watcher) = closed.and_then(|watch| watch.watcher) {
            self.model.unwatch(watcher);
            self.watchers.remove(&watcher);
        }
    }

    /// Continues a watch from now, because the history since its start revision was compacted.
    fn reopen_from_now(&mut self, id: ClientId, watch: WatchId) {
        if let Some(open) = self.clients.get_mut(&id).and_then(|client| client.watches.get_mut(&watch)) {
            open.spec.from_revision = 0;
            self.reopen(id, watch);
        }
    }

    /// Opens a watch in the model, for the first time or again. A reopened watch starts again at its owner's start
    /// revision.
    fn reopen(&mut self, id: ClientId, watch: WatchId) {
        let Some(open) = self.clients.get_mut(&id).and_then(|client| client.watches.get_mut(&watch)) else {
            return;
        };
        if let Some(before) = open.watcher.take() {
            self.watchers.remove(&before);
        }
        // Opening fails only for a watch without permission or of an empty range. Not logged, because the store's mutex
        // is locked.
        if let Ok((watcher, revision)) = self.model.watch(&open.spec) {
            open.watcher = Some(watcher);
            self.watchers.insert(watcher, (id, watch));
            self.report(id, WatchEvent::Created { watch, revision });
            self.deliver();
        }
    }

    fn close_watchers(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        for watcher in client.watches.values_mut().filter_map(|watch| watch.watcher.take()) {
            self.model.unwatch(watcher);
            self.watchers.remove(&watcher);
        }
    }
}

/// Faults that a test injects.
impl State {
    pub(crate) fn leases_of(&mut self, id: ClientId) -> Vec<LeaseId> {
        self.clients.get(&id).map(|client| client.leases.clone()).unwrap_or_default()
    }

    pub(crate) fn expire_leases_of(&mut self, id: ClientId) {
        let leases = self.leases_of(id);
        self.end_leases(id, &leases);
    }

    pub(crate) fn end_leases(&mut self, id: ClientId, leases: &[LeaseId]) {
        for &lease in leases {
            self.model.expire_lease(lease);
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.leases.retain(|lease| !leases.contains(lease));
        }
        self.deliver();
    }

    pub(crate) fn delay(&mut self, id: ClientId, delay: Duration) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.delay = delay;
        }
    }

    pub(crate) fn disconnect(&mut self, id: ClientId) {
        self.close_watchers(id);
        if let Some(client) = self.clients.get(&id) {
            client.line.send_replace(false);
        }
    }

    pub(crate) fn reconnect(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(&id).filter(|client| !client.is_connected()) else { return };
        client.line.send_replace(true);
        let watches: Vec<_> = client.watches.keys().copied().collect();
        for watch in watches {
            self.reopen(id, watch);
        }
    }

    pub(crate) fn fail_next(&mut self, id: ClientId, fault: Fault) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.faults.push_back(fault);
        }
    }
}

impl ClientState {
    fn is_connected(&self) -> bool {
        *self.line.borrow()
    }

    /// The number of answers not to wait for at `now`: all of them while the client is disconnected.
    fn not_due(&self, now: Time) -> usize {
        if self.is_connected() { self.under_way.iter().filter(|&&due| due > now).count() } else { usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::client::MemoryClient;
    use crate::store::memory::cluster::MemoryCluster;

    #[test]
    fn leases_that_have_ended_are_forgotten() {
        let cluster = MemoryCluster::new();
        let (client, other) = (MemoryClient::new(&cluster), MemoryClient::new(&cluster));
        let mut state = cluster.state.lock();
        let now = Time::from_nanos(0);
        let mut grant = |secs| {
            let request = Request::GrantLease { ttl: Duration::from_secs(secs) };
            match state.execute(now, client.id(), &request).unwrap().unwrap().answer {
                Answer::LeaseGranted { lease, .. } => lease,
                answer => panic!("{answer:?}"),
            }
        };
        let [kept, own, by_other, short] = [600, 600, 600, 60].map(&mut grant);
        let mut revoke = |by: &MemoryClient, lease| {
            state.execute(now, by.id(), &Request::RevokeLease { lease }).unwrap().unwrap();
            state.leases_of(client.id())
        };
        assert_eq!(revoke(&client, own), [kept, by_other, short]);
        assert_eq!(revoke(&other, by_other), [kept, short]);
        state.expire_due(now + Duration::from_secs(61));
        assert_eq!(state.leases_of(client.id()), [kept]);
    }
}
