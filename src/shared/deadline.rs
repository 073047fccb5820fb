//! The deadline of a session and its holds, and why it is over.

use std::time::Duration;

use super::sync::{AtomicU64, Ordering};
use crate::clock::Time;
use crate::error::LossReason;
use crate::shared::process::Process;

/// The instant at which all holds of one session end without another renewal. All of them share it.
///
/// Two states in one atomic: *open* until an instant, which only [`extend`](Self::extend) moves; and *over* for a
/// reason, which has no exit. It becomes over when [`end`](Self::end) is called, or when any thread compares it with
/// the clock past its instant. So a renewal that arrives a moment later cannot revive a deadline that one thread has
/// reported as expired, and the loss of a session is one store for all of its holds.
#[derive(Debug)]
pub(crate) struct Deadline {
    /// An instant in nanoseconds or, below [`FIRST_INSTANT`], the code of a reason. Written by the I/O thread, and by
    /// any thread that sees the instant pass or ends the session.
    state: AtomicU64,
    /// The process that has the session.
    process: Process,
}

/// Instants below this number of nanoseconds after boot do not occur, so they can encode reasons.
const FIRST_INSTANT: u64 = 16;
const _: () = assert!(LAST_CODE < FIRST_INSTANT);

const LAST_CODE: u64 = 5;

/// The code of a reason in an atomic; never zero.
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

/// Decodes the state.
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

    /// The time left at `now`; an error with the reason if the deadline is over, which is final.
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

    /// The time left at `now`; `None` if the deadline is over, which is final.
    pub(crate) fn remaining(&self, now: Time) -> Option<Duration> {
        self.look(now).ok()
    }

    /// Whether the deadline is after `now`. Once this was false it stays false.
    #[cfg(test)]
    pub(crate) fn is_live(&self, now: Time) -> bool {
        self.look(now).is_ok()
    }

    /// The current instant, or why the deadline is over. Does not compare the clock: the instant may have passed.
    pub(crate) fn instant(&self) -> Result<Time, LossReason> {
        read(self.state.load(Ordering::Acquire))
    }

    /// Moves the instant. False if the deadline is over, which is final.
    #[must_use]
    pub(crate) fn extend(&self, to: Time) -> bool {
        let to = to.as_nanos().max(FIRST_INSTANT);
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| read(state).is_ok().then_some(to))
            .is_ok()
    }

    /// Ends the deadline, whatever the clock says. If it was over before, the first reason stays. Returns the reason.
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

    /// False in a forked child: the parent has the session.
    pub(crate) fn is_here(&self) -> bool {
        self.process.is_current()
    }
}
