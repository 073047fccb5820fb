//! Each error's text, as a person reads it in a log: `{}` alone, without the chain.

use std::error::Error;

use super::*;
use crate::info::FencingToken;

fn unavailable(said: &str) -> LockError {
    LockError::Unavailable { doing: "acquiring lock \"a\"".into(), source: Cause::new(said) }
}

fn holder(owner: Option<&str>) -> Option<Box<LockInfo>> {
    let info = LockInfo::from_holder(
        "a",
        &crate::kv::KeyValue {
            key: "/app/a/1f-1".into(),
            value: owner.map_or_else(Vec::new, |owner| {
                crate::value::ContenderValue::new(owner, "main", 7, Duration::from_secs(1)).encode()
            }),
            create_revision: 9,
            mod_revision: 9,
            lease: 0x1f,
        },
        0,
        None,
    );
    assert_eq!(info.token, FencingToken::new(9));
    Some(Box::new(info))
}

/// What stands here is what somebody reads who was woken by it.
#[test]
fn every_text_names_what_where_and_why() {
    let key = || "a".to_owned();
    let (waited, doing) = (Duration::from_micros(2_000_900), || "connecting to etcd".to_owned());
    let table = [
        (
            LockError::Timeout { key: key(), waited, holder: holder(Some("billing/7")) },
            "lock \"a\" not acquired within 2s, held by billing/7",
        ),
        (LockError::Timeout { key: key(), waited, holder: None }, "lock \"a\" not acquired within 2s"),
        (LockError::NotHeld { key: key() }, "lock \"a\" is not held"),
        (
            LockError::AlreadyHeld { key: key(), holder: holder(None) },
            "lock \"a\" is already held by a foreign client",
        ),
        (
            LockError::Expired { key: key(), reason: LossReason::SessionExpired },
            "lock \"a\" was lost: the session expired",
        ),
        (
            LockError::InsufficientTime {
                key: key(),
                remaining: Duration::from_micros(26_500_077),
                needed: Duration::from_secs(60),
            },
            "lock \"a\" is held, but assured for 26.5s only, not for 60s",
        ),
        (
            LockError::InvalidKey { key: String::new(), why: "a key has at least one character".into() },
            "invalid key \"\": a key has at least one character",
        ),
        (
            LockError::InvalidOptions { why: "connect_timeout is zero".into() },
            "invalid options: connect_timeout is zero",
        ),
        (LockError::Cancelled { key: key() }, "waiting for lock \"a\" was cancelled"),
        (LockError::Closed, "the lock manager is closed"),
        (LockError::Forked, "the lock manager belongs to the parent process; connect again after fork()"),
        (
            unavailable("http://127.0.0.1:1: tcp connect error: Connection refused (os error 111)"),
            "etcd is unavailable while acquiring lock \"a\": http://127.0.0.1:1: Connection refused",
        ),
        (
            LockError::ClusterChanged { doing: doing(), source: Cause::new("http://a:1: cluster 7, not 3") },
            "etcd is another cluster than before while connecting to etcd: http://a:1: cluster 7, not 3",
        ),
        (
            LockError::Unauthenticated {
                source: Cause::new("http://a:1: no credentials were given, and etcd requires a user"),
            },
            "not authenticated to etcd: http://a:1: no credentials were given, and etcd requires a user",
        ),
        (
            LockError::PermissionDenied {
                doing: doing(),
                source: Cause::new(
                    "http://a:1: etcdserver: permission denied (user \"bob\", key \"/app/a\")",
                ),
            },
            "etcd denied permission while connecting to etcd: http://a:1: permission denied (user \"bob\", key \
             \"/app/a\")",
        ),
        (LockError::NoSpace, "etcd's database is full (its NOSPACE alarm is on)"),
        (LockError::Crashed, "the lock manager's I/O thread died; connect again"),
        (LockError::Internal { what: "no thread for I/O".into() }, "internal error: no thread for I/O"),
    ];
    for (error, text) in table {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_chain_repeats_nothing_and_ends_in_the_words_as_they_came() {
    let said =
        "http://a:1: tcp connect error: Connection refused (os error 111); http://b:1: etcdserver: no leader";
    let error = unavailable(said);
    let source = error.source().expect("the line is abridged").to_string();
    assert_eq!(source, said);
    assert!(!error.to_string().contains(&source));
    assert!(error.to_string().ends_with("http://a:1: Connection refused; http://b:1: no leader"), "{error}");

    // What is there in full already is not said again.
    assert!(unavailable("http://a:1: no answer within 2s").source().is_none());
    assert!(LockError::Closed.source().is_none());
}

#[test]
fn half_a_system_error_is_left_as_it_is() {
    for odd in ["x (os error ", "(os error 7)", ""] {
        assert_eq!(Cause::new(odd).to_string(), odd);
    }
}
