//! What is measured.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockManager};

use crate::exit::Failure;

/// Some threads take and release locks, each one of its own; the times of `lock()`.
pub(super) fn cycles(
    manager: &LockManager,
    name: &str,
    threads: u32,
    time: Duration,
) -> Result<Vec<Duration>, Failure> {
    let end = Instant::now() + time;
    let cycle = |n: u32| -> Result<Vec<Duration>, LockError> {
        let lock = manager.new_lock(&format!("{name}/{n}"))?;
        let mut times = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            let guard = lock.lock()?;
            times.push(start.elapsed());
            guard.unlock()?;
        }
        Ok(times)
    };
    on_threads((0..threads).map(|n| move || cycle(n)))
}

/// Two sessions, which to etcd are two processes, hand one lock to each other; the times from the beginning of the
/// release to the grant.
pub(super) fn hand_overs(
    managers: &[LockManager; 2],
    name: &str,
    time: Duration,
) -> Result<Vec<Duration>, Failure> {
    let end = Instant::now() + time;
    let released: Mutex<Option<Instant>> = Mutex::new(None);
    let last = || released.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let cycle = |manager: &LockManager| -> Result<Vec<Duration>, LockError> {
        let lock = manager.new_lock(name)?;
        let mut times = Vec::new();
        while Instant::now() < end {
            let guard = lock.lock()?;
            if let Some(released) = last().replace(Instant::now()) {
                times.push(released.elapsed());
            }
            *last() = Some(Instant::now());
            guard.unlock()?;
        }
        Ok(times)
    };
    on_threads(managers.iter().map(|manager| move || cycle(manager)))
}

/// Fenced puts, one after the other: each is one commit, as taking a lock is. The key is the hold's own, with its note, so that
/// it ends with the lease however this program ends.
pub(super) fn puts(manager: &LockManager, name: &str, time: Duration) -> Result<Vec<Duration>, Failure> {
    let guard = manager.new_lock(name)?.lock()?;
    let (mut times, end) = (Vec::new(), Instant::now() + time);
    while Instant::now() < end {
        let start = Instant::now();
        guard.set_note("bench")?;
        times.push(start.elapsed());
    }
    guard.unlock()?;
    Ok(times)
}

/// Runs these jobs at the same time, and collects what they return.
fn on_threads<J>(jobs: impl Iterator<Item = J>) -> Result<Vec<Duration>, Failure>
where
    J: FnOnce() -> Result<Vec<Duration>, LockError> + Send,
{
    thread::scope(|scope| {
        let running: Vec<_> = jobs.map(|job| scope.spawn(job)).collect();
        let mut times = Vec::new();
        for thread in running {
            let done = thread.join().map_err(|_| Failure::internal("measuring", "a thread died"))?;
            times.extend(done?);
        }
        Ok(times)
    })
}
