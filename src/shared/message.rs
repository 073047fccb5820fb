//! What caller threads and the I/O thread say to each other. All of it is plain data and channels: guards are built,
//! and dropped, on callers' threads.

use std::sync::Arc;

use oneshot::Sender;

use crate::error::LockError;
use crate::info::{ForceUnlock, LockInfo};
use crate::name::LockName;
use crate::protocol::{Acquire, Refusal, ReleaseFailure, Ticket};
use crate::shared::hold_state::HoldState;

/// From a caller to the I/O thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// Get the lock for a ticket. Answered once.
    Acquire { acquire: Acquire, reply: Reply },
    /// The ticket is not wanted any more, waiting or granted. With `reply`: say when that is done.
    Leave { ticket: Ticket, reply: Option<Sender<Left>> },
    /// Ask etcd about locks, beside the protocol.
    Ask(Query),
    /// Behave as if the session's assured time had just run out. A test's doing; answered when that is done.
    Expire { reply: Sender<()> },
    /// End everything.
    Close,
}

/// What can be asked about locks without taking part in any.
#[derive(Debug)]
pub(crate) enum Query {
    /// Who holds this lock?
    LockInfo { name: LockName, reply: Sender<Result<Option<LockInfo>, LockError>> },
    /// Who holds the locks whose names begin so?
    ListLocks { prefix: String, reply: Sender<Result<Vec<LockInfo>, LockError>> },
    /// Who holds this lock, and who waits for it?
    Queue { name: LockName, reply: Sender<Result<Vec<LockInfo>, LockError>> },
    /// Take the lock from whoever holds it.
    ForceUnlock { name: LockName, scope: ForceUnlock, reply: Sender<Result<LockInfo, LockError>> },
}

/// Where the answer to an [`Message::Acquire`] goes. Dropped unanswered, it tells the caller that the I/O thread ended.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: Sender<Outcome>,
    /// Dropped after the outcome was sent: a signal for those who wait for several things at once.
    pub(crate) ready: Option<crossbeam_channel::Sender<()>>,
}

impl Reply {
    /// A caller that does not listen any more has said, or will say, `Leave`.
    pub(crate) fn answer(self, outcome: Outcome) {
        let _ = self.outcome.send(outcome);
        drop(self.ready);
    }
}

/// What became of an acquire.
pub(crate) type Outcome = Result<Grant, Refusal>;

/// The ticket has the lock: what a guard is made of.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) state: Arc<HoldState>,
}

/// What became of a release, or of a place in the queue that was given up.
pub(crate) type Left = Result<(), ReleaseFailure>;
