//! Options: their defaults, their limits, and what `Debug` shows of them.

use super::*;
use crate::mode::MAX_LIMIT;

const SECOND: Duration = Duration::from_secs(1);

fn why(options: &LockManagerOptions) -> String {
    match options.check() {
        Err(LockError::InvalidOptions { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_defaults_are_valid_and_as_documented() {
    let options = LockManagerOptions::default();
    options.check().unwrap();
    assert_eq!(options.ttl, 30 * SECOND);
    assert_eq!(options.margin(), 3 * SECOND);
    assert_eq!((options.connect_timeout, options.request_timeout), (5 * SECOND, 5 * SECOND));
    assert_eq!(options.close_timeout, 2 * SECOND);
    assert!(options.owner_name().ends_with(&format!("/{}", std::process::id())));

    let options = LockOptions::default();
    options.check().unwrap();
    assert_eq!((options.retry_interval, options.warn_after), (SECOND / 10, 30 * SECOND));
    assert_eq!((options.budget(), options.mode), (None, Mode::Exclusive));
}

#[test]
fn every_bad_value_is_named() {
    let base = LockManagerOptions::default;
    assert!(why(&base().ttl(Duration::from_millis(999))).contains("ttl"));
    assert!(why(&base().ttl(MAX_TTL + SECOND)).contains("ttl"));
    assert!(why(&base().ttl(4 * SECOND).safety_margin(2 * SECOND)).contains("safety_margin"));
    assert!(why(&base().connect_timeout(Duration::ZERO)).contains("connect_timeout"));
    assert!(why(&base().request_timeout(Duration::ZERO)).contains("request_timeout"));
    assert!(why(&base().close_timeout(Duration::ZERO)).contains("close_timeout"));
    assert!(why(&base().owner("")).contains("owner"));
    assert!(why(&base().owner("x".repeat(257))).contains("owner"));
    assert!(why(&base().credentials("", "x")).contains("credentials"));
    assert!(LockOptions::default().retry_interval(Duration::ZERO).check().is_err());
    assert!(LockOptions::default().warn_after(Duration::ZERO).check().is_err());
    LockOptions::default().warn_after(Duration::MAX).check().unwrap();
    let modes = [(0, 1), (1, 0), (3, 2), (1, MAX_LIMIT + 1)];
    for mode in modes.map(|(take, limit)| Mode::Permits { take, limit }) {
        assert!(matches!(LockOptions::default().mode(mode).check(), Err(LockError::InvalidOptions { .. })));
    }
    let note = LockOptions::default().note("x".repeat(1025)).check().unwrap_err();
    assert!(note.to_string().contains("note"));
}

#[test]
fn the_limits_themselves_are_valid() {
    let base = LockManagerOptions::default;
    base().ttl(MIN_TTL).check().unwrap();
    base().ttl(MAX_TTL).check().unwrap();
    base().owner("x".repeat(256)).check().unwrap();
    let all = Mode::Permits { take: MAX_LIMIT, limit: MAX_LIMIT };
    LockOptions::default().mode(all).check().unwrap();
    LockOptions::default().note("x".repeat(1024)).check().unwrap();
    base().ttl(4 * SECOND).safety_margin(Duration::from_millis(1999)).check().unwrap();
}

#[test]
fn a_retry_budget_beyond_the_clock_is_no_limit() {
    let options = LockOptions::default().retry_interval(Duration::MAX).max_retries(2);
    options.check().unwrap();
    assert_eq!(options.budget(), None);
    let options = LockOptions::default().max_retries(7);
    assert_eq!(options.budget(), Some(Duration::from_millis(700)));
}

#[test]
fn debug_shows_no_secret() {
    let options = LockManagerOptions::default().credentials("alice", "s3cret");
    #[cfg(feature = "tls")]
    let options = options.tls(TlsOptions::default().identity_pem("CERTIFICATE", "s3cret"));
    let shown = format!("{options:?}");
    assert!(shown.contains("alice"), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");
}
