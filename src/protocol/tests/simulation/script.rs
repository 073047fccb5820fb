//! The managers' threads: they lock in every way that the API has, hold, and release.

use std::time::Duration;

use super::world::{Event, World};
use crate::mode::Mode;
use crate::name::LockName;
use crate::protocol::{Acquire, Command, Ticket, WaitLimits};

/// A thread of a manager. Its script continues when a call returns, and after pauses.
#[derive(Debug, Default)]
pub(super) struct Worker {
    state: State,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// It has called, and waits for the answer.
    Waiting(Ticket),
    Holding(Ticket),
    /// It gave up or released, and waits for the confirmation.
    Ending(Ticket),
}

impl Worker {
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }
}

impl World {
    /// Continues the thread's script, after a pause or at the time chosen for giving up.
    pub(super) fn work(&mut self, node: usize, life: u32, worker: usize) {
        if self.nodes[node].life != life {
            return;
        }
        match self.nodes[node].workers[worker].state {
            State::Idle if self.winding_down => {}
            State::Idle => self.ask(node, worker),
            State::Waiting(ticket) => {
                // The thread chose to give up at this time.
                self.nodes[node].workers[worker].state = State::Ending(ticket);
                self.checks.abandoned(ticket);
                self.truth.ended(ticket);
                self.post(node, Command::Abandon { ticket, confirm: true });
            }
            State::Holding(ticket) => self.release(node, worker, ticket),
            State::Ending(_) => {}
        }
    }

    fn ask(&mut self, node: usize, worker: usize) {
        let which = self.rng.usize(..self.names.len());
        let (name, mode) = (self.names[which].clone(), self.kinds.pick(which, node));
        let local = self.local(node);
        let after = |limit: Duration| Some(local + limit);
        let limit = self.below(Duration::from_secs(4));
        let kind = self.rng.u8(0..8);
        let limits = match if self.weather.tries && kind < 6 { 0 } else { kind } {
            0 => WaitLimits { try_only: true, deadline: None, budget: after(Duration::from_secs(1)) },
            1 | 2 => WaitLimits { deadline: after(limit), ..WaitLimits::default() },
            3 => WaitLimits { budget: after(limit), ..WaitLimits::default() },
            _ => WaitLimits::default(),
        };
        let gives_up = self.chance(0.15);
        self.acquire(node, worker, (&name, mode), limits);
        if gives_up && !limits.try_only {
            // Half of the time, about when the grant arrives.
            let after = if self.rng.bool() { Duration::from_millis(3) } else { Duration::from_secs(3) };
            let (after, life) = (self.below(after), self.nodes[node].life);
            self.schedule(after, Event::Work { node, life, worker });
        }
    }

    fn acquire(&mut self, node: usize, worker: usize, (name, mode): (&LockName, Mode), limits: WaitLimits) {
        let ticket = self.next_ticket();
        let since = self.local(node);
        self.note(|| {
            format!("manager {node} thread {worker} asks for {name:?} as {ticket:?}: {mode}, {limits:?}")
        });
        self.checks.asked(ticket, node, worker, (name, mode), limits, self.now);
        self.truth.asked(ticket, node, (name, mode), limits.try_only, self.now);
        self.nodes[node].workers[worker].state = State::Waiting(ticket);
        let acquire = Acquire {
            ticket,
            name: name.clone(),
            mode,
            thread: worker as u64,
            limits,
            retry_interval: Duration::from_millis(100),
            warn_after: Some(Duration::from_secs(2)),
            since,
            asked_at: Duration::from_secs(1),
            note: None,
        };
        self.post(node, Command::Acquire(acquire));
    }

    fn release(&mut self, node: usize, worker: usize, ticket: Ticket) {
        self.truth.ended(ticket);
        let confirm = self.rng.bool();
        let after = self.below(Duration::from_millis(200));
        let it = &mut self.nodes[node];
        let life = it.life;
        if confirm {
            it.workers[worker].state = State::Ending(ticket);
        } else {
            it.workers[worker].state = State::Idle;
            self.schedule(after, Event::Work { node, life, worker });
        }
        self.post(node, Command::Abandon { ticket, confirm });
    }

    fn worker_of(&self, node: usize, ticket: Ticket) -> Option<usize> {
        self.nodes[node].workers.iter().position(|worker| {
            matches!(worker.state, State::Waiting(t) | State::Holding(t) | State::Ending(t) if t == ticket)
        })
    }

    pub(super) fn granted(&mut self, node: usize, ticket: Ticket) {
        let Some(worker) = self.worker_of(node, ticket) else {
            return;
        };
        if self.nodes[node].workers[worker].state != State::Waiting(ticket) {
            return;
        }
        self.nodes[node].workers[worker].state = State::Holding(ticket);
        let longest = match self.rng.u8(0..20) {
            5..=14 if self.writing.is_some() => Duration::from_secs(3),
            0 => self.ttl.min(Duration::from_secs(5)) * 3,
            1..=4 => Duration::from_secs(1),
            _ => Duration::from_millis(50),
        };
        let (after, life) = (self.below(longest), self.nodes[node].life);
        self.schedule(after, Event::Work { node, life, worker });
    }

    pub(super) fn is_holding(&self, node: usize, ticket: Ticket) -> bool {
        self.nodes[node].workers.iter().any(|worker| worker.state == State::Holding(ticket))
    }

    pub(super) fn refused(&mut self, node: usize, ticket: Ticket) {
        self.next_round(node, ticket);
    }

    pub(super) fn confirmed(&mut self, node: usize, ticket: Ticket) {
        self.next_round(node, ticket);
    }

    fn next_round(&mut self, node: usize, ticket: Ticket) {
        if let Some(worker) = self.worker_of(node, ticket) {
            self.nodes[node].workers[worker].state = State::Idle;
            let (after, life) = (self.below(Duration::from_millis(200)), self.nodes[node].life);
            self.schedule(after, Event::Work { node, life, worker });
        }
    }

    /// Resets the threads of a manager that died.
    pub(super) fn forget_workers(&mut self, node: usize) {
        for worker in &mut self.nodes[node].workers {
            *worker = Worker::default();
        }
    }
}
