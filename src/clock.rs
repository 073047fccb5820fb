//! The one clock of the library: time since boot, suspend included.
//!
//! A lease goes on expiring in etcd while this machine sleeps, so a deadline counted on a clock that stops
//! during suspend (`CLOCK_MONOTONIC`, and with it [`std::time::Instant`] on Linux) would come too late.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

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

    /// `None` where the sum is beyond what the clock can ever show: never.
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

/// The current time. On macOS and Windows `Instant` is what the platform gives; whether it counts suspend is theirs.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn now() -> Time {
    use std::sync::OnceLock;
    use std::time::Instant;
    static ZERO: OnceLock<Instant> = OnceLock::new();
    // One second ahead, so that subtracting small durations from an early instant stays above the clock's zero.
    Time(ZERO.get_or_init(Instant::now).elapsed() + Duration::from_secs(1))
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
    fn a_sum_beyond_the_clock_is_never() {
        assert_eq!(now().checked_add(Duration::MAX), None);
        assert_eq!(now().checked_add(Duration::from_secs(u64::MAX / 2)), None);
        assert!(now().checked_add(Duration::from_secs(3600)).is_some());
    }
}
