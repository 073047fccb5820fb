//! The watches of one manager, and what has to be said to etcd about them: a state machine without I/O.
//!
//! A watch goes through: waiting (no stream, or backing off) -> queued -> sent -> standing, and from each of them to
//! closed. A new stream takes all of them back to queued.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::WatchOrder;
use super::convert::WatchMessage;
use crate::store::{Revision, Span, WatchEvent, WatchId, WatchSpec};

const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const MAX_BACK_OFF: Duration = Duration::from_secs(2);

/// The pause before the next attempt, after so many failures in a row; jittered, so that managers do not come together.
pub(super) fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = FIRST_BACK_OFF.saturating_mul(1 << doublings).min(MAX_BACK_OFF);
    pause.mul_f64(0.75 + fastrand::f64() * 0.5)
}

/// What to say next on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Create { wire: i64, span: Span, from_revision: Revision },
    Cancel { wire: i64 },
    Progress,
}

/// What a message of the stream asks for beyond the events it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The token that the stream was opened with is refused.
    Token,
    /// A watch is not permitted. etcd up to 3.4 also says this for a refused token.
    Permission,
}

#[derive(Default)]
pub(super) struct Watches {
    open: HashMap<WatchId, Watch>,
    /// The watches that etcd knows, or will, by their ids on the stream.
    by_wire: HashMap<i64, WatchId>,
    /// Creates that were sent and not answered, in the order that their answers come in.
    unanswered: VecDeque<i64>,
    queue: VecDeque<Queued>,
    backing_off: BTreeSet<(Instant, WatchId)>,
    /// The last id given out. An id is never used again: an answer to an old one cannot be taken for another's.
    last_wire: i64,
    /// The reasons of refusals that were logged.
    warned: HashSet<String>,
}

struct Watch {
    spec: WatchSpec,
    wire: Option<i64>,
    failures: u32,
}

enum Queued {
    Create { wire: i64 },
    Cancel { wire: i64 },
    Progress,
}

impl Watches {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn apply(&mut self, order: WatchOrder) {
        match order {
            WatchOrder::Open { id, spec } => {
                self.open.insert(id, Watch { spec, wire: None, failures: 0 });
                self.enqueue(id);
            }
            WatchOrder::Close { id } => self.close(id),
        }
    }

    fn close(&mut self, id: WatchId) {
        let Some(wire) = self.open.remove(&id).and_then(|watch| watch.wire) else {
            return;
        };
        self.by_wire.remove(&wire);
        // A create that is still in the queue finds its watch gone and is skipped; etcd would leave the cancel of an
        // unknown id without an answer.
        let unsent =
            self.queue.iter().any(|queued| matches!(queued, Queued::Create { wire: w } if *w == wire));
        if !unsent {
            self.queue.push_back(Queued::Cancel { wire });
        }
    }

    fn enqueue(&mut self, id: WatchId) {
        if let Some(watch) = self.open.get_mut(&id) {
            self.last_wire += 1;
            watch.wire = Some(self.last_wire);
            self.by_wire.insert(self.last_wire, id);
            self.queue.push_back(Queued::Create { wire: self.last_wire });
        }
    }

    /// Begins a new stream, which knows nothing yet.
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

    /// What to say next; it stays next until [`said`](Self::said).
    pub(super) fn next(&mut self) -> Option<Say> {
        loop {
            match self.queue.front()? {
                Queued::Progress => return Some(Say::Progress),
                Queued::Cancel { wire } => return Some(Say::Cancel { wire: *wire }),
                Queued::Create { wire } => {
                    let watch = self.by_wire.get(wire).and_then(|id| self.open.get(id));
                    if let Some(Watch { spec, .. }) = watch {
                        let (span, from_revision) = (spec.span.clone(), spec.from_revision);
                        return Some(Say::Create { wire: *wire, span, from_revision });
                    }
                    self.queue.pop_front();
                }
            }
        }
    }

    /// What was next is on its way.
    pub(super) fn said(&mut self) {
        if let Some(Queued::Create { wire }) = self.queue.pop_front() {
            self.unanswered.push_back(wire);
        }
    }

    /// Wants a sign of life from the stream.
    pub(super) fn ask_progress(&mut self) {
        self.queue.push_back(Queued::Progress);
    }

    /// When the next backed-off watch wants to be opened again.
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

