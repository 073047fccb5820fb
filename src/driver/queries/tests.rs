//! Queries, of our own locks and of foreign ones.

mod evicting;

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::contender_value::ContenderValue;
use crate::driver::queries;
use crate::error::LockError;
use crate::info::{FencingToken, ForceUnlock, LockState};
use crate::kv::{Failure, FailureClass, Op, Request, Response, Span, WatchEvent};
use crate::mode::Mode;
use crate::name::{LockName, Root};
use crate::store::etcd::Etcd;
use crate::store::etcd::tests::cluster::{
    LONG, Meddled, Meddling, TestCluster, always, call, connect, dead_url, grant, key, keys, put, put_key,
    range,
};
use crate::store::{Store, WatchOrder};

fn root() -> Root {
    Root::parse("/app").unwrap()
}

fn name(name: &str) -> LockName {
    LockName::parse(&root(), name).unwrap()
}

/// A contender as this library makes one; its create revision.
async fn contend(etcd: &Etcd, lock: &str, lease: i64, seq: u64, owner: &str) -> i64 {
    contend_in(Mode::Exclusive, etcd, lock, lease, seq, owner).await
}

async fn contend_in(mode: Mode, etcd: &Etcd, lock: &str, lease: i64, seq: u64, owner: &str) -> i64 {
    let value = ContenderValue::new(owner, "main", 1, Duration::from_millis(1_700_000_000_000)).encode();
    let put = Op::Put { key: name(lock).contender_key(mode, lease, seq), value, lease };
    call(etcd, always(vec![put])).await.unwrap().revision
}

#[tokio::test]
async fn lock_info_returns_the_holder_and_the_number_of_waiters() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    assert_eq!(queries::lock_info(&etcd, &name("a/b"), LONG).await.unwrap(), None);
    let (one, two) = (grant(&etcd, 60).await, grant(&etcd, 60).await);
    // The newer key sorts first, but the queue is ordered by creation.
    let token = contend(&etcd, "a/b", one, 9, "host/1").await;
    contend(&etcd, "a/b", two, 1, "host/2").await;
    contend(&etcd, "a/b", two, 2, "host/3").await;
    contend(&etcd, "a", two, 3, "host/4").await;
    let info = queries::lock_info(&etcd, &name("a/b"), LONG).await.unwrap().unwrap();
    assert_eq!((info.key.as_str(), info.owner.as_deref()), ("a/b", Some("host/1")));
    assert_eq!((info.lease_id, info.waiters, info.token.as_u64() as i64), (Some(one), 2, token));
    assert_eq!(info.created_at, Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    assert!(info.ttl_remaining.is_some_and(|ttl| ttl.as_secs() >= 50));
    assert!(info.created_at < Some(SystemTime::now()));
}

/// Contenders of these modes, in this order, and the number of them that hold the lock.
async fn holders_and_waiters_of(modes: &[Mode], holders: usize) {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    let mut tokens = Vec::new();
    for (&mode, seq) in modes.iter().zip((1..=modes.len() as u64).rev()) {
        tokens.push(contend_in(mode, &etcd, "a", lease, seq, "host/1").await);
    }
    let queue = queries::queue(&etcd, &name("a"), LONG).await.unwrap();
    assert!(queue.iter().map(|info| info.mode).eq(modes.iter().copied()), "{queue:#?}");
    assert!(queue.iter().map(|info| info.token.as_u64() as i64).eq(tokens.iter().copied()));
    for (place, info) in queue.iter().enumerate() {
        let state = if place < holders { LockState::Held } else { LockState::Waiting };
        assert_eq!(info.state, state, "{place} of {modes:?}");
        assert_eq!(info.waiters, modes.len() - holders.max(place + 1), "{place} of {modes:?}");
    }
    let info = queries::lock_info(&etcd, &name("a"), LONG).await.unwrap().unwrap();
    assert_eq!(info, queue[0], "the first holder");
    assert_eq!(queries::list_locks(&etcd, &root(), "", LONG).await.unwrap(), queue[..1]);

    let evicted = queries::force_unlock(&etcd, &name("a"), None, ForceUnlock::Lock, LONG).await.unwrap();
    assert_eq!(evicted, queue[0]);
    let left = queries::queue(&etcd, &name("a"), LONG).await.unwrap();
    assert!(left.iter().map(|info| info.token).eq(queue[1..].iter().map(|info| info.token)));
}

