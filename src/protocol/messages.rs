//! What goes into the protocol and what comes out of it, as plain data.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, Key, KeyValue, LeaseId, Request, Revision, WatchId, WatchSpec};
use crate::mode::Mode;
use crate::name::{LockName, Root};

/// The settings of one [`Protocol`](super::Protocol).
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) root: Root,
    pub(crate) owner: String,
    pub(crate) pid: u32,
    pub(crate) ttl: Duration,
    pub(crate) safety_margin: Duration,
    /// The time limit of one attempt of one request.
    pub(crate) request_timeout: Duration,
    /// Maximum write transactions in flight; writes that become ready meanwhile form the next batch.
    pub(crate) writes_in_flight: usize,
    /// Seeds the jitter of back-offs and position checks.
    pub(crate) seed: u64,
}

/// Identifies one call of `lock`, `try_lock` and so on, from the call until its guard, if it got one, is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// Identifies one hold, from its grant to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HoldId(pub(crate) u64);

/// Identifies one request to the store; its reply carries the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// Identifies the queue of one lock name while it exists; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueId(pub(super) u64);

/// Identifies one contender of a queue; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ContenderId {
    pub(super) queue: QueueId,
    pub(super) number: u64,
}

/// Identifies one fenced request of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FencedId(pub(crate) u64);

/// A request of a caller.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Acquire the lock for this ticket. Answered exactly once, by [`Action::Grant`] or [`Action::Refuse`].
    Acquire(Acquire),
    /// The caller no longer needs the ticket: a waiting ticket leaves the queue, a granted one releases its hold.
    /// With `confirm`, an answer follows once the ticket's key is deleted: [`Action::Refuse`] if the ticket was waiting,
    /// [`Action::Confirm`] if it held the lock.
    Abandon { ticket: Ticket, confirm: bool },
    /// Carry out a request for a holder while its hold stands. Answered exactly once, by [`Action::Fenced`].
    Fenced(FencedCall),
    /// End all holds, refuse all waiters and revoke the lease; [`Action::Closed`] follows when that is done.
    Close,
}

/// A caller's request for a lock.
#[derive(Clone, Debug)]
pub(crate) struct Acquire {
    pub(crate) ticket: Ticket,
    pub(crate) name: LockName,
    pub(crate) mode: Mode,
    /// The calling thread's number; stored in the key's value, for people to read.
    pub(crate) thread: u64,
    pub(crate) limits: WaitLimits,
    /// The first back-off after a failed request.
    pub(crate) retry_interval: Duration,
    /// After waiting this long, report it by [`Action::SlowWait`]; `None`: never.
    pub(crate) warn_after: Option<Duration>,
    /// When the caller made the call.
    pub(crate) since: Time,
    /// The same instant as time since the Unix epoch; stored in the key's value, for people to read.
    pub(crate) asked_at: Duration,
    /// Stored in the key's value, for people and observers to read.
    pub(crate) note: Option<Arc<str>>,
}

/// A request of a holder, which etcd carries out only while the hold stands.
#[derive(Clone, Debug)]
pub(crate) struct FencedCall {
    pub(crate) id: FencedId,
    /// The ticket of the hold.
    pub(crate) ticket: Ticket,
    pub(crate) request: FencedRequest,
    /// When its caller stops waiting.
    pub(crate) until: Time,
}

/// What a holder asks for.
#[derive(Clone, Debug)]
pub(crate) enum FencedRequest {
    Get(Key),
    /// All of these or none; no key twice.
    Write(Vec<FencedWrite>),
    /// Replace the note in the value of the hold's keys.
    Note(Option<Arc<str>>),
}

/// One write of a holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FencedWrite {
    Put { key: Key, value: Vec<u8> },
    Delete { key: Key },
}

/// The answer to a fenced request that was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FencedAnswer {
    pub(crate) revision: Revision,
    /// To a read: the value, if the key exists.
    pub(crate) value: Option<Vec<u8>>,
    /// To writes: how many of the keys to be deleted existed.
    pub(crate) deleted: u64,
}

/// Why a fenced request was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FencedFailure {
    /// The hold is over, and the request was not carried out.
    NotHeld,
    /// Whether it was carried out depends on the class of the failure.
    Failed(Failure),
}

