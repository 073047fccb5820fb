//! The messages of errors, provoked on a real etcd: `{}` alone names the place, the problem and the reason.

use std::error::Error;
use std::time::Duration;

use etcd_client::Permission;
use etcd_fixture::free_port;
use etcd_lock::{ErrorCode, LockError, LockManager, LockManagerOptions, LossReason};

use crate::support::manager::{connect, lock, options};
use crate::support::setup::Access;
use crate::support::{Raw, Setup, fresh_root, shared};

#[track_caller]
fn refused(access: &Access, root: &str) -> LockError {
    let options = options(access).connect_timeout(Duration::from_secs(2));
    LockManager::connect(&access.endpoints, root, options).map(drop).expect_err("this connection fails")
}

/// Checks the whole message, and that its sources repeat none of it.
#[track_caller]
fn assert_says(error: &LockError, code: ErrorCode, text: &str) {
    assert_eq!((error.code(), error.to_string().as_str()), (code, text));
    if let Some(source) = error.source() {
        assert!(!text.contains(&source.to_string()), "{text}: {source}");
    }
}

#[test]
fn a_refused_connection_names_the_endpoint_and_the_reason() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let error = LockManager::connect(&[&endpoint], "/locks", LockManagerOptions::default()).unwrap_err();
    let text = format!("etcd is unavailable while connecting to etcd: {endpoint}: Connection refused");
    assert_says(&error, ErrorCode::Unavailable, &text);
    assert!(error.source().unwrap().to_string().contains("(os error"), "the system's own message");
}

#[test]
fn a_refused_user_is_named_and_a_missing_permission_names_its_key() {
    let etcd = Setup::default()
        .arg("--bcrypt-cost=4")
        .user("locker", "secret", "/app/")
        .user("few", "secret", "/app/~session/")
        .start();
    let (access, url) = (etcd.access(), etcd.endpoint());
    let error = refused(&access.as_user("locker", "wrong"), "/app");
    let text = format!(
        "not authenticated to etcd: {url}: authentication failed, invalid user ID or password (user \"locker\")"
    );
    assert_says(&error, ErrorCode::Unauthenticated, &text);

    let error = refused(&Access { user: None, ..access.clone() }, "/app");
    let text = format!(
        "not authenticated to etcd: {url}: no credentials were given, and etcd requires a user (user name is empty)"
    );
    assert_says(&error, ErrorCode::Unauthenticated, &text);

    // At the first contact it is the session's key.
    let error = refused(&access.as_user("locker", "secret"), "/elsewhere");
    let text = error.to_string();
    let begin = format!(
        "etcd denied permission while connecting to etcd: {url}: permission denied (user \"locker\", key \
         \"/elsewhere/~session/"
    );
    assert!(text.starts_with(&begin) && text.ends_with("\")"), "{text}");

    // Then the key of each call.
    let manager = connect(&access.as_user("few", "secret"), "/app");
    let error = manager.lock_info("a").unwrap_err();
    let text = format!(
        "etcd denied permission while looking at lock \"a\": {url}: permission denied (user \"few\", key \"/app/a/\")"
    );
    assert_says(&error, ErrorCode::PermissionDenied, &text);
    let text = manager.new_lock("a").unwrap().lock().unwrap_err().to_string();
    let begin = format!(
        "etcd denied permission while acquiring lock \"a\": {url}: permission denied (user \"few\", key \"/app/a/"
    );
    assert!(text.starts_with(&begin), "{text}");

    // A user who loses the permission later gets the same message.
    let manager = connect(&access.as_user("locker", "secret"), "/app");
    Raw::connect(access)
        .call(|mut client| async move {
            client.role_revoke_permission("locker", "/app/", None).await.ok();
            client.role_grant_permission("locker", Permission::read("/app/").with_prefix()).await
        })
        .unwrap();
    let text = manager.new_lock("a").unwrap().lock_timeout(Duration::from_secs(20)).unwrap_err().to_string();
    assert!(text.contains("(user \"locker\", key \"/app/"), "{text}");
}

#[test]
fn an_invalid_endpoint_is_explained() {
    let table = [
        ("http://a:2379,http://b:2379", "is a list; give `connect` each endpoint as an element of its own"),
        ("a:2379,b:2379", "is a list; give `connect` each endpoint as an element of its own"),
        ("http://a:2379/v3", "has a path; an endpoint is scheme, host and port alone"),
        ("a", "has no port; etcd's is 2379"),
    ];
    for (endpoint, why) in table {
        let error = LockManager::connect(&[endpoint], "/locks", LockManagerOptions::default()).unwrap_err();
        assert_says(
            &error,
            ErrorCode::InvalidOptions,
            &format!("invalid options: endpoint \"{endpoint}\" {why}"),
        );
        assert!(!error.is_retryable());
    }
}

/// A valid hold is never reported as over, whatever time `ensure` asks for.
#[test]
fn too_little_remaining_time_is_not_a_loss() {
    let manager = connect(shared().access(), &fresh_root("errors"));
    let guard = lock(&manager, "a");
    let error = guard.ensure(Duration::from_secs(60)).unwrap_err();
    let LockError::InsufficientTime { key, remaining, needed, .. } = &error else { panic!("{error:?}") };
    assert_eq!((key.as_str(), *needed), ("a", Duration::from_secs(60)));
    assert!(*remaining <= Duration::from_secs(27) && !remaining.is_zero());
    let text = error.to_string();
    assert!(text.starts_with("lock \"a\" is held, but assured for only 2"), "{text}");
    assert!(text.ends_with("s, not 60s"), "{text}");
    assert!(error.is_retryable() && guard.is_held());
    guard.ensure(Duration::from_secs(1)).unwrap();

    manager.close().unwrap();
    let error = guard.ensure(Duration::ZERO).unwrap_err();
    assert_says(&error, ErrorCode::LockExpired, "lock \"a\" was lost: the manager was closed");
    assert_eq!(guard.loss(), Some(LossReason::Closed));
}
