//! Until when everything held under a session is assured, and why it is over.

use std::time::Duration;

use super::sync::{AtomicU64, Ordering};
use crate::clock::Time;
use crate::error::LossReason;
use crate::shared::process::Process;

/// The instant until which everything held under one session is assured. Every hold of the session shares it.
///
/// Two states in one atomic: *open* until an instant, which only [`extend`](Self::extend) moves; and *over* for a
/// reason, which has no exit. It is over once [`end`](Self::end) was called, or once any thread has looked at it past
/// its instant. So what one thread has reported as expired cannot be revived by a renewal that arrives a moment later,
/// for this or any other thread; and the loss of a session is one store for all of its holds.
#[derive(Debug)]
pub(crate) struct Deadline {
    /// An instant in nanoseconds, or below [`FIRST_INSTANT`] the code of a reason.
    state: AtomicU64,
    /// In which process the session is.
    process: Process,
}

/// The clock is beyond this long before any process runs.
const FIRST_INSTANT: u64 = 16;
const _: () = assert!(LAST_CODE < FIRST_INSTANT);

const LAST_CODE: u64 = 5;

/// Reasons as numbers, for atomics; zero is none of them.
pub(super) fn code_of(reason: LossReason) -> u8 {
    match reason {
        LossReason::SessionExpired => 1,
        LossReason::SessionRevoked => 2,
        LossReason::ForceUnlocked => 3,
        LossReason::Closed => 4,
        LossReason::Crashed => 5,
    }
}

/// The inverse of [`code_of`].
pub(super) fn reason_of(code: u8) -> LossReason {
    match code {
        1 => LossReason::SessionExpired,
        2 => LossReason::SessionRevoked,
        3 => LossReason::ForceUnlocked,
        4 => LossReason::Closed,
        _ => LossReason::Crashed,
    }
}

const EXPIRED: u64 = 1;

/// What the number says.
fn read(state: u64) -> Result<Time, LossReason> {
    if state >= FIRST_INSTANT {
        return Ok(Time::from_nanos(state));
    }
    Err(reason_of(u8::try_from(state).unwrap_or(u8::MAX)))
}

impl Deadline {
    pub(crate) fn new(at: Time) -> Self {
        Self { state: AtomicU64::new(at.as_nanos().max(FIRST_INSTANT)), process: Process::current() }
    }

    /// A deadline that is over from the start.
    pub(crate) fn over() -> Self {
        Self { state: AtomicU64::new(EXPIRED), process: Process::current() }
    }

    /// The time left at `now`, or why it is over, for good.
    pub(crate) fn look(&self, now: Time) -> Result<Duration, LossReason> {
        if !self.is_here() {
            return Err(LossReason::Crashed);
        }
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let left = read(state)?.since(now);
            if !left.is_zero() {
                return Ok(left);
            }
            match self.state.compare_exchange(state, EXPIRED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Err(LossReason::SessionExpired),
                Err(moved) => state = moved,
            }
        }
    }

    /// The time left at `now`; `None` if it is over, for good.
    pub(crate) fn remaining(&self, now: Time) -> Option<Duration> {
        self.look(now).ok()
    }

    /// Whether it lies ahead of `now`. Once this was false it is false for ever.
    #[cfg(test)]
    pub(crate) fn is_live(&self, now: Time) -> bool {
        self.look(now).is_ok()
    }

    /// The instant as it is now, or why it is over. Without a look at the clock: it may have passed.
    pub(crate) fn instant(&self) -> Result<Time, LossReason> {
        read(self.state.load(Ordering::Acquire))
    }

    /// Moves it. False if it is over: then it stays over.
    #[must_use]
    pub(crate) fn extend(&self, to: Time) -> bool {
        let to = to.as_nanos().max(FIRST_INSTANT);
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| read(state).is_ok().then_some(to))
            .is_ok()
    }

    /// It is over now, whatever the clock says. The first reason stands, and is returned.
    pub(crate) fn end(&self, reason: LossReason) -> LossReason {
        let code = u64::from(code_of(reason));
        let ended = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| read(state).is_ok().then_some(code));
        match ended {
            Ok(_) => reason,
            Err(earlier) => read(earlier).err().unwrap_or(reason),
        }
    }

    /// False in a forked child: what is held under it is held by the parent.
    pub(crate) fn is_here(&self) -> bool {
        self.process.is_current()
    }
}
