//! The past of lagging members: earlier states of the store, and the deletions that they report late.

use std::collections::VecDeque;

use super::world::World;
use crate::clock::Time;
use crate::kv::{Failure, Key, Request, Response, Revision, Span, WatchEvent, WatchId};
use crate::store::memory::model::Model;

/// The largest lag of a member, in revisions.
const FARTHEST: usize = 24;

/// Earlier states of the store; recorded only in weathers with stale reads.
#[derive(Debug, Default)]
pub(super) struct Past {
    models: VecDeque<Model>,
    /// When each of the last revisions was made.
    made: VecDeque<(Revision, Time)>,
    /// The deleted contenders, compacted or not.
    deleted: VecDeque<(Revision, Key)>,
}

impl Past {
    /// Records that a contender was deleted.
    pub(super) fn remember_deletion(&mut self, revision: Revision, key: &Key) {
        self.deleted.push_back((revision, key.clone()));
        if self.deleted.len() > FARTHEST * 2 {
            self.deleted.pop_front();
        }
    }

    pub(super) fn remember_time(&mut self, revision: Revision, at: Time) {
        self.made.push_back((revision, at));
        if self.made.len() > FARTHEST * 2 {
            self.made.pop_front();
        }
    }

    /// When the next revision was made; `None` if this one is the latest.
    pub(super) fn superseded(&self, revision: Revision) -> Option<Time> {
        self.made.iter().find(|(made, _)| *made > revision).map(|&(_, at)| at)
    }
}

impl World {
    /// Records the store's state if it has changed.
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

    /// A lagging member answers a read from its own state, although it should confirm its progress with the leader
    /// first.
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

    /// The deletions that a member which is `behind` by this many revisions reports once it has caught up.
    pub(super) fn reported_late(&self, watch: WatchId, span: &Span, behind: Revision) -> Vec<WatchEvent> {
        let from = self.model.revision() - behind;
        let late = self.past.deleted.iter().filter(|(revision, key)| *revision > from && span.contains(key));
        let mut reported: Vec<(Revision, Vec<Key>)> = Vec::new();
        for (revision, key) in late {
            match reported.last_mut() {
                Some((last, keys)) if last == revision => keys.push(key.clone()),
                _ => reported.push((*revision, vec![key.clone()])),
            }
        }
        reported.into_iter().map(|(revision, keys)| WatchEvent::Deleted { watch, keys, revision }).collect()
    }
}
