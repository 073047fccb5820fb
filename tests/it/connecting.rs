//! The first contact: what succeeds, and which error appears in time if it does not.

#[cfg(feature = "tls")]
mod tls;

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use etcd_client::Permission;
use etcd_fixture::free_port;
use etcd_lock::{ForceUnlock, LockError, LockManager, LockManagerOptions};

use crate::support::logs::Logs;
use crate::support::manager::{connect, connect_with, enqueue, granted, lock, options, wait_until_done};
use crate::support::setup::Access;
use crate::support::{Etcd, Proxy, Raw, Setup, fresh_root, shared};

/// The time of a refused connection.
const CONNECT: Duration = Duration::from_secs(2);
/// The additional time on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// The error of a connection that must fail in time.
#[track_caller]
fn refused_at(endpoints: &[String], root: &str, options: LockManagerOptions) -> LockError {
    let begun = Instant::now();
    let outcome = LockManager::connect(endpoints, root, options.connect_timeout(CONNECT));
    let took = begun.elapsed();
    let error = outcome.map(|_| ()).expect_err("this connection fails");
    assert!(took < CONNECT + SLACK, "after {took:?}: {error:?}");
    error
}

#[track_caller]
fn refused(access: &Access, root: &str) -> LockError {
    refused_at(&access.endpoints, root, options(access))
}

/// Expects that no server could be reached; returns the whole error with its source as text.
#[track_caller]
fn unavailable(error: &LockError) -> String {
    let LockError::Unavailable { doing, source, .. } = error else { panic!("{error:?}") };
    assert_eq!(error.code().as_str(), "UNAVAILABLE");
    assert!(error.is_retryable());
    assert_eq!(doing, "connecting to etcd");
    source.to_string()
}

fn nobody() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

/// A server that is not etcd: it sends this to every client, and nothing else.
fn stranger(greeting: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a bound address");
    std::thread::spawn(move || {
        let mut clients = Vec::new();
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(greeting);
            clients.push(client);
        }
    });
    format!("http://{address}")
}

const MAIL: &[u8] = b"220 mail.example ESMTP\r\n";
const WEB: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";

#[test]
fn a_missing_server_is_unavailable() {
    let endpoint = nobody();
    let text = unavailable(&refused_at(std::slice::from_ref(&endpoint), "/locks", Default::default()));
    assert!(text.contains(&endpoint) && text.contains("refused"), "{text}");
}

#[test]
fn a_wrong_port_is_unavailable() {
    let metrics = format!("http://{}", shared().metrics_address());
    for endpoint in [stranger(MAIL), stranger(WEB), metrics] {
        let text = unavailable(&refused_at(std::slice::from_ref(&endpoint), "/locks", Default::default()));
        assert!(text.contains(&endpoint), "{text}");
    }
}

/// A network that drops everything: the connection is established, and no byte ever comes back.
#[test]
fn a_black_hole_is_unavailable() {
    let proxy = Proxy::of(shared());
    proxy.blackhole();
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_endpoint = format!("http://{}", deaf.local_addr().unwrap());
    for endpoint in [proxy.endpoint(), stranger(b""), deaf_endpoint] {
        let text = unavailable(&refused_at(std::slice::from_ref(&endpoint), "/locks", Default::default()));
        assert!(text.contains("no answer") && text.contains(&endpoint), "{text}");
    }
}

/// A server that is stopped after the first reads: only the session is missing.
#[test]
fn a_stopped_server_is_unavailable() {
    let etcd = Etcd::start();
    etcd.stop();
    unavailable(&refused(etcd.access(), "/locks"));
    etcd.cont();
    assert!(lock(&connect(etcd.access(), "/locks"), "a").is_held());
}

#[test]
fn bad_urls_and_an_empty_list_are_invalid_options_at_once() {
    let good = shared().endpoint();
    let bad =
        ["", "localhost", "ftp://127.0.0.1:2379", "http://127.0.0.1", "http://127.0.0.1:0", "http://a b:1"];
    let lists = bad.into_iter().map(|bad| vec![good.clone(), bad.to_owned()]).chain([Vec::new()]);
    for endpoints in lists {
        let begun = Instant::now();
        let error = refused_at(&endpoints, "/locks", Default::default());
        assert!(matches!(error, LockError::InvalidOptions { .. }), "{endpoints:?}: {error:?}");
        assert_eq!(error.code().as_str(), "INVALID_OPTIONS");
        assert!(!error.is_retryable());
        assert!(begun.elapsed() < CONNECT, "no server is contacted");
        if let Some(bad) = endpoints.last() {
            assert!(error.to_string().contains(bad.as_str()), "{error}");
        }
    }
}

