//! Cases that random sequences reach too rarely, or never.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmType};

use super::pair::Pair;
use crate::kv::{
    Answer, Compare, FailureClass, Field, LeaseId, Op, Order, Range, Request, Span, Txn, WatchSpec,
};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn put(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: Vec::new(), lease }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn everything() -> Span {
    Span::Prefix("".into())
}

fn read() -> Op {
    Op::Range(Range {
        span: everything(),
        order: Order::OldestFirst,
        limit: 0,
        max_create_revision: 0,
        at_revision: 0,
        keys_only: false,
    })
}

fn txn(then: Vec<Op>, otherwise: Vec<Op>) -> Txn {
    Txn { when: Vec::new(), then, otherwise }
}

fn nested(then: Vec<Op>) -> Op {
    Op::Txn(txn(then, Vec::new()))
}

impl Pair {
    /// Sends the request to both, which must agree, and expects this class of failure, or none.
    async fn expect(&mut self, request: Request, class: Option<FailureClass>) {
        let answer = self.ask(&request).await.unwrap_or_else(|difference| panic!("{difference}"));
        assert_eq!(answer.err(), class, "{request:?}");
    }

    async fn done(&mut self, request: Request) {
        self.expect(request, None).await;
    }

    async fn do_ops(&mut self, then: Vec<Op>) {
        self.done(Request::Txn(txn(then, Vec::new()))).await;
    }

    async fn refused(&mut self, request: Txn) {
        self.expect(Request::Txn(request), Some(FailureClass::Refused)).await;
    }

    async fn too_long(&mut self, request: Txn) {
        self.expect(Request::Txn(request), Some(FailureClass::TooManyOperations)).await;
    }

    async fn grant(&mut self, ttl: Duration) -> LeaseId {
        match self.ask(&Request::GrantLease { ttl }).await {
            Ok(Ok((_, Answer::LeaseGranted { lease, .. }))) => lease,
            other => panic!("not a grant: {other:?}"),
        }
    }

    async fn begun() -> Self {
        let mut pair = Self::start().await;
        pair.begin(0).await.unwrap();
        pair
    }
}

#[tokio::test]
async fn the_same_leases_are_raised_and_refused() {
    let mut pair = Pair::begun().await;
    for millis in [0, 1, 1000, 2000, 2001, 9_000_000_000_000] {
        let lease = pair.grant(Duration::from_millis(millis)).await;
        pair.done(Request::RevokeLease { lease }).await;
    }
    pair.expect(Request::GrantLease { ttl: secs(9_000_000_001) }, Some(FailureClass::Refused)).await;
}

#[tokio::test]
async fn an_expiring_lease_deletes_its_keys_in_the_same_order() {
    let mut pair = Pair::begun().await;
    let lease = pair.grant(secs(2)).await;
    pair.do_ops(vec![put("b", lease), put("c", 0)]).await;
    pair.do_ops(vec![put("a/x", lease), put("a", lease), put("d", lease)]).await;
    pair.do_ops(vec![put("d", 0)]).await;
    pair.watch(WatchSpec { span: everything(), from_revision: 0, puts: false }).await.unwrap();

    pair.expire(lease).await.unwrap();
    pair.do_ops(vec![read()]).await;
    pair.expect(Request::RenewLease { lease }, Some(FailureClass::LeaseGone)).await;
    pair.expect(Request::Txn(txn(vec![put("e", lease)], vec![])), Some(FailureClass::LeaseGone)).await;
}

