//! Limits in milliseconds, held against a machine that is not always there.

use std::time::{Duration, Instant};

use super::lag;

/// A call is handed on between some threads, each of which may have to wait for its turn.
const HANDS: u32 = 3;

/// Begins to measure.
pub(crate) fn watch() {
    lag::watch();
}

/// What the machine may have cost a call since then.
pub(crate) fn since(start: Instant) -> Duration {
    lag::since(start) * HANDS
}

/// Panics if more than `limit` has passed since `start`, the machine's own stalls apart. Returns what has passed.
#[track_caller]
pub(crate) fn assert_within(start: Instant, limit: Duration, what: &str) -> Duration {
    watch();
    let took = start.elapsed();
    let stalls = since(start);
    assert!(took <= limit + stalls, "{what}: {took:?}, more than {limit:?} (and {stalls:?} of stalls)");
    took
}
