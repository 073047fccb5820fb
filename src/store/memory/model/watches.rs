//! Watches for deletions, and for puts if asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::kv::{Failure, FailureClass, Key, Revision, Span, WatchSpec};

use super::keys::{Change, Keys};

/// Identifies an open watch of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Watcher(u64);

/// A notice for one watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// These watched keys were deleted, and no others at that revision.
    Deleted { keys: Vec<Key>, revision: Revision },
    /// These watched keys were put, and no others at that revision.
    Put { keys: Vec<Key>, revision: Revision },
    /// The start revision was compacted: there is no such watch.
    Compacted { revision: Revision },
}

/// The open watches, and their notices that were not fetched yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Watches {
    last: u64,
    open: BTreeMap<Watcher, Open>,
    /// The watchers of a single key, by that key: there can be thousands.
    of_key: BTreeMap<Key, BTreeSet<Watcher>>,
    /// The watchers of a prefix or a range.
    of_range: BTreeSet<Watcher>,
    /// Unbounded: the store delivers all notices after each request.
    notices: VecDeque<(Watcher, Notice)>,
}

#[derive(Clone, Debug)]
struct Open {
    span: Span,
    /// The first revision that the watch reports.
    from: Revision,
    puts: bool,
}

impl Open {
    fn reports(&self, change: &Change) -> bool {
        (change.deleted || self.puts) && self.from <= change.revision && self.span.contains(&change.key)
    }
}

impl Watches {
    /// Opens a watch. Its notices about the past come first; a later deletion is never reported before an earlier one.
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
        let open = Open { span: spec.span.clone(), from, puts: spec.puts };
        let missed = keys.changes_from(from).filter(|change| open.reports(change));
        for change in missed {
            note(&mut self.notices, watcher, change);
        }
        self.open.insert(watcher, open);
        Ok(watcher)
    }

    /// Closes the watch and drops its notices.
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

    /// Notifies the watchers of a write that was just committed.
    pub(super) fn tell(&mut self, change: &Change) {
        let of_key = self.of_key.get(&change.key).into_iter().flatten();
        for watcher in of_key.chain(&self.of_range) {
            if self.open.get(watcher).is_some_and(|open| open.reports(change)) {
                note(&mut self.notices, *watcher, change);
            }
        }
    }

    pub(super) fn next_notice(&mut self) -> Option<(Watcher, Notice)> {
        self.notices.pop_front()
    }
}

/// Adds the change to the watcher's notice of the same commit, if there is one.
fn note(notices: &mut VecDeque<(Watcher, Notice)>, watcher: Watcher, change: &Change) {
    let revision = change.revision;
    let of_one = |notice: &(Watcher, Notice)| match &notice.1 {
        Notice::Deleted { revision: of, .. } | Notice::Put { revision: of, .. } => *of == revision,
        Notice::Compacted { .. } => false,
    };
    let same_kind = |notice: &Notice| matches!(notice, Notice::Deleted { .. }) == change.deleted;
    let mut of_commit = notices.iter_mut().rev().take_while(|notice| of_one(notice));
    match of_commit.find(|(told, notice)| *told == watcher && same_kind(notice)) {
        Some((_, Notice::Deleted { keys, .. } | Notice::Put { keys, .. })) => keys.push(change.key.clone()),
        _ => {
            let keys = vec![change.key.clone()];
            let notice = if change.deleted {
                Notice::Deleted { keys, revision }
            } else {
                Notice::Put { keys, revision }
            };
            notices.push_back((watcher, notice));
        }
    }
}
