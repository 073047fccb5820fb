//! The store through the client of a manager.

mod differential;

use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::kv::{
    Answer, Failure, FailureClass, Key, LeaseId, Op, Order, Range, Request, Revision, Span, Txn, WatchEvent,
    WatchId, WatchSpec,
};
use crate::store::memory::client::MemoryClient;
use crate::store::memory::cluster::MemoryCluster;
use crate::store::memory::fault::Fault;
use crate::store::{Store, WatchOrder};

/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(10);

impl MemoryClient {
    async fn ask(&self, request: Request) -> Result<(Revision, Answer), FailureClass> {
        let result = self.call(request, PATIENCE).await;
        result.map(|response| (response.revision, response.answer)).map_err(|failure| failure.class)
    }

    async fn grant(&self, secs: u64) -> LeaseId {
        match self.ask(Request::GrantLease { ttl: Duration::from_secs(secs) }).await {
            Ok((_, Answer::LeaseGranted { lease, .. })) => lease,
            other => panic!("not a grant: {other:?}"),
        }
    }

    async fn put(&self, key: &str, lease: LeaseId) -> Result<Revision, FailureClass> {
        self.ask(put(key, lease)).await.map(|(revision, _)| revision)
    }

    async fn delete(&self, key: &str) -> Revision {
        self.ask(Request::Delete { key: key.into() }).await.unwrap().0
    }
}

fn put(key: &str, lease: LeaseId) -> Request {
    let put = Op::Put { key: key.into(), value: Vec::new(), lease };
    Request::Txn(Txn { then: vec![put], ..Txn::default() })
}

impl MemoryCluster {
    fn names(&self) -> Vec<String> {
        let all = Range {
            span: Span::Prefix("".into()),
            order: Order::ByKey,
            limit: 0,
            max_create_revision: 0,
            at_revision: 0,
            keys_only: true,
        };
        let found = self.state.lock().model.read(&all).unwrap();
        found.kvs.iter().map(|kv| kv.key.to_string()).collect()
    }
}

/// A client's watches, which a task serves.
struct Watches {
    orders: UnboundedSender<WatchOrder>,
    events: UnboundedReceiver<WatchEvent>,
    server: JoinHandle<()>,
}

impl Watches {
    fn of(client: &MemoryClient) -> Self {
        let (orders, their_orders) = unbounded_channel();
        let (their_events, events) = unbounded_channel();
        let server = tokio::spawn(client.run_watches(their_orders, their_events));
        Self { orders, events, server }
    }

    fn open(&self, id: u64, span: Span, from_revision: Revision) {
        let spec = WatchSpec { span, from_revision, puts: false };
        self.orders.send(WatchOrder::Open { id: WatchId(id), spec }).unwrap();
    }

    async fn next(&mut self) -> WatchEvent {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event").expect("a stream")
    }
}

fn key(key: &str) -> Span {
    Span::Key(key.into())
}

fn created(id: u64, revision: Revision) -> WatchEvent {
    WatchEvent::Created { watch: WatchId(id), revision }
}

fn deleted(id: u64, key: &str, revision: Revision) -> WatchEvent {
    WatchEvent::Deleted { watch: WatchId(id), keys: vec![Key::from(key)], revision }
}

#[tokio::test]
async fn clients_of_one_store_share_keys_and_those_of_two_stores_do_not() {
    let (store, other_store) = (MemoryCluster::new(), MemoryCluster::new());
    let (one, two, other) =
        (MemoryClient::new(&store), MemoryClient::new(&store.clone()), MemoryClient::new(&other_store));
    let mut watches = Watches::of(&two);
    assert_eq!(one.put("a", 0).await, Ok(2));
    watches.open(1, key("a"), 0);
    assert_eq!(watches.next().await, created(1, 2));
    assert_eq!(other.delete("a").await, 1);
    assert_eq!(one.delete("a").await, 3);
    assert_eq!(watches.next().await, deleted(1, "a", 3));
}

#[tokio::test]
async fn a_watch_reports_the_past_it_starts_in_and_a_closed_watch_nothing() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    let mut watches = Watches::of(&client);
    client.put("a", 0).await.unwrap();
    client.put("b", 0).await.unwrap();
    client.delete("a").await;
    watches.open(1, key("a"), 2);
    assert_eq!([watches.next().await, watches.next().await], [created(1, 4), deleted(1, "a", 4)]);

    watches.open(2, key("b"), 0);
    assert_eq!(watches.next().await, created(2, 4));
    watches.orders.send(WatchOrder::Close { id: WatchId(2) }).unwrap();
    watches.open(3, Span::Prefix("".into()), 0);
    assert_eq!(watches.next().await, created(3, 4));
    client.delete("b").await;
    assert_eq!(watches.next().await, deleted(3, "b", 5));

    drop(watches.orders);
    watches.server.await.unwrap();
    assert_eq!(watches.events.recv().await, None);
}