#[test]
fn one_good_endpoint_among_five_dead_ones_is_enough() {
    let proxy = Proxy::of(shared());
    proxy.blackhole();
    let dead = [nobody(), proxy.endpoint(), stranger(MAIL), stranger(b""), nobody()];
    let root = fresh_root("connecting");
    for place in [0, 3, 5] {
        let mut endpoints = dead.to_vec();
        endpoints.insert(place, shared().endpoint());
        let begun = Instant::now();
        let manager = connect_with(
            &shared().access().at(endpoints),
            &root,
            options(shared().access()).connect_timeout(2 * CONNECT),
        );
        assert!(begun.elapsed() < 2 * CONNECT + SLACK);
        assert!(lock(&manager, "a").is_held());
        manager.close().unwrap();
    }
}

/// Two clusters in one list: a lock in one of them would exclude no client of the other.
#[test]
fn endpoints_of_two_clusters_are_refused() {
    let other = Etcd::start();
    let both = vec![shared().endpoint(), other.endpoint()];
    let error = refused_at(&both, "/locks", Default::default());
    assert!(matches!(error, LockError::InvalidOptions { .. }), "{error:?}");
    assert!(error.to_string().contains("cluster"), "{error}");
}

/// An etcd with users: `worker` has all permissions below `/app/`, `session-only` only for its session's keys there,
/// and `reader` may only read.
fn guarded() -> Etcd {
    let etcd = Setup::default()
        .arg("--bcrypt-cost=4")
        .user("worker", "worker-secret", "/app/")
        .user("session-only", "secret-2", "/app/~session/")
        .user("reader", "secret-3", "/nothing/")
        .start();
    let root = Raw::connect(etcd.access());
    root.call(|mut client| async move {
        client.role_grant_permission("reader", Permission::read("/app/").with_prefix()).await
    })
    .unwrap();
    etcd
}

#[test]
fn a_user_with_a_password_and_rights_can_do_everything() {
    let etcd = guarded();
    let worker = etcd.access().as_user("worker", "worker-secret");
    let (manager, other) = (connect(&worker, "/app/locks"), connect(&worker, "/app/locks"));
    let guard = lock(&manager, "a");
    let waiting = enqueue(&other, "a");
    guard.unlock().unwrap();
    let guard = granted(waiting);
    assert_eq!(manager.lock_info("a").unwrap().unwrap().token, guard.token());
    assert!(manager.lock_info("a").unwrap().unwrap().ttl_remaining.is_some());
    assert_eq!(manager.list_locks("").unwrap().len(), 1);
    for scope in [ForceUnlock::Lock, ForceUnlock::Session] {
        let guard = lock(&other, &format!("{scope:?}"));
        manager.force_unlock(guard.key(), scope).unwrap();
        wait_until_done(&guard);
    }
    manager.close().unwrap();
    other.close().unwrap();
    assert_eq!(Raw::connect(&worker).count("/app/"), 0);
}

#[test]
fn wrong_missing_and_unknown_credentials_are_unauthenticated() {
    let etcd = guarded();
    let anonymous = Access { user: None, ..etcd.access().clone() };
    let cases = [
        ("wrong", etcd.access().as_user("worker", "wrong-secret")),
        ("unknown", etcd.access().as_user("nobody", "worker-secret")),
        ("missing", anonymous),
    ];
    for (what, access) in cases {
        let error = refused(&access, "/app/locks");
        assert!(matches!(error, LockError::Unauthenticated { .. }), "{what}: {error:?}");
        assert_eq!(error.code().as_str(), "UNAUTHENTICATED");
        assert!(!error.is_retryable());
    }
    // A failed attempt does not affect the next one.
    connect(&etcd.access().as_user("worker", "worker-secret"), "/app/locks").close().unwrap();
}

/// Without users in etcd, credentials are no reason to fail: a program may be configured before its cluster is.
#[test]
fn credentials_for_an_etcd_without_users_are_accepted() {
    let access = shared().access().as_user("worker", "worker-secret");
    assert!(lock(&connect(&access, &fresh_root("connecting")), "a").is_held());
}