#[tokio::test]
async fn several_contenders_are_shown_as_holders_by_the_rule_and_the_first_of_them_is_evicted() {
    let permits = |take, limit| Mode::Permits { take, limit };
    let (shared, exclusive) = (Mode::Shared, Mode::Exclusive);
    for (modes, holders) in [
        (vec![shared, shared, shared], 3),
        (vec![shared, shared, exclusive, shared], 2),
        (vec![exclusive, shared, shared], 1),
        (vec![permits(1, 3), permits(2, 3), permits(1, 3)], 2),
        (vec![permits(1, 3), permits(3, 3), permits(1, 3)], 1),
        (vec![permits(1, 4), permits(1, 1), permits(1, 4)], 1),
        (vec![permits(1, 2), shared, shared], 2),
    ] {
        holders_and_waiters_of(&modes, holders).await;
    }
}

/// Their create revisions are equal, so their keys decide.
#[tokio::test]
async fn contenders_of_one_transaction_are_in_the_order_of_their_keys() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    let put =
        |mode, seq| Op::Put { key: name("a").contender_key(mode, lease, seq), value: Vec::new(), lease };
    call(&etcd, always(vec![put(Mode::Shared, 2), put(Mode::Exclusive, 3), put(Mode::Shared, 1)]))
        .await
        .unwrap();
    let queue = queries::queue(&etcd, &name("a"), LONG).await.unwrap();
    let shown: Vec<_> = queue.iter().map(|info| (info.mode, info.state)).collect();
    let waiting = (Mode::Shared, LockState::Waiting);
    assert_eq!(shown, [(Mode::Exclusive, LockState::Held), waiting, waiting]);
    let listed = queries::list_locks(&etcd, &root(), "", LONG).await.unwrap();
    assert_eq!((listed[0].mode, listed[0].waiters), (Mode::Exclusive, 2));
}

#[tokio::test]
async fn a_key_without_a_lease_holds_the_lock_until_it_is_deleted() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    put_key(&etcd, "/app/a/by-hand", 0).await;
    let info = queries::lock_info(&etcd, &name("a"), LONG).await.unwrap().unwrap();
    assert_eq!((info.lease_id, info.ttl_remaining, info.owner), (None, None, None));
    for scope in [ForceUnlock::Session, ForceUnlock::Lock] {
        put_key(&etcd, "/app/a/by-hand", 0).await;
        let evicted = queries::force_unlock(&etcd, &name("a"), None, scope, LONG).await.unwrap();
        assert_eq!(evicted.key, "a");
        assert_eq!(queries::lock_info(&etcd, &name("a"), LONG).await.unwrap(), None);
    }
}

#[tokio::test]
async fn list_locks_returns_every_lock_once_ordered_by_name() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    let names = ["a", "a/b", "a/", "~odd", "%2F", "b", "B", "ä"];
    for (seq, lock) in (1..).zip(names) {
        contend(&etcd, lock, lease, seq, "one").await;
        contend(&etcd, lock, lease, seq + 100, "two").await;
    }
    put_key(&etcd, "/app/~session/1f", 0).await;
    put_key(&etcd, "/app/no-contender", 0).await;
    // No lock name is encoded like this, so it is not a lock.
    put_key(&etcd, "/app/%61/1", 0).await;
    put_key(&etcd, "/apps/c/1", 0).await;

    let listed = queries::list_locks(&etcd, &root(), "", LONG).await.unwrap();
    let found: Vec<&str> = listed.iter().map(|info| info.key.as_str()).collect();
    let sorted: Vec<&str> = BTreeSet::from(names).into_iter().collect();
    assert_eq!(found, sorted);
    assert!(listed.iter().all(|info| info.owner.as_deref() == Some("one") && info.waiters == 1));
    assert!(listed.iter().all(|info| info.ttl_remaining.is_some()));
    for info in listed {
        let alone = queries::lock_info(&etcd, &name(&info.key), LONG).await.unwrap().unwrap();
        assert_eq!((alone.token, alone.waiters), (info.token, info.waiters));
    }
    let prefixed = queries::list_locks(&etcd, &root(), "a/", LONG).await.unwrap();
    let found: Vec<&str> = prefixed.iter().map(|info| info.key.as_str()).collect();
    assert_eq!(found, ["a/", "a/b"]);
    assert_eq!(queries::list_locks(&etcd, &root(), "~", LONG).await.unwrap().len(), 1);
    assert!(queries::list_locks(&etcd, &root(), "z", LONG).await.unwrap().is_empty());
}

