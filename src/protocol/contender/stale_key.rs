//! A key of ours that must be deleted, until no delayed request can put it again.

use crate::kv::{Key, Revision};
use crate::protocol::messages::Ticket;
use crate::protocol::mutants::mutant;
use crate::protocol::write::Deletion;

/// A key of ours that must be deleted.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct StaleKey {
    pub(in crate::protocol) key: Key,
    /// The create revision with which it is known to exist; `None` if it may not exist or was deleted already.
    pub(in crate::protocol) created: Option<Revision>,
    /// See [`Contender::unanswered_epoch`](crate::protocol::contender::Contender): a delayed request could put the key
    /// again, so it must be deleted under a later epoch.
    pub(in crate::protocol) unanswered_epoch: Option<Revision>,
    /// A delete of it went unanswered or was carried out before, so a later one that finds no key proves nothing.
    pub(in crate::protocol) repeated: bool,
    /// The store has run out of space and refuses transactions; it may still carry out a plain delete.
    pub(in crate::protocol) plain: bool,
    /// The first delete found no key, so somebody else had deleted it.
    pub(in crate::protocol) was_gone: bool,
    /// The token of the hold that this deletion releases.
    pub(in crate::protocol) released: Option<Revision>,
    /// Tickets that wait for the confirmation that the key is deleted.
    pub(in crate::protocol) confirm: Vec<Ticket>,
}

impl StaleKey {
    /// No request can put the key again once it is deleted.
    pub(in crate::protocol) fn is_fenced(&self, epoch: Revision) -> bool {
        self.unanswered_epoch.is_none_or(|unanswered| unanswered < epoch) || mutant!(DeletedWithoutFence)
    }

    /// Whether to delete it now: because that is final, or because the key is known to exist and blocks others. Where
    /// the session key cannot be put (the store is full, a permission is missing), the second case frees the lock.
    pub(in crate::protocol) fn is_due(&self, epoch: Revision) -> bool {
        self.is_fenced(epoch) || self.created.is_some() && !mutant!(ReleaseWaitsForFence)
    }

    /// Its delete is due and must be a request of its own, because a plain delete cannot be part of a transaction.
    pub(in crate::protocol) fn must_go_alone(&self, epoch: Revision) -> bool {
        self.plain && self.is_due(epoch)
    }

    pub(in crate::protocol) fn deletion(&self, epoch: Revision) -> Deletion {
        // After an early delete, an older copy of the put may have created the key again. So the final delete does not
        // compare the create revision; a key named in an unanswered request is never reused.
        let last = self.unanswered_epoch.is_some() && self.is_fenced(epoch);
        let created = self.created.filter(|_| !self.plain && !last);
        let mut key = self.key.clone();
        if mutant!(SharedReleasedAsExclusive) {
            key = Key::from(key.as_str().replace("~r.", ""));
        }
        Deletion { key, created }
    }

    /// A delete was answered: it found `count` keys. Returns whether the key is deleted for good.
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
