//! The handshake between [`LockManager::connect`](crate::LockManager::connect) and the new I/O thread.

use crossbeam_channel::Sender;

use crate::clock::Time;
use crate::error::{LockError, lock_error};
use crate::kv::{Failure, FailureClass};

/// The reply that the connecting caller waits for. Dropped unanswered, it means that the I/O thread died.
#[derive(Debug)]
pub(super) struct Startup {
    reply: Sender<Result<(), LockError>>,
    pub(super) deadline: Time,
    /// The last failure to set up a session.
    last: Option<Failure>,
}

/// The caller no longer waits, so this manager will never be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Abandoned;

impl Startup {
    pub(super) fn new(reply: Sender<Result<(), LockError>>, deadline: Time) -> Self {
        Self { reply, deadline, last: None }
    }

    /// The session is set up.
    pub(super) fn ready(self) -> Result<(), Abandoned> {
        self.reply.send(Ok(())).map_err(|_| Abandoned)
    }

    /// A session could not be set up. Returns itself if a retry may help; otherwise reports the error to the caller.
    pub(super) fn failed(mut self, failure: Failure) -> Option<Self> {
        if failure.is_final() {
            self.refuse(lock_error(failure, CONNECTING));
            return None;
        }
        self.last = Some(failure);
        Some(self)
    }

    /// The time limit of connecting has passed.
    pub(super) fn overdue(mut self) {
        let failure = self.last.take().unwrap_or_else(no_answer);
        self.refuse(lock_error(failure, CONNECTING));
    }

    pub(super) fn refuse(self, error: LockError) {
        let _ = self.reply.send(Err(error));
    }
}

const CONNECTING: &str = "connecting to etcd";

fn no_answer() -> Failure {
    Failure::new(FailureClass::NotDone, "no endpoint answered in time")
}

/// The error of `connect` when no endpoint has answered.
pub(super) fn timed_out() -> LockError {
    lock_error(no_answer(), CONNECTING)
}
