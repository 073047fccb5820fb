//! The watch stream: what it reports, and which faults it survives.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::kv::{Key, Op, Request, Revision, Span, WatchEvent, WatchId, WatchSpec};
use crate::store::etcd::Etcd;
use crate::store::etcd::tests::cluster::{
    LONG, TestCluster, always, as_user, call, connect, connect_with, grant, key, patient, put, put_key,
};
use crate::store::{Store, WatchOrder};

struct Watcher {
    orders: UnboundedSender<WatchOrder>,
    events: UnboundedReceiver<WatchEvent>,
    task: JoinHandle<()>,
}

impl Watcher {
    fn start(etcd: &Etcd) -> Self {
        let (orders, taken) = unbounded_channel();
        let (report, events) = unbounded_channel();
        Self { orders, events, task: tokio::spawn(etcd.run_watches(taken, report)) }
    }

    fn open(&self, id: u64, span: Span, from_revision: Revision) {
        let spec = WatchSpec { span, from_revision, puts: false };
        self.orders.send(WatchOrder::Open { id: WatchId(id), spec }).unwrap();
    }

    fn open_key(&self, id: u64, name: &str) {
        self.open(id, Span::Key(key(name)), 0);
    }

    fn close(&self, id: u64) {
        self.orders.send(WatchOrder::Close { id: WatchId(id) }).unwrap();
    }

    async fn next(&mut self) -> WatchEvent {
        timeout(LONG, self.events.recv()).await.expect("no event").expect("the watches have ended")
    }

    async fn created(&mut self, id: u64) -> Revision {
        match self.next().await {
            WatchEvent::Created { watch: WatchId(watch), revision } if watch == id => revision,
            other => panic!("expected the creation of watch {id}, not {other:?}"),
        }
    }

    async fn deleted(&mut self, id: u64) -> (String, Revision) {
        match self.next().await {
            WatchEvent::Deleted { watch: WatchId(watch), keys, revision } if watch == id => {
                (keys.iter().map(Key::to_string).collect::<Vec<_>>().join(" "), revision)
            }
            other => panic!("expected a deletion of watch {id}, not {other:?}"),
        }
    }
}

async fn delete(etcd: &Etcd, name: &str) -> Revision {
    call(etcd, Request::Delete { key: key(name) }).await.unwrap().revision
}

#[tokio::test]
async fn a_watch_reports_deletions_and_nothing_else() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let revision = put_key(&etcd, "/a", 0).await;
    let mut watcher = Watcher::start(&etcd);
    watcher.open_key(1, "/a");
    assert_eq!(watcher.created(1).await, revision);
    put_key(&etcd, "/a", 0).await;
    put_key(&etcd, "/a/b", 0).await;
    delete(&etcd, "/a/b").await;
    let deleted = delete(&etcd, "/a").await;
    assert_eq!(watcher.deleted(1).await, ("/a".into(), deleted));
    // The watch continues after a deletion, and reports the one that the end of a lease causes.
    let lease = grant(&etcd, 60).await;
    put_key(&etcd, "/a", lease).await;
    let revoked = call(&etcd, Request::RevokeLease { lease }).await.unwrap().revision;
    assert_eq!(watcher.deleted(1).await, ("/a".into(), revoked));
}

#[tokio::test]
async fn a_watch_covers_its_whole_span() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    for name in ["/a/1", "/a/2", "/b", "/c"] {
        put_key(&etcd, name, 0).await;
    }
    let mut watcher = Watcher::start(&etcd);
    watcher.open(1, Span::Prefix(key("/a/")), 0);
    watcher.created(1).await;
    watcher.open(2, Span::Between(key("/b"), key("/c")), 0);
    watcher.created(2).await;
    let gone = always(["/a/1", "/a/2"].map(|name| Op::Delete { key: key(name) }).into());
    call(&etcd, gone).await.unwrap();
    assert_eq!(watcher.deleted(1).await.0, "/a/1 /a/2", "one commit, one event");
    delete(&etcd, "/c").await;
    delete(&etcd, "/b").await;
    assert_eq!(watcher.deleted(2).await.0, "/b");
}

