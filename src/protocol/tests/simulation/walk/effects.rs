//! The managers' actions in the small world, the promises checked in each state, and the fingerprint of a state.

use std::fmt::Write;

use super::super::reading::{everything, keys_within};
use super::state::{Caller, Checked, InFlight, Scope, Side, State, contenders};

use crate::kv::{Key, LeaseId, Request, Revision};
use crate::protocol::{Action, HoldId, Refusal, ReleaseFailure, Ticket};

impl State {
    /// Carries out the protocol's actions.
    pub(super) fn act(&mut self, node: usize) -> Checked {
        self.sides[node].busy = false;
        while let Some(action) = self.sides[node].protocol.poll_action() {
            self.perform(node, action)?;
        }
        self.note_who_is_kept_out();
        self.check()
    }

    pub(super) fn perform(&mut self, node: usize, action: Action) -> Checked {
        let side = &mut self.sides[node];
        match action {
            Action::Send { id, request, .. } => {
                side.requests.push(InFlight { id, request, abandoned: false, reply: None });
            }
            Action::Watch { id, spec } => {
                side.wanted.insert(id, spec);
                side.asked.push(id);
            }
            Action::Unwatch { id } => {
                side.wanted.remove(&id);
                side.asked.retain(|&asked| asked != id);
                if let Some(watcher) = side.open.remove(&id) {
                    self.model.unwatch(watcher);
                }
            }
            Action::SessionUp { lease, deadline, .. } => {
                (side.lease, side.deadline) = (Some(lease), Some(deadline));
            }
            Action::ExtendSession { deadline } => side.deadline = Some(deadline),
            Action::SessionDown { .. } => {
                (side.lease, side.deadline) = (None, None);
                side.threads.iter_mut().for_each(Caller::lose);
            }
            Action::SessionFailed { .. }
            | Action::StoreSilent { .. }
            | Action::StoreAnswers { .. }
            | Action::SlowWait { .. }
            | Action::Released { .. }
            | Action::Fenced { .. }
            | Action::Closed => {}
            Action::Grant { ticket, hold, key, token, .. } => {
                return self.grant(node, ticket, hold, key, token);
            }
            Action::Refuse { ticket, refusal } => return side.refuse(ticket, &refusal),
            Action::EndHold { hold, lost } if lost.is_some() => {
                for caller in &mut side.threads {
                    if caller.hold() == Some(hold) {
                        caller.lose();
                    }
                }
            }
            Action::EndHold { .. } => {}
            Action::Confirm { ticket, result } => return self.confirm(node, ticket, &result),
        }
        Ok(())
    }

    pub(super) fn grant(
        &mut self,
        node: usize,
        ticket: Ticket,
        hold: HoldId,
        key: Key,
        token: Revision,
    ) -> Checked {
        if token <= self.last_token {
            return Err(format!("P4: token {token} after {}", self.last_token));
        }
        self.last_token = token;
        let Some(caller) = self.sides[node].threads.iter_mut().find(|caller| caller.ticket() == Some(ticket))
        else {
            return Err(format!("P5: {ticket:?} is granted, but no caller asked for it"));
        };
        match caller {
            Caller::Ending { held, .. } => *held = Some((hold, key, token)),
            _ => *caller = Caller::Holding { ticket, hold, key, token },
        }
        self.note_who_is_kept_out();
        Ok(())
    }

    pub(super) fn confirm(
        &mut self,
        node: usize,
        ticket: Ticket,
        result: &Result<(), ReleaseFailure>,
    ) -> Checked {
        let there = contenders(&self.model);
        let Some(caller) = self.sides[node].threads.iter_mut().find(|caller| caller.ticket() == Some(ticket))
        else {
            return Ok(());
        };
        let Caller::Ending { held, lost, .. } = std::mem::replace(caller, Caller::Idle) else {
            return Err(format!("P9: {ticket:?} is confirmed, but its caller did not release it"));
        };
        let Some((_, key, token)) = held else { return Ok(()) };
        let exists = there.iter().any(|kv| kv.key == key && kv.create_revision == token);
        match result {
            Ok(()) if exists => Err(format!("P9: {key} is reported as released, but still exists")),
            // In this world only the managers and the expiry of leases delete keys.
            Err(ReleaseFailure::NotHeld) if !lost && self.scope.expiries > 0 => {
                Err(format!("P9: {key} is reported as deleted by another client"))
            }
            Err(ReleaseFailure::Failed(_)) => Err(format!("P9: the release of {key} failed: {result:?}")),
            _ => Ok(()),
        }
    }

