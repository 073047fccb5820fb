//! Watches for deletions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::kv::{Failure, FailureClass, Key, Revision, Span, WatchSpec};

use super::keys::{Change, Keys};

/// Names one open watch of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Watcher(u64);

/// What the model has to say to one watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// These watched keys were deleted, and no others at that revision.
    Deleted { keys: Vec<Key>, revision: Revision },
    /// The revision to start from is compacted away: there is no such watch.
    Compacted { revision: Revision },
}

/// The open watches, and what they have been told but nobody has fetched yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Watches {
    last: u64,
    open: BTreeMap<Watcher, Open>,
    /// The watchers of one key each, by that key: there can be thousands.
    of_key: BTreeMap<Key, BTreeSet<Watcher>>,
    /// The watchers of anything else.
    of_range: BTreeSet<Watcher>,
    notices: VecDeque<(Watcher, Notice)>,
}

#[derive(Clone, Debug)]
struct Open {
    span: Span,
    /// Reports nothing that happened before.
    from: Revision,
}

impl Watches {
    /// Opens a watch. What it asks of the past is told first; a deletion later in history never comes earlier.
    pub(super) fn open(&mut self, spec: &WatchSpec, keys: &Keys) -> Result<Watcher, Failure> {
        if spec.span.is_empty() {
            return Err(Failure::new(FailureClass::Refused, "mvcc: watcher range is empty"));
        }
        self.last += 1;
        let watcher = Watcher(self.last);
        if (1..keys.compacted()).contains(&spec.from_revision) {
            self.notices.push_back((watcher, Notice::Compacted { revision: keys.compacted() }));
            return Ok(watcher);
        }
        let from = match spec.from_revision {
            0 => keys.revision() + 1,
            from => from,
        };
        match &spec.span {
            Span::Key(key) => {
                self.of_key.entry(key.clone()).or_default().insert(watcher);
            }
            Span::Prefix(_) | Span::Between(..) => {
                self.of_range.insert(watcher);
            }
        }
        let open = Open { span: spec.span.clone(), from };
        let missed =
            keys.changes_from(from).filter(|change| change.deleted && open.span.contains(&change.key));
        for change in missed {
            note(&mut self.notices, watcher, change);
        }
        self.open.insert(watcher, open);
        Ok(watcher)
    }

    /// Closes the watch; what it has not fetched yet is gone.
    pub(super) fn close(&mut self, watcher: Watcher) {
        self.notices.retain(|(told, _)| *told != watcher);
        self.of_range.remove(&watcher);
        if let Some(Open { span: Span::Key(key), .. }) = self.open.remove(&watcher)
            && let Some(watchers) = self.of_key.get_mut(&key)
        {
            watchers.remove(&watcher);
            if watchers.is_empty() {
                self.of_key.remove(&key);
            }
        }
    }

    /// Tells everybody whom it concerns about a write that was just committed.
    pub(super) fn tell(&mut self, change: &Change) {
        if !change.deleted {
            return;
        }
        let of_key = self.of_key.get(&change.key).into_iter().flatten();
        for watcher in of_key.chain(&self.of_range) {
            let told = self.open.get(watcher);
            if told.is_some_and(|open| open.from <= change.revision && open.span.contains(&change.key)) {
                note(&mut self.notices, *watcher, change);
            }
        }
    }

    pub(super) fn next_notice(&mut self) -> Option<(Watcher, Notice)> {
        self.notices.pop_front()
    }
}

/// Joins the notice of the same commit, if there is one already.
fn note(notices: &mut VecDeque<(Watcher, Notice)>, watcher: Watcher, change: &Change) {
    let of_one = |notice: &(Watcher, Notice)| match notice {
        (_, Notice::Deleted { revision, .. }) => *revision == change.revision,
        (_, Notice::Compacted { .. }) => false,
    };
    let begun =
        notices.iter_mut().rev().take_while(|notice| of_one(notice)).find(|(told, _)| *told == watcher);
    match begun {
        Some((_, Notice::Deleted { keys, .. })) => keys.push(change.key.clone()),
        _ => {
            let notice = Notice::Deleted { keys: vec![change.key.clone()], revision: change.revision };
            notices.push_back((watcher, notice));
        }
    }
}
