//! One hold, as its guards and the I/O thread know it together.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::deadline::{Deadline, code_of, reason_of};
use super::sync::{AtomicU8, Ordering};
use crate::clock::Time;
use crate::error::{LockError, LossReason};
use crate::info::FencingToken;
use crate::kv::Key;
use crate::name::LockName;

/// What a hold's guards and the I/O thread know of it together.
///
/// It is over when its session is, which the shared [`Deadline`] says for all holds of the session at once; or by
/// itself, when it was released or its key was deleted, which its phase says. Whoever looks at a hold that its session
/// has ended writes the reason into the phase, so that every later look finds the same one.
#[derive(Debug)]
pub(crate) struct HoldState {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
    pub(crate) key: Key,
    /// Its only sender lives in the hold table.
    pub(crate) done: Receiver<()>,
    deadline: Arc<Deadline>,
    /// [`HELD`], or how it ended; it ends once.
    phase: AtomicU8,
}

/// No reason's code.
const HELD: u8 = 0;
/// No reason's code either.
const RELEASED: u8 = u8::MAX;

impl HoldState {
    pub(crate) fn new(
        name: LockName,
        token: FencingToken,
        key: Key,
        done: Receiver<()>,
        deadline: Arc<Deadline>,
    ) -> Self {
        Self { name, token, key, done, deadline, phase: AtomicU8::new(HELD) }
    }

    /// Ends the hold, released or lost, unless it has ended before, by itself or with its session: how it ended stands
    /// for good. Returns how it did.
    pub(crate) fn end(&self, lost: Option<LossReason>) -> Option<LossReason> {
        let lost = self.deadline.instant().err().or(lost);
        let phase = lost.map_or(RELEASED, code_of);
        match self.phase.compare_exchange(HELD, phase, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => lost,
            Err(earlier) => loss_of(earlier),
        }
    }

    /// Whether it was ended, by itself or with its session.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase.load(Ordering::Acquire) != HELD || self.deadline.instant().is_err()
    }

    /// Why it was lost, as far as anybody has found out; the clock is not asked.
    pub(crate) fn lost(&self) -> Option<LossReason> {
        match self.phase.load(Ordering::Acquire) {
            HELD if self.deadline.instant().is_err() => self.end(None),
            phase => loss_of(phase),
        }
    }

    pub(crate) fn is_held(&self, now: Time) -> bool {
        self.remaining(now).is_some()
    }

    /// The assured time left; `None` once it is over.
    pub(crate) fn remaining(&self, now: Time) -> Option<Duration> {
        let left = self.deadline.remaining(now)?;
        (self.phase.load(Ordering::Acquire) == HELD).then_some(left)
    }

    /// Why it was lost, if it was. A caller that sees the time run out before the I/O thread does decides it.
    pub(crate) fn loss(&self, now: Time) -> Option<LossReason> {
        if !self.deadline.is_here() {
            return Some(LossReason::Crashed);
        }
        // If the time has run out, this look ends the session for everybody.
        let _ = self.deadline.look(now);
        self.lost()
    }

    /// The error that says how it was lost, if it was.
    pub(crate) fn check(&self, now: Time) -> Result<(), LockError> {
        self.loss(now).map_or(Ok(()), |_| Err(self.expired(now)))
    }

    /// The error that says that it is over, or nearly so.
    pub(crate) fn expired(&self, now: Time) -> LockError {
        if !self.deadline.is_here() {
            return LockError::Forked;
        }
        LockError::Expired {
            key: self.name.as_str().into(),
            reason: self.loss(now).unwrap_or(LossReason::SessionExpired),
        }
    }
}

fn loss_of(phase: u8) -> Option<LossReason> {
    match phase {
        HELD | RELEASED => None,
        code => Some(reason_of(code)),
    }
}
