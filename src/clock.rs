//! The library's clock: time since boot, including suspend. The clock of a manager in memory runs ahead of it by the
//! time that its store was advanced.
//!
//! A lease expires in etcd while this machine is suspended. A deadline on a clock that stops during suspend
//! (`CLOCK_MONOTONIC`, and so [`std::time::Instant`] on Linux) would pass too late.

use std::fmt;
use std::future::pending;
use std::ops::Add;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::watch;

use crate::mutex::Mutex;

/// An instant on [`now`]'s clock. The protocol takes it as an argument and never reads a clock itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Time(Duration);

impl Time {
    /// The instant `nanos` nanoseconds after the clock's zero.
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }

    /// Nanoseconds since the clock's zero; saturates after 584 years of uptime.
    pub(crate) fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The time from `earlier` to `self`; zero if `earlier` is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// `None` if the sum is beyond the range of the clock, which means "never".
    pub(crate) fn checked_add(self, duration: Duration) -> Option<Self> {
        let sum = self.0.checked_add(duration)?;
        (sum.as_nanos() < u128::from(u64::MAX)).then_some(Self(sum))
    }

    /// The instant `duration` before this one, or the clock's zero.
    pub(crate) fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:?}", self.0)
    }
}

/// The current time, read on the caller's own thread without a system call where the vDSO serves the clock.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn now() -> Time {
    use rustix::time::{ClockId, clock_gettime};
    let ts = clock_gettime(ClockId::Boottime);
    // The boot clock is never negative and its nanoseconds are below a second.
    let secs = u64::try_from(ts.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(ts.tv_nsec).unwrap_or(0);
    Time(Duration::new(secs, nanos))
}

/// The current time. On macOS and Windows it is [`std::time::Instant`]'s; whether that includes suspend depends on the
/// platform.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn now() -> Time {
    use std::sync::OnceLock;
    use std::time::Instant;
    static ZERO: OnceLock<Instant> = OnceLock::new();
    // One second ahead, so that subtracting a small duration from an early instant stays above zero.
    Time(ZERO.get_or_init(Instant::now).elapsed() + Duration::from_secs(1))
}

/// A manager's clock: the machine's clock, or one that runs ahead of it. Clones show the same time.
#[derive(Clone, Default)]
pub(crate) struct Clock(Option<Arc<Movable>>);

/// One manager's view of a clock that several managers share.
struct Movable {
    shared: Arc<Moves>,
    /// The instant up to which the manager's I/O thread has handled everything that was due, in nanoseconds; zero
    /// before its first turn. Written by that thread.
    seen: AtomicU64,
    /// The last such instant at which no request of the manager was unanswered. Written by its I/O thread.
    answered: AtomicU64,
    /// The number of unanswered requests when `seen` was written. Written by the I/O thread.
    waiting: AtomicUsize,
}

struct Moves {
    /// How far the clock is ahead of the machine's; written by the thread that calls `advance`.
    ahead: watch::Sender<Duration>,
    /// Has a message if a manager may have caught up since the last one was received.
    progress: (Sender<()>, Receiver<()>),
    /// The watchdogs to wake when the clock is advanced.
    sleepers: Mutex<Vec<Weak<dyn Sleeper + Send + Sync>>>,
}

/// Sleeps by the clock on a thread without a runtime.
pub(crate) trait Sleeper {
    /// Called when the clock was advanced.
    fn wake(&self);
}

impl Clock {
    /// A clock that can be advanced.
    pub(crate) fn movable() -> Self {
        Self::of(Arc::new(Moves {
            ahead: watch::Sender::new(Duration::ZERO),
            progress: bounded(1),
            sleepers: Mutex::default(),
        }))
    }

    fn of(shared: Arc<Moves>) -> Self {
        Self(Some(Arc::new(Movable {
            shared,
            seen: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        })))
    }

