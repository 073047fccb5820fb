//! All oracles of a fault test: who held which lock, what was written under it, and how long calls took.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_lock::{FencingToken, LockError, LockGuard};

use super::oracle::{Inside, Oracle};
use super::raw::Raw;
use super::stalls;

/// A call may return this much after its limit: the answer to a timed-out caller names the holder, which takes a round
/// trip.
const LATE: Duration = Duration::from_millis(100);

/// Judges one test. All its threads share it.
#[derive(Debug, Default)]
pub(crate) struct Referee {
    oracle: Oracle,
    ledgers: Mutex<HashMap<String, Ledger>>,
    overdue: Mutex<Vec<String>>,
}

/// A resource that only the holder of one lock writes. It rejects a token that is smaller than an earlier one.
#[derive(Debug, Default)]
struct Ledger {
    highest: Option<FencingToken>,
    total: u64,
    accepted: u64,
    refused: u64,
}

impl Referee {
    /// Leaked on purpose: a few hundred bytes for each test.
    pub(crate) fn new() -> &'static Self {
        stalls::watch();
        Box::leak(Box::default())
    }

    /// From now on, until this is dropped, the owner of the guard believes to hold the lock (O1, O2).
    pub(crate) fn inside(&self, guard: &LockGuard) -> Inside<'_> {
        self.oracle.enter(guard.key(), guard.token().as_u64())
    }

    /// Adds one to the protected resource, as a writer that relies on the lock would (O3).
    pub(crate) fn write(&self, guard: &LockGuard) -> bool {
        let ledgers = || self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        let read = ledgers().get(guard.key()).map_or(0, |ledger| ledger.total);
        std::thread::yield_now();
        let mut ledgers = ledgers();
        let ledger = ledgers.entry(guard.key().to_owned()).or_default();
        if ledger.highest > Some(guard.token()) {
            ledger.refused += 1;
            return false;
        }
        ledger.highest = Some(guard.token());
        ledger.total = read + 1;
        ledger.accepted += 1;
        true
    }

    /// Holds for a moment, writes, and drops the guard.
    pub(crate) fn use_and_release(&self, guard: LockGuard) {
        let inside = self.inside(&guard);
        self.write(&guard);
        drop(inside);
        drop(guard);
    }

    /// Holds for a moment, writes, and unlocks within `limit`, the time of one request.
    pub(crate) fn use_and_unlock(&self, guard: LockGuard, limit: Duration) -> Result<(), LockError> {
        let inside = self.inside(&guard);
        self.write(&guard);
        drop(inside);
        self.timed("unlock", limit, || guard.unlock())
    }

    /// Makes a call that promises to return within `limit` (O6).
    pub(crate) fn timed<T>(&self, what: &str, limit: Duration, call: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = call();
        let took = begun.elapsed();
        let stalls = stalls::since(begun);
        if took > limit + LATE + stalls {
            let line =
                format!("{what} took {took:?}, its limit is {limit:?}; the machine's stalls: {stalls:?}");
            self.overdue.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
        result
    }

    /// The number of recorded holds.
    pub(crate) fn holds(&self) -> usize {
        self.oracle.count()
    }

    /// Panics unless O1, O2, O3 and O6 hold.
    #[track_caller]
    pub(crate) fn judge(&self) {
        self.oracle.judge();
        for (name, ledger) in &*self.ledgers.lock().unwrap_or_else(PoisonError::into_inner) {
            assert_eq!(ledger.total, ledger.accepted, "a write under {name} was lost: {ledger:?}");
        }
        let overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(overdue.is_empty(), "calls outlived their limits:\n{}", overdue.join("\n"));
    }
}

/// O4: a TTL and a second later nothing is left under the root. To be called when every manager is closed or has
/// released.
#[track_caller]
pub(crate) fn nothing_left(raw: &Raw, root: &str, ttl: Duration) {
    let keys = format!("{root}/");
    ends_with_its_lease(ttl, &format!("no key is left under {root}"), || raw.count(&keys) == 0);
}

/// Waits for an event that happens at the latest when a lease of `ttl` expires: etcd may take half a second more to
/// notice, and half a second to delete.
#[track_caller]
pub(crate) fn ends_with_its_lease(ttl: Duration, what: &str, mut has_ended: impl FnMut() -> bool) {
    let (start, limit) = (Instant::now(), ttl + Duration::from_secs(1));
    while !has_ended() {
        stalls::assert_within(start, limit, what);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `later - earlier` in milliseconds, negative where it is the other way round.
pub(crate) fn millis_between(earlier: Instant, later: Instant) -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    if later >= earlier { millis(later - earlier) } else { -millis(earlier - later) }
}
