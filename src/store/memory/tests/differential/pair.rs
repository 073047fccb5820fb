//! The two stores side by side, which get the same requests.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::clock;
use crate::kv::{
    Answer, FailureClass, Key, LeaseId, Op, OpResult, Request, Revision, Span, Txn, TxnAnswer, WatchEvent,
    WatchId, WatchSpec,
};
use crate::store::etcd::Etcd;
use crate::store::etcd::tests::cluster::{self, TestCluster};
use crate::store::memory::model::{Limits, Model, Notice, Watcher};
use crate::store::{Store, WatchOrder};

/// Longer than any step of etcd takes here.
const PATIENCE: Duration = Duration::from_secs(10);

/// The common answer of both stores: the revision and the answer, or the failure.
pub(super) type Answered = Result<(Revision, Answer), FailureClass>;

pub(super) struct Pair {
    pub(super) model: Model,
    etcd: Etcd,
    /// For requests outside the store's vocabulary.
    pub(super) raw: etcd_client::Client,
    orders: UnboundedSender<WatchOrder>,
    events: UnboundedReceiver<WatchEvent>,
    seed: u64,
    /// The leases of the sequence: etcd's id by the model's.
    leases: BTreeMap<LeaseId, LeaseId>,
    watchers: HashMap<Watcher, WatchId>,
    /// All watches of all sequences. A watch without expected notices must report nothing.
    watches: BTreeMap<WatchId, Watch>,
    trace: String,
    requests: u64,
    deletions: u64,
    _server: TestCluster,
}

struct Watch {
    seed: u64,
    span: Span,
    puts: bool,
    live: Option<Watcher>,
    expected: VecDeque<WatchEvent>,
}

impl Pair {
    pub(super) async fn start() -> Self {
        // The election timeout, which determines the minimum TTL, is etcd's default; the fixture's own is shorter.
        let timing = ["--heartbeat-interval=100", "--election-timeout=1000"];
        let server = TestCluster::start_with(1, "http", &timing);
        let etcd = cluster::connect(&server.urls()).await;
        let raw = etcd_client::Client::connect(server.urls(), None).await.expect("a connection");
        let (orders, their_orders) = unbounded_channel();
        let (their_events, events) = unbounded_channel();
        tokio::spawn(etcd.run_watches(their_orders, their_events));
        Self {
            model: Model::new(),
            etcd,
            raw,
            orders,
            events,
            seed: 0,
            leases: BTreeMap::new(),
            watchers: HashMap::new(),
            watches: BTreeMap::new(),
            trace: String::new(),
            requests: 0,
            deletions: 0,
            _server: server,
        }
    }

    /// A new model, at the current revision of etcd. Each sequence has its own keys.
    pub(super) async fn begin(&mut self, seed: u64) -> Result<(), String> {
        self.seed = seed;
        let header = self.raw.get("nothing", None).await.map_err(|error| error.to_string())?;
        let revision = header.header().ok_or("no header")?.revision();
        self.model = Model::with(Limits::default(), revision);
        self.leases.clear();
        self.watchers.clear();
        self.note(format_args!("at revision {revision}"));
        Ok(())
    }

    /// Revokes all leases, so that none expires during a later sequence.
    pub(super) async fn end(&mut self) -> Result<(), String> {
        for lease in self.model.leases().collect::<Vec<_>>() {
            let _same = self.ask(&Request::RevokeLease { lease }).await?;
        }
        Ok(())
    }

    /// Sends the request to both, and returns their common answer.
    pub(super) async fn ask(&mut self, request: &Request) -> Result<Answered, String> {
        self.requests += 1;
        self.note(format_args!("{request:?}"));
        let expected = self.model.execute(clock::now(), request);
        let expected = expected.map(|response| (response.revision, response.answer)).map_err(|f| f.class);
        let theirs = with_leases(request, &|lease| self.leases.get(&lease).copied().unwrap_or(lease));
        let found = self.etcd.call(theirs, PATIENCE).await;
        let message = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let found = found.map(|response| (response.revision, response.answer)).map_err(|f| f.class);
        if let (
            Ok((_, Answer::LeaseGranted { lease: ours, .. })),
            Ok((_, Answer::LeaseGranted { lease: theirs, .. })),
        ) = (&expected, &found)
        {
            self.leases.insert(*ours, *theirs);
        }
        let found = found.map(|(revision, answer)| (revision, self.in_model_terms(answer)));
        self.note(format_args!("    {expected:?}"));
        if !agree(&expected, &found) {
            return Err(format!("{request:?}\n  model: {expected:?}\n   etcd: {found:?} {message}"));
        }
        self.expect_notices()?;
        self.receive_all()?;
        Ok(expected)
    }