#[tokio::test]
async fn a_closed_watch_reports_nothing_and_the_task_ends_with_its_orders() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let mut watcher = Watcher::start(&etcd);
    for id in [1, 2] {
        watcher.open_key(id, "/a");
        watcher.created(id).await;
    }
    watcher.close(1);
    // Orders are served in order, so the first watch is closed before the third is created.
    watcher.open_key(3, "/z");
    watcher.created(3).await;
    put_key(&etcd, "/a", 0).await;
    delete(&etcd, "/a").await;
    watcher.deleted(2).await;
    put_key(&etcd, "/z", 0).await;
    delete(&etcd, "/z").await;
    watcher.deleted(3).await;
    drop(watcher.orders);
    timeout(LONG, watcher.task).await.unwrap().unwrap();
    assert!(watcher.events.recv().await.is_none());
}

#[tokio::test]
async fn a_watch_in_the_past_reports_old_deletions_or_starts_now_if_they_are_compacted() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let put_at = put_key(&etcd, "/a", 0).await;
    let deleted_at = delete(&etcd, "/a").await;
    let mut watcher = Watcher::start(&etcd);
    watcher.open(1, Span::Key(key("/a")), put_at);
    watcher.created(1).await;
    assert_eq!(watcher.deleted(1).await, ("/a".into(), deleted_at));

    let now = put_key(&etcd, "/a", 0).await;
    cluster.etcdctl(&["compact", &now.to_string()]);
    watcher.open(2, Span::Key(key("/a")), put_at);
    let mut created = watcher.created(2).await;
    // Created, cancelled because of the compaction, created again from the current revision.
    while created < now || watcher.events.is_empty() {
        if let Ok(event) = timeout(Duration::from_millis(500), watcher.events.recv()).await {
            let Some(WatchEvent::Created { watch: WatchId(2), revision }) = event else {
                panic!("{event:?}")
            };
            created = revision;
        } else {
            break;
        }
    }
    let deleted_at = delete(&etcd, "/a").await;
    let mut ids = [watcher.next().await, watcher.next().await].map(|event| match event {
        WatchEvent::Deleted { watch: WatchId(id), revision, .. } => (id, revision),
        other => panic!("{other:?}"),
    });
    ids.sort_unstable();
    assert_eq!(ids, [(1, deleted_at), (2, deleted_at)]);
}

