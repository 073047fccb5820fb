//! One observed name: what is known of its holder, and when to read it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::driver::queries::holder_read::{Contenders, HolderRead};
use crate::info::LockInfo;
use crate::kv::{Failure, Key, KeyValue, Revision, WatchEvent};
use crate::mode::{Load, Mode};
use crate::name::LockName;
use crate::protocol::mutants::mutant;
use crate::protocol::{self, Ticket};
use crate::shared::feeds::{Feeds, ObserverId};
use crate::shared::hold_state::HoldState;

/// The first back-off after a read that failed, or was older than what is known.
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);

/// A read without an event, in case one was lost: some releases of etcd lose events (etcd #17529).
const CHECK_AGAIN: Duration = Duration::from_secs(15);

/// If reads have been answered from before the newest known revision for this long, the store was restored from a backup.
/// A member that answers from an old state (etcd #20418) catches up sooner.
const RESTORED_AFTER: Duration = Duration::from_secs(5);

/// A holder that waits for contention.
#[derive(Debug)]
pub(in crate::driver) struct Contention {
    pub(in crate::driver) ticket: Ticket,
    pub(in crate::driver) state: Arc<HoldState>,
}

impl Contention {
    /// Others may hold the lock together with it.
    fn may_be_one_of_several(&self) -> bool {
        Mode::of(&self.state.key) != Mode::Exclusive
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Step {
    Nothing,
    /// Read the holder, and pass the answer to `read_answered`.
    Read,
}

/// Tells a caller that its observer has its first state, or why there is none.
pub(super) type FirstState = Box<dyn FnOnce(Result<(), Failure>) + Send>;

pub(super) struct ObservedName {
    name: LockName,
    observers: Vec<ObserverId>,
    /// Observers that wait for a read that was sent after their call.
    joining: Vec<(ObserverId, FirstState)>,
    /// The same of the read that is in flight.
    joined: Vec<(ObserverId, FirstState)>,
    contentions: Vec<Contention>,
    newest: Option<State>,
    /// The latest revision at which something was reported that may concern the holder.
    wanted: Revision,
    /// The read that is in flight: what was wanted when it was sent.
    reading: Option<Revision>,
    /// Somebody needs a read that is sent after the one in flight.
    read_again: bool,
    failures: u32,
    /// When to read again without an event.
    check: Instant,
    /// Since when reads were answered from before the newest known revision.
    behind_since: Option<Instant>,
}

/// The holder as of a revision.
struct State {
    revision: Revision,
    /// Its key.
    holder: Option<Key>,
    info: Option<LockInfo>,
}

impl ObservedName {
    pub(super) fn new(name: LockName, now: Instant) -> Self {
        Self {
            name,
            observers: Vec::new(),
            joining: Vec::new(),
            joined: Vec::new(),
            contentions: Vec::new(),
            newest: None,
            wanted: 0,
            reading: None,
            read_again: false,
            failures: 0,
            check: now + CHECK_AGAIN,
            behind_since: None,
        }
    }

    pub(super) fn name(&self) -> &LockName {
        &self.name
    }

    pub(super) fn is_unused(&self) -> bool {
        self.observers.is_empty()
            && self.joining.is_empty()
            && self.joined.is_empty()
            && self.contentions.is_empty()
    }

    /// Which contenders are wanted beside the holder. Whoever is behind an exclusive hold waits for it, while it takes all
    /// of them to know who waits behind one of several holds.
    pub(super) fn contenders_wanted(&self) -> Contenders {
        match self.contentions.is_empty() {
            true => Contenders::None,
            false if self.contentions.iter().any(Contention::may_be_one_of_several) => Contenders::All,
            false => Contenders::Newest,
        }
    }

    /// When to call `check_again`; `None` while a read is in flight.
    pub(super) fn due(&self) -> Option<Instant> {
        self.reading.is_none().then_some(self.check)
    }

    /// An observer begins: it gets the state of a read that is sent from now on.
    pub(super) fn join(&mut self, id: ObserverId, first: FirstState) -> Step {
        self.joining.push((id, first));
        self.read()
    }

    /// An observer ends. False if it is none of this name.
    pub(super) fn leave(&mut self, id: ObserverId) -> bool {
        let count = |name: &Self| name.observers.len() + name.joining.len() + name.joined.len();
        let before = count(self);
        self.observers.retain(|&other| other != id);
        self.joining.retain(|&(other, _)| other != id);
        self.joined.retain(|&(other, _)| other != id);
        count(self) < before
    }

    /// A holder waits for contention.
    pub(super) fn await_contention(&mut self, contention: Contention, feeds: &Feeds) -> Step {
        if contention.state.has_ended() {
            feeds.end_contention(contention.ticket);
            return Step::Nothing;
        }
        self.contentions.push(contention);
        self.read()
    }

    pub(super) fn forget_ended_holds(&mut self, feeds: &Feeds) {
        self.contentions.retain(|contention| {
            let over = contention.state.has_ended();
            if over {
                feeds.end_contention(contention.ticket);
            }
            !over && feeds.awaits_contention(contention.ticket)
        });
    }

    pub(super) fn watch_reported(&mut self, event: &WatchEvent, feeds: &Feeds) -> Step {
        let concerns_holder = match event {
            // Opened, or opened anew: events before its revision may have been missed.
            WatchEvent::Created { revision, .. } => self.newest().is_none_or(|newest| newest < *revision),
            WatchEvent::Put { keys, revision, .. } => {
                self.note_contenders(keys.iter(), *revision, feeds);
                let one_of_several = self.contentions.iter().any(Contention::may_be_one_of_several);
                one_of_several || self.concerns_holder(keys, *revision)
            }
            WatchEvent::Deleted { keys, revision, .. } => self.concerns_holder(keys, *revision),
        };
        if !concerns_holder {
            return Step::Nothing;
        }
        if self.reading.is_none() || !mutant!(ObserverForgetsWhileReading) {
            self.wanted = self.wanted.max(event.revision());
        }
        // The answer to the read in flight shows whether it is recent enough.
        if self.reading.is_some() { Step::Nothing } else { self.read() }
    }

    fn newest(&self) -> Option<Revision> {
        self.newest.as_ref().map(|state| state.revision)
    }

    /// Whether the holder may be another one after these keys were put or deleted. Nobody overtakes a holder, so only what
    /// happens to its own key matters, or anything if there is none. While the holder is being read it is not known.
    fn concerns_holder(&self, keys: &[Key], revision: Revision) -> bool {
        let Some(state) = self.newest.as_ref().filter(|_| self.reading.is_none() && self.failures == 0)
        else {
            return true;
        };
        let holder = state.holder.as_ref();
        revision > state.revision && holder.is_none_or(|holder| keys.contains(holder))
    }

    /// These contenders exist as of this revision: one of another session than an exclusive holder's waits behind it.
    fn note_contenders<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a Key>,
        revision: Revision,
        feeds: &Feeds,
    ) {
        if self.contentions.is_empty() {
            return;
        }
        let keys: Vec<&Key> = keys.collect();
        self.contentions.retain(|contention| {
            let Contention { ticket, state } = contention;
            let behind = |key: &&Key| !self.name.is_of_same_session(key, &state.key);
            let alone = !contention.may_be_one_of_several();
            let contended = alone && revision > state.token.as_i64() && keys.iter().any(behind);
            if contended {
                feeds.end_contention(*ticket);
            }
            !contended
        });
    }

    /// These are all contenders. The rule says who of them waits, and so for whom a hold that may be one of several leaves
    /// no room, be it alone or together with others.
    fn note_queue(&mut self, mut queue: Vec<KeyValue>, feeds: &Feeds) {
        queue.sort_by(|one, other| (one.create_revision, &one.key).cmp(&(other.create_revision, &other.key)));
        let holders = Load::holders(queue.iter().map(|kv| Mode::of(&kv.key)));
        self.contentions.retain(|contention| {
            let Contention { ticket, state } = contention;
            let own = queue.iter().position(|kv| {
                kv.key.as_str() == state.key.as_str() && kv.create_revision == state.token.as_i64()
            });
            let waits = own.is_some_and(|own| own < holders && queue.len() > holders);
            let contended = contention.may_be_one_of_several() && waits;
            if contended {
                feeds.end_contention(*ticket);
            }
            !contended
        });
    }

    /// Reads again, because it is time to.
    pub(super) fn check_again(&mut self) -> Step {
        self.read()
    }

    fn read(&mut self) -> Step {
        if self.reading.is_some() {
            self.read_again = true;
            return Step::Nothing;
        }
        self.reading = Some(self.wanted);
        self.joined.append(&mut self.joining);
        Step::Read
    }

    pub(super) fn read_answered(
        &mut self,
        read: Result<HolderRead, Failure>,
        now: Instant,
        feeds: &Feeds,
    ) -> Step {
        let known = self.reading.take().max(self.newest()).unwrap_or(0);
        let again = std::mem::take(&mut self.read_again);
        match read {
            Err(failure) => {
                // The read was repeated for as long as a caller waits.
                for (_, first) in self.joined.drain(..) {
                    first(Err(failure.clone()));
                }
                self.behind_since = None;
                self.back_off(now);
            }
            Ok(read)
                if read.revision < known && !mutant!(ObserverBelievesStaleRead) && !self.is_restored(now) =>
            {
                self.joining.append(&mut self.joined);
                self.back_off(now);
            }
            Ok(read) => {
                let restored = read.revision < known;
                self.wanted = if restored { read.revision } else { self.wanted };
                let outdated = read.revision < self.wanted;
                self.accept(read, now, feeds);
                if again || outdated {
                    return self.read();
                }
            }
        }
        Step::Nothing
    }

    /// A read was answered from before what is known. Whether that has gone on for too long for a lagging member.
    fn is_restored(&mut self, now: Instant) -> bool {
        let since = *self.behind_since.get_or_insert(now);
        now.duration_since(since) >= RESTORED_AFTER
    }

    fn back_off(&mut self, now: Instant) {
        self.failures += 1;
        self.check = now + protocol::back_off(FIRST_BACK_OFF, self.failures, &mut fastrand::Rng::new());
    }

    fn accept(&mut self, read: HolderRead, now: Instant, feeds: &Feeds) {
        (self.failures, self.behind_since) = (0, None);
        self.check = now + CHECK_AGAIN;
        self.note_contenders(read.contenders.iter().map(|kv| &kv.key), read.revision, feeds);
        if self.contenders_wanted() == Contenders::All {
            self.note_queue(read.contenders, feeds);
        }
        let info = read
            .holder
            .as_ref()
            .map(|holder| LockInfo::from_holder(self.name.as_str(), &holder.kv, holder.waiters, None));
        let holder = read.holder.map(|holder| holder.kv.key);
        let shown = |info: &Option<LockInfo>| info.as_ref().map(|info| (info.token, info.note.clone()));
        let same = |state: &State| (&state.holder, shown(&state.info)) == (&holder, shown(&info));
        if !self.newest.as_ref().is_some_and(same) {
            for &id in &self.observers {
                feeds.publish(id, &info);
            }
        }
        for (id, first) in self.joined.drain(..) {
            feeds.publish(id, &info);
            self.observers.push(id);
            first(Ok(()));
        }
        self.newest = Some(State { revision: read.revision, holder, info });
    }
}

impl fmt::Debug for ObservedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedName")
            .field("name", &self.name)
            .field("observers", &self.observers)
            .field("holder", &self.newest.as_ref().map(|state| &state.info))
            .finish_non_exhaustive()
    }
}