    /// Opens a watch on both, and waits until it is confirmed.
    pub(super) async fn watch(&mut self, spec: WatchSpec) -> Result<WatchId, String> {
        let id = WatchId(self.watches.len() as u64 + 1);
        self.note(format_args!("{id:?} {spec:?}"));
        let (watcher, revision) = self.model.watch(&spec).map_err(|failure| failure.message)?;
        let expected = VecDeque::from([WatchEvent::Created { watch: id, revision }]);
        self.watches.insert(
            id,
            Watch {
                seed: self.seed,
                span: spec.span.clone(),
                puts: spec.puts,
                live: Some(watcher),
                expected,
            },
        );
        self.watchers.insert(watcher, id);
        self.expect_notices()?;
        self.orders.send(WatchOrder::Open { id, spec }).map_err(|_| "the watches are not served")?;
        while matches!(self.watches[&id].expected.front(), Some(WatchEvent::Created { .. })) {
            self.receive_one().await?;
        }
        Ok(id)
    }

    /// Closes the oldest watch of the sequence, once it has reported everything.
    pub(super) async fn unwatch_oldest(&mut self) -> Result<(), String> {
        let seed = self.seed;
        let oldest = self.watches.iter().find(|(_, watch)| watch.seed == seed && watch.live.is_some());
        let Some((&id, _)) = oldest else { return Ok(()) };
        self.note(format_args!("close {id:?}"));
        self.settle_one(id).await?;
        if let Some(watcher) = self.watches.get_mut(&id).and_then(|watch| watch.live.take()) {
            self.model.unwatch(watcher);
        }
        self.orders.send(WatchOrder::Close { id }).map_err(|_| "the watches are not served".into())
    }

    /// Compacts both, once no watch needs the history before that revision.
    pub(super) async fn compact(&mut self, revision: Revision) -> Result<(), String> {
        self.catch_up().await?;
        self.note(format_args!("compact {revision}"));
        let expected = self.model.compact(revision).map_err(|failure| failure.class);
        let found = self.raw.compact(revision, None).await;
        if expected.is_ok() != found.is_ok() {
            return Err(format!("compact {revision}\n  model: {expected:?}\n   etcd: {found:?}"));
        }
        Ok(())
    }

    /// Waits until etcd has served the past of every watch. It serves all of them at once, so it is done when a watch
    /// that was opened last has reported its past.
    async fn catch_up(&mut self) -> Result<(), String> {
        let key = Key::from(format!("catch-up/{}", self.model.revision()));
        let put = Op::Put { key: key.clone(), value: Vec::new(), lease: 0 };
        self.ask(&Request::Txn(Txn { then: vec![put], ..Txn::default() })).await?.map_err(|_| "no put")?;
        self.ask(&Request::Delete { key: key.clone() }).await?.map_err(|_| "no deletion")?;
        let from_revision = self.model.revision();
        self.watch(WatchSpec { span: Span::Key(key), from_revision, puts: false }).await?;
        self.settle().await
    }

    /// Ends the lease in the model, and waits until etcd, where it expires by itself, has reported the same.
    pub(super) async fn expire(&mut self, lease: LeaseId) -> Result<(), String> {
        self.model.expire_lease(lease);
        self.expect_notices()?;
        self.settle().await
    }

    /// Records the notices of the model as expectations: etcd must report the same.
    fn expect_notices(&mut self) -> Result<(), String> {
        while let Some((watcher, notice)) = self.model.poll_notice() {
            let id = self.watchers.get(&watcher).ok_or("a notice of an unknown watch")?;
            let watch = self.watches.get_mut(id).ok_or("a notice of an unknown watch")?;
            watch.expected.push_back(match notice {
                Notice::Deleted { keys, revision } => WatchEvent::Deleted { watch: *id, keys, revision },
                Notice::Put { keys, revision } => WatchEvent::Put { watch: *id, keys, revision },
                Notice::Compacted { .. } => {
                    // The store's watch continues from now.
                    let spec = WatchSpec { span: watch.span.clone(), from_revision: 0, puts: watch.puts };
                    let (watcher, revision) = self.model.watch(&spec).map_err(|failure| failure.message)?;
                    let id = *id;
                    watch.live = Some(watcher);
                    self.watchers.insert(watcher, id);
                    WatchEvent::Created { watch: id, revision }
                }
            });
        }
        Ok(())
    }

    /// Waits until every watch has reported what is expected of it.
    pub(super) async fn settle(&mut self) -> Result<(), String> {
        for id in self.watches.keys().copied().collect::<Vec<_>>() {
            self.settle_one(id).await?;
        }
        self.receive_all()
    }

