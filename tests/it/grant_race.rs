//! A call that is given up just when it is granted leaves nothing held.
//!
//! Each way to give up races the grant some hundred times. The moment of giving up is adjusted: a little earlier after
//! a grant, a little later without one, so that it stays at the boundary on any machine.

use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::bounded;
use etcd_lock::{DistributedLock, LockError, LockGuard, LockManager};

use crate::support::{Backend, SOON, eventually, on_both_stores, take, take_elsewhere, wait_for_waiting};

on_both_stores! {
    a_timeout_at_the_moment_of_the_grant_leaves_nothing_held,
    a_cancellation_at_the_moment_of_the_grant_leaves_nothing_held,
    a_place_in_the_queue_dropped_at_the_moment_of_the_grant_leaves_nothing_held,
    a_timeout_at_the_moment_in_which_a_free_lock_is_granted_leaves_nothing_held,
}

const ROUNDS: u32 = 120;

/// The moment between "too early for the grant" and "too late".
struct Edge {
    after: Duration,
    granted: u32,
    in_vain: u32,
}

impl Edge {
    fn new() -> Self {
        Self { after: Duration::from_millis(4), granted: 0, in_vain: 0 }
    }

    fn note(&mut self, granted: bool) {
        // Steps of different sizes, so that it does not alternate between two moments.
        if granted {
            self.granted += 1;
            self.after = self.after.mul_f64(0.87);
        } else {
            self.in_vain += 1;
            self.after = self.after.mul_f64(1.11).max(Duration::from_micros(10));
        }
    }

    /// Checks that both sides won some races.
    #[track_caller]
    fn was_met(&self) {
        let Self { granted, in_vain, .. } = self;
        assert!(granted.min(in_vain) > &5, "granted {granted} times, given up {in_vain} times");
    }
}

/// Sleeps as precisely as possible.
fn wait_until(moment: Instant) {
    while let Some(left) = moment.checked_duration_since(Instant::now()) {
        if left > Duration::from_micros(200) { thread::sleep(left / 2) } else { std::hint::spin_loop() }
    }
}

/// The lock "a" of the holder and of the thread that gives up: from two managers, or on two threads of one.
struct Racers {
    managers: Vec<LockManager>,
}

impl Racers {
    fn holder(&self) -> DistributedLock {
        self.managers[0].new_lock("a").unwrap()
    }

    fn waiter(&self) -> DistributedLock {
        self.waiting_manager().new_lock("a").unwrap()
    }

    fn waiting_manager(&self) -> &LockManager {
        &self.managers[self.managers.len() - 1]
    }
}

/// Runs the race between two managers, and between two threads of one. `race` gets the guard that blocks the lock, and
/// returns whether the lock was granted.
fn raced(backend: &Backend, race: impl Fn(&Racers, LockGuard, Duration) -> bool) {
    for managers in [1, 2] {
        let racers = Racers { managers: (0..managers).map(|_| backend.manager()).collect() };
        let mut edge = Edge::new();
        for _ in 0..ROUNDS {
            // If the previous round left a hold, this times out.
            let guard = take_elsewhere(&racers.holder());
            edge.note(race(&racers, guard, edge.after));
        }
        edge.was_met();
        nothing_is_left(backend, &racers.managers);
    }
}

#[track_caller]
fn nothing_is_left(backend: &Backend, managers: &[LockManager]) {
    backend.wait_for_contenders("a", 0);
    for manager in managers {
        eventually(SOON, "no lock is held and no call waits", || {
            let stats = manager.stats();
            (stats.held, stats.waiting) == (0, 0) && stats.acquired == stats.released
        });
        assert!(!manager.new_lock("a").unwrap().is_locked());
        assert_eq!(manager.stats().sessions, 1, "the session is kept");
    }
}

/// Whether the call was granted the lock, which is then released.
#[track_caller]
fn was_granted(result: Result<LockGuard, LockError>) -> bool {
    match result {
        Ok(guard) => {
            assert!(guard.is_held());
            true
        }
        // At the moment of the grant the queue may have been empty.
        Err(LockError::Timeout { .. } | LockError::Unavailable { .. } | LockError::Cancelled { .. }) => false,
        Err(other) => panic!("{other:?}"),
    }
}

fn a_timeout_at_the_moment_of_the_grant_leaves_nothing_held(backend: &Backend) {
    // The limit counts from the call, the grant from the release: the release follows the call after this time.
    const HEAD_START: Duration = Duration::from_millis(5);
    raced(backend, |racers, in_the_way, after| {
        let lock = racers.waiter();
        thread::scope(|scope| {
            let begun = Instant::now();
            let call = scope.spawn(move || was_granted(lock.lock_timeout(HEAD_START + after)));
            wait_until(begun + HEAD_START);
            drop(in_the_way);
            call.join().unwrap()
        })
    });
}

fn a_cancellation_at_the_moment_of_the_grant_leaves_nothing_held(backend: &Backend) {
    raced(backend, |racers, in_the_way, after| {
        let lock = racers.waiter();
        let (stop, cancel) = bounded::<()>(0);
        thread::scope(|scope| {
            let call = scope.spawn(move || was_granted(lock.lock_or_cancel(&cancel)));
            wait_for_waiting(racers.waiting_manager(), 1);
            let released = Instant::now();
            drop(in_the_way);
            wait_until(released + after);
            drop(stop);
            call.join().unwrap()
        })
    });
}

fn a_place_in_the_queue_dropped_at_the_moment_of_the_grant_leaves_nothing_held(backend: &Backend) {
    raced(backend, |racers, in_the_way, after| {
        let pending = racers.waiter().enqueue().unwrap();
        wait_for_waiting(racers.waiting_manager(), 1);
        let released = Instant::now();
        drop(in_the_way);
        wait_until(released + after);
        let granted = pending.ready().try_recv().is_err_and(|error| error.is_disconnected());
        drop(pending);
        granted
    });
}

fn a_timeout_at_the_moment_in_which_a_free_lock_is_granted_leaves_nothing_held(backend: &Backend) {
    let managers = [backend.manager(), backend.manager()];
    let [lock, other] = [&managers[0], &managers[1]].map(|manager| manager.new_lock("a").unwrap());
    let mut edge = Edge::new();
    for _ in 0..ROUNDS {
        edge.note(was_granted(lock.lock_timeout(edge.after)));
        drop(take(&other));
    }
    edge.was_met();
    nothing_is_left(backend, &managers);
}
