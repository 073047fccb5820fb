//! Another cluster behind the same endpoints.

use std::time::{Duration, Instant};

use crate::driver::queries;
use crate::error::LockError;
use crate::info::ForceUnlock;
use crate::kv::{Failure, FailureClass, Request};
use crate::name::{LockName, Root};
use crate::options::LockManagerOptions;
use crate::store::etcd::Etcd;
use crate::store::etcd::tests::cluster::{
    LONG, TestCluster, always, call, connect, grant, options, patient, put, put_key,
};

/// The class of the failure of a put, tried again until an endpoint answers.
async fn refusal(etcd: &Etcd) -> Option<FailureClass> {
    let begun = Instant::now();
    loop {
        let put = always(vec![put("/app/x", "", 0)]);
        match call(etcd, put).await {
            Err(Failure { class: FailureClass::NotDone | FailureClass::Unknown, .. })
                if begun.elapsed() < LONG => {}
            result => return result.err().map(|failure| failure.class),
        }
    }
}

#[tokio::test]
async fn a_foreign_key_can_be_force_unlocked_before_there_is_a_new_session() {
    let mut cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    cluster.replace("another");
    let other = connect(&cluster.urls()).await;
    put_key(&other, "/app/a/by-hand", 0).await;
    assert_eq!(refusal(&etcd).await, Some(FailureClass::LeaseGone), "the session is over");

    let root = Root::parse("/app").unwrap();
    let name = LockName::parse(&root, "a").unwrap();
    let evicted = queries::force_unlock(&etcd, &name, None, ForceUnlock::Lock, LONG).await.unwrap();
    assert_eq!((evicted.key.as_str(), evicted.lease_id), ("a", None));
    let free = queries::force_unlock(&etcd, &name, None, ForceUnlock::Lock, LONG).await.unwrap_err();
    assert!(matches!(free, LockError::NotHeld { .. }), "{free:?}");
    for request in [Request::Delete { key: "/app/a/1".into() }, Request::RenewLease { lease }] {
        let failure = call(&etcd, request).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::LeaseGone, "requests of the old session are still refused");
    }
    grant(&etcd, 60).await;
    assert_eq!(refusal(&etcd).await, None);
}

/// One endpoint now belongs to another cluster. The second one must be asked as well, and does not answer.
#[tokio::test]
async fn a_call_ends_within_its_timeout_while_the_endpoints_are_asked_for_their_cluster() {
    let (mut changed, silent) = (TestCluster::start(1), TestCluster::start(1));
    // With the longest silence limit. The clusters of the endpoints are not known yet.
    let options = LockManagerOptions { ttl: LONG, ..patient(options()) };
    let etcd =
        Etcd::connect_lazy_for_leases(&[changed.urls(), silent.urls()].concat(), &options).await.unwrap();
    put_key(&etcd, "/app/x", 0).await;
    changed.replace("another");
    assert_eq!(refusal(&etcd).await, Some(FailureClass::ClusterChanged));
    silent.freeze(0);
    let begun = Instant::now();
    // The endpoints are asked at most every 200 ms.
    while begun.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        let put = always(vec![put("/app/x", "", 0)]);
        let failure = crate::store::Store::call(&etcd, put, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::ClusterChanged);
        assert!(asked.elapsed() < Duration::from_millis(400), "{:?}", asked.elapsed());
    }
}
