//! What goes into the protocol and what comes out of it.

use std::time::Duration;

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, Key, KeyValue, LeaseId, Request, Revision, WatchId, WatchSpec};
use crate::name::{LockName, Root};

/// What one protocol instance is told at its start.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) root: Root,
    pub(crate) owner: String,
    pub(crate) pid: u32,
    pub(crate) ttl: Duration,
    pub(crate) safety_margin: Duration,
    /// One attempt of one request.
    pub(crate) request_timeout: Duration,
    /// So many requests that change locks at once; what is ready meanwhile is the next batch.
    pub(crate) steps_in_flight: usize,
    /// Seeds the jitter of back-offs and fallbacks.
    pub(crate) seed: u64,
}

/// Names one call of `lock` and its kin, from the call until the guard it may get is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// Names one hold: from its grant to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HoldId(pub(crate) u64);

/// Names one request to the store; its reply carries the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// Names the queue of one lock name while it is in use; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueId(pub(super) u64);

/// What callers ask for.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Get the lock for this ticket. Ends in [`Action::Grant`] or [`Action::Refuse`], once.
    Acquire(Acquire),
    /// The ticket is not wanted any more, whether it waits or was granted.
    /// With `confirm`, the ticket's answer follows: [`Action::Refuse`] where it waited (when its place in the queue is
    /// given up), [`Action::Confirm`] where it held.
    Leave { ticket: Ticket, confirm: bool },
    /// End everything: holds are lost, waiters refused, the lease revoked; [`Action::Closed`] when that is done.
    Close,
}

#[derive(Clone, Debug)]
pub(crate) struct Acquire {
    pub(crate) ticket: Ticket,
    pub(crate) name: LockName,
    /// The calling thread's number; for people who look at the key.
    pub(crate) thread: u64,
    pub(crate) patience: Patience,
    /// First back-off step after a failed request.
    pub(crate) retry_interval: Duration,
    /// Tell by [`Action::SlowWait`] when it waits this long; `None`: never.
    pub(crate) warn_after: Option<Duration>,
    /// When the caller asked.
    pub(crate) since: Time,
    /// The same as time since the Unix epoch; for people who look at the key.
    pub(crate) asked_at: Duration,
}

/// How long a ticket waits, and what it says when it stops waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Never join the queue: have the lock at once, or [`Refusal::Held`].
    pub(crate) try_only: bool,
    /// Give up at this time with [`Refusal::Timeout`], or with [`Refusal::Unavailable`] if the store did not say that it
    /// is held; `None`: never.
    pub(crate) deadline: Option<Time>,
    /// The same with [`Refusal::AlreadyHeld`].
    pub(crate) budget: Option<Time>,
}

/// What the outside must do, in order.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Carry out a request; its reply (or failure, after `timeout` at the latest) goes to `handle_reply`.
    Send {
        id: RequestId,
        request: Request,
        timeout: Duration,
        /// It is about the session itself: it must not wait for others to be answered.
        urgent: bool,
    },
    /// Open a watch / forget one.
    Watch {
        id: WatchId,
        spec: WatchSpec,
    },
    Unwatch {
        id: WatchId,
    },

    /// A session stands; holds are assured until `deadline`.
    SessionUp {
        lease: LeaseId,
        ttl: Duration,
        deadline: Time,
    },
    /// The session is assured until `deadline`. Where a caller's thread has already seen the old deadline pass,
    /// the answer is `handle_expired`.
    ExtendSession {
        deadline: Time,
    },
    /// Setting up a session failed; it is tried again by itself.
    SessionFailed {
        failure: Failure,
    },
    /// The store has not answered for a third of the time for which holds are assured. Told once, until it answers.
    StoreSilent {
        /// How long it has not.
        since: Duration,
        failure: Failure,
        /// How long holds are still assured.
        assured: Duration,
    },
    /// It answers again, after that long.
    StoreAnswers {
        after: Duration,
    },
    /// The session is over, and with it every hold that was granted since its `SessionUp`, all of them at one instant;
    /// no `EndHold` follows for these.
    SessionDown {
        reason: LossReason,
    },

    /// The ticket has the lock.
    Grant {
        ticket: Ticket,
        hold: HoldId,
        name: LockName,
        key: Key,
        token: Revision,
    },
    /// The ticket has waited for as long as it wanted to be told of, and goes on waiting.
    SlowWait {
        name: LockName,
        waited: Duration,
        /// Who has the lock, if the store could tell.
        holder: Option<Holder>,
        /// So many tickets wait for it here, this one included.
        waiting_here: usize,
    },
    /// The ticket does not get the lock.
    Refuse {
        ticket: Ticket,
        refusal: Refusal,
    },
    /// The store has confirmed that a released hold's key is gone.
    Released {
        name: LockName,
        token: Revision,
    },
    /// The hold is over though its session stands: released if `lost` is `None`. Its `done()` closes now.
    EndHold {
        hold: HoldId,
        lost: Option<LossReason>,
    },
    /// The answer to a `Leave` with `confirm` of a ticket that was granted.
    Confirm {
        ticket: Ticket,
        result: Result<(), ReleaseFailure>,
    },

    /// Everything is over; nothing will follow.
    Closed,
}

/// Why a ticket did not get the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// To a `try_only` ticket: somebody else has the lock.
    Held,
    /// The time limit of the caller ran out while somebody had the lock.
    Timeout { waited: Duration, holder: Option<Holder> },
    /// The retries ran out while somebody had the lock.
    AlreadyHeld { holder: Option<Holder> },
    /// A limit of the caller ran out while the store could not be asked whether somebody has the lock.
    Unavailable(Failure),
    /// The caller left.
    Cancelled,
    /// The manager was closed.
    Closed,
    /// The store refused for good.
    Failed(Failure),
}

/// Who has the lock, as far as the store told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) kv: KeyValue,
    /// Contenders behind it.
    pub(crate) waiters: u64,
}

/// What became of a release that its caller waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseFailure {
    /// The hold had been lost before, or its session ended before the release was confirmed.
    Lost(LossReason),
    /// The key was gone already: somebody had deleted it.
    NotHeld,
    /// The store refused for good.
    Failed(Failure),
}
