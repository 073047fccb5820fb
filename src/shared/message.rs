//! Messages between callers' threads and the I/O thread. They are plain data and channels: guards are built and dropped
//! on callers' threads.

use std::sync::Arc;

use oneshot::Sender;

use crate::error::LockError;
use crate::info::{FencingToken, ForceUnlock, LockInfo};
use crate::name::LockName;
use crate::protocol::{Acquire, FencedAnswer, FencedCall, FencedFailure, Refusal, ReleaseFailure, Ticket};
use crate::shared::feeds::ObserverId;
use crate::shared::hold_state::HoldState;

/// A message from a caller to the I/O thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// Acquire the lock for a ticket. Answered exactly once.
    Acquire { acquire: Acquire, reply: Reply },
    /// Give up the ticket, whether it waits or holds the lock. With `reply`: answer when that is done.
    Leave { ticket: Ticket, reply: Option<Sender<Left>> },
    /// Carry out a request of a holder while its hold stands.
    Fenced { call: FencedCall, reply: Sender<FencedResult> },
    /// Observe a lock; the observer's channel is open. Answered when the first state was published.
    Observe { id: ObserverId, name: LockName, reply: Sender<Result<(), LockError>> },
    /// The observer's channel is closed.
    Unobserve { id: ObserverId },
    /// The holder wants to learn when somebody waits behind it; its channel is open.
    AwaitContention { ticket: Ticket, state: Arc<HoldState> },
    /// Query etcd about locks, outside the protocol.
    Ask(Query),
    /// Act as if the session's deadline had just passed. Only tests send it, through the in-memory store. Answered when
    /// all holds have ended.
    Expire { reply: Sender<()> },
    /// Close the manager.
    Close,
}

/// A query about locks, or a forced unlock.
#[derive(Debug)]
pub(crate) enum Query {
    /// The holder of this lock.
    LockInfo { name: LockName, reply: Sender<Result<Option<LockInfo>, LockError>> },
    /// The holders of the locks whose names begin with `prefix`.
    ListLocks { prefix: String, reply: Sender<Result<Vec<LockInfo>, LockError>> },
    /// The holder of this lock and its waiters.
    Queue { name: LockName, reply: Sender<Result<Vec<LockInfo>, LockError>> },
    /// Take the lock away from its holder; with a token, only if the holder has that one.
    ForceUnlock {
        name: LockName,
        token: Option<FencingToken>,
        scope: ForceUnlock,
        reply: Sender<Result<LockInfo, LockError>>,
    },
}

/// The channels for the answer to a [`Message::Acquire`]. Dropping them unanswered tells the caller that the I/O thread
/// has ended.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: Sender<Outcome>,
    /// Dropped after the outcome was sent: the signal for callers in `select!`.
    pub(crate) ready: Option<crossbeam_channel::Sender<()>>,
}

impl Reply {
    /// Sends the outcome. A caller that no longer listens has sent `Leave`, or will.
    pub(crate) fn answer(self, outcome: Outcome) {
        let _ = self.outcome.send(outcome);
        drop(self.ready);
    }
}

/// The outcome of an acquire.
pub(crate) type Outcome = Result<Grant, Refusal>;

/// A granted lock, from which the caller builds its guard.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) state: Arc<HoldState>,
}

/// The answer to a request of a holder.
pub(crate) type FencedResult = Result<FencedAnswer, FencedFailure>;

/// The outcome of a release, or of leaving the queue.
pub(crate) type Left = Result<(), ReleaseFailure>;
