//! The network between a manager and the store: it delays, loses, parks and reorders requests, answers and watch
//! streams.

use std::time::Duration;

use super::world::{Event, World};
use crate::clock::Time;
use crate::kv::{Answer, Failure, FailureClass, Op, Request, Response};
use crate::protocol::RequestId;

/// etcd raises a shorter TTL to this.
const MIN_TTL: Duration = Duration::from_secs(2);

/// A parked request is executed within this time.
pub(super) const LONGEST_PARKED: Duration = Duration::from_secs(20);

/// The connection of a manager to the store.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    pub(super) requests_lost: bool,
    pub(super) answers_lost: bool,
    /// The largest extra delay of requests, and of answers.
    pub(super) slow_requests: Duration,
    pub(super) slow_answers: Duration,
    /// The probability that a single request fails.
    pub(super) unreliable: f64,
}

impl Link {
    pub(super) fn is_bad(self) -> bool {
        let slow = self.slow_requests + self.slow_answers;
        self.requests_lost || self.answers_lost || !slow.is_zero()
    }
}

/// A request that the manager waits for.
#[derive(Debug)]
pub(super) struct Pending {
    /// When the manager stops waiting, and the class of the failure that it then gets.
    pub(super) gives_up: Time,
    verdict: FailureClass,
}

/// The outcome of one request.
enum Fate {
    Answered,
    /// Not executed.
    Lost,
    /// Executed, but the answer is lost.
    AnswerLost,
    /// Executed long after the manager stopped waiting.
    Parked,
    /// Refused with an error that proves that it was not executed.
    Refused,
}

/// Whether a proxy that retries may execute this request twice. Requests that put a key are excluded: a second copy of
/// an answered put would put the key again once it is deleted, and cannot be told from the first. Such proxies are
/// unsupported, but even there no copy of a delete may end a later hold.
pub(super) fn only_deletes(request: &Request) -> bool {
    fn puts(ops: &[Op]) -> bool {
        ops.iter().any(|op| match op {
            Op::Put { .. } => true,
            Op::Txn(txn) => puts(&txn.then) || puts(&txn.otherwise),
            Op::Range(_) | Op::Delete { .. } => false,
        })
    }
    match request {
        Request::Delete { .. } => true,
        Request::Txn(txn) => request.is_write() && !puts(&txn.then) && !puts(&txn.otherwise),
        _ => false,
    }
}

impl World {
    pub(super) fn send(&mut self, node: usize, id: RequestId, request: Request, timeout: Duration) {
        let life = self.nodes[node].life;
        let sent = self.truth.stamp();
        let link = self.nodes[node].link;
        let (going, coming) = (self.delay(link.slow_requests), self.delay(link.slow_answers));
        let timeout = self.stretched(node, timeout);
        let mut gives_up = self.now + timeout;
        let mut verdict = FailureClass::Unknown;
        let fate = self.fate(link);
        match fate {
            Fate::Answered => {
                if self.weather.duplicates && only_deletes(&request) && self.rng.u8(0..8) == 0 {
                    let again = going + self.below(self.ttl / 2);
                    self.note(|| format!("network: {id:?} comes twice"));
                    let request = request.clone();
                    self.schedule(again, Event::Arrive { node, life, id, request, sent, answer_after: None });
                }
                let event = Event::Arrive { node, life, id, request, sent, answer_after: Some(coming) };
                self.schedule(going, event);
            }
            Fate::Lost => self.note(|| format!("network: {id:?} is lost")),
            Fate::AnswerLost | Fate::Parked => {
                let late = match fate {
                    Fate::Parked => {
                        let longest = if self.rng.bool() { LONGEST_PARKED } else { self.ttl / 2 };
                        self.below(longest)
                    }
                    _ => going,
                };
                self.note(|| format!("network: {id:?} takes effect in {late:?}, and its answer is lost"));
                self.schedule(late, Event::Arrive { node, life, id, request, sent, answer_after: None });
            }
            Fate::Refused => verdict = FailureClass::NotDone,
        }
        // A broken connection is noticed at once, a silent one only at the time limit.
        if !matches!(fate, Fate::Answered) && self.rng.bool() || matches!(fate, Fate::Refused) {
            gives_up = self.now + coming.min(timeout);
        }
        self.nodes[node].pending.insert(id, Pending { gives_up, verdict });
    }

