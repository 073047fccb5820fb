//! Group commit: steps that are ready together leave together, in one transaction and one raft commit.
//!
//! Nothing waits for company. While only a few requests ([`IN_FLIGHT`]) are under way, a step leaves at once, alone if it
//! is alone; what becomes ready while the store is busy is the next batch, and leaves at once when it is full.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::effects::Purpose;
use super::mutants::mutant;
use super::queue::{Cx, Queue};
use super::read::Guard;
use super::write::{self, Step, StepAnswer};
use super::{QueueId, RequestId};
use crate::clock::Time;
use crate::kv::{Failure, FailureClass, Response, Revision};
use crate::name::LockName;

/// So many requests with steps at once. One more than the store works on hides the way there and back; many more would
/// only make the batches smaller.
pub(crate) const IN_FLIGHT: usize = 3;

/// So many if the next one is full: there is nothing for it to wait for.
const FULL_IN_FLIGHT: usize = 8;

/// So many operations in a batch. etcd allows 128 (`--max-txn-ops`) and counts those of the levels together; the
/// largest entry has 2.
const MOST_OPERATIONS: usize = 100;
const _: () = assert!(MOST_OPERATIONS + 2 <= 128);

/// A name that was refused goes alone for this long; permissions rarely change.
const DENIED_FOR: Duration = Duration::from_secs(60);
/// Not more names than this are remembered: they are the caller's choice.
const MOST_DENIED: usize = 1_000;

/// The steps that are under way, and the queues that wait to take one.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    ready: VecDeque<QueueId>,
    in_flight: HashMap<RequestId, Batch>,
    most_operations: usize,
    denied: DeniedNames,
}

/// Names that a batch was refused for. Their steps go alone for a while, so that they do not cost their neighbours a
/// request each, batch after batch.
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

/// The steps of one request.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    epoch: Revision,
    steps: Vec<Step>,
}

/// What a reply means for one step of its batch.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    Answered(StepAnswer),
    Failed(Failure),
    /// Not done, through no fault of its own that is known: it is to be taken again.
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

    /// What is under way, in an order of its own.
    #[cfg(test)]
    pub(super) fn sketch(&self) -> String {
        let in_flight: std::collections::BTreeMap<_, _> = self.in_flight.iter().collect();
        format!("{:?} {in_flight:?} {:?}", self.ready, self.most_operations)
    }

    /// The queue wants to take a step.
    pub(super) fn enlist(&mut self, queue: &mut Queue) {
        if queue.enlist() {
            self.ready.push_back(queue.id());
        }
    }

    /// Sends what is ready, as far as the store is not busy.
    pub(super) fn send(&mut self, queues: &mut HashMap<QueueId, Box<Queue>>, cx: &mut Cx<'_>) {
        while !self.ready.is_empty() && self.in_flight.len() < self.most_in_flight(cx) {
            let Some(guard) = cx.session.tenure().map(|tenure| tenure.guard.clone()) else {
                return;
            };
            let steps = self.collect(queues, &guard, cx);
            if steps.is_empty() {
                continue;
            }
            let id = cx.out.send(Purpose::Steps, write::request(&guard, &steps));
            self.in_flight.insert(id, Batch { epoch: guard.epoch, steps });
        }
    }

    fn most_in_flight(&self, cx: &Cx<'_>) -> usize {
        let full = self.ready.len() >= self.most_operations;
        if full { FULL_IN_FLIGHT } else { cx.out.config.steps_in_flight }
    }

    fn collect(
        &mut self,
        queues: &mut HashMap<QueueId, Box<Queue>>,
        guard: &Guard,
        cx: &mut Cx<'_>,
    ) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut operations = 0;
        while let Some(&id) = self.ready.front() {
            // Gone meanwhile: whoever wanted something has left.
            let Some(queue) = queues.get_mut(&id) else {
                self.ready.pop_front();
                continue;
            };
            let most = self.most_operations;
            let alone = queue.goes_alone(guard.epoch) || self.denied.contains(queue.name(), cx.now);
            let fits = operations + queue.operations_within(most) <= most && !alone;
            if !steps.is_empty() && !fits {
                break;
            }
            self.ready.pop_front();
            if let Some(step) = queue.take_step(guard, most, cx) {
                operations += step.operations();
                steps.push(step);
                if alone {
                    break;
                }
            }
        }
        steps
    }

    /// What the reply to one of these requests means, for each queue that had a step in it.
    pub(super) fn handle_reply(
        &mut self,
        id: RequestId,
        reply: Result<Response, Failure>,
        queues: &HashMap<QueueId, Box<Queue>>,
        now: Time,
    ) -> Vec<(QueueId, Fate)> {
        let Some(Batch { epoch, steps }) = self.in_flight.remove(&id) else {
            return Vec::new();
        };
        let ids = steps.iter().map(|step| step.queue);
        let failure = match reply {
            Ok(response) => {
                let answers = write::answers(epoch, &steps, &response);
                return ids.zip(answers.into_iter().map(Fate::Answered)).collect();
            }
            Err(failure) => failure,
        };
        let operations: usize = steps.iter().map(Step::operations).sum();
        match failure.class {
            FailureClass::TooManyOperations if operations > 1 => {
                self.most_operations = (operations / 2).clamp(1, self.most_operations);
                return ids.map(|queue| (queue, Fate::Again { alone: false })).collect();
            }
            // It may have been carried out, so each of them has to see to it.
            FailureClass::NoSpace if !mutant!(NoSpaceTakenForNotDone) => {}
            // One of them may be at fault. Nothing was done, so each can be taken again, to be told apart.
            _ if steps.len() > 1 && failure.is_final() => {
                return ids.map(|queue| (queue, Fate::Again { alone: true })).collect();
            }
            FailureClass::PermissionDenied => {
                let name = steps.first().and_then(|step| queues.get(&step.queue)).map(|queue| queue.name());
                if let Some(name) = name {
                    self.denied.add(name.clone(), now);
                }
            }
            _ => {}
        }
        ids.map(|queue| (queue, Fate::Failed(failure.clone()))).collect()
    }

    /// The session is over: nothing that is under way matters any more.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.in_flight.clear();
    }
}