    /// Takes in a message of the stream.
    pub(super) fn hear(
        &mut self,
        message: WatchMessage,
        now: Instant,
        mut report: impl FnMut(WatchEvent),
    ) -> Option<Trouble> {
        let wire = if message.created { self.answered(message.wire) } else { message.wire };
        for (key, revision) in &message.deletions {
            if let Some(&watch) = self.by_wire.get(&wire) {
                report(WatchEvent::Deleted { watch, key: key.clone(), revision: *revision });
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

    /// The watch whose create is answered. A refusal can come without the id; but answers come in the order of the
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

    /// etcd will say no more about this watch.
    fn lost(&mut self, wire: i64, message: &WatchMessage, now: Instant) -> Option<Trouble> {
        // Not known: it is the answer to our own cancel.
        let id = self.by_wire.remove(&wire)?;
        let watch = self.open.get_mut(&id)?;
        watch.wire = None;
        let reason = &message.reason;
        if message.compact_revision > 0 || reason.contains("has been compacted") {
            // The past is gone. From now on, then: the later revision in `Created` makes its owner look again.
            watch.spec.from_revision = 0;
            self.enqueue(id);
            return None;
        }
        watch.failures += 1;
        self.backing_off.insert((now + back_off(watch.failures), id));
        if self.warned.insert(reason.clone()) {
            let span = &watch.spec.span;
            log::warn!(target: "etcd_lock", "etcd does not let us watch {span:?} ({reason:?}); going on trying");
        }
        if ["invalid auth token", "auth store is old", "header is old", "user name is empty"]
            .iter()
            .any(|words| reason.contains(words))
        {
            return Some(Trouble::Token);
        }
        reason.contains("permission denied").then_some(Trouble::Permission)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    fn open(watches: &mut Watches, id: u64, from_revision: Revision) {
        let spec = WatchSpec { span: Span::Key(Key::from(format!("k{id}"))), from_revision };
        watches.apply(WatchOrder::Open { id: WatchId(id), spec });
    }

    fn close(watches: &mut Watches, id: u64) {
        watches.apply(WatchOrder::Close { id: WatchId(id) });
    }

    /// Says everything that is to be said, for short: create k1@0 as 1 = "+1 k1@0", cancel 1 = "-1", progress = "?".
    fn say_all(watches: &mut Watches) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(say) = watches.next() {
            watches.said();
            said.push(match say {
                Say::Create { wire, span: Span::Key(key), from_revision } => {
                    format!("+{wire} {key}@{from_revision}")
                }
                Say::Create { wire, .. } => format!("+{wire}"),
                Say::Cancel { wire } => format!("-{wire}"),
                Say::Progress => "?".into(),
            });
        }
        said
    }

    fn hear(watches: &mut Watches, message: WatchMessage) -> (Vec<WatchEvent>, Option<Trouble>) {
        let mut events = Vec::new();
        let trouble = watches.hear(message, Instant::now(), |event| events.push(event));
        (events, trouble)
    }

    fn created(wire: i64, revision: Revision) -> WatchMessage {
        WatchMessage { wire, revision, created: true, ..WatchMessage::default() }
    }

    fn deleted(wire: i64, key: &str, revision: Revision) -> WatchMessage {
        WatchMessage {
            wire,
            revision,
            deletions: vec![(Key::from(key), revision)],
            ..WatchMessage::default()
        }
    }

    fn refused(wire: i64, reason: &str) -> WatchMessage {
        WatchMessage { canceled: true, reason: reason.into(), ..created(wire, 1) }
    }

    #[test]
    fn a_watch_stands_reports_and_is_silent_once_closed() {
        let mut watches = Watches::default();
        open(&mut watches, 7, 0);
        assert_eq!(say_all(&mut watches), ["+1 k7@0"]);
        let (events, _) = hear(&mut watches, created(1, 5));
        assert_eq!(events, [WatchEvent::Created { watch: WatchId(7), revision: 5 }]);
        let (events, _) = hear(&mut watches, deleted(1, "k7", 6));
        assert_eq!(events, [WatchEvent::Deleted { watch: WatchId(7), key: Key::from("k7"), revision: 6 }]);
        close(&mut watches, 7);
        assert_eq!(say_all(&mut watches), ["-1"]);
        assert_eq!(hear(&mut watches, deleted(1, "k7", 8)), (vec![], None));
        let gone = WatchMessage { wire: 1, canceled: true, ..WatchMessage::default() };
        assert_eq!(hear(&mut watches, gone), (vec![], None));
        assert!(watches.is_empty() && watches.next_retry().is_none());
    }

    #[test]
    fn a_watch_that_is_closed_before_it_was_sent_is_never_sent() {
        let mut watches = Watches::default();
        open(&mut watches, 1, 0);
        open(&mut watches, 2, 0);
        close(&mut watches, 1);
        assert_eq!(say_all(&mut watches), ["+2 k2@0"]);
    }

    #[test]
    fn a_new_stream_opens_every_watch_anew_from_where_its_owner_wanted() {
        let mut watches = Watches::default();
        open(&mut watches, 1, 0);
        open(&mut watches, 2, 40);
        say_all(&mut watches);
        hear(&mut watches, created(1, 50));
        open(&mut watches, 3, 0);
        watches.ask_progress();
        watches.restart();
        assert_eq!(say_all(&mut watches), ["+4 k1@0", "+5 k2@40", "+6 k3@0"]);
        assert_eq!(hear(&mut watches, deleted(1, "k1", 51)), (vec![], None), "an id of the old stream");
        let (events, _) = hear(&mut watches, created(4, 60));
        assert_eq!(events, [WatchEvent::Created { watch: WatchId(1), revision: 60 }]);
    }

    #[test]
    fn a_compacted_watch_goes_on_from_now() {
        let mut watches = Watches::default();
        open(&mut watches, 1, 3);
        say_all(&mut watches);
        hear(&mut watches, created(1, 50));
        let compacted =
            WatchMessage { wire: 1, canceled: true, compact_revision: 40, ..WatchMessage::default() };
        assert_eq!(hear(&mut watches, compacted), (vec![], None));
        assert_eq!(say_all(&mut watches), ["+2 k1@0"]);
        watches.restart();
        assert_eq!(say_all(&mut watches), ["+3 k1@0"], "the past stays gone");
    }

    #[test]
    fn a_refusal_without_an_id_is_the_answer_to_the_oldest_create() {
        let mut watches = Watches::default();
        for id in 1..=3 {
            open(&mut watches, id, 0);
        }
        say_all(&mut watches);
        hear(&mut watches, created(1, 5));
        let (_, trouble) = hear(&mut watches, refused(-1, "etcdserver: permission denied"));
        assert_eq!(trouble, Some(Trouble::Permission));
        let (events, _) = hear(&mut watches, created(3, 5));
        assert_eq!(events, [WatchEvent::Created { watch: WatchId(3), revision: 5 }]);
        let retry = watches.next_retry().unwrap();
        watches.retry_due(retry - Duration::from_millis(1));
        assert_eq!(say_all(&mut watches), [""; 0]);
        watches.retry_due(retry);
        assert_eq!(say_all(&mut watches), ["+4 k2@0"]);
    }

    #[test]
    fn a_refused_token_is_told_apart() {
        let mut watches = Watches::default();
        open(&mut watches, 1, 0);
        say_all(&mut watches);
        let (_, trouble) = hear(&mut watches, refused(1, "etcdserver: invalid auth token"));
        assert_eq!(trouble, Some(Trouble::Token));
        close(&mut watches, 1);
        watches.retry_due(Instant::now() + MAX_BACK_OFF * 2);
        assert_eq!(say_all(&mut watches), [""; 0], "closed while it backed off");
    }

    #[test]
    fn a_sign_of_life_is_no_event() {
        let mut watches = Watches::default();
        open(&mut watches, 1, 0);
        watches.ask_progress();
        assert_eq!(say_all(&mut watches), ["+1 k1@0", "?"]);
        let progress = WatchMessage { wire: -1, revision: 9, ..WatchMessage::default() };
        assert_eq!(hear(&mut watches, progress), (vec![], None));
    }

    #[test]
    fn the_back_off_doubles_up_to_its_limit() {
        let within = |failures, millis: u64| {
            let pause = back_off(failures).as_millis() as f64;
            let expected = millis as f64;
            assert!((expected * 0.74..=expected * 1.26).contains(&pause), "{failures}: {pause}");
        };
        for (failures, millis) in [(0, 100), (1, 100), (2, 200), (5, 1600), (6, 2000), (u32::MAX, 2000)] {
            within(failures, millis);
        }
    }
}
