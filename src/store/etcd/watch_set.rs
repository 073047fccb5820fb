//! The watches of one manager and the requests to send to etcd for them: a state machine without I/O.
//!
//! The states of a watch: waiting (no stream, or backing off) -> queued -> sent -> confirmed. It can be closed in any
//! state. A new stream returns all watches to queued.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::convert::{Change, WatchMessage};
use super::fault::{FaultKind, kind_of_words};
use crate::kv::{FailureClass, Key, WatchEvent, WatchId, WatchSpec};
use crate::protocol;
use crate::store::WatchOrder;

const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// The pause before the next attempt to open the stream or a watch, after so many failures in a row.
pub(super) fn back_off(failures: u32) -> Duration {
    protocol::back_off(FIRST_BACK_OFF, failures, &mut fastrand::Rng::new())
}

/// The next request to send on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WatchRequest {
    Create { wire: i64, spec: WatchSpec },
    Cancel { wire: i64 },
    Progress,
}

/// A problem reported by a message that the stream's owner must handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The token that the stream was opened with is refused.
    Token,
    /// A watch is not permitted. Some releases of etcd (of 3.4) also say this for a refused token.
    Permission,
}

#[derive(Default)]
pub(super) struct WatchSet {
    open: HashMap<WatchId, Watch>,
    /// Watches that were sent or are queued, by their ids on the stream.
    by_wire: HashMap<i64, WatchId>,
    /// Creates that were sent and not yet answered, in the order in which etcd answers them.
    unanswered: VecDeque<i64>,
    queue: VecDeque<Queued>,
    backing_off: BTreeSet<(Instant, WatchId)>,
    /// The last id assigned. Ids are never reused, so a late answer cannot be matched to another watch.
    last_wire: i64,
    /// The refusal reasons that were already logged.
    warned: HashSet<String>,
}

struct Watch {
    spec: WatchSpec,
    wire: Option<i64>,
    /// Whether the create request with `wire` was sent.
    sent: bool,
    failures: u32,
}

enum Queued {
    Create { wire: i64 },
    Cancel { wire: i64 },
    Progress,
}

impl WatchSet {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn apply(&mut self, order: WatchOrder) {
        match order {
            WatchOrder::Open { id, spec } => {
                self.open.insert(id, Watch { spec, wire: None, sent: false, failures: 0 });
                self.enqueue(id);
            }
            WatchOrder::Close { id } => self.close(id),
        }
    }

    fn close(&mut self, id: WatchId) {
        let Some(watch) = self.open.remove(&id) else {
            return;
        };
        let Some(wire) = watch.wire else {
            return;
        };
        self.by_wire.remove(&wire);
        // A create that is still in the queue finds its watch gone and is skipped.
        if watch.sent {
            self.queue.push_back(Queued::Cancel { wire });
        }
    }

    fn enqueue(&mut self, id: WatchId) {
        if let Some(watch) = self.open.get_mut(&id) {
            self.last_wire += 1;
            watch.wire = Some(self.last_wire);
            watch.sent = false;
            self.by_wire.insert(self.last_wire, id);
            self.queue.push_back(Queued::Create { wire: self.last_wire });
        }
    }

    /// Starts over for a new stream: queues every open watch.
    pub(super) fn restart(&mut self) {
        self.by_wire.clear();
        self.unanswered.clear();
        self.queue.clear();
        self.backing_off.clear();
        let mut ids: Vec<WatchId> = self.open.keys().copied().collect();
        // The session's own watch is among the oldest, and matters most.
        ids.sort_unstable();
        for id in ids {
            self.enqueue(id);
        }
    }

    /// The next request to send; returned again until [`mark_sent`](Self::mark_sent) is called.
    pub(super) fn next(&mut self) -> Option<WatchRequest> {
        loop {
            match self.queue.front()? {
                Queued::Progress => return Some(WatchRequest::Progress),
                Queued::Cancel { wire } => return Some(WatchRequest::Cancel { wire: *wire }),
                Queued::Create { wire } => {
                    let watch = self.by_wire.get(wire).and_then(|id| self.open.get(id));
                    if let Some(Watch { spec, .. }) = watch {
                        return Some(WatchRequest::Create { wire: *wire, spec: spec.clone() });
                    }
                    self.queue.pop_front();
                }
            }
        }
    }

    /// The request returned by [`next`](Self::next) was sent.
    pub(super) fn mark_sent(&mut self) {
        if let Some(Queued::Create { wire }) = self.queue.pop_front() {
            self.unanswered.push_back(wire);
            if let Some(watch) = self.by_wire.get(&wire).and_then(|id| self.open.get_mut(id)) {
                watch.sent = true;
            }
        }
    }

