//! Keys of ours that must go, until nothing can bring them back.

use crate::kv::{Key, Revision};
use crate::protocol::Ticket;
use crate::protocol::mutants::mutant;
use crate::protocol::write::Deletion;

/// A key of ours that must go.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Debris {
    pub(in crate::protocol) key: Key,
    /// The create revision under which it is known to exist; `None` if it may not exist, or is deleted already.
    pub(in crate::protocol) created: Option<Revision>,
    /// See [`Contender::dirty`](super::Contender::dirty): the delete that counts is one under a later epoch.
    pub(in crate::protocol) dirty: Option<Revision>,
    /// A delete of it went unanswered or was carried out before, so a later one that finds nothing proves nothing.
    pub(in crate::protocol) repeated: bool,
    /// The store refused a transaction for its lack of space; it may still carry out a plain delete.
    pub(in crate::protocol) plain: bool,
    /// The first delete found no key, so somebody else had deleted it.
    pub(in crate::protocol) was_gone: bool,
    /// The token of the hold that was released by this.
    pub(in crate::protocol) released: Option<Revision>,
    /// Who waits to hear that it is gone.
    pub(in crate::protocol) confirm: Vec<Ticket>,
}

impl Debris {
    /// Nothing can bring the key back once it is deleted.
    pub(in crate::protocol) fn is_fenced(&self, epoch: Revision) -> bool {
        self.dirty.is_none_or(|dirty| dirty < epoch) || mutant!(DeletedWithoutFence)
    }

    /// Whether to delete it now: for good, or because it is known to keep others waiting. Where the session key cannot
    /// be put (its space is used up, a permission is missing), the second case is what frees the lock.
    pub(in crate::protocol) fn is_due(&self, epoch: Revision) -> bool {
        self.is_fenced(epoch) || self.created.is_some() && !mutant!(ReleaseWaitsForFence)
    }

    /// Its delete is due and must be a request of its own: a plain delete cannot be part of a transaction.
    pub(in crate::protocol) fn goes_alone(&self, epoch: Revision) -> bool {
        self.plain && self.is_due(epoch)
    }

    pub(in crate::protocol) fn deletion(&self, epoch: Revision) -> Deletion {
        // An older copy of the acquire may have put the key again after an early delete, so the last delete takes it
        // whatever its create revision is. No key is used again that such a copy names.
        let last = self.dirty.is_some() && self.is_fenced(epoch);
        let created = self.created.filter(|_| !self.plain && !last);
        Deletion { key: self.key.clone(), created }
    }

    /// A delete was answered. True if the key is gone for good.
    pub(in crate::protocol) fn deleted(&mut self, count: u64, for_good: bool) -> bool {
        self.was_gone |= count == 0 && !self.repeated;
        self.repeated = true;
        self.created = None;
        for_good
    }

    /// A delete went unanswered.
    pub(in crate::protocol) fn unanswered(&mut self) {
        self.repeated = true;
    }
}
