//! Every call ends at its limit: its timeout, its deadline, its cancel channel, or its retries.

use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{TryRecvError, after, bounded, select};
use etcd_lock::{DistributedLock, FencingToken, LockError, LockGuard, LockInfo, LockManager, LockOptions};

use crate::support::{
    Backend, SOON, disconnects, eventually, on_both_stores, take, take_elsewhere, wait_for_waiting,
};

on_both_stores! {
    a_timeout_ends_in_time_names_the_holder_and_leaves_no_key,
    a_deadline_ends_in_time_names_the_holder_and_leaves_no_key,
    retries_end_in_time_name_the_holder_and_leave_no_key,
    a_thread_that_waits_for_its_own_process_ends_in_time_and_names_it,
    retries_count_from_the_enqueue,
    a_cancelled_call_ends_in_time_and_leaves_no_key,
    a_call_with_both_limits_ends_with_the_first_of_them,
    a_call_that_is_already_cancelled_sends_no_request,
    a_try_never_joins_the_queue,
    a_try_right_after_a_release_gets_the_lock_that_nobody_else_wants,
    a_place_in_the_queue_can_be_given_up_in_a_select,
    a_limit_beyond_the_clock_is_no_limit,
}

const MS: Duration = Duration::from_millis(1);

/// How much a call may exceed its limit.
const EXCESS: Duration = Duration::from_millis(50);

/// On a busy machine, any single call can be late, and an answer can arrive after the limit. A call that is late, or
/// whose error is incomplete, through a defect fails every time.
const TRIES: usize = 12;

/// The end of a call.
struct Ended {
    /// The time beyond its limit.
    excess: Duration,
    /// Whether the error had all details.
    complete: bool,
}

/// Repeats until one call ends well.
#[track_caller]
fn ends_in_time(mut call: impl FnMut() -> Ended) {
    let mut bad = Vec::new();
    for _ in 0..TRIES {
        let Ended { excess, complete } = call();
        if excess <= EXCESS && complete {
            return;
        }
        bad.push((excess, complete));
    }
    panic!("excess, and whether the error was complete: {bad:?}");
}

/// A wait limited to `limit` that does not get the lock. It must not end before its limit.
#[track_caller]
fn gives_up_in_time(limit: Duration, call: impl Fn() -> Result<LockGuard, LockError>, token: FencingToken) {
    ends_in_time(|| {
        let begun = Instant::now();
        let error = call().expect_err("the lock is held");
        let took = begun.elapsed();
        assert!(took >= limit, "gave up after only {took:?}");
        Ended { excess: took - limit, complete: names_alice(&error, limit, took, token) }
    });
}

/// Whether the error names the holder. It may name none, but no other owner.
#[track_caller]
fn names_alice(error: &LockError, limit: Duration, took: Duration, token: FencingToken) -> bool {
    let holder = match error {
        LockError::Timeout { key, waited, holder, .. } => {
            assert_eq!(key, "a");
            assert!(*waited + MS >= limit && *waited <= took, "waited {waited:?} of {took:?}");
            holder
        }
        LockError::AlreadyHeld { key, holder, .. } => {
            assert_eq!(key, "a");
            holder
        }
        // The retries of a call that never learned of a holder.
        LockError::Unavailable { .. } => &None,
        other => panic!("{other:?}"),
    };
    let Some(LockInfo { key, owner, token: shown, created_at, .. }) = holder.as_deref() else { return false };
    assert_eq!((key.as_str(), owner.as_deref(), *shown), ("a", Some("alice"), token));
    assert!(created_at.is_some() && error.to_string().contains("held by alice"), "{error}");
    true
}

/// The lock "a" of a manager with the owner alice, held for the whole test, and the same lock of another manager.
struct Contended {
    guard: LockGuard,
    waiter: LockManager,
    _alice: LockManager,
}

impl Contended {
    fn new(backend: &Backend) -> Self {
        let (alice, waiter) = (backend.manager_of("alice"), backend.manager_of("bob"));
        Self { guard: take(&alice.new_lock("a").unwrap()), waiter, _alice: alice }
    }

    fn lock(&self) -> DistributedLock {
        self.waiter.new_lock("a").unwrap()
    }

    fn lock_with(&self, options: LockOptions) -> DistributedLock {
        self.waiter.new_lock_with("a", options).unwrap()
    }

    /// Only alice's key is queued, and no call waits.
    #[track_caller]
    fn nothing_is_left(&self, backend: &Backend) {
        backend.wait_for_contenders("a", 1);
        assert_eq!(self.waiter.stats().waiting, 0);
        assert!(self.guard.is_held());
    }
}

fn a_timeout_ends_in_time_names_the_holder_and_leaves_no_key(backend: &Backend) {
    let held = Contended::new(backend);
    let lock = held.lock();
    for limit in [100 * MS, 7 * MS] {
        gives_up_in_time(limit, || lock.lock_timeout(limit), held.guard.token());
        held.nothing_is_left(backend);
    }
}

