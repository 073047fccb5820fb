//! What a store's lock guards: the model, and what the store knows of each client.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::fault::{Fault, connection_lost};
use super::model::{Model, Notice, Watcher};
use crate::clock::{Clock, Time};
use crate::kv::{Answer, Failure, LeaseId, Request, Response, Revision, WatchEvent, WatchId, WatchSpec};
use crate::store::ClientId;

/// So much history is kept for reads and watches of the past. The library looks back over a few requests; nobody
/// else has access to the store.
const KEPT_REVISIONS: Revision = 10_000;

pub(crate) struct State {
    pub(crate) model: Model,
    clients: BTreeMap<ClientId, ClientState>,
    /// Whose each watcher of the model is.
    watchers: HashMap<Watcher, (ClientId, WatchId)>,
}

struct ClientState {
    /// Its manager's.
    clock: Clock,
    /// Whether the client is connected.
    line: watch::Sender<bool>,
    faults: VecDeque<Fault>,
    /// How long each of its answers takes.
    delay: Duration,
    /// When each answer arrives, or is given up, that is under way because of the delay.
    under_way: Vec<Time>,
    /// Those that have not ended.
    leases: Vec<LeaseId>,
    /// Where its watches report to, while somebody listens.
    events: Option<UnboundedSender<WatchEvent>>,
    watches: BTreeMap<WatchId, Watch>,
}

struct Watch {
    spec: WatchSpec,
    /// `None` while the client is cut off.
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

    /// How long an answer to this client takes.
    pub(crate) fn delay_of(&self, id: ClientId) -> Duration {
        self.clients.get(&id).map_or(Duration::ZERO, |client| client.delay)
    }

    /// An answer is under way to this client until `due`.
    pub(crate) fn begin_delay(&mut self, id: ClientId, due: Time) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.under_way.push(due);
        }
    }

    /// One that was, has arrived or is not wanted any more.
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

    /// The clients whose managers have not done yet what was due at `now`.
    pub(crate) fn behind(&self, now: Time) -> Vec<ClientId> {
        let clients = self.clients.iter();
        let behind = clients.filter(|(_, client)| !client.clock.has_caught_up(now, client.not_due(now)));
        behind.map(|(&id, _)| id).collect()
    }

    /// Tells whether the client is connected, now and later.
    pub(crate) fn line(&self, id: ClientId) -> Option<watch::Receiver<bool>> {
        self.clients.get(&id).map(|client| client.line.subscribe())
    }

    /// Carries out a client's request; `None` while the client is cut off.
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

    /// Whoever ended them.
    fn forget_ended_leases(&mut self) {
        let left: BTreeSet<_> = self.model.leases().collect();
        for client in self.clients.values_mut() {
            client.leases.retain(|lease| left.contains(lease));
        }
    }

    /// Compacts now and then, so that each write pays its small share of it.
    fn forget_history(&mut self) {
        let kept_from = self.model.revision() - KEPT_REVISIONS;
        if kept_from > self.model.compacted() + KEPT_REVISIONS {
            // It can be compacted: it lies between the last compaction and now.
            let _compacted = self.model.compact(kept_from);
        }
    }

    /// Tells the clients what the model has to tell their watchers.
    fn deliver(&mut self) {
        while let Some((watcher, notice)) = self.model.poll_notice() {
            let Some(&(id, watch)) = self.watchers.get(&watcher) else { continue };
            match notice {
                Notice::Deleted { keys, revision } => {
                    self.report(id, WatchEvent::Deleted { watch, keys, revision });
                }
                Notice::Compacted { .. } => self.reopen_from_now(id, watch),
            }
        }
    }

    fn report(&self, id: ClientId, event: WatchEvent) {
        if let Some(events) = self.clients.get(&id).and_then(|client| client.events.as_ref()) {
            // If the other end is gone, nobody wants to know.
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

    /// What was deleted since the watch's beginning cannot be told any more: it goes on from now.
    fn reopen_from_now(&mut self, id: ClientId, watch: WatchId) {
        if let Some(open) = self.clients.get_mut(&id).and_then(|client| client.watches.get_mut(&watch)) {
            open.spec.from_revision = 0;
            self.reopen(id, watch);
        }
    }

    /// Opens a watch in the model, for the first time or anew; anew it begins again where its owner wanted.
    fn reopen(&mut self, id: ClientId, watch: WatchId) {
        let Some(open) = self.clients.get_mut(&id).and_then(|client| client.watches.get_mut(&watch)) else {
            return;
        };
        if let Some(before) = open.watcher.take() {
            self.watchers.remove(&before);
        }
        // It cannot be opened if its beginning was compacted. Not logged here, where the store is locked.
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

/// What a test does to a client.
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

    /// How many answers are not waited for at `now`: all of them while it is cut off.
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