#[tokio::test]
async fn the_same_transactions_are_refused_for_their_writes() {
    let mut pair = Pair::begun().await;
    let (put, delete) = (|| put("k", 0), || delete("k"));
    for then in [
        vec![put(), put()],
        vec![put(), delete()],
        vec![delete(), put()],
        vec![nested(vec![put()]), put()],
        vec![nested(vec![put()]), delete()],
        vec![nested(vec![delete()]), put()],
        vec![nested(vec![put()]), nested(vec![put()])],
        vec![nested(vec![delete()]), nested(vec![put()])],
        vec![nested(vec![nested(vec![delete()])]), nested(vec![nested(vec![put()])])],
        vec![put(), Op::Txn(txn(vec![], vec![put()]))],
    ] {
        pair.refused(txn(then.clone(), vec![])).await;
        pair.refused(txn(vec![], then)).await;
    }
    pair.watch(WatchSpec { span: everything(), from_revision: 0, puts: false }).await.unwrap();
    for then in [
        vec![delete(), delete()],
        vec![Op::Txn(txn(vec![put()], vec![put()])), read()],
        vec![Op::Txn(txn(vec![delete()], vec![put()])), read()],
        // The order that etcd does not detect.
        vec![nested(vec![put(), read()]), nested(vec![delete(), read()]), nested(vec![read()])],
        vec![read()],
    ] {
        pair.do_ops(then).await;
    }
    pair.refused(txn(vec![Op::Put { key: "".into(), value: Vec::new(), lease: 0 }], vec![])).await;
    pair.expect(Request::Delete { key: "".into() }, Some(FailureClass::Refused)).await;
    pair.settle().await.unwrap();
}

#[tokio::test]
async fn the_same_transactions_are_refused_for_their_length() {
    let mut pair = Pair::begun().await;
    let batch =
        |count: u32, each: fn(u32) -> Vec<Op>| (0..count).map(|n| nested(each(n))).collect::<Vec<_>>();
    let compare = Compare::equal(everything(), Field::ModRevision, 0);
    let compares = |count| Txn { when: vec![compare.clone(); count], ..Txn::default() };

    pair.done(Request::Txn(compares(128))).await;
    pair.too_long(compares(129)).await;
    pair.do_ops((0..128).map(|n| put(&n.to_string(), 0)).collect()).await;
    pair.too_long(txn((0..129).map(|n| put(&n.to_string(), 0)).collect(), vec![])).await;
    pair.do_ops(batch(127, |n| vec![put(&n.to_string(), 0)])).await;
    pair.too_long(txn(batch(128, |n| vec![put(&n.to_string(), 0)]), vec![])).await;
    pair.do_ops(batch(125, |n| vec![put(&n.to_string(), 0), delete("x"), delete("y")])).await;
    pair.too_long(txn(vec![], batch(126, |n| vec![put(&n.to_string(), 0), delete("x"), delete("y")]))).await;
}

#[tokio::test]
async fn a_full_store_refuses_and_admits_the_same() {
    let mut pair = Pair::begun().await;
    let lease = pair.grant(secs(600)).await;
    pair.do_ops(vec![put("a", lease), put("b", lease), put("c", lease)]).await;
    pair.raw.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.unwrap();
    pair.model.set_no_space(true);

    let full = Some(FailureClass::NoSpace);
    pair.expect(Request::GrantLease { ttl: secs(600) }, full).await;
    pair.expect(Request::Txn(txn(vec![put("d", 0)], vec![])), full).await;
    pair.expect(Request::Txn(txn(vec![read()], vec![put("d", 0)])), full).await;
    pair.do_ops(vec![read(), delete("a"), nested(vec![read()])]).await;
    pair.done(Request::Delete { key: "b".into() }).await;
    pair.done(Request::RenewLease { lease }).await;
    pair.done(Request::RevokeLease { lease }).await;
}

#[tokio::test]
async fn compaction_leaves_the_same_history() {
    let mut pair = Pair::begun().await;
    for key in ["a", "b", "c"] {
        pair.do_ops(vec![put(key, 0)]).await; // 2, 3, 4
    }
    for key in ["a", "b", "c"] {
        pair.do_ops(vec![delete(key), put("d", 0)]).await; // 5, 6, 7
    }
    let watch = |from_revision| WatchSpec { span: everything(), from_revision, puts: false };
    pair.watch(watch(5)).await.unwrap();
    for revision in [6, 6, 5, 100] {
        pair.compact(revision).await.unwrap();
    }
    // The last watch starts before the compaction, and is confirmed a second time.
    for from_revision in [7, 8, 0, 5] {
        pair.watch(watch(from_revision)).await.unwrap();
    }
    pair.settle().await.unwrap();
    for at_revision in [5, 6, 7, 8, 11, 100] {
        let Op::Range(range) = read() else { unreachable!() };
        let read = Op::Range(Range { at_revision, ..range });
        pair.ask(&Request::Txn(txn(vec![read], vec![]))).await.unwrap().ok();
    }
    pair.do_ops(vec![delete("d")]).await;
    pair.settle().await.unwrap();
}