fn a_deadline_ends_in_time_names_the_holder_and_leaves_no_key(backend: &Backend) {
    let held = Contended::new(backend);
    let (lock, limit) = (held.lock(), 100 * MS);
    gives_up_in_time(limit, || lock.lock_deadline(Instant::now() + limit), held.guard.token());
    held.nothing_is_left(backend);
    let past = Instant::now();
    gives_up_in_time(Duration::ZERO, || lock.lock_deadline(past), held.guard.token());
    held.nothing_is_left(backend);
}

fn retries_end_in_time_name_the_holder_and_leave_no_key(backend: &Backend) {
    let held = Contended::new(backend);
    let lock = held.lock_with(LockOptions::default().retry_interval(20 * MS).max_retries(5));
    let already_held = || {
        let result = lock.lock();
        assert!(!matches!(result, Err(LockError::Timeout { .. })), "{result:?}");
        result
    };
    gives_up_in_time(100 * MS, already_held, held.guard.token());
    held.nothing_is_left(backend);
    // The earlier limit counts, and determines the error.
    let result = lock.lock_timeout(10 * MS);
    assert!(matches!(result, Err(LockError::Timeout { .. })), "{result:?}");
    held.nothing_is_left(backend);
}

fn a_thread_that_waits_for_its_own_process_ends_in_time_and_names_it(backend: &Backend) {
    let alice = backend.manager_of("alice");
    let lock = alice.new_lock("a").unwrap();
    let guard = take_elsewhere(&lock);
    gives_up_in_time(60 * MS, || lock.lock_timeout(60 * MS), guard.token());
    let impatient = LockOptions::default().retry_interval(15 * MS).max_retries(4);
    let impatient = alice.new_lock_with("a", impatient).unwrap();
    gives_up_in_time(60 * MS, || impatient.lock(), guard.token());
    assert_eq!(alice.stats().waiting, 0);
    assert_eq!(backend.contenders("a"), 1);
    assert!(guard.is_held());
}

fn retries_count_from_the_enqueue(backend: &Backend) {
    let held = Contended::new(backend);
    let lock = held.lock_with(LockOptions::default().retry_interval(30 * MS).max_retries(2));
    ends_in_time(|| {
        let begun = Instant::now();
        let pending = lock.enqueue().unwrap();
        assert!(disconnects(pending.ready()));
        let took = begun.elapsed();
        let error = pending.wait().expect_err("the lock is held");
        assert!(took >= 60 * MS, "gave up after only {took:?}");
        Ended { excess: took - 60 * MS, complete: names_alice(&error, 60 * MS, took, held.guard.token()) }
    });
    held.nothing_is_left(backend);
}

fn a_cancelled_call_ends_in_time_and_leaves_no_key(backend: &Backend) {
    let held = Contended::new(backend);
    let lock = held.lock();
    for by_message in [true, false] {
        ends_in_time(|| {
            let (stop, cancel) = bounded::<()>(1);
            thread::scope(|scope| {
                let call = scope.spawn(|| (lock.lock_or_cancel(&cancel), Instant::now()));
                backend.wait_for_contenders("a", 2);
                let cancelled_at = Instant::now();
                if by_message {
                    stop.send(()).unwrap();
                } else {
                    drop(stop);
                }
                let (result, ended_at) = call.join().unwrap();
                assert!(matches!(&result, Err(LockError::Cancelled { key, .. }) if key == "a"), "{result:?}");
                assert!(!by_message || cancel.is_empty(), "the message is taken");
                Ended { excess: ended_at.saturating_duration_since(cancelled_at), complete: true }
            })
        });
        held.nothing_is_left(backend);
    }
}

fn a_call_with_both_limits_ends_with_the_first_of_them(backend: &Backend) {
    let held = Contended::new(backend);
    let (lock, limit) = (held.lock(), 100 * MS);
    let (stop, cancel) = bounded::<()>(1);
    gives_up_in_time(limit, || lock.lock_timeout_or_cancel(limit, &cancel), held.guard.token());
    held.nothing_is_left(backend);
    ends_in_time(|| {
        thread::scope(|scope| {
            let call = scope.spawn(|| (lock.lock_timeout_or_cancel(SOON, &cancel), Instant::now()));
            backend.wait_for_contenders("a", 2);
            let cancelled_at = Instant::now();
            stop.send(()).unwrap();
            let (result, ended_at) = call.join().unwrap();
            assert!(matches!(&result, Err(LockError::Cancelled { key, .. }) if key == "a"), "{result:?}");
            Ended { excess: ended_at.saturating_duration_since(cancelled_at), complete: true }
        })
    });
    held.nothing_is_left(backend);
    drop(held.guard);
    assert!(lock.lock_timeout_or_cancel(SOON, &cancel).unwrap().is_held(), "its message was taken before");
    drop(stop);
    let result = lock.lock_timeout_or_cancel(Duration::ZERO, &cancel);
    assert!(matches!(result, Err(LockError::Cancelled { .. })), "{result:?}");
}

