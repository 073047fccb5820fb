//! Connecting, with and without success.

use std::time::{Duration, Instant};

use crate::error::LockError;
use crate::kv::{FailureClass, Request};
use crate::options::LockManagerOptions;
use crate::store::etcd::tests::cluster::{
    TestCluster, always, as_user, black_hole, call, connect, connect_with, dead_url, key, options, patient,
    put, put_key,
};

/// Connecting fails within the connect timeout (and a little for a busy machine).
async fn refused(endpoints: &[String], options: &LockManagerOptions) -> LockError {
    let begun = Instant::now();
    let result = connect_with(endpoints, options).await;
    let limit = options.connect_timeout + Duration::from_millis(500);
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    match result {
        Err(error) => error,
        Ok(_) => panic!("connected to {endpoints:?}"),
    }
}

fn quick() -> LockManagerOptions {
    LockManagerOptions { connect_timeout: Duration::from_secs(1), ..options() }
}

#[tokio::test]
async fn refused_connections_fail_at_once_and_name_every_endpoint() {
    let urls = [dead_url(), dead_url()];
    let begun = Instant::now();
    let error = refused(&urls, &options()).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(matches!(error, LockError::Unavailable { .. }), "{error:?}");
    assert!(urls.iter().all(|url| error.to_string().contains(url)), "{}", error.to_string());
    assert!(error.to_string().contains("refused"), "{}", error.to_string());
}

#[tokio::test]
async fn a_server_that_never_answers_is_unavailable_after_the_connect_timeout() {
    let (_listener, url) = black_hole();
    for options in [quick(), LockManagerOptions { credentials: as_user("a", "b").credentials, ..quick() }] {
        let error = refused(std::slice::from_ref(&url), &options).await;
        assert!(matches!(error, LockError::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains("no answer"), "{}", error.to_string());
    }
}

#[tokio::test]
async fn a_server_other_than_etcd_is_unavailable() {
    let (listener, url) = black_hole();
    // One that answers every connection in plain HTTP/1.
    let server = std::thread::spawn(move || {
        use std::io::Write;
        listener.set_nonblocking(false).unwrap();
        let (mut client, _) = listener.accept().unwrap();
        client.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").unwrap();
        client
    });
    let error = refused(&[url], &quick()).await;
    assert!(matches!(error, LockError::Unavailable { .. }), "{error:?}");
    drop(server.join());
}

#[tokio::test]
async fn one_good_endpoint_among_five_bad_ones_connects_at_once() {
    let cluster = TestCluster::start(1);
    connect(&cluster.urls()).await;
    let (_one, first) = black_hole();
    let (_two, second) = black_hole();
    let mut urls = vec![dead_url(), first, dead_url(), second, dead_url()];
    urls.extend(cluster.urls());
    let begun = Instant::now();
    let etcd = connect_with(&urls, &options()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    put_key(&etcd, "/a", 0).await;
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_refused_by_name() {
    let (one, two) = (TestCluster::start(1), TestCluster::start(1));
    connect(&one.urls()).await;
    connect(&two.urls()).await;
    let urls = [one.urls(), two.urls()].concat();
    let error = refused(&urls, &options()).await;
    let LockError::InvalidOptions { why } = error else { panic!("{error:?}") };
    assert!(urls.iter().all(|url| why.contains(url)), "{why}");
}

#[tokio::test]
async fn a_member_without_a_quorum_is_unavailable() {
    let mut cluster = TestCluster::start(3);
    connect(&cluster.urls()).await;
    cluster.kill(1);
    cluster.kill(2);
    let error = refused(&cluster.url(0), &quick()).await;
    assert!(matches!(error, LockError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn credentials_are_required_checked_and_sent() {
    let cluster = TestCluster::start(1);
    connect(&cluster.urls()).await;
    let early = connect_with(&cluster.urls(), &as_user("app", "app")).await.unwrap();
    cluster.enable_auth();

    for options in [as_user("app", "wrong"), as_user("nobody", "x"), options()] {
        let error = refused(&cluster.urls(), &options).await;
        assert!(matches!(error, LockError::Unauthenticated { .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
    }
    let (_listener, hole) = black_hole();
    let begun = Instant::now();
    let error = refused(&[hole, cluster.urls()[0].clone()], &as_user("app", "wrong")).await;
    assert!(matches!(error, LockError::Unauthenticated { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "it does not wait for the silent one");

    let app = connect_with(&cluster.urls(), &patient(as_user("app", "app"))).await.unwrap();
    put_key(&app, "/app/a", 0).await;
    put_key(&early, "/app/a", 0).await;
    let denied = call(&app, always(vec![put("/b", "", 0)])).await;
    assert_eq!(denied.unwrap_err().class, FailureClass::PermissionDenied);
}

#[tokio::test]
async fn an_expired_token_is_replaced_once_for_all_concurrent_requests() {
    let cluster = TestCluster::start_with(1, "http", &["--auth-token-ttl=1"]);
    connect(&cluster.urls()).await;
    cluster.enable_auth();
    let app = connect_with(&cluster.urls(), &patient(as_user("app", "app"))).await.unwrap();
    put_key(&app, "/app/a", 0).await;
    assert_eq!(app.tokens(), 1);
    // etcd drops a token that was not used for its TTL, at the next tick of its clock.
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let app = app.clone();
            tokio::spawn(async move { put_key(&app, &format!("/app/{i}"), 0).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(app.tokens(), 2);
    // A deleted user cannot be authenticated again.
    cluster.etcdctl(&["--user=root:root", "user", "delete", "app"]);
    let failure = call(&app, Request::Delete { key: key("/app/a") }).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Unauthenticated, "{failure}");
}