    /// P1, P2 and P6, checked in every state.
    pub(super) fn check(&self) -> Checked {
        let there = contenders(&self.model);
        for (node, side) in self.sides.iter().enumerate() {
            let assured = side.deadline.is_some_and(|deadline| self.now < deadline);
            for caller in side.threads.iter().filter(|_| assured) {
                if let Caller::Holding { key, token, .. } = caller
                    && !there
                        .first()
                        .is_some_and(|first| first.key == *key && first.create_revision == *token)
                {
                    return Err(format!("P1: manager {node} holds {key}, but etcd has {there:?}"));
                }
            }
            let own = there.iter().find(|kv| Some(kv.lease) == side.lease);
            if let (Some(stray), true) =
                (own, side.protocol.is_idle() && side.requests.is_empty() && !side.busy)
            {
                return Err(format!("P6: manager {node} has left {} behind", stray.key));
            }
        }
        Ok(())
    }

    /// Everything that can influence a later state.
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        let Scope { calls, unanswered, repeated, breaks, expiries, timers, bursts, .. } = self.scope;
        let _ = write!(out, "{:?} ", [calls, unanswered, repeated, breaks, expiries, timers, bursts]);
        for side in &self.sides {
            let over = side.deadline.is_some_and(|deadline| deadline <= self.now);
            let due = side.protocol.next_timeout().is_some_and(|at| at <= self.now);
            let Side { lease, threads, asked, wanted, events, busy, .. } = side;
            let requests: Vec<_> = side.requests.iter().map(InFlight::print).collect();
            let open: Vec<_> = side.open.keys().collect();
            let protocol = side.protocol.sketch();
            let _ = writeln!(
                out,
                "{protocol} {lease:?} {over} {due} {busy} {threads:?} {requests:?} {asked:?} {wanted:?} {open:?} {events:?}"
            );
        }
        let leases: Vec<LeaseId> = self.model.leases().collect();
        let _ = write!(
            out,
            "{:?} {leases:?} {} {}",
            keys_within(&self.model, everything()),
            self.model.revision(),
            self.last_token
        );
        out
    }
}

impl Side {
    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: &Refusal) -> Checked {
        let Some(caller) = self.threads.iter_mut().find(|caller| caller.ticket() == Some(ticket)) else {
            return Err(format!("P5: {ticket:?} is refused, but no caller asked for it"));
        };
        match (std::mem::replace(caller, Caller::Idle), refusal) {
            (Caller::Ending { .. }, _) => Ok(()),
            (Caller::Waiting { try_only: true, kept_out: true, .. }, Refusal::Held) => Ok(()),
            (caller, refusal) => Err(format!("P9: {caller:?} is refused for {refusal:?}")),
        }
    }
}

impl InFlight {
    /// A request that the manager waits for is recorded in the protocol itself, except for its epoch. A request that it
    /// no longer waits for is recorded only here.
    pub(super) fn print(&self) -> String {
        let Self { id, request, abandoned, reply } = self;
        match (request, abandoned) {
            (_, true) => format!("{request:?}"),
            (Request::Txn(txn), false) => format!("{id:?} {:?} {reply:?}", txn.when),
            (_, false) => format!("{id:?} {reply:?}"),
        }
    }
}

impl Caller {
    pub(super) fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Idle => None,
            Self::Waiting { ticket, .. } | Self::Holding { ticket, .. } | Self::Ending { ticket, .. } => {
                Some(*ticket)
            }
        }
    }

    pub(super) fn hold(&self) -> Option<HoldId> {
        match self {
            Self::Holding { hold, .. } | Self::Ending { held: Some((hold, ..)), .. } => Some(*hold),
            _ => None,
        }
    }

    /// The hold is lost: a caller that holds the lock is done, and a caller that releases it still gets its answer.
    pub(super) fn lose(&mut self) {
        match self {
            Self::Holding { .. } => *self = Self::Idle,
            Self::Ending { lost, held: Some(_), .. } => *lost = true,
            _ => {}
        }
    }
}