#[tokio::test]
async fn an_unrenewed_lease_expires_and_watches_of_other_clients_report_it() {
    let store = MemoryCluster::new();
    let (holder, waiter) = (MemoryClient::new(&store), MemoryClient::new(&store));
    let mut watches = Watches::of(&waiter);
    let began = Instant::now();
    // The watch task is already running when the lease is granted, and must still notice its expiry.
    watches.open(1, key("a"), 0);
    watches.next().await;
    let lease = holder.grant(1).await;
    holder.put("a", lease).await.unwrap();
    assert_eq!(watches.next().await, deleted(1, "a", 3));
    let lasted = began.elapsed();
    assert!((2.0..3.0).contains(&lasted.as_secs_f64()), "a lease of the shortest TTL lasted {lasted:?}");
}

#[tokio::test]
async fn expiring_a_session_deletes_the_keys_of_its_client_only() {
    let store = MemoryCluster::new();
    let (one, two) = (MemoryClient::new(&store), MemoryClient::new(&store));
    let (lost, kept) = (one.grant(60).await, two.grant(60).await);
    one.put("lost", lost).await.unwrap();
    two.put("kept", kept).await.unwrap();
    let mut watches = Watches::of(&two);
    watches.open(1, key("lost"), 0);
    watches.next().await;

    store.expire_leases_of(one.id());
    assert_eq!(watches.next().await, deleted(1, "lost", 4));
    assert_eq!(store.names(), ["kept"]);
    assert_eq!(one.ask(Request::RenewLease { lease: lost }).await, Err(FailureClass::LeaseGone));
    assert!(two.ask(Request::RenewLease { lease: kept }).await.is_ok());
    let next = one.grant(60).await;
    assert_eq!(one.put("again", next).await, Ok(5));
}

#[tokio::test]
async fn a_request_in_a_partition_gets_no_answer_and_a_timed_out_one_is_never_executed() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    store.disconnect_client(client.id());
    let given_up = client.call(put("given-up", 0), Duration::from_millis(10)).await;
    assert_eq!(given_up.map_err(|Failure { class, .. }| class), Err(FailureClass::Unknown));

    let waiting = tokio::spawn(client.call(put("waiting", 0), PATIENCE));
    tokio::task::yield_now().await;
    store.reconnect_client(client.id());
    assert_eq!(waiting.await.unwrap().unwrap().revision, 2);
    assert_eq!(store.names(), ["waiting"]);
}

#[tokio::test]
async fn a_watch_reports_nothing_in_a_partition_and_is_reopened_after_it() {
    let store = MemoryCluster::new();
    let (cut_off, other) = (MemoryClient::new(&store), MemoryClient::new(&store));
    let mut watches = Watches::of(&cut_off);
    other.put("a", 0).await.unwrap();
    watches.open(1, key("a"), 0);
    assert_eq!(watches.next().await, created(1, 2));

    store.disconnect_client(cut_off.id());
    store.disconnect_client(cut_off.id());
    watches.open(2, key("b"), 2);
    watches.open(3, key("nothing"), 0);
    other.delete("a").await; // 3
    other.put("a", 0).await.unwrap(); // 4
    other.put("b", 0).await.unwrap(); // 5
    other.delete("b").await; // 6
    tokio::task::yield_now().await;
    assert!(watches.events.try_recv().is_err());

    store.reconnect_client(cut_off.id());
    store.reconnect_client(cut_off.id());
    // The first watch has no start revision and has missed deletions; the second starts again where it was asked to.
    assert_eq!([watches.next().await, watches.next().await], [created(1, 6), created(2, 6)]);
    assert_eq!([watches.next().await, watches.next().await], [deleted(2, "b", 6), created(3, 6)]);
    other.delete("a").await;
    assert_eq!(watches.next().await, deleted(1, "a", 7));
}

