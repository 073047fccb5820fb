//! The tickets of a queue: those that wait for their turn in this process, and those that have given up.

use std::ops::Deref;

use crate::clock::Time;
use crate::kv::Failure;
use crate::mode::{Load, Mode};
use crate::protocol::messages::{Acquire, ContenderId, CurrentHolder, Ticket};

/// A ticket that waits, and what is known about its wait.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    acquire: Acquire,
    /// Callers of this process were waiting in the queue when it asked.
    pub(super) came_behind: bool,
    /// A hold of this process has kept it out since it asked.
    pub(super) kept_out: bool,
    /// It has taken over this contender, which was put for an earlier waiter, and its position has been read for it.
    pub(super) position_read: Option<ContenderId>,
}

impl Waiter {
    pub(super) fn new(acquire: Acquire, came_behind: bool) -> Self {
        Self { acquire, came_behind, kept_out: false, position_read: None }
    }
}

impl Deref for Waiter {
    type Target = Acquire;

    fn deref(&self) -> &Acquire {
        &self.acquire
    }
}

/// A ticket that has given up, and is answered soon.
#[derive(Clone, Debug)]
pub(super) struct GivingUp {
    pub(super) ticket: Ticket,
    /// When its caller made the call.
    pub(super) since: Time,
    pub(super) mode: Mode,
    pub(super) reason: GiveUpReason,
    pub(super) contention: Contention,
    /// The answer of the read of the holder, once it is there.
    pub(super) holder_read: Option<Result<Option<CurrentHolder>, Failure>>,
}

/// What was known, when the ticket gave up, about others that kept it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contention {
    Unknown,
    /// Callers of this process were waiting before it; whether the store answers is not known.
    LocalWaiters,
    /// Our contender had a predecessor when the store was last read, or a hold of this process kept the ticket out.
    Contended,
    /// The lock is held by this process.
    HeldHere,
}

#[derive(Clone, Debug)]
pub(super) enum GiveUpReason {
    Cancelled,
    /// The deadline passed.
    Deadline,
    /// The retries ran out.
    Budget,
}

impl GivingUp {
    pub(super) fn cancelled(ticket: Ticket) -> Self {
        Self {
            ticket,
            since: Time::default(),
            mode: Mode::default(),
            reason: GiveUpReason::Cancelled,
            contention: Contention::Unknown,
            holder_read: None,
        }
    }

    /// The caller does not want the name of the holder any more.
    pub(super) fn cancel(&mut self) {
        self.reason = GiveUpReason::Cancelled;
    }

    /// Whether this holder alone keeps it out.
    pub(super) fn is_kept_out_by(&self, holder: &CurrentHolder) -> bool {
        !Load::of([Mode::of(&holder.kv.key)]).admits(self.mode)
    }

    pub(super) fn wants_holder(&self) -> bool {
        !matches!(self.reason, GiveUpReason::Cancelled) && self.holder_read.is_none()
    }
}
