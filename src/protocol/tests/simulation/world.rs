//! A simulated world: managers that run the real protocol, one model of etcd, and one seeded random source.
//!
//! Time is virtual and advances from event to event. Between each manager and the store is a network that delays,
//! loses, parks and reorders (`network.rs`). The managers' threads follow `script.rs`, the injected faults are in
//! `faults.rs`, and the promises that must hold are in `checks.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::checks::{Checks, Violation};
use super::faults::InjectedFault;
use super::foreign::Foreign;
use super::kinds::Kinds;
use super::liveness::Liveness;
use super::network::LONGEST_PARKED;
use super::node::{Node, Tally};
use super::past::Past;
use super::script::Worker;
use super::truth::Truth;
use super::weather::Weather;
use super::writing::Writing;
use crate::clock::Time;
use crate::kv::{Failure, Request, Response, WatchEvent, WatchId};
use crate::name::{LockName, Root};
use crate::protocol::{Command, RequestId, Ticket};
use crate::store::memory::model::Model;

/// The start of virtual time, late enough that no subtraction reaches the clock's zero.
const BEGIN: Time = Time::from_nanos(1_000_000_000_000);

/// Within this time after the last fault, every thread has finished its work.
const PROGRESS_BOUND: Duration = Duration::from_secs(300);

/// An event with its time.
#[derive(Debug)]
pub(super) enum Event {
    /// A request reaches the store; `answer_after` is the time until its answer reaches the manager, if one does.
    Arrive {
        node: usize,
        life: u32,
        id: RequestId,
        request: Request,
        /// When it was sent, as a stamp of `Truth`.
        sent: u64,
        answer_after: Option<Duration>,
    },
    /// The answer to a request executed at `carried_out` reaches the manager.
    Reply {
        node: usize,
        life: u32,
        id: RequestId,
        reply: Result<Response, Failure>,
        carried_out: Time,
    },
    /// A watch request reaches the store.
    OpenWatch {
        node: usize,
        stream: u64,
        watch: WatchId,
    },
    /// A watch event reaches the manager.
    Deliver {
        node: usize,
        stream: u64,
        event: WatchEvent,
        happened: Time,
    },
    /// The manager notices that its watch stream is dead, and opens another one.
    Reopen {
        node: usize,
        stream: u64,
    },
    /// The heartbeat of a watch stream, and the answer to it.
    Heartbeat {
        node: usize,
        stream: u64,
    },
    ProbeAnswered {
        node: usize,
        stream: u64,
    },
    /// A thread continues its script.
    Work {
        node: usize,
        life: u32,
        worker: usize,
    },
    /// A holder writes.
    Write {
        node: usize,
        life: u32,
        ticket: Ticket,
    },
    /// A foreign contender continues.
    Foreign(usize),
    Fault(InjectedFault),
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) rng: fastrand::Rng,
    pub(super) weather: Weather,
    /// The names that the managers lock.
    pub(super) ttl: Duration,
    /// Some keys are denied to the managers.
    pub(super) denied: bool,
    pub(super) past: Past,
    /// The holders write.
    pub(super) writing: Option<Writing>,
    /// A violation found in a function that cannot return one.
    pub(super) broken: Option<Violation>,
    pub(super) model: Model,
    pub(super) nodes: Vec<Node>,
    pub(super) foreign: Vec<Foreign>,
    pub(super) names: Vec<LockName>,
    pub(super) kinds: Kinds,
    pub(super) checks: Checks,
    pub(super) truth: Truth,
    pub(super) liveness: Liveness,
    pub(super) tally: Tally,
    /// The manager whose request the store executes, and the stamp at which it was sent.
    pub(super) cause: Option<(usize, u64)>,
    /// The time of the last disturbance.
    pub(super) disturbed: Time,
    /// Threads start no new work, and no new faults are injected.
    pub(super) winding_down: bool,
    /// How late the store notices the next expired lease.
    pub(super) expiry_lateness: Duration,
    /// The current raft term, and the term of a member that missed the last election.
    pub(super) term: u64,
    pub(super) stale_term: Option<u64>,
    events: BinaryHeap<Reverse<(Time, u64)>>,
    bodies: BTreeMap<u64, Event>,
    last_event: u64,
    last_ticket: u64,
    trace: Option<Vec<String>>,
}