#[tokio::test]
async fn list_locks_pages_through_ten_thousand_locks() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let leases = [grant(&etcd, 60).await, grant(&etcd, 60).await];
    for batch in 0..100_u64 {
        let puts = (0..100).map(|i| {
            let seq = batch * 100 + i;
            let lease = leases[(seq % 2) as usize];
            Op::Put {
                key: name(&format!("lock-{seq:05}")).contender_key(Mode::Exclusive, lease, seq),
                value: Vec::new(),
                lease,
            }
        });
        call(&etcd, always(puts.collect())).await.unwrap();
    }
    // A lock whose contenders lie on two pages.
    for seq in 20_000..20_010 {
        contend(&etcd, "lock-00999", leases[0], seq, "late").await;
    }
    let begun = Instant::now();
    let listed = queries::list_locks(&etcd, &root(), "", LONG).await.unwrap();
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    assert_eq!(listed.len(), 10_000);
    assert!(listed.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(listed.iter().map(|info| info.waiters).sum::<usize>(), 10);
    assert_eq!((listed[999].key.as_str(), listed[999].waiters), ("lock-00999", 10));
}

#[tokio::test]
async fn list_locks_starts_again_when_its_revision_is_compacted() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    for batch in 0..11 {
        let puts = (0..100).map(|i| put(&format!("/app/l-{batch:02}-{i:02}/1"), "", 0));
        call(&etcd, always(puts.collect())).await.unwrap();
    }
    // Between the first page and the second a lock is released; later the first page's revision is compacted.
    let gone = key("/app/l-10-99/1");
    let revision = put_key(&etcd, "/other", 0).await;
    let plan = [Meddling::Nothing, Meddling::Before(vec![Request::Delete { key: gone.clone() }])];
    let meddled = Meddled::new(&etcd, plan);
    let listed = queries::list_locks(&meddled, &root(), "", LONG).await.unwrap();
    assert_eq!(listed.len(), 1100, "all pages are of one revision");
    call(&etcd, always(vec![Op::Put { key: gone, value: Vec::new(), lease: 0 }])).await.unwrap();

    cluster.etcdctl(&["compact", &revision.to_string()]);
    let compacting = Compacting { etcd: etcd.clone(), cluster: Arc::new(cluster), calls: Arc::default() };
    let listed = queries::list_locks(&compacting, &root(), "", LONG).await.unwrap();
    assert_eq!(listed.len(), 1100);
    assert!(
        compacting.calls.load(Ordering::Relaxed) >= 4,
        "the first page, a refusal, then both pages again"
    );
}

/// Compacts all earlier revisions before the second call.
#[derive(Clone)]
struct Compacting {
    etcd: Etcd,
    cluster: Arc<TestCluster>,
    calls: Arc<AtomicU32>,
}

impl Store for Compacting {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        let this = self.clone();
        async move {
            if this.calls.fetch_add(1, Ordering::Relaxed) == 1 {
                let now = put_key(&this.etcd, "/other", 0).await;
                this.cluster.etcdctl(&["compact", &now.to_string()]);
            }
            this.etcd.call(request, timeout).await
        }
    }

    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.etcd.run_watches(orders, events)
    }
}

