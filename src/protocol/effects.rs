//! What the parts of the protocol have in common: the way out, the timers, and who waits for what.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::contact::Contact;
use super::timers::{Timer, Timers};
use super::{Action, Config, QueueId, Refusal, RequestId, Ticket};
use crate::clock::Time;
use crate::kv::{LeaseId, Request, Span, WatchId, WatchSpec};

/// What a request was sent for: where its reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    GrantLease {
        sent: Time,
    },
    PutSession,
    Renew {
        sent: Time,
    },
    CheckSession,
    /// Revoke a lease that nobody uses any more.
    Revoke {
        lease: LeaseId,
    },
    /// Steps of one or more queues; `Batches` knows which.
    Steps,
    Look(QueueId),
    Inspect(QueueId),
}

impl Purpose {
    /// Queues have the others, and depend on these.
    fn is_of_session(self) -> bool {
        match self {
            Self::GrantLease { .. }
            | Self::PutSession
            | Self::Renew { .. }
            | Self::CheckSession
            | Self::Revoke { .. } => true,
            Self::Steps | Self::Look(_) | Self::Inspect(_) => false,
        }
    }
}

/// Whose watch it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    Session,
    /// Those before our contender.
    Place(QueueId),
    /// Our contender's own key.
    Own(QueueId),
}

/// The way out of the protocol, shared by its session and its queues.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    pub(super) config: Config,
    pub(super) timers: Timers,
    pub(super) contact: Contact,
    pub(super) now: Time,
    /// Where each live ticket is: waiting, departing or holding in that queue.
    pub(super) tickets: HashMap<Ticket, QueueId>,
    actions: VecDeque<Action>,
    requests: HashMap<RequestId, Purpose>,
    watches: HashMap<WatchId, Watched>,
    last_id: u64,
    rng: fastrand::Rng,
}

impl Outbox {
    pub(super) fn new(config: Config) -> Self {
        let rng = fastrand::Rng::with_seed(config.seed);
        Self {
            config,
            timers: Timers::default(),
            contact: Contact::default(),
            now: Time::default(),
            tickets: HashMap::new(),
            actions: VecDeque::new(),
            requests: HashMap::new(),
            watches: HashMap::new(),
            last_id: 0,
            rng,
        }
    }

    /// What is under way, in an order of its own.
    #[cfg(test)]
    pub(super) fn sketch(&self) -> String {
        let timers = self.timers.sketch();
        let tickets: std::collections::BTreeMap<_, _> = self.tickets.iter().collect();
        let requests: std::collections::BTreeMap<_, _> = self.requests.iter().collect();
        let watches: std::collections::BTreeMap<_, _> = self.watches.iter().collect();
        format!("{tickets:?} {requests:?} {watches:?} {:?} {timers}", self.actions)
    }

    /// A number never given before, for requests, watches, holds, queues.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn pop_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn send(&mut self, purpose: Purpose, request: Request) -> RequestId {
        self.send_within(purpose, request, self.config.request_timeout)
    }

    pub(super) fn send_within(&mut self, purpose: Purpose, request: Request, timeout: Duration) -> RequestId {
        let id = RequestId(self.next_id());
        self.requests.insert(id, purpose);
        self.contact.sent(self.now);
        self.act(Action::Send { id, request, timeout, urgent: purpose.is_of_session() });
        id
    }

    /// What the request was for; `None` if nobody waits for its reply any more.
    pub(super) fn take_purpose(&mut self, id: RequestId) -> Option<Purpose> {
        self.requests.remove(&id)
    }

    /// Nobody waits for these replies any more.
    pub(super) fn forget_requests(&mut self, which: impl Fn(Purpose) -> bool) {
        self.requests.retain(|_, &mut purpose| !which(purpose));
    }

    pub(super) fn forget_request(&mut self, id: RequestId) {
        self.requests.remove(&id);
    }

    pub(super) fn watch(&mut self, watched: Watched, span: Span, from_revision: i64) -> WatchId {
        let id = WatchId(self.next_id());
        self.watches.insert(id, watched);
        self.act(Action::Watch { id, spec: WatchSpec { span, from_revision } });
        id
    }

    pub(super) fn unwatch(&mut self, id: WatchId) {
        if self.watches.remove(&id).is_some() {
            self.act(Action::Unwatch { id });
        }
    }

    /// `None` for a watch that was given up: its late events mean nothing.
    pub(super) fn watched(&self, id: WatchId) -> Option<Watched> {
        self.watches.get(&id).copied()
    }

    /// Answers a ticket for the last time.
    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.forget_ticket(ticket);
        self.act(Action::Refuse { ticket, refusal });
    }

    pub(super) fn forget_ticket(&mut self, ticket: Ticket) {
        self.tickets.remove(&ticket);
        self.timers.clear(Timer::Patience(ticket));
        self.timers.clear(Timer::Depart(ticket));
        self.timers.clear(Timer::SlowWait(ticket));
    }

    /// The pause before the next attempt after `failures` failed ones: doubling from `first` to 2 s, jittered by half,
    /// so that clients that failed together do not come back together.
    pub(super) fn back_off(&mut self, first: Duration, failures: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(2);
        let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
        self.jittered(doubled)
    }

    /// Somewhere between half of the duration and the whole.
    pub(super) fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(0.5 + self.rng.f64() / 2.0)
    }
}