pub(super) fn root() -> Root {
    Root::parse("/sim").expect("a valid root")
}

impl World {
    pub(super) fn new(seed: u64, tracing: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let weather = Weather::choose(&mut rng);
        let (managers, threads, names) = weather.size(&mut rng);
        let ttl = weather.ttl(&mut rng);
        let kinds = Kinds::choose(seed, names, managers);
        let names = (0..names)
            .map(|i| LockName::parse(&root(), ["a", "b", "c", "d"][i]).expect("a valid name"))
            .collect();
        let nodes = (0..managers).map(|_| Node::new(&mut rng, weather, ttl, threads)).collect();
        let model = weather.model(&mut rng);
        let mut world = Self {
            now: BEGIN,
            rng,
            weather,
            ttl,
            denied: false,
            past: Past::default(),
            writing: None,
            broken: None,
            model,
            nodes,
            foreign: Vec::new(),
            names,
            kinds,
            checks: Checks::default(),
            truth: Truth::default(),
            liveness: Liveness::default(),
            tally: Tally::default(),
            cause: None,
            disturbed: BEGIN,
            winding_down: false,
            expiry_lateness: Duration::ZERO,
            term: 1,
            stale_term: None,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            last_event: 0,
            last_ticket: 0,
            trace: tracing.then(Vec::new),
        };
        for node in 0..managers {
            world.start(node);
        }
        world.plan_faults();
        world
    }

    /// Starts or restarts a manager.
    pub(super) fn start(&mut self, node: usize) {
        let (local, life) = (self.local(node), self.nodes[node].life);
        self.nodes[node].protocol.handle_start(local);
        self.disturbed = self.now;
        for worker in 0..self.nodes[node].workers.len() {
            let after = self.below(Duration::from_millis(500));
            self.schedule(after, Event::Work { node, life, worker });
        }
    }

    /// Runs to the end: a busy phase with faults, a quiet phase in which all threads finish, and the closing.
    pub(super) fn run(&mut self) -> Result<Tally, Violation> {
        let busy = BEGIN + Duration::from_secs(self.rng.u64(5..40));
        self.run_until(|world| world.now >= busy, busy + PROGRESS_BOUND)?;
        self.wind_down();
        let end = self.now + PROGRESS_BOUND;
        self.run_until(World::all_done, end)?;
        if !self.all_done() {
            let busy: Vec<_> = self.nodes.iter().map(|node| &node.workers).collect();
            return Err(Violation::new(format!("no progress after the faults stopped: {busy:?}")));
        }
        // Wait until parked requests have been executed, and until the keys that they put are deleted or expired.
        let quiet = self.now + LONGEST_PARKED + self.ttl * 3;
        self.run_until(|world| world.now >= quiet, quiet + self.ttl)?;
        self.check_nothing_left()?;
        for node in 0..self.nodes.len() {
            self.post(node, Command::Close);
        }
        let end = self.now + self.ttl * 3;
        self.run_until(|world| world.nodes.iter().all(|node| node.closed), end)?;
        self.check_all_closed()?;
        Ok(self.tally)
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool, latest: Time) -> Result<(), Violation> {
        while !done(self) && self.now < latest {
            self.step(latest)?;
        }
        Ok(())
    }

