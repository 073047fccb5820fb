//! How holds end: what their releases and losses are told as (P9).

use super::ObservedContender;
use crate::error::LossReason;
use crate::protocol::tests::simulation::checks::Violation;
use crate::protocol::tests::simulation::world::World;
use crate::protocol::{HoldId, ReleaseFailure, Ticket};

impl World {
    /// P9: a confirmed release has happened, and a failed one has the reported reason.
    pub(in crate::protocol::tests::simulation) fn check_confirmed(
        &mut self,
        node: usize,
        ticket: Ticket,
        result: &Result<(), ReleaseFailure>,
    ) -> Result<(), Violation> {
        let stamp = self.truth.stamp();
        let Some(claim) = self.truth.claims.get(&ticket) else {
            return Ok(());
        };
        // The driver knows that the hold was lost, and reports that to its caller instead of this result.
        let Some((_, hold, key, token)) = claim.granted.clone().filter(|_| !claim.lost) else {
            return Ok(());
        };
        let contender = |other: &ObservedContender| other.key == key && other.created == token;
        let there = self.contenders(&claim.name).iter().any(contender);
        let sharing = self.truth.holds.get(&(node, hold)).into_iter().flatten();
        let shared = sharing.into_iter().any(|other| self.truth.open.contains(other));
        let fits = match result {
            Ok(()) if shared => true,
            Ok(()) => {
                self.truth.confirmed_deleted.insert(key.clone(), stamp);
                !there
            }
            Err(ReleaseFailure::NotHeld) => {
                let gone = self.truth.deleted.get(&(key.clone(), token));
                !there && gone.is_some_and(|by| *by != Some(node))
            }
            Err(ReleaseFailure::Lost(_)) => {
                self.truth.blamed.push((node, ticket));
                true
            }
            Err(ReleaseFailure::Failed(_)) => self.checks.may_refuse,
        };
        if fits {
            return Ok(());
        }
        let by = self.truth.deleted.get(&(key.clone(), token));
        Err(Violation::new(format!(
            "P9: the release of {ticket:?} ({key}) by manager {node} is confirmed as {result:?}; exists: {there}, deleted by: {by:?}"
        )))
    }

    /// P9: a hold is reported as force-unlocked only if its key was deleted.
    pub(in crate::protocol::tests::simulation) fn check_loss_true(
        &self,
        node: usize,
        hold: HoldId,
        lost: Option<LossReason>,
    ) -> Result<(), Violation> {
        let tickets = self.truth.holds.get(&(node, hold)).into_iter().flatten();
        let mut granted = tickets.filter_map(|ticket| self.truth.claims[ticket].granted.clone());
        match granted.find(|(_, _, key, token)| !self.truth.deleted.contains_key(&(key.clone(), *token))) {
            Some((.., key, _)) if lost == Some(LossReason::ForceUnlocked) => Err(Violation::new(format!(
                "P9: {key} of manager {node} is reported as deleted, but still exists"
            ))),
            _ => Ok(()),
        }
    }

    /// At the end of a turn: a ticket that was reported lost with its session was indeed lost with it.
    pub(in crate::protocol::tests::simulation) fn check_blamed(&mut self) -> Result<(), Violation> {
        for (node, ticket) in std::mem::take(&mut self.truth.blamed) {
            let granted = self.truth.claims.get(&ticket).and_then(|claim| claim.granted.as_ref());
            let over = self.truth.session_over.get(&node);
            if over.is_none_or(|&over| granted.is_some_and(|&(granted, ..)| granted > over)) {
                return Err(Violation::new(format!(
                    "P9: {ticket:?} is reported lost with its session, which is still up"
                )));
            }
        }
        Ok(())
    }
}
