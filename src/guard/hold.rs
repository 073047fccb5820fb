//! What stands behind a hold's guards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use oneshot::{RecvTimeoutError, Sender};

use crate::clock::{self, Time};
use crate::command::{Left, Message};
use crate::error::{Cause, LockError, LossReason};
use crate::info::FencingToken;
use crate::io;
use crate::lock::LockShared;
use crate::mailbox;
use crate::name::LockName;
use crate::protocol::{ReleaseFailure, Ticket};
use crate::session::Deadline;
use crate::store::Key;

/// One granted ticket. Its reference count is the number of guards: dropping the last one leaves.
pub(crate) struct Hold {
    ticket: Ticket,
    pub(super) state: Arc<HoldState>,
    lock: Arc<LockShared>,
    /// `Leave` has been said.
    left: bool,
}

impl Hold {
    pub(crate) fn new(ticket: Ticket, state: Arc<HoldState>, lock: Arc<LockShared>) -> Self {
        Self { ticket, state, lock, left: false }
    }

    /// Leaves and waits for the answer.
    pub(super) fn release(mut self) -> Result<(), LockError> {
        if self.state.loss(clock::now()).is_some() {
            return Err(self.state.expired(clock::now()));
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.leave(Some(reply));
        let key = self.state.name.as_str();
        let doing = || format!("releasing lock {key:?}");
        // A hold that the end of the I/O thread has swept away is expired; that says more than how the thread ended.
        let gone = |error| if self.state.has_ended() { self.state.expired(clock::now()) } else { error };
        sent.map_err(gone)?;
        match mailbox::wait_for(&answer, Instant::now().checked_add(self.lock.manager().request_timeout())) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ReleaseFailure::Lost(reason))) => Err(LockError::Expired { key: key.into(), reason }),
            Ok(Err(ReleaseFailure::NotHeld)) => Err(LockError::NotHeld { key: key.into() }),
            Ok(Err(ReleaseFailure::Failed(failure))) => Err(io::lock_error(failure, &doing())),
            Err(RecvTimeoutError::Timeout) => Err(LockError::Unavailable {
                doing: doing(),
                source: Cause::new("no confirmation in time; the release goes on in the background"),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(gone(self.lock.manager().gone())),
        }
    }

    fn leave(&mut self, reply: Option<Sender<Left>>) -> Result<(), LockError> {
        self.left = true;
        self.lock.manager().check_process()?;
        // First out of the lock's sight, so that this thread cannot re-enter a hold that is going.
        self.lock.forget(self.ticket);
        self.lock.manager().send(Message::Leave { ticket: self.ticket, reply })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.left {
            // An error says that the I/O thread has ended, and with it every hold; or that the hold is our parent's.
            let _ = self.leave(None);
        }
    }
}

/// What a hold's guards and the I/O thread know of it together.
#[derive(Debug)]
pub(crate) struct HoldState {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
    pub(crate) key: Key,
    /// Its only sender lives on the I/O thread.
    pub(crate) done: Receiver<()>,
    deadline: Arc<Deadline>,
    /// [`HELD`], or how it ended; it ends once.
    phase: AtomicU8,
}

const HELD: u8 = 0;
const RELEASED: u8 = 1;

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

    /// Ends the hold, released or lost, unless it has ended before: how it ended stands for good. Returns how it did.
    pub(crate) fn end(&self, lost: Option<LossReason>) -> Option<LossReason> {
        let phase = lost.map_or(RELEASED, phase_of);
        match self.phase.compare_exchange(HELD, phase, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => lost,
            Err(earlier) => loss_of(earlier),
        }
    }

    /// Whether [`end`](Self::end) was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase.load(Ordering::Acquire) != HELD
    }

    /// Why it was lost, if [`end`](Self::end) said so.
    pub(crate) fn lost(&self) -> Option<LossReason> {
        loss_of(self.phase.load(Ordering::Acquire))
    }

    pub(crate) fn is_held(&self, now: Time) -> bool {
        self.remaining(now).is_some()
    }

    /// The assured time left; `None` once it is over.
    pub(crate) fn remaining(&self, now: Time) -> Option<Duration> {
        // In this order: a deadline that is ended together with a hold's loss is ended after it.
        let left = self.deadline.remaining(now)?;
        (!self.has_ended() && self.is_here()).then_some(left)
    }

    /// False in a forked child.
    pub(super) fn is_here(&self) -> bool {
        self.deadline.is_here()
    }

    /// Why it was lost, if it was. A caller that sees the time run out before the I/O thread does decides it.
    pub(crate) fn loss(&self, now: Time) -> Option<LossReason> {
        if !self.is_here() {
            return self.end(Some(LossReason::Crashed));
        }
        if self.deadline.is_live(now) { self.lost() } else { self.end(Some(LossReason::SessionExpired)) }
    }

    /// The error that says that it is over.
    pub(crate) fn expired(&self, now: Time) -> LockError {
        LockError::Expired {
            key: self.name.as_str().into(),
            reason: self.loss(now).unwrap_or(LossReason::SessionExpired),
        }
    }
}

fn phase_of(reason: LossReason) -> u8 {
    match reason {
        LossReason::SessionExpired => 2,
        LossReason::SessionRevoked => 3,
        LossReason::ForceUnlocked => 4,
        LossReason::Closed => 5,
        LossReason::Crashed => 6,
    }
}

fn loss_of(phase: u8) -> Option<LossReason> {
    match phase {
        HELD | RELEASED => None,
        2 => Some(LossReason::SessionExpired),
        3 => Some(LossReason::SessionRevoked),
        4 => Some(LossReason::ForceUnlocked),
        5 => Some(LossReason::Closed),
        _ => Some(LossReason::Crashed),
    }
}
