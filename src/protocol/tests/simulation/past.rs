//! What members that are behind still have: the store as it was, and what they have yet to tell.

use std::collections::VecDeque;

use super::world::World;
use crate::clock::Time;
use crate::kv::{Failure, Key, Request, Response, Revision, Span, WatchEvent, WatchId};
use crate::memory::model::Model;

/// So far behind members are, in revisions.
const FARTHEST: usize = 24;

/// The store as it was. Only a weather with stale reads fills it.
#[derive(Debug, Default)]
pub(super) struct Past {
    models: VecDeque<Model>,
    /// When each of the last revisions was made.
    made: VecDeque<(Revision, Time)>,
    /// The contenders that were deleted, whether or not that was compacted.
    deleted: VecDeque<(Revision, Key)>,
}

impl Past {
    /// A contender was deleted.
    pub(super) fn remember_deletion(&mut self, revision: Revision, key: &Key) {
        self.deleted.push_back((revision, key.clone()));
        if self.deleted.len() > FARTHEST * 2 {
            self.deleted.pop_front();
        }
    }
}

impl Past {
    pub(super) fn remember_time(&mut self, revision: Revision, at: Time) {
        self.made.push_back((revision, at));
        if self.made.len() > FARTHEST * 2 {
            self.made.pop_front();
        }
    }

    /// When the revision was no longer the last one; `None` if it still is.
    pub(super) fn superseded(&self, revision: Revision) -> Option<Time> {
        self.made.iter().find(|(made, _)| *made > revision).map(|&(_, at)| at)
    }
}

impl World {
    /// The store may have changed.
    pub(super) fn remember(&mut self) {
        if !self.weather.stale_reads {
            return;
        }
        if self.past.models.back().is_none_or(|last| last.revision() < self.model.revision()) {
            self.past.models.push_back(self.model.clone());
            if self.past.models.len() > FARTHEST {
                self.past.models.pop_front();
            }
        }
    }

    /// A member that is behind answers a read from what it has, although it should ask the leader first.
    pub(super) fn stale_read(&mut self, request: &Request) -> Option<Result<Response, Failure>> {
        let read = matches!(request, Request::Txn(_)) && !request.is_write();
        if !self.weather.stale_reads || self.winding_down || !read || self.rng.u8(0..4) > 0 {
            return None;
        }
        self.disturbed = self.now;
        let at = self.rng.usize(..self.past.models.len().max(1));
        let member = self.past.models.get(at)?;
        Some(member.clone().execute(self.now, request))
    }

    /// What a member that is `behind` by so many revisions tells once it has caught up.
    pub(super) fn told_late(&self, watch: WatchId, span: &Span, behind: Revision) -> Vec<WatchEvent> {
        let from = self.model.revision() - behind;
        let late = self.past.deleted.iter().filter(|(revision, key)| *revision > from && span.contains(key));
        let mut told: Vec<(Revision, Vec<Key>)> = Vec::new();
        for (revision, key) in late {
            match told.last_mut() {
                Some((last, keys)) if last == revision => keys.push(key.clone()),
                _ => told.push((*revision, vec![key.clone()])),
            }
        }
        told.into_iter().map(|(revision, keys)| WatchEvent::Deleted { watch, keys, revision }).collect()
    }
}