#[tokio::test]
async fn watches_move_on_when_their_member_is_killed() {
    let mut cluster = TestCluster::start(3);
    let etcd = connect(&cluster.urls()).await;
    let mut watcher = Watcher::start(&etcd);
    put_key(&etcd, "/a", 0).await;
    watcher.open_key(1, "/a");
    watcher.created(1).await;
    watcher.open_key(2, "/b");
    watcher.created(2).await;
    let pinned = cluster.member_of(&etcd);
    cluster.kill(pinned);
    watcher.created(1).await;
    watcher.created(2).await;
    assert_ne!(etcd.pinned(), cluster.urls()[pinned]);
    let deleted = loop {
        // There may be an election.
        match call(&etcd, Request::Delete { key: key("/a") }).await {
            Ok(response) => break response.revision,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    // If requests move to another member meanwhile, the watches follow. Their later start revision makes the owner re-read.
    loop {
        match watcher.next().await {
            WatchEvent::Deleted { watch: WatchId(1), revision, .. } => break assert_eq!(revision, deleted),
            WatchEvent::Created { watch: WatchId(1), revision } if revision >= deleted => break,
            WatchEvent::Created { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn watches_leave_a_frozen_member() {
    let cluster = TestCluster::start(3);
    for member in 0..3 {
        connect(&cluster.url(member)).await;
    }
    let etcd = connect(&cluster.urls()).await;
    let mut watcher = Watcher::start(&etcd);
    watcher.open_key(1, "/a");
    watcher.created(1).await;
    let pinned = cluster.member_of(&etcd);
    cluster.freeze(pinned);
    let begun = Instant::now();
    watcher.created(1).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    cluster.thaw(pinned);
}

#[tokio::test]
async fn a_quiet_stream_is_kept() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let mut watcher = Watcher::start(&etcd);
    watcher.open_key(1, "/a");
    watcher.created(1).await;
    // Longer than the silence after which a stream counts as dead.
    let event = timeout(Duration::from_secs(6), watcher.events.recv()).await;
    assert!(event.is_err(), "{event:?}");
}

#[tokio::test]
async fn watches_resume_when_the_server_is_restarted() {
    let mut cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let mut watcher = Watcher::start(&etcd);
    put_key(&etcd, "/a", 0).await;
    watcher.open_key(1, "/a");
    watcher.created(1).await;
    cluster.kill(0);
    // Opened while there is no server.
    watcher.open_key(2, "/b");
    cluster.restart(0);
    watcher.created(1).await;
    watcher.created(2).await;
    delete(&etcd, "/a").await;
    watcher.deleted(1).await;
}

#[tokio::test]
async fn one_stream_carries_ten_thousand_watches() {
    const COUNT: u64 = 10_000;
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let mut watcher = Watcher::start(&etcd);
    for id in 0..COUNT {
        watcher.open_key(id, &format!("/k/{id:05}"));
    }
    for id in 0..COUNT {
        watcher.created(id).await;
    }
    for first in (0..COUNT).step_by(100) {
        let names = (first..first + 100).map(|id| format!("/k/{id:05}"));
        let puts = names.clone().map(|name| put(&name, "", 0)).collect();
        call(&etcd, always(puts)).await.unwrap();
        let deletes = names.map(|name| Op::Delete { key: key(&name) }).collect();
        call(&etcd, always(deletes)).await.unwrap();
    }
    let mut gone = vec![false; COUNT as usize];
    for _ in 0..COUNT {
        let WatchEvent::Deleted { watch: WatchId(id), keys, .. } = watcher.next().await else { panic!() };
        assert_eq!(keys[0].to_string(), format!("/k/{id:05}"));
        assert!(!std::mem::replace(&mut gone[id as usize], true));
    }
    for id in 0..COUNT {
        watcher.close(id);
    }
    watcher.open_key(COUNT, "/last");
    watcher.created(COUNT).await;
}

#[tokio::test]
async fn a_watch_without_permission_opens_once_it_is_granted() {
    let cluster = TestCluster::start(1);
    connect(&cluster.urls()).await;
    cluster.enable_auth();
    let app = connect_with(&cluster.urls(), &patient(as_user("app", "app"))).await.unwrap();
    let mut watcher = Watcher::start(&app);
    watcher.open_key(1, "/app/a");
    watcher.created(1).await;
    watcher.open_key(2, "/secret");
    watcher.open_key(3, "/app/b");
    watcher.created(3).await;
    cluster.etcdctl(&["--user=root:root", "role", "grant-permission", "app", "readwrite", "/secret"]);
    loop {
        if let WatchEvent::Created { watch: WatchId(2), .. } = watcher.next().await {
            break;
        }
    }
}

#[tokio::test]
async fn an_expired_token_makes_the_watches_reopen_their_stream() {
    let cluster = TestCluster::start_with(1, "http", &["--auth-token-ttl=1"]);
    connect(&cluster.urls()).await;
    cluster.enable_auth();
    let app = connect_with(&cluster.urls(), &patient(as_user("app", "app"))).await.unwrap();
    let mut watcher = Watcher::start(&app);
    watcher.open_key(1, "/app/a");
    watcher.created(1).await;
    // etcd drops a token that was not used for its TTL, at the next tick of its clock.
    tokio::time::sleep(Duration::from_millis(3100)).await;
    watcher.open_key(2, "/app/b");
    watcher.created(1).await;
    watcher.created(2).await;
    assert_eq!(app.tokens(), 2);
    put_key(&app, "/app/b", 0).await;
    delete(&app, "/app/b").await;
    watcher.deleted(2).await;
}
