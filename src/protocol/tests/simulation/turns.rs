//! The loop of a manager's I/O thread, as in the driver: a turn takes up to 256 inputs of one kind, reads the clock,
//! and then carries out the protocol's actions.
//!
//! The thread may be scheduled late, so inputs accumulate, and time passes between taking input and acting.

use std::collections::VecDeque;
use std::time::Duration;

use super::checks::Violation;
use super::world::World;
use crate::clock::Time;
use crate::kv::{Failure, Response, WatchEvent};
use crate::protocol::{Action, Command, RequestId};

/// The largest number of inputs of a turn, as in the driver.
const EVENTS_PER_TURN: usize = 256;

/// An answer, and when the store executed the request.
pub(super) type TimedReply = (RequestId, Result<Response, Failure>, Time);

/// A manager's input, and when its thread handles it.
#[derive(Debug, Default)]
pub(super) struct Turns {
    mail: VecDeque<Command>,
    pub(super) replies: VecDeque<TimedReply>,
    pub(super) events: VecDeque<(WatchEvent, Time)>,
    /// The earliest time at which the thread runs.
    wakes: Time,
    /// A turn has begun, and ends at this time with the protocol's actions.
    ends: Option<Time>,
    /// The manager's clock at the start of the last turn.
    pub(super) began: Time,
    /// The earliest time at which the store executed one of the last turn's inputs.
    pub(super) as_of: Option<Time>,
    /// The largest scheduling delay of the thread.
    pub(super) lateness: Duration,
}

/// The kinds of input, each with a channel of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mail,
    Replies,
    Events,
}

impl Turns {
    pub(super) fn late_by(lateness: Duration) -> Self {
        Self { lateness, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        self.mail.is_empty() && self.replies.is_empty() && self.events.is_empty()
    }

    fn kinds(&self) -> Vec<Kind> {
        let all = [
            (Kind::Mail, self.mail.is_empty()),
            (Kind::Replies, self.replies.is_empty()),
            (Kind::Events, self.events.is_empty()),
        ];
        all.into_iter().filter(|(_, empty)| !empty).map(|(kind, _)| kind).collect()
    }

    /// The process died.
    pub(super) fn clear(&mut self) {
        *self = Self::late_by(self.lateness);
    }
}

impl World {
    /// A caller's thread sends a command to the mailbox.
    pub(super) fn post(&mut self, node: usize, command: Command) {
        self.note(|| format!("manager {node} is asked: {command:?}"));
        self.wake_for_input(node);
        self.nodes[node].turns.mail.push_back(command);
    }

    /// Wakes the thread for an input that is about to arrive.
    pub(super) fn wake_for_input(&mut self, node: usize) {
        if self.nodes[node].turns.is_empty() {
            let late = self.late(node);
            let wakes = self.now + late;
            let turns = &mut self.nodes[node].turns;
            turns.wakes = turns.wakes.max(wakes);
        }
    }

    fn late(&mut self, node: usize) -> Duration {
        let lateness = self.nodes[node].turns.lateness;
        if lateness.is_zero() || self.rng.bool() { Duration::ZERO } else { self.below(lateness) }
    }

    /// When the manager's thread runs next: at the end of a turn, for an input, for the protocol's timer, or when a
    /// request times out.
    pub(super) fn next_wake(&self, node: usize) -> Option<Time> {
        let it = &self.nodes[node];
        let next = match it.turns.ends {
            Some(ends) => Some(ends),
            None => {
                let timer = it.protocol.next_timeout().map(|local| self.global(node, local));
                let pending = it.pending.values().map(|pending| pending.gives_up).min();
                let came_in = (!it.turns.is_empty()).then_some(it.turns.wakes);
                [timer, pending, came_in].into_iter().flatten().min()
            }
        };
        let next = next.map(|at| at.max(it.paused_until).max(self.now));
        // Its timers do not run while the machine sleeps. With a hold, the loop reads the clock every second.
        let slept = it.turns.is_empty() && it.turns.ends.is_none() && self.now < it.overslept;
        let overslept = if it.deadline.is_some() { Duration::from_secs(1) } else { Duration::from_secs(5) };
        if slept { next.map(|at| at.max(it.overslept.min(it.paused_until + overslept))) } else { next }
    }

    /// Runs the manager's thread, which begins a turn or ends one.
    pub(super) fn wake(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].turns.ends.is_none() {
            self.begin_turn(node);
            let late = self.late(node);
            if !late.is_zero() && self.rng.bool() {
                self.nodes[node].turns.ends = Some(self.now + late);
                return Ok(());
            }
        }
        self.nodes[node].turns.ends = None;
        self.perform(node)?;
        let wakes = self.now + self.late(node);
        self.nodes[node].turns.wakes = wakes;
        Ok(())
    }

