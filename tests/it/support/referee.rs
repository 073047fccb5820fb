//! All the oracles of a fault test in one place: who held what, what was written under it, and how long calls took.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_lock::{FencingToken, LockError, LockGuard};

use super::oracle::{Inside, Oracle};
use super::raw::Raw;
use super::stalls;

/// A call may come back so late: the answer to a caller whose time is up names the holder, which takes a round trip.
const LATE: Duration = Duration::from_millis(100);

/// Judges one test. Every thread of the test may have it.
#[derive(Debug, Default)]
pub(crate) struct Referee {
    oracle: Oracle,
    ledgers: Mutex<HashMap<String, Ledger>>,
    overdue: Mutex<Vec<String>>,
}

/// A thing that only the holder of one lock writes, and that refuses who comes with a smaller token than somebody before.
#[derive(Debug, Default)]
struct Ledger {
    highest: Option<FencingToken>,
    total: u64,
    accepted: u64,
    refused: u64,
}

impl Referee {
    /// For all threads of a test, for as long as the process lives: a few hundred bytes.
    pub(crate) fn new() -> &'static Self {
        stalls::watch();
        Box::leak(Box::default())
    }

    /// From now on, until it is dropped, whoever has the guard believes to hold (O1, O2).
    pub(crate) fn inside(&self, guard: &LockGuard) -> Inside<'_> {
        self.oracle.enter(guard.key(), guard.token().as_u64())
    }

    /// Adds one to what the lock protects, as a reader and writer that trusts the lock would (O3).
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

    /// Holds for a moment, writes, and lets go.
    pub(crate) fn use_and_release(&self, guard: LockGuard) {
        let inside = self.inside(&guard);
        self.write(&guard);
        drop(inside);
        drop(guard);
    }

    /// Holds for a moment, writes, and unlocks within `limit`: the time of one request.
    pub(crate) fn use_and_unlock(&self, guard: LockGuard, limit: Duration) -> Result<(), LockError> {
        let inside = self.inside(&guard);
        self.write(&guard);
        drop(inside);
        self.timed("unlock", limit, || guard.unlock())
    }

    /// Makes a call that promises to be back after `limit` (O6).
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

    /// How often somebody held.
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

/// O4: after a TTL and a second nothing is left under the root. Call it when every manager is gone, or has let go.
#[track_caller]
pub(crate) fn nothing_left(raw: &Raw, root: &str, ttl: Duration) {
    let keys = format!("{root}/");
    ends_with_its_lease(ttl, &format!("nothing is left under {root}"), || raw.count(&keys) == 0);
}

/// Waits for what happens at the latest when a lease of `ttl` ends by itself: etcd may take half a second more to notice,
/// and half a second to act.
#[track_caller]
pub(crate) fn ends_with_its_lease(ttl: Duration, what: &str, mut has_ended: impl FnMut() -> bool) {
    let (start, limit) = (Instant::now(), ttl + Duration::from_secs(1));
    while !has_ended() {
        stalls::assert_within(start, limit, what);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Notes when a guard's holder is told that it is over.
#[derive(Debug)]
pub(crate) struct Told(std::sync::mpsc::Receiver<Instant>);

impl Told {
    /// Waits on `done()` in a thread of its own, as a holder would. `inside` ends when the holder is told.
    pub(crate) fn by(guard: &LockGuard, inside: Inside<'static>) -> Self {
        let (said, told) = std::sync::mpsc::channel();
        let done = guard.done().clone();
        std::thread::spawn(move || {
            assert!(done.recv().is_err(), "done() carries nothing");
            let at = Instant::now();
            drop(inside);
            let _ = said.send(at);
        });
        Self(told)
    }

    /// When it was told; `None` if it is not within `limit`.
    pub(crate) fn within(&self, limit: Duration) -> Option<Instant> {
        self.0.recv_timeout(limit).ok()
    }
}

/// `later - earlier` in milliseconds, negative where it is the other way round.
pub(crate) fn millis_between(earlier: Instant, later: Instant) -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    if later >= earlier { millis(later - earlier) } else { -millis(earlier - later) }
}
