//! What the session and the queues cause: actions, requests, watches and timers, and what each of them was for.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;

use super::contact::Contact;
use super::history::History;
use super::messages::{Action, Config, ContenderId, FencedId, QueueId, Refusal, RequestId, Ticket};
use super::timers::{Timer, Timers};
use crate::clock::Time;
use crate::kv::{LeaseId, Request, Revision, Span, WatchId, WatchSpec};

/// What a request was sent for, which decides where its reply goes.
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
    /// Revoke the lease of a session that is over.
    Revoke {
        lease: LeaseId,
    },
    /// Writes of one or more queues; `Batches` knows which.
    Writes,
    CheckPosition(ContenderId),
    ReadHolder(QueueId),
    /// A request of a holder.
    Fenced(FencedId),
}

impl Purpose {
    /// Requests of the session are urgent, because the queues depend on it.
    fn is_of_session(self) -> bool {
        match self {
            Self::GrantLease { .. }
            | Self::PutSession
            | Self::Renew { .. }
            | Self::CheckSession
            | Self::Revoke { .. } => true,
            Self::Writes | Self::CheckPosition(_) | Self::ReadHolder(_) | Self::Fenced(_) => false,
        }
    }
}

/// What a watch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    Session,
    /// The predecessors of the contender.
    Predecessors(ContenderId),
    /// The key of the contender.
    OwnKey(ContenderId),
}

/// Everything that the session and the queues cause outside of themselves.
#[derive(Clone, Debug)]
pub(super) struct Effects {
    pub(super) config: Config,
    pub(super) timers: Timers,
    pub(super) contact: Contact,
    pub(super) history: History,
    pub(super) now: Time,
    /// The queue of each ticket that waits, gives up or holds.
    pub(super) tickets: HashMap<Ticket, QueueId>,
    actions: VecDeque<Action>,
    /// The requests in flight: what each is for, and the newest revision known when it was sent; `None` for those of a
    /// session that is over.
    requests: HashMap<RequestId, (Purpose, Option<Revision>)>,
    watches: HashMap<WatchId, Watched>,
    last_id: u64,
    rng: Rng,
}

impl Effects {
    pub(super) fn new(config: Config) -> Self {
        let rng = Rng::with_seed(config.seed);
        Self {
            config,
            timers: Timers::default(),
            contact: Contact::default(),
            history: History::default(),
            now: Time::default(),
            tickets: HashMap::new(),
            actions: VecDeque::new(),
            requests: HashMap::new(),
            watches: HashMap::new(),
            last_id: 0,
            rng,
        }
    }

    /// Its state in a canonical order; see [`Protocol::sketch`](super::Protocol::sketch).
    #[cfg(test)]
    pub(super) fn sketch(&self) -> String {
        let timers = self.timers.sketch();
        let tickets: std::collections::BTreeMap<_, _> = self.tickets.iter().collect();
        let requests: std::collections::BTreeMap<_, _> =
            self.requests.iter().map(|(id, (purpose, _))| (id, purpose)).collect();
        let watches: std::collections::BTreeMap<_, _> = self.watches.iter().collect();
        format!("{tickets:?} {requests:?} {watches:?} {:?} {timers}", self.actions)
    }

    /// A number never used before, for requests, watches, holds and queues.
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
        self.requests.insert(id, (purpose, Some(self.history.newest())));
        self.contact.sent(self.now);
        self.act(Action::Send { id, request, timeout, urgent: purpose.is_of_session() });
        id
    }

    /// What the request was for, and the newest revision known when it was sent, unless its session is over. `None` if
    /// its reply is of no interest any more.
    pub(super) fn take_request(&mut self, id: RequestId) -> Option<(Purpose, Option<Revision>)> {
        self.requests.remove(&id)
    }

    /// The replies to these requests are of no interest any more.
    pub(super) fn forget_requests(&mut self, which: impl Fn(Purpose) -> bool) {
        self.requests.retain(|_, &mut (purpose, _)| !which(purpose));
    }

    /// The session is over: what the answers to its requests show does not concern the next one.
    pub(super) fn forget_history(&mut self) {
        self.history.forget();
        self.requests.values_mut().for_each(|(_, known)| *known = None);
    }

    pub(super) fn forget_request(&mut self, id: RequestId) {
        self.requests.remove(&id);
    }

    pub(super) fn watch(&mut self, watched: Watched, span: Span, from_revision: i64) -> WatchId {
        let id = WatchId(self.next_id());
        self.watches.insert(id, watched);
        self.act(Action::Watch { id, spec: WatchSpec { span, from_revision, puts: false } });
        id
    }

    pub(super) fn unwatch(&mut self, id: WatchId) {
        if self.watches.remove(&id).is_some() {
            self.act(Action::Unwatch { id });
        }
    }

    /// `None` for a watch that was closed, whose late events are ignored.
    pub(super) fn watched(&self, id: WatchId) -> Option<Watched> {
        self.watches.get(&id).copied()
    }

    /// Refuses a ticket, which is its last answer.
    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.forget_ticket(ticket);
        self.act(Action::Refuse { ticket, refusal });
    }

    pub(super) fn forget_ticket(&mut self, ticket: Ticket) {
        self.tickets.remove(&ticket);
        self.timers.clear(Timer::WaitLimit(ticket));
        self.timers.clear(Timer::EndGrace(ticket));
        self.timers.clear(Timer::SlowWait(ticket));
    }

    /// The pause after `failures` failed attempts in a row.
    pub(super) fn back_off(&mut self, first: Duration, failures: u32) -> Duration {
        back_off(first, failures, &mut self.rng)
    }

    /// Somewhere between half of the duration and the whole.
    pub(super) fn jittered(&mut self, duration: Duration) -> Duration {
        jittered(duration, &mut self.rng)
    }
}

/// The pause after `failures` failed attempts in a row: doubling from `first` to 2 s, jittered by half, so that clients that
/// failed together do not retry together.
pub(crate) fn back_off(first: Duration, failures: u32, rng: &mut Rng) -> Duration {
    const LONGEST: Duration = Duration::from_secs(2);
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    jittered(doubled, rng)
}

fn jittered(duration: Duration, rng: &mut Rng) -> Duration {
    duration.mul_f64(0.5 + rng.f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_up_to_its_limit() {
        let mut rng = Rng::with_seed(1);
        for (failures, millis) in [(0, 100), (1, 100), (2, 200), (5, 1600), (6, 2000), (u32::MAX, 2000)] {
            let pause = back_off(Duration::from_millis(100), failures, &mut rng).as_millis();
            assert!((millis / 2..=millis).contains(&pause), "{failures}: {pause}");
        }
    }
}