#[tokio::test]
async fn queries_fail_within_their_limit_without_a_server() {
    let mut cluster = TestCluster::start(1);
    let etcd = connect(&[cluster.urls(), vec![dead_url()]].concat()).await;
    cluster.kill(0);
    let limit = Duration::from_millis(700);
    let begun = Instant::now();
    let errors = [
        queries::lock_info(&etcd, &name("a"), limit).await.unwrap_err(),
        queries::list_locks(&etcd, &root(), "", limit).await.unwrap_err(),
        queries::force_unlock(&etcd, &name("a"), None, ForceUnlock::Lock, limit).await.unwrap_err(),
    ];
    assert!(begun.elapsed() < limit * 3 + Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(errors.iter().all(|error| matches!(error, LockError::Unavailable { .. })), "{errors:?}");
}

#[tokio::test]
async fn a_query_survives_a_short_outage() {
    let mut cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    contend(&etcd, "a", lease, 1, "one").await;
    cluster.kill(0);
    let waiting = etcd.clone();
    let asked = tokio::spawn(async move { queries::lock_info(&waiting, &name("a"), LONG).await });
    tokio::task::yield_now().await;
    cluster.restart(0);
    assert_eq!(asked.await.unwrap().unwrap().unwrap().owner.as_deref(), Some("one"));
}

/// `etcdctl lock`, holding the lock or waiting for it until it is dropped.
struct Etcdctl(Child);

impl Etcdctl {
    fn lock(cluster: &TestCluster, path: &str) -> Self {
        Self(cluster.etcdctl_command(&["lock", path]).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// The key with which it holds the lock, once it does.
    fn held_key(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().into()
    }
}

impl Drop for Etcdctl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn locks_of_etcdctl_are_listed_and_can_be_force_unlocked() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let mut holder = Etcdctl::lock(&cluster, "/app/jobs");
    let held = holder.held_key();
    assert!(held.starts_with("/app/jobs/"), "{held}");
    let mut waiter = Etcdctl::lock(&cluster, "/app/jobs");
    let limit = Instant::now() + LONG;
    let info = loop {
        let info = queries::lock_info(&etcd, &name("jobs"), LONG).await.unwrap().unwrap();
        if info.waiters == 1 {
            break info;
        }
        assert!(Instant::now() < limit);
    };
    assert_eq!((info.owner.as_ref(), info.created_at), (None, None));
    assert!(held.ends_with(&format!("/{:x}", info.lease_id.unwrap())), "{held} {info:?}");
    assert!(info.ttl_remaining.is_some());
    assert_eq!(queries::list_locks(&etcd, &root(), "", LONG).await.unwrap().len(), 1);

    let evicted =
        queries::force_unlock(&etcd, &name("jobs"), None, ForceUnlock::Session, LONG).await.unwrap();
    assert_eq!((evicted.lease_id, evicted.waiters), (info.lease_id, 1));
    let next = waiter.held_key();
    assert!(next.starts_with("/app/jobs/") && next != held, "{next}");
    let gone = call(&etcd, Request::RenewLease { lease: info.lease_id.unwrap() }).await.unwrap_err();
    assert_eq!(gone.class, FailureClass::LeaseGone);
}

/// A queue of more than one page, whose keys sort in another order than they were created.
#[tokio::test]
async fn a_queue_of_many_pages_is_ordered_by_create_revision() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    assert!(queries::queue(&etcd, &name("a"), LONG).await.unwrap().is_empty());
    // Later keys sort first. Those of one transaction share a create revision and are ordered by key.
    for batch in (0..25_u64).rev() {
        let put = |i| Op::Put {
            key: name("a").contender_key(Mode::Exclusive, lease, 0x1000 + batch * 100 + i),
            value: Vec::new(),
            lease,
        };
        call(&etcd, always((0..100).map(put).collect())).await.unwrap();
    }
    let queue = queries::queue(&etcd, &name("a"), LONG).await.unwrap();
    assert_eq!(queue.len(), 2500);
    assert!(queue.is_sorted_by_key(|info| info.token));
    assert!(queue.iter().rev().enumerate().all(|(behind, info)| info.waiters == behind));
    assert_eq!(queue.iter().filter(|info| info.state == LockState::Held).count(), 1);
    assert_eq!(queue[0].state, LockState::Held);
}