    fn fate(&mut self, link: Link) -> Fate {
        if link.requests_lost {
            return Fate::Lost;
        }
        if link.answers_lost {
            return Fate::AnswerLost;
        }
        if !self.chance(link.unreliable) {
            return Fate::Answered;
        }
        self.tally.faults += 1;
        self.disturbed = self.now;
        match self.rng.u8(0..4) {
            0 => Fate::Lost,
            1 => Fate::AnswerLost,
            2 => Fate::Parked,
            _ => Fate::Refused,
        }
    }

    pub(super) fn delay(&mut self, slow: Duration) -> Duration {
        let usual = Duration::from_micros(self.rng.u64(100..3000));
        usual + self.below(slow)
    }

    pub(super) fn arrive(
        &mut self,
        node: usize,
        life: u32,
        id: RequestId,
        request: &Request,
        (sent, answer_after): (u64, Option<Duration>),
    ) {
        let reply = match self.answer_of_a_stale_member(node, request) {
            Some(response) => Ok(response),
            None => match self.stale_read(request) {
                Some(reply) => reply,
                None => self.model.execute(self.now, request),
            },
        };
        self.check_written();
        self.remember();
        self.note(|| format!("etcd: {id:?} of manager {node}: {request:?} -> {reply:?}"));
        self.cause = Some((node, sent));
        if answer_after.is_none() {
            self.disturbed = self.now;
        }
        if let Some(after) = answer_after {
            // A lagging member's answer was true until the next revision was made.
            let stale = reply.as_ref().ok().and_then(|response| self.past.superseded(response.revision));
            let carried_out = stale.unwrap_or(self.now);
            self.schedule(after, Event::Reply { node, life, id, reply, carried_out });
        }
    }

    /// A member that missed an election may still answer a renewal, with its old term and without effect (etcd #15247).
    /// A manager can detect that only if it has seen the new term.
    fn answer_of_a_stale_member(&mut self, node: usize, request: &Request) -> Option<Response> {
        let stale = self.stale_term.filter(|&stale| stale < self.nodes[node].seen_term)?;
        let Request::RenewLease { .. } = request else {
            return None;
        };
        self.rng.bool().then(|| Response {
            revision: self.model.revision(),
            term: stale,
            answer: Answer::LeaseRenewed { ttl: self.ttl.max(MIN_TTL) },
        })
    }

    pub(super) fn reply(
        &mut self,
        node: usize,
        life: u32,
        id: RequestId,
        reply: Result<Response, Failure>,
        carried_out: Time,
    ) {
        if self.nodes[node].life == life {
            self.wake_for_input(node);
            self.nodes[node].turns.replies.push_back((id, reply, carried_out));
        }
    }

    /// Fails the requests whose time limit has passed.
    pub(super) fn expire_requests(&mut self, node: usize) {
        let local = self.local(node);
        let now = self.now;
        let pending = &mut self.nodes[node].pending;
        let due: Vec<RequestId> =
            pending.iter().filter(|(_, pending)| pending.gives_up <= now).map(|(&id, _)| id).collect();
        for id in due {
            let Some(Pending { verdict, .. }) = self.nodes[node].pending.remove(&id) else { continue };
            self.note(|| format!("manager {node} stops waiting for {id:?}: {verdict:?}"));
            let failure = Failure::new(verdict, "simulated");
            self.nodes[node].protocol.handle_reply(local, id, Err(failure));
        }
    }

    /// The manager died: its answers and watch events are dropped. Its requests stay in flight.
    pub(super) fn forget_manager(&mut self, node: usize) {
        self.drop_stream(node);
        self.nodes[node].stream.wanted.clear();
        self.nodes[node].pending.clear();
        self.nodes[node].turns.clear();
    }
}
