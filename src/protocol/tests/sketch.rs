//! What tests ask of a whole protocol.

use std::collections::BTreeMap;

use crate::protocol::Protocol;

impl Protocol {
    /// There are no holds, no waiters, and no keys still to be deleted.
    pub(crate) fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// All state that future behaviour depends on, in a canonical order: protocols whose sketches differ only in ids and
    /// times behave alike.
    pub(crate) fn sketch(&self) -> String {
        let queues: BTreeMap<_, _> = self.queues.iter().collect();
        let (batches, effects) = (self.batches.sketch(), self.effects.sketch());
        format!("{queues:?} {:?} {:?} {batches} {:?} {effects}", self.touched, self.fenced, self.session)
    }
}