fn a_call_that_is_already_cancelled_sends_no_request(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let (stop, cancel) = bounded::<()>(1);
    stop.send(()).unwrap();
    assert!(matches!(lock.lock_or_cancel(&cancel), Err(LockError::Cancelled { .. })));
    let guard = lock.lock_or_cancel(&cancel).unwrap();
    assert!(guard.is_held(), "its message was taken before");
    guard.unlock().unwrap();
    drop(stop);
    let asked = manager.stats().rpcs.txn;
    assert!(matches!(lock.lock_or_cancel(&cancel), Err(LockError::Cancelled { .. })));
    assert_eq!(manager.stats().rpcs.txn, asked);
}

fn a_try_never_joins_the_queue(backend: &Backend) {
    let held = Contended::new(backend);
    let lock = held.lock();
    let before = held.waiter.stats();
    assert!(lock.try_lock().unwrap().is_none());
    assert_eq!(held.waiter.stats().rpcs.txn - before.rpcs.txn, 1, "one question");
    assert_eq!(backend.contenders("a"), 1);

    // Nor does it overtake waiters, in etcd or in its own process.
    let pending = thread::scope(|scope| scope.spawn(|| lock.enqueue().unwrap()).join().unwrap());
    backend.wait_for_contenders("a", 2);
    let third = backend.manager();
    assert!(third.new_lock("a").unwrap().try_lock().unwrap().is_none());
    assert!(lock.try_lock().unwrap().is_none());
    assert_eq!(backend.contenders("a"), 2);
    drop(held.guard);
    let guard = pending.wait().unwrap();
    assert!(lock.try_lock().unwrap().is_none(), "another thread of this process holds it");
    guard.unlock().unwrap();
    let tried = lock.try_lock().unwrap().expect("the lock is free");
    assert!(tried.is_held());
}

fn a_try_right_after_a_release_gets_the_lock_that_nobody_else_wants(backend: &Backend) {
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    for round in 0..200 {
        drop(lock.lock().unwrap());
        assert!(lock.try_lock().unwrap().is_some(), "round {round}");
    }
}

fn a_place_in_the_queue_can_be_given_up_in_a_select(backend: &Backend) {
    let held = Contended::new(backend);
    let lock = held.lock();
    let pending = lock.enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    let (stop, stopped) = bounded::<()>(1);
    stop.send(()).unwrap();
    select! {
        recv(pending.ready()) -> _ => panic!("the lock is held"),
        recv(stopped) -> _ => drop(pending),
        recv(after(SOON)) -> _ => panic!("the message has arrived"),
    }
    held.nothing_is_left(backend);

    let pending = lock.enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    drop(held.guard);
    select! {
        recv(pending.ready()) -> news => assert!(news.is_err(), "it carries nothing"),
        recv(stopped) -> _ => panic!("nobody stops"),
        recv(after(SOON)) -> _ => panic!("the lock is free"),
    }
    // The lock is held from then on, whether or not its guard is fetched.
    assert_eq!((held.waiter.stats().held, backend.contenders("a")), (1, 1));
    assert!(backend.manager().new_lock("a").unwrap().try_lock().unwrap().is_none());
    let guard = pending.wait().unwrap();
    assert!(guard.is_held() && lock.is_locked());
    drop(guard);

    // Given up after the grant.
    let pending = lock.enqueue().unwrap();
    assert!(disconnects(pending.ready()));
    drop(pending);
    backend.wait_for_contenders("a", 0);
    eventually(SOON, "no lock is held", || !lock.is_locked() && held.waiter.stats().held == 0);
}

fn a_limit_beyond_the_clock_is_no_limit(backend: &Backend) {
    let held = Contended::new(backend);
    let far = Instant::now() + Duration::from_secs(100 * 365 * 86_400);
    let for_ever = LockOptions::default().retry_interval(Duration::MAX).max_retries(u32::MAX);
    let locks = [held.lock(), held.lock(), held.lock_with(for_ever), held.lock()];
    type Wait<'a> = &'a (dyn Fn(&DistributedLock) -> Result<LockGuard, LockError> + Sync);
    let waits: [Wait<'_>; 4] = [
        &|lock| lock.lock_timeout(Duration::MAX),
        &|lock| lock.lock_deadline(far),
        &|lock| lock.lock(),
        &|lock| lock.lock_timeout(Duration::MAX - MS),
    ];
    let (report, reports) = bounded(waits.len());
    thread::scope(|scope| {
        for (wait, lock) in waits.into_iter().zip(&locks) {
            let report = report.clone();
            scope.spawn(move || report.send(wait(lock).map(drop)).unwrap());
        }
        wait_for_waiting(&held.waiter, 4);
        backend.wait_for_contenders("a", 2);
        // The time itself is under test: an overflow would end the wait at once.
        thread::sleep(50 * MS);
        assert_eq!(reports.try_recv().err(), Some(TryRecvError::Empty));
        drop(held.guard);
        for _ in 0..4 {
            reports.recv_timeout(SOON).expect("every call returns").expect("and is granted");
        }
    });
}