    /// Advances to the next event, and executes it.
    fn step(&mut self, latest: Time) -> Result<(), Violation> {
        self.tally.events += 1;
        let event = self.events.peek().map(|Reverse((at, _))| *at);
        let expiry = self.model.next_expiry().map(|due| due + self.expiry_lateness);
        let timer = (0..self.nodes.len()).filter_map(|node| Some((self.next_wake(node)?, node))).min();
        let next = [event, expiry, timer.map(|(at, _)| at)].into_iter().flatten().min();
        let Some(next) = next.filter(|&next| next <= latest) else {
            self.now = latest;
            return Ok(());
        };
        self.now = self.now.max(next);
        if expiry == Some(next) {
            self.expire_leases();
        } else if let Some((_, node)) = timer.filter(|&(at, _)| at == next)
            // After a pause, timers and answers are due at once and handled in random order.
            && (event != Some(next) || self.rng.bool())
        {
            self.wake(node)?;
        } else if let Some(Reverse((_, id))) = self.events.pop()
            && let Some(event) = self.bodies.remove(&id)
        {
            self.happen(event);
        }
        if let Some(violation) = self.broken.take() {
            return Err(violation);
        }
        let cause = self.cause.take();
        self.record_queues(cause)?;
        self.notify_watchers();
        self.check_free_locks_are_taken()?;
        self.check_holds()
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = self.concerned(&event)
            && self.nodes[node].paused_until > self.now
        {
            let after = self.nodes[node].paused_until.since(self.now);
            self.schedule(after, event);
            return;
        }
        match event {
            Event::Arrive { node, life, id, request, sent, answer_after } => {
                self.arrive(node, life, id, &request, (sent, answer_after));
            }
            Event::Reply { node, life, id, reply, carried_out } => {
                self.reply(node, life, id, reply, carried_out);
            }
            Event::OpenWatch { node, stream, watch } => self.open_watch(node, stream, watch),
            Event::Deliver { node, stream, event, happened } => {
                self.receive_event(node, stream, event, happened);
            }
            Event::Reopen { node, stream } => self.reopen(node, stream),
            Event::Heartbeat { node, stream } => self.beat(node, stream),
            Event::ProbeAnswered { node, stream } => self.answer_probe(node, stream),
            Event::Work { node, life, worker } => self.work(node, life, worker),
            Event::Write { node, life, ticket } => self.write(node, life, ticket),
            Event::Foreign(foreign) => self.advance_foreign(foreign),
            Event::Fault(fault) => self.inject(fault),
        }
    }

    /// The manager that cannot handle the event while it is paused.
    fn concerned(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Reopen { node, .. }
            | Event::Heartbeat { node, .. }
            | Event::Work { node, .. }
            | Event::Write { node, .. } => Some(*node),
            _ => None,
        }
    }

    fn expire_leases(&mut self) {
        if let Some(due) = self.model.next_expiry() {
            let ended = self.model.expire_first(due);
            self.disturbed = self.now;
            self.note(|| format!("etcd: leases {ended:x?} expire"));
        }
        self.expiry_lateness = match self.rng.u8(0..4) {
            // The earliest time allowed, etcd's usual delay, or that of a busy leader.
            0 => Duration::ZERO,
            1 | 2 => self.below(Duration::from_millis(500)),
            _ => self.below(self.ttl),
        };
    }

    fn all_done(&self) -> bool {
        self.nodes.iter().all(|node| node.workers.iter().all(Worker::is_idle))
            && self.foreign.iter().all(Foreign::is_gone)
    }

    pub(super) fn schedule(&mut self, after: Duration, event: Event) {
        self.last_event += 1;
        self.events.push(Reverse((self.now + after, self.last_event)));
        self.bodies.insert(self.last_event, event);
    }

    /// Removes all faults that are still planned.
    pub(super) fn drop_faults(&mut self) {
        // A manager that is down restarts.
        self.bodies.retain(
            |_, event| !matches!(event, Event::Fault(fault) if !matches!(fault, InjectedFault::Restart(_))),
        );
    }

    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// The manager's clock: it started with the world's, runs at its own rate, and may have jumped.
    pub(super) fn local(&self, node: usize) -> Time {
        let it = &self.nodes[node];
        BEGIN + self.now.since(BEGIN).mul_f64(it.rate) + it.jumped
    }

    /// When the manager's clock will show `local`.
    pub(super) fn global(&self, node: usize, local: Time) -> Time {
        let it = &self.nodes[node];
        // One nanosecond more than the rounding error, so that the clock has certainly reached `local`.
        BEGIN + local.since(BEGIN + it.jumped).div_f64(it.rate) + Duration::from_nanos(2)
    }

    /// Converts a duration of the manager's clock into the world's time.
    pub(super) fn stretched(&self, node: usize, duration: Duration) -> Duration {
        duration.div_f64(self.nodes[node].rate)
    }

    /// A random duration below `limit`.
    pub(super) fn below(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(self.rng.f64())
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.rng.f64() < probability
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12.6} {}", self.now.since(BEGIN).as_secs_f64(), line()));
        }
    }

    pub(super) fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }
}