    fn begin_turn(&mut self, node: usize) {
        let local = self.local(node);
        self.nodes[node].turns.began = local;
        self.nodes[node].turns.as_of = None;
        // A request's timeout and its answer can be due in the same turn.
        let expire_first = self.rng.bool();
        if expire_first {
            self.expire_requests(node);
        }
        let kinds = self.nodes[node].turns.kinds();
        let most = if self.rng.u8(0..4) == 0 { self.rng.usize(1..=8) } else { EVENTS_PER_TURN };
        match self.rng.choice(kinds) {
            Some(Kind::Mail) => self.take_mail(node, local, most),
            Some(Kind::Replies) => self.take_replies(node, local, most),
            Some(Kind::Events) => self.take_events(node, local, most),
            None => {}
        }
        if !expire_first {
            self.expire_requests(node);
        }
        let protocol = &mut self.nodes[node].protocol;
        if protocol.next_timeout().is_some_and(|at| at <= local) {
            protocol.handle_timeout(local);
        }
    }

    fn take_mail(&mut self, node: usize, local: Time, most: usize) {
        for _ in 0..most {
            let Some(command) = self.nodes[node].turns.mail.pop_front() else { break };
            self.nodes[node].protocol.handle_command(local, command);
        }
    }

    fn take_replies(&mut self, node: usize, local: Time, most: usize) {
        for _ in 0..most {
            let Some((id, reply, carried_out)) = self.nodes[node].turns.replies.pop_front() else { break };
            if self.nodes[node].pending.remove(&id).is_none() {
                continue;
            }
            self.note(|| format!("manager {node} hears the answer to {id:?}"));
            let it = &mut self.nodes[node];
            it.turns.as_of = Some(it.turns.as_of.map_or(carried_out, |as_of| as_of.min(carried_out)));
            if let Ok(response) = &reply {
                it.seen_term = response.term.max(it.seen_term);
            }
            it.protocol.handle_reply(local, id, reply);
        }
    }

    fn take_events(&mut self, node: usize, local: Time, most: usize) {
        for _ in 0..most {
            let Some((event, happened)) = self.nodes[node].turns.events.pop_front() else { break };
            self.note(|| format!("manager {node} receives {event:?}"));
            let it = &mut self.nodes[node];
            it.turns.as_of = Some(it.turns.as_of.map_or(happened, |as_of| as_of.min(happened)));
            it.protocol.handle_watch(local, event);
        }
    }

    /// Carries out the protocol's actions.
    fn perform(&mut self, node: usize) -> Result<(), Violation> {
        self.checks.handling_as_of = self.nodes[node].turns.as_of.unwrap_or(self.now);
        while let Some(action) = self.nodes[node].protocol.poll_action() {
            self.note(|| format!("manager {node}: {action:?}"));
            self.perform_one(node, action)?;
        }
        self.check_blamed()
    }

    fn perform_one(&mut self, node: usize, action: Action) -> Result<(), Violation> {
        match action {
            Action::Send { id, request, timeout, .. } => self.send(node, id, request, timeout),
            Action::Watch { id, spec } => self.watch(node, id, spec),
            Action::Unwatch { id } => self.unwatch(node, id),
            Action::SessionUp { lease, deadline, .. } => {
                let it = &mut self.nodes[node];
                (it.lease, it.deadline, it.expiry_seen) = (Some(lease), Some(deadline), false);
            }
            Action::ExtendSession { deadline } if !self.nodes[node].expiry_seen => {
                self.check_extension(node)?;
                self.nodes[node].deadline = Some(deadline);
            }
            Action::ExtendSession { .. } => {
                // A caller noticed the old deadline while this thread was busy.
                let local = self.local(node);
                self.nodes[node].protocol.handle_expired(local);
            }
            Action::SessionDown { .. } => {
                self.tally.losses += self.checks.session_down(node);
                self.truth.session_over(node);
                let it = &mut self.nodes[node];
                (it.lease, it.deadline, it.expiry_seen) = (None, None, false);
            }
            Action::SessionFailed { .. }
            | Action::StoreSilent { .. }
            | Action::StoreAnswers { .. }
            | Action::SlowWait { .. }
            | Action::Released { .. } => {}
            Action::Grant { ticket, hold, name, key, token } => {
                self.tally.grants += 1;
                self.check_grant(node, ticket, hold, &name, key.clone(), token)?;
                self.truth.granted(ticket, hold, &key, token);
                let name = self.names.iter().position(|other| *other == name).unwrap_or_default();
                self.granted(node, ticket);
                self.begin_writing(node, ticket, name, token);
            }
            Action::Refuse { ticket, refusal } => {
                self.check_refusal(node, ticket, &refusal)?;
                self.check_refusal_true(ticket, &refusal)?;
                self.truth.ended(ticket);
                self.refused(node, ticket);
            }
            Action::EndHold { hold, lost } => {
                self.tally.losses += u64::from(lost.is_some());
                self.check_loss_true(node, hold, lost)?;
                self.truth.hold_over(node, hold, lost.is_some());
                self.check_end(node, hold)?;
            }
            Action::Confirm { ticket, result } => {
                self.check_confirmed(node, ticket, &result)?;
                self.confirmed(node, ticket);
            }
            Action::Fenced { id, result } => self.wrote(id, result)?,
            Action::Closed => self.nodes[node].closed = true,
        }
        Ok(())
    }
}
