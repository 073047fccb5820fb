//! The text of each error, as it appears in a log: `{}` alone, without the source chain.

use std::error::Error;

use super::*;
use crate::info::FencingToken;

fn unavailable(said: &str) -> LockError {
    LockError::Unavailable { doing: "acquiring lock \"a\"".into(), source: Cause::new(said) }
}

fn holder(owner: Option<&str>) -> Option<Box<LockInfo>> {
    holder_under("1f-1", owner)
}

fn holder_under(last: &str, owner: Option<&str>) -> Option<Box<LockInfo>> {
    let info = LockInfo::from_holder(
        "a",
        &crate::kv::KeyValue {
            key: format!("/app/a/{last}").into(),
            value: owner.map_or_else(Vec::new, |owner| {
                crate::contender_value::ContenderValue::new(owner, "main", 7, Duration::from_secs(1)).encode()
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

#[test]
fn a_holder_that_is_not_exclusive_is_named_with_its_mode() {
    let key = || "a".to_owned();
    let holder = |last| holder_under(last, Some("billing/7"));
    let late =
        LockError::Timeout { key: key(), waited: Duration::from_secs(2), holder: holder("~2of8.1f-1") };
    assert_eq!(late.to_string(), "lock \"a\" not acquired after 2s, held by billing/7 (2 of 8 permits)");
    let held = LockError::AlreadyHeld { key: key(), holder: holder("~r.1f-1") };
    assert_eq!(held.to_string(), "lock \"a\" is already held by billing/7 (shared)");
}

/// An operator who is woken by a log line has only this text.
#[test]
fn every_text_names_the_operation_the_endpoint_and_the_reason() {
    let key = || "a".to_owned();
    let (waited, doing) = (Duration::from_micros(2_000_900), || "connecting to etcd".to_owned());
    let table = [
        (
            LockError::Timeout { key: key(), waited, holder: holder(Some("billing/7")) },
            "lock \"a\" not acquired after 2s, held by billing/7",
        ),
        (LockError::Timeout { key: key(), waited, holder: None }, "lock \"a\" not acquired after 2s"),
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
            "lock \"a\" is held, but assured for only 26.5s, not 60s",
        ),
        (
            LockError::InvalidKey { key: String::new(), why: "a key must not be empty".into() },
            "invalid key \"\": a key must not be empty",
        ),
        (
            LockError::InvalidOptions { why: "connect_timeout must not be zero".into() },
            "invalid options: connect_timeout must not be zero",
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
            "the endpoints belong to another etcd cluster than before while connecting to etcd: http://a:1: cluster 7, not 3",
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
fn times_are_shown_in_whole_milliseconds() {
    let shown = |waited| LockError::Timeout { key: "a".into(), waited, holder: None }.to_string();
    assert_eq!(shown(Duration::from_micros(304_512)), "lock \"a\" not acquired after 304ms");
    assert_eq!(shown(Duration::from_nanos(90)), "lock \"a\" not acquired after 0ms");
}

#[test]
fn a_source_chain_repeats_nothing_and_ends_with_the_unabridged_message() {
    let said =
        "http://a:1: tcp connect error: Connection refused (os error 111); http://b:1: etcdserver: no leader";
    let error = unavailable(said);
    let source = error.source().expect("the line is abridged").to_string();
    assert_eq!(source, said);
    assert!(!error.to_string().contains(&source));
    assert!(error.to_string().ends_with("http://a:1: Connection refused; http://b:1: no leader"), "{error}");

    // A message that was not shortened has no source.
    assert!(unavailable("http://a:1: no answer within 2s").source().is_none());
    assert!(LockError::Closed.source().is_none());
}

#[test]
fn an_incomplete_system_error_is_not_shortened() {
    for odd in ["x (os error ", "(os error 7)", ""] {
        assert_eq!(Cause::new(odd).to_string(), odd);
    }
}

#[test]
fn every_failure_class_maps_to_its_public_error() {
    use FailureClass as C;
    let table = [
        (C::NotDone, ErrorCode::Unavailable),
        (C::Unknown, ErrorCode::Unavailable),
        (C::LeaseGone, ErrorCode::Unavailable),
        (C::Compacted, ErrorCode::Unavailable),
        (C::ClusterChanged, ErrorCode::ClusterChanged),
        (C::NoSpace, ErrorCode::NoSpace),
        (C::Unauthenticated, ErrorCode::Unauthenticated),
        (C::PermissionDenied, ErrorCode::PermissionDenied),
        (C::Refused, ErrorCode::Internal),
    ];
    for (class, expected) in table {
        assert_eq!(lock_error(Failure::new(class, "why"), "testing").code(), expected, "{class:?}");
    }
}

#[test]
fn a_request_beyond_etcd_s_limits_names_the_key_and_the_answer() {
    let source = Cause::new("http://a:1: etcdserver: request is too large");
    let error = LockError::TooLarge { doing: "writing key \"/a\"".into(), source };
    let text = "too large for etcd while writing key \"/a\": http://a:1: request is too large";
    assert_eq!((error.to_string().as_str(), error.code().as_str()), (text, "TOO_LARGE"));
    assert!(!error.is_retryable());
}