#[test]
fn a_role_without_rights_is_denied_at_the_first_contact() {
    let etcd = guarded();
    let cases = [("worker", "worker-secret", "/elsewhere"), ("reader", "secret-3", "/app/locks")];
    for (user, password, root) in cases {
        let error = refused(&etcd.access().as_user(user, password), root);
        assert!(matches!(error, LockError::PermissionDenied { .. }), "{user}: {error:?}");
        assert_eq!(error.code().as_str(), "PERMISSION_DENIED");
        assert!(!error.is_retryable());
    }
}

/// A role that covers only the session: the connection succeeds, and every call that needs more reports the missing
/// permission.
#[test]
fn a_role_with_too_few_rights_is_denied_by_each_call() {
    let etcd = guarded();
    let manager = connect(&etcd.access().as_user("session-only", "secret-2"), "/app");
    let denied = |what: &str, error: Option<LockError>| {
        let error = error.unwrap_or_else(|| panic!("{what} works without rights"));
        assert!(matches!(error, LockError::PermissionDenied { .. }), "{what}: {error:?}");
    };
    let locks = manager.new_lock("a").unwrap();
    denied("lock", locks.lock().err());
    denied("try_lock", locks.try_lock().err());
    denied("lock_timeout", locks.lock_timeout(Duration::from_secs(60)).err());
    denied("enqueue", locks.enqueue().unwrap().wait().err());
    denied("lock_info", manager.lock_info("a").err());
    denied("list_locks", manager.list_locks("").err());
    denied("force_unlock", manager.force_unlock("a", ForceUnlock::Lock).err());
    // The manager itself works.
    assert!(manager.session().is_alive());
    manager.close().unwrap();
}

/// All text of an error, for users and for programmers.
fn everything(error: &LockError) -> String {
    use std::error::Error;
    let source = error.source().map(|source| format!("{source} {source:?}"));
    format!("{error} {error:?} {error:#?} {source:?}")
}

#[test]
fn a_password_appears_in_no_debug_output_no_error_and_no_log_line() {
    const PASSWORD: &str = "correct-horse-battery-staple";
    let logs = Logs::with(PASSWORD);
    let etcd = Setup::default().arg("--bcrypt-cost=4").user("worker", PASSWORD, "/app/").start();
    let about_endpoint = Logs::with(&etcd.endpoint());
    let access = etcd.access().as_user("worker", PASSWORD);
    let mut shown = format!("{:?} {:#?}", options(&access), options(&access));

    let manager = connect(&access, "/app/locks");
    let handle = manager.new_lock("a").unwrap();
    let pending = handle.enqueue().unwrap();
    shown += &format!("{manager:?} {handle:?} {pending:?}");
    let guard = granted(pending);
    shown += &format!("{guard:?} {:?} {:?} {:?}", manager.session(), manager.stats(), manager.lock_info("a"));
    // The password with the wrong user, with another root, and within a URL.
    for (access, root) in
        [(etcd.access().as_user("root", PASSWORD), "/app/locks"), (access.clone(), "/elsewhere")]
    {
        shown += &everything(&refused(&access, root));
    }
    for url in ["http://worker:PW@127.0.0.1:1", "worker:PW@127.0.0.1:1", "http://127.0.0.1:1/?p=@PW"] {
        let error = refused_at(&[url.replace("PW", PASSWORD)], "/app", Default::default());
        assert!(matches!(error, LockError::InvalidOptions { .. }), "{error:?}");
        shown += &everything(&error);
    }
    assert!(!shown.contains(PASSWORD), "{shown}");
    assert!(shown.contains("worker"), "the output shows the user");
    assert!(!about_endpoint.lines().is_empty(), "the log has lines about the endpoint");
    assert_eq!(logs.lines(), []);
}

#[test]
fn a_ttl_that_etcd_may_checkpoint_is_logged_as_a_warning() {
    let etcd = shared();
    let root = fresh_root("checkpoint");
    for (seconds, warnings) in [(300, 0), (301, 1)] {
        let logs = Logs::with("lease checkpoints");
        let options = options(etcd.access()).ttl(Duration::from_secs(seconds));
        drop(connect_with(etcd.access(), &root, options));
        assert_eq!(logs.of_level(log::Level::Warn).len(), warnings, "{:?}", logs.lines());
    }
}