    /// Asks the stream for a progress message.
    pub(super) fn ask_progress(&mut self) {
        self.queue.push_back(Queued::Progress);
    }

    /// When the next backed-off watch is due to be opened again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.backing_off.first().map(|&(at, _)| at)
    }

    /// Queues the watches whose back-off is over.
    pub(super) fn retry_due(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.backing_off.first()
            && at <= now
        {
            self.backing_off.pop_first();
            // Unless it was closed, or opened anew with a new stream.
            if self.open.get(&id).is_some_and(|watch| watch.wire.is_none()) {
                self.enqueue(id);
            }
        }
    }

    /// Handles a message of the stream.
    pub(super) fn handle_message(
        &mut self,
        message: WatchMessage,
        now: Instant,
        mut report: impl FnMut(WatchEvent),
    ) -> Option<Trouble> {
        let wire = if message.created { self.answered(message.wire) } else { message.wire };
        if let Some(&watch) = self.by_wire.get(&wire) {
            // etcd sends all events of a revision in one message, unless fragments are requested.
            for of_one in message.changes.chunk_by(|one, next| one.revision == next.revision) {
                self.report(watch, of_one, &mut report);
            }
        }
        if message.canceled {
            return self.lost(wire, &message, now);
        }
        if message.created
            && let Some(&id) = self.by_wire.get(&wire)
        {
            if let Some(watch) = self.open.get_mut(&id) {
                watch.failures = 0;
            }
            report(WatchEvent::Created { watch: id, revision: message.revision });
        }
        None
    }

    /// Reports the changes of one revision: one event for each kind, in the order in which they came.
    fn report(&self, watch: WatchId, changes: &[Change], report: &mut impl FnMut(WatchEvent)) {
        let keys = |deleted: bool| {
            let of_kind = changes.iter().filter(|change| change.deleted == deleted);
            of_kind.map(|change| change.key.clone()).collect::<Vec<Key>>()
        };
        let wants_puts = self.open.get(&watch).is_some_and(|open| open.spec.puts);
        let Some(&Change { revision, deleted, .. }) = changes.first() else {
            return;
        };
        for deleted in [deleted, !deleted] {
            let keys = keys(deleted);
            if !keys.is_empty() && deleted {
                report(WatchEvent::Deleted { watch, keys, revision });
            } else if !keys.is_empty() && wants_puts {
                report(WatchEvent::Put { watch, keys, revision });
            }
        }
    }

    /// The id of the watch whose create was answered. A refusal may lack the id, but answers arrive in the order of the
    /// creates.
    fn answered(&mut self, wire: i64) -> i64 {
        if wire < 1 {
            return self.unanswered.pop_front().unwrap_or(wire);
        }
        if let Some(at) = self.unanswered.iter().position(|&sent| sent == wire) {
            self.unanswered.remove(at);
        }
        wire
    }

    /// Handles the cancellation of a watch by etcd.
    fn lost(&mut self, wire: i64, message: &WatchMessage, now: Instant) -> Option<Trouble> {
        // An unknown id: this is the answer to our own cancel.
        let id = self.by_wire.remove(&wire)?;
        let watch = self.open.get_mut(&id)?;
        watch.wire = None;
        let (reason, kind) = (&message.reason, kind_of_words(&message.reason));
        if message.compact_revision > 0 || kind == Some(FaultKind::Class(FailureClass::Compacted)) {
            // The start revision is compacted, so watch from now on. The later revision in `Created` makes the owner re-read.
            watch.spec.from_revision = 0;
            self.enqueue(id);
            return None;
        }
        watch.failures += 1;
        self.backing_off.insert((now + back_off(watch.failures), id));
        let trouble = match kind {
            // Tokens expire, and a new one is fetched: no warning.
            Some(FaultKind::Token) => return Some(Trouble::Token),
            Some(FaultKind::Class(FailureClass::PermissionDenied)) => Some(Trouble::Permission),
            _ => None,
        };
        let what = format!("{:?}", watch.spec.span);
        self.warn_once(reason, &what);
        trouble
    }

    /// Logs that a watch is refused, once per reason.
    pub(super) fn warn_once(&mut self, reason: &str, what: &str) {
        if self.warned.insert(reason.to_owned()) {
            log::warn!(target: "etcd_lock", "etcd refuses the watch of {what} ({reason}); going on trying");
        }
    }
}