#[tokio::test]
async fn faults_affect_the_next_requests_in_order_but_no_renewal() {
    let store = MemoryCluster::new();
    let (client, other) = (MemoryClient::new(&store), MemoryClient::new(&store));
    let lease = client.grant(60).await;
    for fault in [
        Fault::LoseRequest,
        Fault::LoseResponse,
        Fault::NoLeader,
        Fault::NoSpace,
        Fault::PermissionDenied,
        Fault::Unauthenticated,
    ] {
        store.fail_next_of(client.id(), fault);
    }
    assert!(client.ask(Request::RenewLease { lease }).await.is_ok());
    assert_eq!(other.put("other", 0).await, Ok(2));

    assert_eq!(client.put("request-lost", 0).await, Err(FailureClass::Unknown));
    assert_eq!(client.put("response-lost", 0).await, Err(FailureClass::Unknown));
    assert_eq!(client.put("no-leader", 0).await, Err(FailureClass::NotDone));
    assert_eq!(client.put("no-space", 0).await, Err(FailureClass::NoSpace));
    assert_eq!(client.put("denied", 0).await, Err(FailureClass::PermissionDenied));
    assert_eq!(client.put("not-let-in", 0).await, Err(FailureClass::Unauthenticated));
    assert_eq!(client.put("through", 0).await, Ok(4));
    assert_eq!(store.names(), ["other", "response-lost", "through"]);
}

#[tokio::test]
async fn a_lost_answer_to_a_grant_leaves_a_lease_that_the_client_does_not_know() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    store.fail_next_of(client.id(), Fault::LoseResponse);
    let grant = Request::GrantLease { ttl: Duration::from_secs(60) };
    assert_eq!(client.ask(grant).await, Err(FailureClass::Unknown));
    assert_eq!(store.state.lock().model.leases().count(), 1);
    store.expire_leases_of(client.id());
    assert_eq!(store.state.lock().model.leases().count(), 0);
}

#[tokio::test]
async fn history_is_bounded() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    for _ in 0..15_000 {
        client.put("a", 0).await.unwrap();
        client.delete("a").await;
    }
    let state = store.state.lock();
    let kept = state.model.revision() - state.model.compacted();
    assert!((10_000..=20_000).contains(&kept), "{kept} revisions are kept");
}

#[tokio::test]
async fn a_dropped_client_is_forgotten_with_its_watches() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    let lease = client.grant(60).await;
    client.put("a", lease).await.unwrap();
    let mut watches = Watches::of(&client);
    watches.open(1, key("a"), 0);
    watches.next().await;
    let id = client.id();
    drop(client);
    // The runtime ends while the task runs, as when an I/O thread dies.
    watches.server.abort();
    assert!(watches.server.await.unwrap_err().is_cancelled());
    assert!(store.state.lock().line(id).is_none());
    assert_eq!(store.names(), ["a"]);
}

#[tokio::test]
async fn a_delayed_request_is_executed_at_once_and_answered_late() {
    let store = MemoryCluster::new();
    let (slow, quick) = (MemoryClient::new(&store), MemoryClient::new(&store));
    let delay = Duration::from_millis(80);
    store.delay_of(slow.id(), delay);
    let began = Instant::now();
    let asked = tokio::spawn(slow.call(put("slow", 0), PATIENCE));
    tokio::task::yield_now().await;
    assert_eq!(store.names(), ["slow"]);
    assert_eq!(quick.put("quick", 0).await, Ok(3));
    assert!(began.elapsed() < delay);
    assert_eq!(asked.await.unwrap().unwrap().revision, 2);
    assert!(began.elapsed() >= delay);

    let given_up = slow.call(put("given-up", 0), delay / 8).await;
    assert_eq!(given_up.map_err(|Failure { class, .. }| class), Err(FailureClass::Unknown));
    assert_eq!(store.names(), ["given-up", "quick", "slow"]);
    store.delay_of(slow.id(), Duration::ZERO);
    let began = Instant::now();
    slow.put("quick-again", 0).await.unwrap();
    assert!(began.elapsed() < delay);
}

/// The next session's lease may be granted before the previous one has ended.
#[tokio::test]
async fn a_lease_granted_during_the_expiry_belongs_to_the_next_session() {
    let store = MemoryCluster::new();
    let client = MemoryClient::new(&store);
    let first = client.grant(60).await;
    let leases = store.state.lock().leases_of(client.id());
    let next = client.grant(60).await;
    store.state.lock().end_leases(client.id(), &leases);
    assert_eq!(client.ask(Request::RenewLease { lease: first }).await, Err(FailureClass::LeaseGone));
    assert!(client.ask(Request::RenewLease { lease: next }).await.is_ok());
    store.expire_leases_of(client.id());
    assert_eq!(client.ask(Request::RenewLease { lease: next }).await, Err(FailureClass::LeaseGone));
}