/// How long a ticket may wait, and how it is refused when it reaches a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitLimits {
    /// Never join the queue: acquire the lock at once, or fail with [`Refusal::Held`].
    pub(crate) try_only: bool,
    /// Give up at this time with [`Refusal::Timeout`], or with [`Refusal::Unavailable`] if it is not known that
    /// somebody else held the lock; `None`: never.
    pub(crate) deadline: Option<Time>,
    /// Like `deadline`, but with [`Refusal::AlreadyHeld`].
    pub(crate) budget: Option<Time>,
}

/// What the driver must do, in order.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Send a request; its reply (or failure, after `timeout` at the latest) goes to `handle_reply`.
    Send {
        id: RequestId,
        request: Request,
        timeout: Duration,
        /// The request keeps the session alive or ends it, so it must not wait for other requests.
        urgent: bool,
    },
    /// Open a watch.
    Watch { id: WatchId, spec: WatchSpec },
    /// Close a watch.
    Unwatch { id: WatchId },

    /// A session is established; holds are assured until `deadline`.
    SessionUp { lease: LeaseId, ttl: Duration, deadline: Time },
    /// Holds are now assured until `deadline`. If a caller's thread has already seen the old deadline pass, the driver
    /// must call `handle_expired` instead of extending it.
    ExtendSession { deadline: Time },
    /// Setting up a session failed; the protocol retries by itself.
    SessionFailed { failure: Failure },
    /// The store has not answered for a third of the time for which holds are assured. Reported once per outage.
    StoreSilent {
        /// For how long it has not answered.
        since: Duration,
        failure: Failure,
        /// For how long holds are still assured.
        assured: Duration,
    },
    /// The store answers again, after being silent for this long.
    StoreAnswers { after: Duration },
    /// The session is over. Every hold granted since its `SessionUp` ends at this instant; no `EndHold` follows for
    /// them.
    SessionDown { reason: LossReason },

    /// The ticket now holds the lock.
    Grant { ticket: Ticket, hold: HoldId, name: LockName, key: Key, token: Revision },
    /// The ticket has waited for its `warn_after`, and goes on waiting.
    SlowWait {
        name: LockName,
        mode: Mode,
        waited: Duration,
        /// The current holder, if it could be read.
        holder: Option<CurrentHolder>,
        /// How many tickets of this process wait for the lock, this one included.
        waiting_here: usize,
    },
    /// The ticket does not get the lock; its last answer.
    Refuse { ticket: Ticket, refusal: Refusal },
    /// The store has confirmed the deletion of a released hold's key.
    Released { name: LockName, token: Revision },
    /// The hold ends while the session goes on: lost, or released if `lost` is `None`. Its `done()` closes now.
    EndHold { hold: HoldId, lost: Option<LossReason> },
    /// Answers an `Abandon` with `confirm` of a ticket that held the lock.
    Confirm { ticket: Ticket, result: Result<(), ReleaseFailure> },

    /// Answers [`Command::Fenced`].
    Fenced { id: FencedId, result: Result<FencedAnswer, FencedFailure> },

    /// The protocol has ended; no further action follows.
    Closed,
}

/// Why a ticket does not get the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A `try_only` ticket was kept out by another contender.
    Held,
    /// The caller's deadline passed while somebody else held the lock.
    Timeout { waited: Duration, holder: Option<CurrentHolder> },
    /// The caller's retries ran out while somebody else held the lock.
    AlreadyHeld { holder: Option<CurrentHolder> },
    /// A limit of the caller ran out, and whether the lock was held could not be found out.
    Unavailable(Failure),
    /// The caller abandoned the ticket.
    Cancelled,
    /// The manager was closed.
    Closed,
    /// The store refused the request, and a retry would not help.
    Failed(Failure),
}

/// The holder of a lock, as read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CurrentHolder {
    pub(crate) kv: KeyValue,
    /// How many contenders are queued behind it.
    pub(crate) waiters: u64,
}

/// Why a release that its caller waits for was not confirmed as successful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseFailure {
    /// The hold had been lost, or its session ended before the deletion was confirmed.
    Lost(LossReason),
    /// The key did not exist any more: somebody else had deleted it.
    NotHeld,
    /// The store refused the deletion, and a retry would not help.
    Failed(Failure),
}
