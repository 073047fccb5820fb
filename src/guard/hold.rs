//! What stands behind a hold's guards.

use std::sync::Arc;
use std::time::Instant;

use oneshot::{RecvTimeoutError, Sender};

use crate::clock::Time;
use crate::command::{Left, Message};
use crate::error::{Cause, LockError};
use crate::io;
use crate::lock::LockShared;
use crate::mailbox;
use crate::protocol::{ReleaseFailure, Ticket};
use crate::shared::HoldState;

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

    pub(super) fn now(&self) -> Time {
        self.lock.manager().now()
    }

    /// Leaves and waits for the answer.
    pub(super) fn release(mut self) -> Result<(), LockError> {
        if self.state.loss(self.now()).is_some() {
            return Err(self.state.expired(self.now()));
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.leave(Some(reply));
        let key = self.state.name.as_str();
        let doing = || format!("releasing lock {key:?}");
        // A hold that the end of the I/O thread has swept away is expired; that says more than how the thread ended.
        let gone = |error| if self.state.has_ended() { self.state.expired(self.now()) } else { error };
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

    /// An error in a forked child.
    pub(super) fn check_process(&self) -> Result<(), LockError> {
        self.lock.manager().check_process()
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
