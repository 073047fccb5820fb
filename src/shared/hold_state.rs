//! The state of one hold, shared by its guards, the I/O thread and the watchdog.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::deadline::{Deadline, code_of, reason_of};
use super::sync::{AtomicU8, Ordering};
use crate::clock::Time;
use crate::error::{LockError, LossReason};
use crate::info::FencingToken;
use crate::kv::Key;
use crate::mode::Mode;
use crate::name::LockName;

/// The state of one hold, shared by its guards and the I/O thread.
///
/// A hold is over when its session is, which the shared [`Deadline`] records for all holds of the session at once; or
/// by itself, when it was released or its key was deleted, which `phase` records. The first thread that sees the hold
/// ended by its session stores the reason in `phase`, so that all threads report the same one.
#[derive(Debug)]
pub(crate) struct HoldState {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
    pub(crate) key: Key,
    /// Its only sender is in the hold table.
    pub(crate) done: Receiver<()>,
    /// The session's deadline, shared by all of its holds.
    deadline: Arc<Deadline>,
    /// [`HELD`], or how the hold ended. Written once, by whichever thread ends it first.
    phase: AtomicU8,
}

/// Not the code of any reason.
const HELD: u8 = 0;
/// Not the code of any reason either.
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

    /// The mode that the hold has in etcd.
    pub(crate) fn mode(&self) -> Mode {
        Mode::of(&self.key)
    }

    /// Ends the hold, as released or lost. If it has ended before, by itself or with its session, that reason stays.
    /// Returns how it ended.
    pub(crate) fn end(&self, lost: Option<LossReason>) -> Option<LossReason> {
        let lost = self.deadline.instant().err().or(lost);
        let phase = lost.map_or(RELEASED, code_of);
        match self.phase.compare_exchange(HELD, phase, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => lost,
            Err(earlier) => loss_of(earlier),
        }
    }

    /// Whether the hold was ended, by itself or with its session; does not compare the clock.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase.load(Ordering::Acquire) != HELD || self.deadline.instant().is_err()
    }

    /// Why the hold was lost, if a thread has noticed; does not compare the clock.
    pub(crate) fn lost(&self) -> Option<LossReason> {
        match self.phase.load(Ordering::Acquire) {
            HELD if self.deadline.instant().is_err() => self.end(None),
            phase => loss_of(phase),
        }
    }

    pub(crate) fn is_held(&self, now: Time) -> bool {
        self.remaining(now).is_some()
    }

    /// How long the hold lasts without another renewal; `None` if it is over.
    pub(crate) fn remaining(&self, now: Time) -> Option<Duration> {
        let left = self.deadline.remaining(now)?;
        (self.phase.load(Ordering::Acquire) == HELD).then_some(left)
    }

    /// Why the hold was lost, if it was. Compares the clock: a caller may see the deadline pass before the I/O thread
    /// does.
    pub(crate) fn loss(&self, now: Time) -> Option<LossReason> {
        if !self.deadline.is_here() {
            return Some(LossReason::Crashed);
        }
        // If the deadline has passed, this ends the session for all threads.
        let _ = self.deadline.look(now);
        self.lost()
    }

    /// An error if the hold was lost, with the reason.
    pub(crate) fn check(&self, now: Time) -> Result<(), LockError> {
        self.loss(now).map_or(Ok(()), |_| Err(self.expired(now)))
    }

    /// The error of a hold that is over, or whose end is about to be recorded.
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
