//! Group commit: writes that are ready together are sent together, in one transaction and one raft commit.
//!
//! No write is delayed to fill a batch. While fewer than [`WRITES_IN_FLIGHT`] transactions are in flight, a write is sent
//! at once, even alone. Writes that become ready while the store is busy form the next batch, which is sent when an
//! answer arrives, or at once when it is full.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::effects::Purpose;
use super::messages::{QueueId, RequestId};
use super::mutants::mutant;
use super::queue::{Context, Queue};
use super::read::Epoch;
use super::write::{self, Write, WriteAnswer};
use crate::clock::Time;
use crate::kv::{Failure, FailureClass, Response, Revision};
use crate::name::LockName;

/// Maximum write transactions in flight. A few keep the store busy during a round trip; many more would only make the
/// batches smaller.
pub(crate) const WRITES_IN_FLIGHT: usize = 3;

/// The same if the next batch is full, since waiting cannot make it larger.
const FULL_IN_FLIGHT: usize = 8;

/// Maximum operations in a batch. etcd allows 128 (`--max-txn-ops`) and counts nested ones as well; the largest nested
/// transaction has 2.
const MOST_OPERATIONS: usize = 100;
const _: () = assert!(MOST_OPERATIONS + 2 <= 128);

/// How long writes of a name without permission are sent alone; permissions rarely change.
const DENIED_FOR: Duration = Duration::from_secs(60);
/// Maximum names remembered for that; bounded, because callers choose the names.
const MOST_DENIED: usize = 1_000;

/// The write transactions in flight, and the queues that have a write to send.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    ready: VecDeque<QueueId>,
    in_flight: HashMap<RequestId, Batch>,
    most_operations: usize,
    denied: DeniedNames,
}

/// Names for which permission was denied. Their writes are sent alone for a while; otherwise each of them would make etcd
/// refuse a whole batch, whose other writes would have to be sent again one by one.
#[derive(Clone, Debug, Default)]
struct DeniedNames(HashMap<LockName, Time>);

impl DeniedNames {
    fn add(&mut self, name: LockName, now: Time) {
        self.0.retain(|_, until| *until > now);
        if self.0.len() < MOST_DENIED {
            self.0.insert(name, now + DENIED_FOR);
        }
    }

    fn contains(&self, name: &LockName, now: Time) -> bool {
        self.0.get(name).is_some_and(|until| *until > now)
    }
}

/// The writes of one transaction.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    epoch: Revision,
    writes: Vec<Write>,
}

/// What the reply to a batch means for one of its writes.
#[derive(Clone, Debug)]
pub(super) enum WriteOutcome {
    Answered(WriteAnswer),
    Failed(Failure),
    /// Not carried out, and not known to be at fault: send it again, alone or in a batch.
    Again {
        alone: bool,
    },
}

impl Batches {
    pub(super) fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            in_flight: HashMap::new(),
            most_operations: MOST_OPERATIONS,
            denied: DeniedNames::default(),
        }
    }

    /// Its state in a canonical order; see [`Protocol::sketch`](super::Protocol::sketch).
    #[cfg(test)]
    pub(super) fn sketch(&self) -> String {
        let in_flight: std::collections::BTreeMap<_, _> = self.in_flight.iter().collect();
        format!("{:?} {in_flight:?} {:?}", self.ready, self.most_operations)
    }

    /// Adds the queue to those that have a write to send, if it has one.
    pub(super) fn enlist(&mut self, queue: &mut Queue) {
        if queue.enlist() {
            self.ready.push_back(queue.id());
        }
    }

    /// Sends what is ready, up to the maximum in flight.
    pub(super) fn send(&mut self, queues: &mut HashMap<QueueId, Box<Queue>>, cx: &mut Context<'_>) {
        while !self.ready.is_empty() && self.in_flight.len() < self.most_in_flight(cx) {
            let Some(epoch) = cx.session.lease().map(|lease| lease.epoch.clone()) else {
                return;
            };
            let writes = self.collect(queues, &epoch, cx);
            if writes.is_empty() {
                continue;
            }
            let id = cx.effects.send(Purpose::Writes, write::request(&epoch, &writes));
            self.in_flight.insert(id, Batch { epoch: epoch.revision, writes });
        }
    }

    fn most_in_flight(&self, cx: &Context<'_>) -> usize {
        let full = self.ready.len() >= self.most_operations;
        if full { FULL_IN_FLIGHT } else { cx.effects.config.writes_in_flight }
    }

    fn collect(
        &mut self,
        queues: &mut HashMap<QueueId, Box<Queue>>,
        epoch: &Epoch,
        cx: &mut Context<'_>,
    ) -> Vec<Write> {
        let mut writes: Vec<Write> = Vec::new();
        let mut operations = 0;
        while let Some(&id) = self.ready.front() {
            // Dropped meanwhile, because all its waiters have given up.
            let Some(queue) = queues.get_mut(&id) else {
                self.ready.pop_front();
                continue;
            };
            let most = self.most_operations;
            let alone = queue.must_go_alone(epoch.revision) || self.denied.contains(queue.name(), cx.now);
            let fits = operations + queue.operations_within(most) <= most && !alone;
            if !writes.is_empty() && !fits {
                break;
            }
            self.ready.pop_front();
            if let Some(write) = queue.take_write(epoch, most, cx) {
                operations += write.operations();
                writes.push(write);
                if alone {
                    break;
                }
            }
        }
        writes
    }

    /// What the reply to a transaction means for each queue that had a write in it.
    pub(super) fn handle_reply(
        &mut self,
        id: RequestId,
        reply: Result<Response, Failure>,
        queues: &HashMap<QueueId, Box<Queue>>,
        now: Time,
    ) -> Vec<(QueueId, WriteOutcome)> {
        let Some(Batch { epoch, writes }) = self.in_flight.remove(&id) else {
            return Vec::new();
        };
        let ids = writes.iter().map(|write| write.queue);
        let failure = match reply {
            Ok(response) => {
                let answers = write::answers(epoch, &writes, &response);
                return ids.zip(answers.into_iter().map(WriteOutcome::Answered)).collect();
            }
            Err(failure) => failure,
        };
        let operations: usize = writes.iter().map(Write::operations).sum();
        match failure.class {
            FailureClass::TooManyOperations if operations > 1 => {
                self.most_operations = (operations / 2).clamp(1, self.most_operations);
                return ids.map(|queue| (queue, WriteOutcome::Again { alone: false })).collect();
            }
            // It may have been carried out, so every queue has to handle that.
            FailureClass::NoSpace if !mutant!(NoSpaceTakenForNotDone) => {}
            // One of the writes may be at fault. None was carried out, so each is sent again alone, to find out which.
            _ if writes.len() > 1 && failure.is_final() => {
                return ids.map(|queue| (queue, WriteOutcome::Again { alone: true })).collect();
            }
            FailureClass::PermissionDenied => {
                let name =
                    writes.first().and_then(|write| queues.get(&write.queue)).map(|queue| queue.name());
                if let Some(name) = name {
                    self.denied.add(name.clone(), now);
                }
            }
            _ => {}
        }
        ids.map(|queue| (queue, WriteOutcome::Failed(failure.clone()))).collect()
    }

    /// The session is over: forgets all that is ready or in flight.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.in_flight.clear();
    }
}
