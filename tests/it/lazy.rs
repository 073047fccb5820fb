//! Managers that start before etcd: calls wait for etcd, and report the problem if it does not come.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use etcd_fixture::free_port;
use etcd_lock::{ErrorCode, LockError, LockManager, LockManagerOptions};

use crate::support::manager::{connect, lock, options};
use crate::support::setup::Access;
use crate::support::{
    Etcd, Proxy, SOON, Setup, eventually, fresh_root, shared, take, wait_for_waiting, within,
};

const REQUEST: Duration = Duration::from_millis(400);
/// The additional time on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

fn nobody() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

fn lazy(endpoint: &str) -> LockManager {
    let options = LockManagerOptions::default().request_timeout(REQUEST);
    LockManager::connect_lazy([endpoint], "/locks", options).unwrap()
}

#[track_caller]
fn lazy_at(access: &Access, root: &str) -> LockManager {
    LockManager::connect_lazy(&access.endpoints, root, options(access)).unwrap()
}

fn timed<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    (action(), begun.elapsed())
}

#[test]
fn invalid_arguments_are_reported_at_once() {
    let good = shared().endpoint();
    let try_with = |endpoint: &str, root: &str, options| LockManager::connect_lazy([endpoint], root, options);
    let bad = [
        try_with("localhost", "/locks", Default::default()),
        try_with("http://localhost:1/v3", "/locks", Default::default()),
        try_with(&good, "", Default::default()),
        try_with(&good, "/locks", LockManagerOptions::default().ttl(Duration::ZERO)),
        LockManager::connect_lazy([""; 0], "/locks", Default::default()),
    ];
    for (index, outcome) in bad.into_iter().enumerate() {
        assert!(matches!(outcome, Err(LockError::InvalidOptions { .. })), "{index}: {outcome:?}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn unreadable_certificates_are_reported_at_once() {
    let tls = etcd_lock::TlsOptions::default().ca_certificate_pem("no certificate");
    let outcome =
        LockManager::connect_lazy(["https://localhost:1"], "/l", LockManagerOptions::default().tls(tls));
    assert!(matches!(outcome, Err(LockError::InvalidOptions { .. })), "{outcome:?}");
}

/// The program starts first, with calls that wait, and then etcd.
#[test]
fn a_program_that_starts_before_etcd_gets_its_lock_once_etcd_is_up() {
    let etcd = Etcd::start();
    etcd.kill();
    let (manager, took) = timed(|| lazy_at(etcd.access(), "/locks"));
    assert!(took < SLACK, "{took:?}");
    let job = manager.new_lock("job").unwrap();
    let late = job.lock_timeout(REQUEST).unwrap_err();
    assert_eq!(late.code(), ErrorCode::Unavailable, "{late}");
    assert!(late.to_string().contains(&etcd.endpoint()) && late.to_string().contains("refused"), "{late}");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| take(&job));
        wait_for_waiting(&manager, 1);
        etcd.restart();
        let guard = waiting.join().unwrap();
        assert!(guard.is_held() && manager.session().is_alive());
        guard.unlock().unwrap();
    });
    let rival = connect(etcd.access(), "/locks");
    let guard = lock(&rival, "job");
    assert!(job.try_lock().unwrap().is_none());
    assert_eq!(manager.lock_info("job").unwrap().unwrap().token, guard.token());
    manager.close().unwrap();
}

#[test]
fn tries_and_queries_end_within_the_request_timeout() {
    let proxy = Proxy::of(shared());
    proxy.blackhole();
    for endpoint in [nobody(), proxy.endpoint()] {
        let manager = lazy(&endpoint);
        let job = manager.new_lock("job").unwrap();
        let outcomes = within(SOON, "they end", move || {
            [
                timed(|| job.try_lock().map(drop)),
                timed(|| manager.lock_info("job").map(drop)),
                timed(|| manager.list_locks("").map(drop)),
            ]
        });
        for (outcome, took) in outcomes {
            let error = outcome.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
            assert!(took < REQUEST + SLACK, "{took:?}: {error}");
        }
    }
}

#[test]
fn a_refusal_ends_the_calls_that_wait() {
    let etcd = Setup::default().arg("--bcrypt-cost=4").user("worker", "worker-secret", "/app/").start();
    let stranger = etcd.access().as_user("worker", "wrong-secret");
    let manager = lazy_at(&stranger, "/app/locks");
    let job = manager.new_lock("job").unwrap();
    for error in [job.lock().unwrap_err(), manager.lock_info("job").unwrap_err()] {
        assert_eq!(error.code(), ErrorCode::Unauthenticated, "{error}");
    }
    let outside = lazy_at(&etcd.access().as_user("worker", "worker-secret"), "/elsewhere");
    let error = outside.new_lock("job").unwrap().lock().unwrap_err();
    assert_eq!(error.code(), ErrorCode::PermissionDenied, "{error}");
}

#[test]
fn one_good_endpoint_is_enough_behind_dead_and_silent_ones() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let endpoints = [nobody(), silent, nobody(), shared().endpoint()];
    let manager = LockManager::connect_lazy(endpoints, &fresh_root("lazy"), Default::default()).unwrap();
    assert!(lock(&manager, "job").is_held());
}

/// It never held a lock, so there is nothing to wait for and nothing to release.
#[test]
fn a_manager_that_never_had_a_session_is_closed_and_dropped_at_once() {
    let proxy = Proxy::of(shared());
    proxy.blackhole();
    // A request may take longer than a close.
    let lazy = |endpoint: &str| LockManager::connect_lazy([endpoint], "/locks", Default::default()).unwrap();
    for endpoint in [nobody(), proxy.endpoint()] {
        let (closed, took) = timed(|| lazy(&endpoint).close());
        assert!(closed.is_ok(), "{closed:?}");
        assert!(took < SLACK / 2, "{took:?}");
        let manager = lazy(&endpoint);
        let job = manager.new_lock("job").unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| job.lock());
            wait_for_waiting(&manager, 1);
            manager.clone().close().unwrap();
            let error = waiting.join().unwrap().unwrap_err();
            assert_eq!(error.code(), ErrorCode::Closed);
        });
        let manager = lazy(&endpoint);
        let ((), took) = timed(|| drop(manager));
        assert!(took < SLACK / 2, "{took:?}");
    }
}

#[test]
fn a_manager_creates_its_session_without_a_call_and_leaves_none() {
    let root = fresh_root("lazy");
    let manager = lazy_at(shared().access(), &root);
    eventually(SOON, "a session", || manager.session().is_alive());
    assert!(lock(&manager, "job").is_held());
    let other = connect(shared().access(), &root);
    manager.close().unwrap();
    assert!(other.new_lock("job").unwrap().try_lock().unwrap().is_some());
}
