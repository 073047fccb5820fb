//! Every kind of request and its answer.

use std::time::Duration;

use crate::kv::{
    Answer, Compare, FailureClass, Field, Op, OpResult, Order, Range, RangeResult, Request, Span, Txn,
    TxnAnswer,
};
use crate::store::etcd::coalesced::tests::WRITES;
use crate::store::etcd::tests::cluster::{
    TestCluster, always, call, connect, grant, key, keys, put, put_key, range, txn_answer,
};

fn prefix(text: &str) -> Span {
    Span::Prefix(key(text))
}

#[tokio::test]
async fn a_lease_is_granted_renewed_queried_and_revoked() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let granted = call(&etcd, Request::GrantLease { ttl: Duration::from_millis(59_001) }).await.unwrap();
    assert!(granted.revision > 0 && granted.term > 0);
    let Answer::LeaseGranted { lease, ttl } = granted.answer else { panic!("{granted:?}") };
    assert_eq!(ttl, Duration::from_secs(60), "whole seconds, rounded up");
    for _ in 0..3 {
        let renewed = call(&etcd, Request::RenewLease { lease }).await.unwrap();
        assert_eq!(renewed.answer, Answer::LeaseRenewed { ttl });
        assert_eq!((renewed.term, renewed.revision), (granted.term, granted.revision));
    }
    let asked = call(&etcd, Request::LeaseTimeToLive { lease }).await.unwrap();
    let Answer::LeaseTimeToLive { remaining: Some(remaining) } = asked.answer else { panic!("{asked:?}") };
    assert!((55..=60).contains(&remaining.as_secs()), "{remaining:?}");

    put_key(&etcd, "/leased", lease).await;
    assert_eq!(call(&etcd, Request::RevokeLease { lease }).await.unwrap().answer, Answer::LeaseRevoked);
    assert!(keys(&etcd, range(prefix("/"))).await.is_empty());
    let asked = call(&etcd, Request::LeaseTimeToLive { lease }).await.unwrap();
    assert_eq!(asked.answer, Answer::LeaseTimeToLive { remaining: None });
    for request in [
        Request::RenewLease { lease },
        Request::RevokeLease { lease },
        always(vec![put("/leased", "", lease)]),
    ] {
        assert_eq!(
            call(&etcd, request.clone()).await.unwrap_err().class,
            FailureClass::LeaseGone,
            "{request:?}"
        );
    }
}

/// Every write to the socket wakes etcd. etcd answers each request with a ping of its own, too.
#[tokio::test]
async fn a_request_is_written_to_the_socket_at_once() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    put_key(&etcd, "/a", 0).await;
    let (before, cycles) = (WRITES.get(), 200);
    for _ in 0..cycles {
        put_key(&etcd, "/a", 0).await;
        call(&etcd, always(vec![Op::Delete { key: key("/a") }])).await.unwrap();
    }
    let writes = WRITES.get() - before;
    assert!(writes <= 4 * cycles, "{writes} writes for {cycles} pairs of requests");
}

#[tokio::test]
async fn a_delete_returns_the_number_of_deleted_keys() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let put_at = put_key(&etcd, "/a", 0).await;
    for (count, revision) in [(1, put_at + 1), (0, put_at + 1)] {
        let response = call(&etcd, Request::Delete { key: key("/a") }).await.unwrap();
        assert_eq!((response.answer, response.revision), (Answer::Deleted { count }, revision));
    }
}

#[tokio::test]
async fn a_range_respects_its_order_limit_bounds_and_revision() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    put_key(&etcd, "/x/c", 0).await;
    let second = put_key(&etcd, "/x/a", 0).await;
    put_key(&etcd, "/x/b", 0).await;
    put_key(&etcd, "/y", 0).await;
    let all = range(prefix("/x/"));
    let table = [
        (all.clone(), "/x/a /x/b /x/c"),
        (Range { order: Order::OldestFirst, ..all.clone() }, "/x/c /x/a /x/b"),
        (Range { order: Order::NewestFirst, limit: 2, ..all.clone() }, "/x/b /x/a"),
        (Range { order: Order::NewestFirst, limit: 1, max_create_revision: second, ..all.clone() }, "/x/a"),
        (Range { at_revision: second, ..all.clone() }, "/x/a /x/c"),
        (range(Span::Key(key("/x/b"))), "/x/b"),
        (range(Span::Between(key("/x/b"), key("/y"))), "/x/b /x/c"),
        (range(Span::Between(key("/x/b"), key("/y\0"))), "/x/b /x/c /y"),
        (range(Span::Prefix(key(""))), "/x/a /x/b /x/c /y"),
        (range(prefix("/z")), ""),
    ];
    for (range, expected) in table {
        assert_eq!(keys(&etcd, range.clone()).await.join(" "), expected, "{range:?}");
    }
}

