//! Endpoints that die, freeze and come back.

use std::time::{Duration, Instant};

use crate::kv::{Answer, FailureClass, Request, Span};
use crate::store::Store;
use crate::store::etcd::tests::cluster::{
    LONG, TestCluster, always, call, connect, dead_url, grant, key, keys, put, put_key, range,
};

/// Repeats a put while its outcome is unknown, as the protocol does, until it succeeds.
async fn put_eventually(etcd: &impl Store, name: &str, attempt: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        match etcd.call(always(vec![put(name, "", 0)]), attempt).await {
            Ok(_) => return begun.elapsed(),
            Err(failure) => {
                assert!(
                    matches!(failure.class, FailureClass::Unknown | FailureClass::NotDone),
                    "{failure:?}"
                );
                assert!(begun.elapsed() < LONG, "{failure}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test]
async fn requests_move_to_another_member_whichever_one_is_killed() {
    let mut cluster = TestCluster::start(3);
    let etcd = connect(&cluster.urls()).await;
    for member in 0..3 {
        cluster.kill(member);
        put_eventually(&etcd, "/a", Duration::from_secs(2)).await;
        put_key(&etcd, "/b", 0).await;
        cluster.restart(member);
        let restarted = connect(&cluster.url(member)).await;
        put_key(&restarted, "/c", 0).await;
    }
}

#[tokio::test]
async fn a_call_that_meets_a_dead_endpoint_succeeds_at_another() {
    let cluster = TestCluster::start(1);
    let urls = [dead_url(), dead_url(), cluster.urls()[0].clone()];
    let etcd = connect(&urls).await;
    for request in [always(vec![put("/a", "", 0)]), Request::GrantLease { ttl: Duration::from_secs(60) }] {
        etcd.pin(0);
        call(&etcd, request).await.unwrap();
    }
    let lease = grant(&etcd, 60).await;
    etcd.pin(1);
    call(&etcd, Request::RenewLease { lease }).await.unwrap();
    assert_eq!(etcd.pinned(), urls[2]);
}

#[tokio::test]
async fn without_any_endpoint_a_request_is_not_done() {
    let mut cluster = TestCluster::start(1);
    let etcd = connect(&[cluster.urls(), vec![dead_url()]].concat()).await;
    cluster.kill(0);
    // The first one may have been on its way when the server died.
    let _ = call(&etcd, Request::Delete { key: key("/a") }).await;
    let failure = call(&etcd, Request::Delete { key: key("/a") }).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::NotDone, "{failure}");
    cluster.restart(0);
    put_eventually(&etcd, "/a", Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_frozen_member_costs_one_timeout() {
    let cluster = TestCluster::start(3);
    for member in 0..3 {
        connect(&cluster.url(member)).await;
    }
    let follower = (leader(&cluster) + 1) % 3;
    let etcd = connect(&cluster.urls()).await;
    etcd.pin(follower);
    put_key(&etcd, "/before", 0).await;
    assert_eq!(etcd.pinned(), cluster.url(follower)[0]);
    cluster.freeze(follower);
    let attempt = Duration::from_secs(1);
    let burst: Vec<_> = (0..50)
        .map(|i| {
            let etcd = etcd.clone();
            tokio::spawn(async move { etcd.call(always(vec![put(&format!("/{i}"), "", 0)]), attempt).await })
        })
        .collect();
    for call in burst {
        let failure = call.await.unwrap().unwrap_err();
        assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
    }
    let begun = Instant::now();
    put_key(&etcd, "/after", 0).await;
    assert!(begun.elapsed() < attempt, "the pin has moved");
    cluster.thaw(follower);
}

#[tokio::test]
async fn an_election_does_not_move_the_pin_from_a_healthy_member() {
    let mut cluster = TestCluster::start(3);
    for member in 0..3 {
        connect(&cluster.url(member)).await;
    }
    let etcd = connect(&cluster.urls()).await;
    // If this machine stalls for half a second, any member looks dead; but hardly three times in a row.
    for _ in 0..3 {
        let leader = leader(&cluster);
        etcd.pin((leader + 1) % 3);
        put_key(&etcd, "/before", 0).await;
        let pinned = etcd.pinned();
        cluster.kill(leader);
        put_eventually(&etcd, "/after", LONG).await;
        if etcd.pinned() == pinned {
            return;
        }
        cluster.restart(leader);
        put_key(&connect(&cluster.url(leader)).await, "/back", 0).await;
    }
    panic!("every election moved the pin");
}

#[tokio::test]
async fn a_request_lost_with_the_leader_fails_once_later_ones_are_answered() {
    let cluster = TestCluster::start(3);
    for member in 0..3 {
        connect(&cluster.url(member)).await;
    }
    let frozen = leader(&cluster);
    // The only endpoint, and a healthy one.
    let etcd = connect(&cluster.url((frozen + 1) % 3)).await;
    put_key(&etcd, "/before", 0).await;
    cluster.freeze(frozen);
    let lost = tokio::spawn({
        let etcd = etcd.clone();
        async move { etcd.call(always(vec![put("/lost", "", 0)]), LONG).await }
    });
    let quick = Duration::from_millis(200);
    while !lost.is_finished() {
        let _ = etcd.call(always(vec![put("/later", "", 0)]), quick).await;
        tokio::time::sleep(quick / 10).await;
    }
    let failure = lost.await.unwrap().unwrap_err();
    assert_eq!(failure.class, FailureClass::Unknown);
    // etcd itself would report it after seven seconds, in other words.
    assert!(failure.message.contains("later requests have theirs"), "{failure}");
    cluster.thaw(frozen);
}

#[tokio::test]
async fn a_timeout_too_short_for_an_answer_does_not_blame_the_endpoint() {
    let cluster = TestCluster::start(3);
    for member in 0..3 {
        connect(&cluster.url(member)).await;
    }
    let etcd = connect(&cluster.urls()).await;
    let forever = etcd.call(Request::Delete { key: key("/a") }, Duration::MAX).await;
    assert!(forever.is_ok(), "{forever:?}");
    let pinned = etcd.pinned();
    let member = cluster.member_of(&etcd);
    // No answer comes in time, however fast the machine is.
    cluster.freeze(member);
    for timeout in [Duration::ZERO, Duration::from_micros(50), Duration::from_millis(2)].repeat(7) {
        let failure = etcd.call(Request::Delete { key: key("/a") }, timeout).await.unwrap_err();
        assert!(matches!(failure.class, FailureClass::Unknown | FailureClass::NotDone), "{failure:?}");
    }
    assert_eq!(etcd.pinned(), pinned);
    cluster.thaw(member);
}

#[tokio::test]
async fn a_foreign_cluster_found_late_is_never_used() {
    let (own, foreign) = (TestCluster::start(1), TestCluster::start(1));
    connect(&own.urls()).await;
    connect(&foreign.urls()).await;
    foreign.freeze(0);
    let etcd = connect(&[own.urls(), foreign.urls()].concat()).await;
    foreign.thaw(0);
    etcd.pin(1);
    for name in ["/a", "/b"] {
        put_key(&etcd, name, 0).await;
    }
    assert_eq!(etcd.pinned(), own.urls()[0]);
    let own = connect(&own.urls()).await;
    assert_eq!(keys(&own, range(Span::Prefix(key("/")))).await, ["/a", "/b"]);
}

#[tokio::test]
async fn a_renewal_survives_the_death_of_the_member_it_went_through() {
    let mut cluster = TestCluster::start(3);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    for member in 0..3 {
        call(&etcd, Request::RenewLease { lease }).await.unwrap();
        cluster.kill(member);
        let begun = Instant::now();
        loop {
            let renewed = etcd.call(Request::RenewLease { lease }, Duration::from_secs(2)).await;
            match renewed {
                Ok(response) => {
                    assert_eq!(response.answer, Answer::LeaseRenewed { ttl: Duration::from_secs(60) });
                    break;
                }
                Err(failure) => {
                    assert_ne!(failure.class, FailureClass::LeaseGone);
                    assert!(begun.elapsed() < LONG, "{failure}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        cluster.restart(member);
        connect(&cluster.url(member)).await;
    }
}

#[tokio::test]
async fn after_a_renewal_times_out_the_next_one_uses_a_new_stream() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lease = grant(&etcd, 60).await;
    call(&etcd, Request::RenewLease { lease }).await.unwrap();
    cluster.freeze(0);
    let failure = etcd.call(Request::RenewLease { lease }, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Unknown, "{failure}");
    cluster.thaw(0);
    call(&etcd, Request::RenewLease { lease }).await.unwrap();
    call(&etcd, Request::Delete { key: key("/none") }).await.unwrap();
}

/// The index of the cluster's leader.
fn leader(cluster: &TestCluster) -> usize {
    let output = cluster.etcdctl(&["endpoint", "status", "--write-out=simple"]);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().position(|line| line.split(", ").nth(4) == Some("true")).expect(&text)
}
