//! How the last guard of a hold releases it.

use std::sync::Arc;
use std::time::Instant;

use oneshot::{RecvTimeoutError, Sender};

use super::Hold;
use crate::error::{Cause, LockError, LossReason, lock_error};
use crate::protocol::ReleaseFailure;
use crate::shared::message::{Left, Message};

impl Hold {
    /// Drops one guard's reference. The last one releases the lock and waits for the answer.
    pub(in crate::lock) fn unlock(hold: Arc<Self>) -> Result<(), LockError> {
        let (state, now) = (Arc::clone(&hold.state), hold.now());
        match Arc::into_inner(hold) {
            Some(hold) => hold.release(),
            // Other guards remain. `Ok` still says that the work done under this guard was not disturbed.
            None => state.check(now),
        }
    }

    /// Sends `Leave` and waits for the answer.
    fn release(mut self) -> Result<(), LockError> {
        self.check()?;
        let (reply, answer) = oneshot::channel();
        let sent = self.leave(Some(reply));
        let key = self.state.name.as_str();
        let doing = || format!("releasing lock {key:?}{}", self.mode().remark());
        // If the end of the I/O thread ended this hold, or the manager is being closed, `Expired` says more than how
        // the thread ended.
        let gone = |error| match error {
            _ if self.state.has_ended() => self.state.expired(self.now()),
            LockError::Closed => LockError::Expired { key: key.into(), reason: LossReason::Closed },
            error => error,
        };
        sent.map_err(gone)?;
        let client = &self.lock.client;
        match client.mailbox.wait_for(&answer, Instant::now().checked_add(client.request_timeout())) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ReleaseFailure::Lost(reason))) => Err(LockError::Expired { key: key.into(), reason }),
            Ok(Err(ReleaseFailure::NotHeld)) => {
                Err(LockError::Expired { key: key.into(), reason: LossReason::ForceUnlocked })
            }
            Ok(Err(ReleaseFailure::Failed(failure))) => Err(lock_error(failure, &doing())),
            Err(RecvTimeoutError::Timeout) => Err(LockError::Unavailable {
                doing: doing(),
                source: Cause::new("etcd did not confirm in time; the release continues in the background"),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(gone(client.mailbox.gone())),
        }
    }

    fn leave(&mut self, reply: Option<Sender<Left>>) -> Result<(), LockError> {
        self.left = true;
        self.lock.forget(self.ticket);
        if self.contended.get().is_some() && self.is_here() {
            self.lock.client.feeds().end_contention(self.ticket);
        }
        self.lock.client.mailbox.send(Message::Leave { ticket: self.ticket, reply })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.left {
            // On an error the I/O thread has ended, and every hold with it; or the hold is the parent process's.
            let _ = self.leave(None);
        }
    }
}