    /// The same clock, for another manager.
    pub(crate) fn for_another(&self) -> Self {
        self.0.as_ref().map_or_else(Self::default, |own| Self::of(Arc::clone(&own.shared)))
    }

    pub(crate) fn now(&self) -> Time {
        match &self.0 {
            None => now(),
            Some(own) => now() + *own.shared.ahead.borrow(),
        }
    }

    /// Advances a movable clock, and wakes all tasks and threads that sleep by it.
    pub(crate) fn advance(&self, by: Duration) {
        let Some(own) = &self.0 else { return };
        own.shared.ahead.send_modify(|ahead| *ahead = ahead.saturating_add(by));
        let sleepers = own.shared.sleepers.lock().clone();
        sleepers.iter().filter_map(Weak::upgrade).for_each(|sleeper| sleeper.wake());
    }

    /// Registers a sleeper to be woken when the clock is advanced.
    pub(crate) fn wake_when_moved(&self, sleeper: Weak<dyn Sleeper + Send + Sync>) {
        if let Some(own) = &self.0 {
            let mut sleepers = own.shared.sleepers.lock();
            sleepers.retain(|sleeper| sleeper.strong_count() > 0);
            sleepers.push(sleeper);
        }
    }

    /// A subscription for a task that sleeps by the clock.
    pub(crate) fn moves(&self) -> MovesSeen {
        MovesSeen(self.0.as_ref().map(|own| own.shared.ahead.subscribe()))
    }

    /// Records that the manager has handled everything that was due at `now`, with this many requests unanswered.
    pub(crate) fn note_turn(&self, now: Time, waiting: usize) {
        if let Some(own) = &self.0 {
            // Stored before `seen`, so that a reader of `seen` sees the number that belongs to it, or a later one.
            own.waiting.store(waiting, Ordering::Release);
            own.seen.store(now.as_nanos(), Ordering::Release);
            if waiting == 0 {
                own.answered.store(now.as_nanos(), Ordering::Release);
            }
            self.note_progress();
        }
    }

    /// Wakes the thread in [`wait_for_progress`](Self::wait_for_progress).
    pub(crate) fn note_progress(&self) {
        if let Some(own) = &self.0 {
            // It fails if there is a message already, which serves as well.
            let _ = own.shared.progress.0.try_send(());
        }
    }

    /// Waits until a manager may have caught up, for up to `limit`.
    pub(crate) fn wait_for_progress(&self, limit: Duration) {
        if let Some(own) = &self.0 {
            let _ = own.shared.progress.1.recv_timeout(limit);
        }
    }

    /// Whether the manager has handled what was due at `now` and received the answers to its requests, except for up to
    /// `not_due` requests that are answered later. True for a manager that has not begun.
    pub(crate) fn has_caught_up(&self, now: Time, not_due: usize) -> bool {
        self.0.as_ref().is_none_or(|own| {
            let seen = own.seen.load(Ordering::Acquire);
            seen == 0
                || own.answered.load(Ordering::Acquire) >= now.as_nanos()
                || seen >= now.as_nanos() && own.waiting.load(Ordering::Acquire) <= not_due
        })
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// The moves of a clock that a task has not noticed yet.
pub(crate) struct MovesSeen(Option<watch::Receiver<Duration>>);

impl MovesSeen {
    /// Waits for the next move. The machine's own clock never moves.
    pub(crate) async fn moved(&mut self) {
        match &mut self.0 {
            // Without a sender the clock can no longer be moved.
            Some(ahead) => {
                if ahead.changed().await.is_err() {
                    pending().await
                }
            }
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_forward() {
        let first = now();
        let second = now();
        assert!(second >= first);
        assert!(first > Time::default());
    }

    #[test]
    fn adding_beyond_the_range_of_the_clock_gives_none() {
        assert_eq!(now().checked_add(Duration::MAX), None);
        assert_eq!(now().checked_add(Duration::from_secs(u64::MAX / 2)), None);
        assert!(now().checked_add(Duration::from_secs(3600)).is_some());
    }
}
