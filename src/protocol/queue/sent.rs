//! What a queue knows of its requests that are in flight.

use crate::clock::Time;
use crate::kv::{Key, LeaseId, Revision};
use crate::protocol::messages::{ContenderId, Ticket};

/// A write that is in flight.
#[derive(Clone, Debug)]
pub(super) struct SentWrite {
    pub(super) epoch: Revision,
    pub(super) sent: Time,
    pub(super) deletes: Vec<SentDelete>,
    pub(super) puts: Vec<ContenderId>,
    /// The tries that were waiting when it was sent: its answer is an answer to them, not to later ones.
    pub(super) tries: Vec<Ticket>,
}

#[derive(Clone, Debug)]
pub(super) struct SentDelete {
    pub(super) key: Key,
    /// No request can put the key again after this delete.
    pub(super) for_good: bool,
}

impl SentWrite {
    pub(super) fn deletes(&self, key: &Key) -> bool {
        self.deletes.iter().any(|delete| delete.key == *key)
    }
}

/// A read of the holder that is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentHolderRead {
    pub(super) sent: Time,
    /// The lease of the session at that time.
    pub(super) lease: Option<LeaseId>,
}