#[tokio::test]
async fn a_key_is_read_with_all_its_fields() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    let created = call(&etcd, always(vec![put("/k", "one", lease)])).await.unwrap().revision;
    let read = Op::Range(Range { limit: 1, ..range(prefix("/k")) });
    let keys_only = Op::Range(Range { keys_only: true, ..range(prefix("/k")) });
    let answer =
        txn_answer(call(&etcd, always(vec![put("/k", "two", lease), read, keys_only])).await.unwrap());
    let [OpResult::Put, OpResult::Range(full), OpResult::Range(bare)] = &answer.results[..] else {
        panic!("{answer:?}")
    };
    let [kv] = &full.kvs[..] else { panic!("{full:?}") };
    assert_eq!((kv.key.as_bytes(), &kv.value[..], kv.lease), (&b"/k"[..], &b"two"[..], lease));
    assert_eq!((kv.create_revision, kv.mod_revision), (created, created + 1));
    assert_eq!(bare.kvs[0].value, b"");
    assert_eq!((full.count, bare.count), (1, 1));
}

#[tokio::test]
async fn a_transaction_returns_the_results_of_the_branch_it_took_at_every_depth() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let free = Compare::equal(prefix("/l/"), Field::CreateRevision, 0);
    let inner = Txn {
        when: vec![free.clone()],
        then: vec![Op::Delete { key: key("/other") }],
        otherwise: vec![Op::Range(range(prefix("/l/")))],
    };
    let outer = Txn {
        when: vec![free],
        then: vec![put("/l/1", "", 0), Op::Txn(inner.clone())],
        otherwise: vec![Op::Txn(inner)],
    };
    let first = txn_answer(call(&etcd, Request::Txn(outer.clone())).await.unwrap());
    let nested = TxnAnswer { succeeded: true, results: vec![OpResult::Deleted { count: 0 }] };
    assert_eq!(first, TxnAnswer { succeeded: true, results: vec![OpResult::Put, OpResult::Txn(nested)] });

    let second = txn_answer(call(&etcd, Request::Txn(outer)).await.unwrap());
    assert!(!second.succeeded);
    let [OpResult::Txn(TxnAnswer { succeeded: false, results })] = &second.results[..] else {
        panic!("{second:?}")
    };
    assert!(matches!(&results[..], [OpResult::Range(RangeResult { kvs, count: 1 })] if kvs.len() == 1));

    let epoch = |revision| Compare::equal(Span::Key(key("/l/1")), Field::ModRevision, revision);
    let at = call(&etcd, always(vec![put("/l/1", "", 0)])).await.unwrap().revision;
    let older_than = |revision| Compare::less(prefix("/l/"), Field::ModRevision, revision);
    for (compare, holds) in [
        (epoch(at), true),
        (epoch(at - 1), false),
        (older_than(at + 1), true),
        (older_than(at), false),
        (Compare::less(prefix("/none/"), Field::CreateRevision, 1), true),
        (Compare::less(prefix("/none/"), Field::CreateRevision, 0), false),
    ] {
        let txn = Txn { when: vec![compare], ..Txn::default() };
        assert_eq!(txn_answer(call(&etcd, Request::Txn(txn)).await.unwrap()).succeeded, holds);
    }
}

#[tokio::test]
async fn each_refusal_has_its_failure_class() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let revision = put_key(&etcd, "/a", 0).await;
    put_key(&etcd, "/a", 0).await;
    cluster.etcdctl(&["compact", &(revision + 1).to_string()]);
    let at = |at_revision| always(vec![Op::Range(Range { at_revision, ..range(prefix("/a")) })]);
    let many = (0..200).map(|i| put(&format!("/many/{i}"), "", 0)).collect();
    let large = always(vec![put("/large", &"x".repeat(3 << 20), 0)]);
    let table = [
        (at(revision), FailureClass::Compacted),
        (at(revision + 100), FailureClass::Compacted),
        (always(many), FailureClass::TooManyOperations),
        (always(vec![put("/a", "", 0), put("/a", "", 0)]), FailureClass::Refused),
        (large, FailureClass::TooLarge),
    ];
    for (request, class) in table {
        let failure = call(&etcd, request).await.unwrap_err();
        assert_eq!(failure.class, class, "{failure}");
    }
}

#[tokio::test]
async fn a_full_store_refuses_puts_and_still_deletes_and_renews() {
    let cluster = TestCluster::start_with(1, "http", &["--quota-backend-bytes=65536"]);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    put_key(&etcd, "/held", lease).await;
    let fill = always(vec![put("/fill", &"x".repeat(32 << 10), 0)]);
    let mut last = call(&etcd, fill.clone()).await;
    while last.is_ok() {
        last = call(&etcd, fill.clone()).await;
    }
    assert_eq!(last.unwrap_err().class, FailureClass::NoSpace);
    assert!(call(&etcd, Request::RenewLease { lease }).await.is_ok());
    let deleted = call(&etcd, Request::Delete { key: key("/held") }).await.unwrap();
    assert_eq!(deleted.answer, Answer::Deleted { count: 1 });
}
