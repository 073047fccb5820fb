//! What the answers show of the store's history.
//!
//! Revisions only grow. So an answer with a lower revision than one that had arrived before its request was sent comes
//! from an old state, for one of three reasons: the member that answered lags behind, which the header of a renewal can
//! show; a read was not linearizable (etcd #20418); or the store was restored from a backup and has lost what this
//! session has put since. Only a write can tell which, because it is executed in the present state of the store.

use crate::kv::Revision;

/// The newest revision that the answers to this session have shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History {
    newest: Revision,
}

/// How an answer compares with what was known when its request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Current,
    /// It comes from an older state.
    Old,
}

impl History {
    /// What is known when a request is sent.
    pub(super) fn newest(self) -> Revision {
        self.newest
    }

    /// An answer of this revision arrived, to a request that was sent when `known` was the newest revision.
    pub(super) fn answered(&mut self, revision: Revision, known: Revision) -> Age {
        self.newest = self.newest.max(revision);
        if revision < known { Age::Old } else { Age::Current }
    }

    /// The next session begins. If the store was restored, the revisions that its predecessor knew mean nothing any more.
    pub(super) fn forget(&mut self) {
        self.newest = 0;
    }
}
