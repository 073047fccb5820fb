//! What became of the tickets of the world.

use super::node::Outcome;
use super::world::{NodeId, World};
use crate::error::LossReason;
use crate::kv::{Key, Revision};
use crate::protocol::{Refusal, Ticket};

impl World {
    pub(super) fn token(&self, id: NodeId, ticket: Ticket) -> Option<Revision> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { token, .. }) => Some(*token),
            _ => None,
        }
    }

    /// The key under which the ticket was granted.
    pub(super) fn key_of(&self, id: NodeId, ticket: Ticket) -> Option<Key> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { key, .. }) => Some(key.clone()),
            _ => None,
        }
    }

    /// Whether the ticket was granted and its hold is not over.
    pub(super) fn holds(&self, id: NodeId, ticket: Ticket) -> bool {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { hold, .. }) => !self.nodes[id].holds.contains_key(hold),
            _ => false,
        }
    }

    /// Why the ticket's hold was lost.
    pub(super) fn loss(&self, id: NodeId, ticket: Ticket) -> Option<LossReason> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { hold, .. }) => self.nodes[id].holds.get(hold).copied().flatten(),
            _ => None,
        }
    }

    pub(super) fn refusal(&self, id: NodeId, ticket: Ticket) -> Option<Refusal> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Refused(refusal)) => Some(refusal.clone()),
            _ => None,
        }
    }
}