    async fn settle_one(&mut self, id: WatchId) -> Result<(), String> {
        while self.watches.get(&id).is_some_and(|watch| !watch.expected.is_empty()) {
            self.receive_one().await?;
        }
        Ok(())
    }

    async fn receive_one(&mut self) -> Result<(), String> {
        match tokio::time::timeout(PATIENCE, self.events.recv()).await {
            Ok(Some(event)) => self.check_event(&event),
            Ok(None) => Err("the watches are not served".into()),
            Err(_) => {
                let missing = self.watches.values().find(|watch| !watch.expected.is_empty());
                let (seed, event) = missing.map(|watch| (watch.seed, watch.expected.front())).unzip();
                Err(format!("an event did not come: {event:?}, watched by sequence {seed:?}"))
            }
        }
    }

    fn receive_all(&mut self) -> Result<(), String> {
        while let Ok(event) = self.events.try_recv() {
            self.check_event(&event)?;
        }
        Ok(())
    }

    fn check_event(&mut self, event: &WatchEvent) -> Result<(), String> {
        let heard = self.watches.get_mut(&event.watch()).ok_or("an event of an unknown watch")?;
        let expected = heard.expected.pop_front();
        if expected.as_ref() != Some(event) {
            return Err(format!(
                "a watch of sequence {}\n  model: {expected:?}\n   etcd: {event:?}",
                heard.seed
            ));
        }
        self.deletions += u64::from(matches!(event, WatchEvent::Deleted { .. }));
        Ok(())
    }

    /// etcd's answer with the model's lease ids.
    fn in_model_terms(&self, mut answer: Answer) -> Answer {
        let ours = |lease: &mut LeaseId| {
            let known = self.leases.iter().find(|(_, theirs)| *theirs == lease);
            *lease = known.map_or(*lease, |(&ours, _)| ours);
        };
        match &mut answer {
            Answer::LeaseGranted { lease, .. } => ours(lease),
            Answer::Txn(answer) => each_lease(answer, &ours),
            _ => {}
        }
        answer
    }

    fn note(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.trace, "  {line}");
    }

    pub(super) fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }

    pub(super) fn counts(&self) -> String {
        format!(
            "{} requests, {} watches, {} deletions told",
            self.requests,
            self.watches.len(),
            self.deletions
        )
    }
}

/// Whether the two answers are equal, except for the time that passed between them.
fn agree(expected: &Answered, found: &Answered) -> bool {
    match (expected, found) {
        (
            Ok((revision, Answer::LeaseTimeToLive { remaining: Some(remaining) })),
            Ok((other_revision, Answer::LeaseTimeToLive { remaining: Some(other) })),
        ) => revision == other_revision && remaining.abs_diff(*other) <= Duration::from_secs(5),
        _ => expected == found,
    }
}

/// The request with other lease ids.
fn with_leases(request: &Request, map: &dyn Fn(LeaseId) -> LeaseId) -> Request {
    match request {
        Request::RenewLease { lease } => Request::RenewLease { lease: map(*lease) },
        Request::RevokeLease { lease } => Request::RevokeLease { lease: map(*lease) },
        Request::LeaseTimeToLive { lease } => Request::LeaseTimeToLive { lease: map(*lease) },
        Request::Txn(txn) => Request::Txn(txn_with_leases(txn, map)),
        Request::GrantLease { .. } | Request::Delete { .. } => request.clone(),
    }
}

fn txn_with_leases(txn: &Txn, map: &dyn Fn(LeaseId) -> LeaseId) -> Txn {
    let ops = |ops: &[Op]| {
        let mapped = ops.iter().map(|op| match op {
            Op::Put { key, value, lease } => {
                Op::Put { key: key.clone(), value: value.clone(), lease: map(*lease) }
            }
            Op::Txn(nested) => Op::Txn(txn_with_leases(nested, map)),
            Op::Range(_) | Op::Delete { .. } => op.clone(),
        });
        mapped.collect()
    };
    Txn { when: txn.when.clone(), then: ops(&txn.then), otherwise: ops(&txn.otherwise) }
}

fn each_lease(answer: &mut TxnAnswer, change: &dyn Fn(&mut LeaseId)) {
    for result in &mut answer.results {
        match result {
            OpResult::Range(range) => range.kvs.iter_mut().for_each(|kv| change(&mut kv.lease)),
            OpResult::Txn(nested) => each_lease(nested, change),
            OpResult::Put | OpResult::Deleted { .. } => {}
        }
    }
}
