//! What the threads do meanwhile, and what is written down about it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{Receiver, bounded};
use etcd_lock::{DistributedLock, LockError, LockGuard, LockManager, LossReason};
use fastrand::Rng;

use super::REQUEST_TIMEOUT;
use super::chaos::Evictions;
use crate::support::oracle::{Interval, Oracle, now};
use crate::support::register::Register;
use crate::support::stalls::{self, assert_within};

/// No call exceeds its limit by more.
const LATE: Duration = Duration::from_millis(100);

/// The record of the run, for the oracles.
#[derive(Debug)]
pub(super) struct Record {
    holds: std::sync::Mutex<Vec<Interval>>,
    registers: Vec<Register>,
    lost: [AtomicU64; 3],
    calls: AtomicU64,
    timeouts: AtomicU64,
    unavailable: AtomicU64,
}

pub(super) fn name(index: usize) -> String {
    format!("x{index}")
}

impl Record {
    pub(super) fn new(names: usize) -> Self {
        Self {
            holds: std::sync::Mutex::default(),
            registers: (0..names).map(|_| Register::default()).collect(),
            lost: Default::default(),
            calls: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
        }
    }

    /// Exclusion, tokens and writes. A hold that was ended by force counts until the force began, because its holder
    /// learns of it only afterwards.
    pub(super) fn judge(&self, evictions: &Evictions) {
        let oracle = Oracle::new();
        let holds = self.holds.lock().unwrap().clone();
        assert!(holds.len() > 20, "too few holds: {}", holds.len());
        for hold in holds {
            let taken = evictions.of(&hold.who).filter(|&at| hold.to.is_some_and(|to| to > at));
            let to = taken.map(|at| at.max(hold.from)).or(hold.to);
            oracle.record(Interval { to, ..hold });
        }
        oracle.judge();
        for (index, register) in self.registers.iter().enumerate() {
            register.judge(&name(index));
        }
    }

    fn count_error(&self, error: &LockError) {
        match error {
            LockError::Timeout { .. } => count(&self.timeouts),
            LockError::Unavailable { .. } => count(&self.unavailable),
            other => panic!("no fault explains this error: {other:?}"),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} calls, {} holds, {} timeouts, {} unavailable; lost: {} expired, {} revoked, {} taken away",
            get(&self.calls),
            self.holds.lock().map_or(0, |holds| holds.len()),
            get(&self.timeouts),
            get(&self.unavailable),
            get(&self.lost[0]),
            get(&self.lost[1]),
            get(&self.lost[2]),
        )
    }
}

/// The loop of one thread.
pub(super) fn work(manager: &LockManager, record: &Record, stop: &AtomicBool, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let index = rng.usize(..record.registers.len());
        let lock = manager.new_lock(&name(index)).expect("the manager is open");
        count(&record.calls);
        if let Some(guard) = acquire(&lock, record, &mut rng) {
            hold(guard, index, record, &mut rng);
        }
        std::thread::sleep(Duration::from_millis(rng.u64(0..20)));
    }
}

/// Locks in one of the possible ways. Each ends within its limit.
fn acquire(lock: &DistributedLock, record: &Record, rng: &mut Rng) -> Option<LockGuard> {
    let start = Instant::now();
    match rng.u8(..8) {
        0 | 1 => {
            let outcome = lock.try_lock();
            assert_within(start, REQUEST_TIMEOUT + LATE, "try_lock");
            outcome.unwrap_or_else(|error| {
                record.count_error(&error);
                None
            })
        }
        2 => {
            let pending = lock.enqueue().expect("the lock can be queued for");
            std::thread::sleep(Duration::from_millis(rng.u64(0..200)));
            drop(pending);
            None
        }
        3 => {
            let limit = Duration::from_millis(rng.u64(50..1_500));
            let (cancel, cancelled_at) = cancel_after(limit);
            let outcome = lock.lock_or_cancel(&cancel);
            if let Some(cancelled) = cancelled_at.get() {
                assert_within(*cancelled, LATE, "lock_or_cancel, once it was cancelled");
            }
            match outcome {
                Ok(guard) => Some(guard),
                Err(LockError::Cancelled { .. }) => None,
                Err(error) => panic!("{error:?}"),
            }
        }
        _ => {
            let limit = Duration::from_millis(rng.u64(20..3_000));
            let outcome = lock.lock_timeout(limit);
            assert_within(start, limit + LATE, "lock_timeout");
            outcome.inspect_err(|error| record.count_error(error)).ok()
        }
    }
}

/// A cancel channel that is disconnected after a while, and when it was.
fn cancel_after(limit: Duration) -> (Receiver<()>, Arc<OnceLock<Instant>>) {
    let (cancel, cancelled) = bounded::<()>(0);
    let at = Arc::new(OnceLock::new());
    let note = Arc::clone(&at);
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let _ = note.set(Instant::now());
        drop(cancel);
    });
    (cancelled, at)
}

/// Holds for a while, mostly a short one, and writes under the token. Records the last instant at which the guard
/// reported that it was held.
fn hold(guard: LockGuard, index: usize, record: &Record, rng: &mut Rng) {
    let token = guard.token().as_u64();
    let from = now();
    let mut believed = from;
    let length = if rng.u8(..10) == 0 { rng.u64(500..3_500) } else { rng.u64(0..15) };
    let end = Instant::now() + Duration::from_millis(length);
    let value = record.registers[index].read(token);
    loop {
        let instant = now();
        if !guard.is_held() {
            break;
        }
        believed = instant;
        if Instant::now() >= end {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if let Ok(value) = value {
        // Rejected if another holder has written by now.
        let _ = record.registers[index].write(token, value + 1);
    }
    let who = guard.etcd_key().to_owned();
    record.holds.lock().unwrap().push(Interval { name: name(index), token, from, to: Some(believed), who });
    match guard.loss() {
        None => release(guard, rng),
        Some(reason) => {
            let seen = Instant::now();
            let limit = LATE + Duration::from_millis(400);
            let closed = guard.done().recv_timeout(limit).is_err_and(|error| error.is_disconnected());
            let stalls = stalls::since(seen);
            assert!(closed || stalls > LATE, "lost ({reason:?}), but done() stays open");
            count(match reason {
                LossReason::SessionExpired => &record.lost[0],
                LossReason::SessionRevoked => &record.lost[1],
                LossReason::ForceUnlocked => &record.lost[2],
                other => panic!("no fault explains {other:?}"),
            });
        }
    }
}

fn release(guard: LockGuard, rng: &mut Rng) {
    if rng.bool() {
        return drop(guard);
    }
    let start = Instant::now();
    let outcome = guard.unlock();
    assert_within(start, REQUEST_TIMEOUT + LATE, "unlock");
    match outcome {
        Ok(()) => {}
        // The hold was lost just then, ended by force, or its release was not confirmed in time.
        Err(LockError::Expired { .. } | LockError::Unavailable { .. }) => {}
        Err(other) => panic!("{other:?}"),
    }
}
