//! Time limits in milliseconds on a machine that stalls: measures how late the machine itself is.
//!
//! A thread on each processor measures how late it wakes up. (The processors of a virtual machine stall independently,
//! so a thread on one does not notice the stall of another.)

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often each thread wakes up.
const TICK: Duration = Duration::from_millis(5);

/// A thread that wakes up this late counts as punctual.
const PUNCTUAL: Duration = Duration::from_millis(3);

/// The number of threads that a call passes through; each may have to wait for its processor.
const HANDS: u32 = 3;

/// The measurements of one processor's thread.
#[derive(Debug)]
struct Watcher(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    /// When it last started to sleep.
    asleep_since: Instant,
    /// When it woke up late, and how late.
    late: Vec<(Instant, Duration)>,
}

/// Starts the measurement, once per process.
pub(crate) fn watch() {
    watchers();
}

fn watchers() -> &'static [Watcher] {
    static WATCHERS: OnceLock<Vec<Watcher>> = OnceLock::new();
    static STARTED: OnceLock<()> = OnceLock::new();
    let seen = || Watcher(Mutex::new(Seen { asleep_since: Instant::now(), late: Vec::new() }));
    let watchers = WATCHERS.get_or_init(|| processors().iter().map(|_| seen()).collect());
    STARTED.get_or_init(|| {
        for (watcher, processor) in watchers.iter().zip(processors()) {
            let thread = std::thread::Builder::new().name("stalls".into());
            thread.spawn(move || watcher.measure(processor)).expect("a thread can be spawned");
        }
    });
    watchers
}

impl Watcher {
    fn measure(&self, processor: usize) {
        stay_on(processor);
        loop {
            let asleep_since = Instant::now();
            self.seen().asleep_since = asleep_since;
            std::thread::sleep(TICK);
            let (now, mut seen) = (Instant::now(), self.seen());
            let late = now.duration_since(asleep_since).saturating_sub(TICK);
            if late > PUNCTUAL {
                seen.late.push((now, late));
            }
        }
    }

    /// The longest stall since then, including one that is still going on.
    fn worst_since(&self, begun: Instant) -> Duration {
        let seen = self.seen();
        let ended = seen.late.iter().rev().take_while(|(at, _)| *at >= begun).map(|(_, late)| *late).max();
        let now = seen.asleep_since.elapsed().saturating_sub(TICK + PUNCTUAL);
        ended.unwrap_or_default().max(now)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The processors that this process may use.
#[cfg(target_os = "linux")]
fn processors() -> Vec<usize> {
    let usable = rustix::thread::sched_getaffinity(None).expect("Linux reports the usable processors");
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&processor| usable.is_set(processor)).collect()
}

#[cfg(target_os = "linux")]
fn stay_on(processor: usize) {
    let mut only = rustix::thread::CpuSet::new();
    only.set(processor);
    // Where pinning is not permitted, the thread measures without it.
    let _ = rustix::thread::sched_setaffinity(None, &only);
}

#[cfg(not(target_os = "linux"))]
fn processors() -> Vec<usize> {
    vec![0]
}

#[cfg(not(target_os = "linux"))]
fn stay_on(_processor: usize) {}

/// How long the machine may have delayed a call since then.
pub(crate) fn since(begun: Instant) -> Duration {
    let worst = watchers().iter().map(|watcher| watcher.worst_since(begun)).max();
    worst.unwrap_or_default() * HANDS
}

/// Panics if more than `limit` has passed since `start`, not counting the machine's stalls. Returns the elapsed time.
#[track_caller]
pub(crate) fn assert_within(start: Instant, limit: Duration, what: &str) -> Duration {
    let took = start.elapsed();
    let stalls = since(start);
    assert!(took <= limit + stalls, "{what}: {took:?}, more than {limit:?} (and {stalls:?} of stalls)");
    took
}
