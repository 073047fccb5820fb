//! The channels of observers and of holders that wait for contention. Here, so that they disconnect even if the I/O thread
//! hangs.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::info::LockInfo;
use crate::mutex::Mutex;
use crate::name::LockName;
use crate::protocol::Ticket;

/// Identifies an observer of a manager or a viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObserverId(pub(crate) u64);

/// What an observer has seen last.
pub(crate) type LastSeen = Arc<Mutex<Option<LockInfo>>>;

/// The callers' threads open and close channels, the I/O thread sends.
#[derive(Debug, Default)]
pub(crate) struct Feeds(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    observers: HashMap<ObserverId, Feed>,
    contentions: HashMap<Ticket, Contention>,
    /// Set when the manager has ended: every later channel is disconnected from the start.
    closed: bool,
}

#[derive(Debug)]
struct Feed {
    sender: Sender<Option<LockInfo>>,
    /// For taking out a message that the observer has not taken.
    receiver: Receiver<Option<LockInfo>>,
    last_seen: LastSeen,
}

/// Carries no message; dropping it tells the holder.
#[derive(Debug)]
struct Contention {
    name: LockName,
    _sender: Sender<()>,
}

impl Feeds {
    /// Opens an observer's channel. It holds one message, the newest.
    pub(crate) fn observe(&self, id: ObserverId) -> (Receiver<Option<LockInfo>>, LastSeen) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let last_seen = LastSeen::default();
        let feed = Feed { sender, receiver: receiver.clone(), last_seen: Arc::clone(&last_seen) };
        let mut table = self.0.lock();
        if !table.closed {
            table.observers.insert(id, feed);
        }
        (receiver, last_seen)
    }

    pub(crate) fn stop_observing(&self, id: ObserverId) {
        self.0.lock().observers.remove(&id);
    }

    /// Replaces the message that the observer has not taken yet, if there is one.
    pub(crate) fn publish(&self, id: ObserverId, info: &Option<LockInfo>) {
        let table = self.0.lock();
        if let Some(feed) = table.observers.get(&id) {
            feed.last_seen.lock().clone_from(info);
            // Only this thread sends, so there is room after that.
            if let Err(TrySendError::Full(info)) = feed.sender.try_send(info.clone()) {
                let _ = feed.receiver.try_recv();
                let _ = feed.sender.try_send(info);
            }
        }
    }

    /// Opens a channel that disconnects when somebody waits behind the hold of this ticket.
    pub(crate) fn await_contention(&self, ticket: Ticket, name: LockName) -> Receiver<()> {
        let (sender, receiver) = crossbeam_channel::bounded(0);
        let mut table = self.0.lock();
        if !table.closed {
            table.contentions.insert(ticket, Contention { name, _sender: sender });
        }
        receiver
    }

    /// Somebody waits behind the hold of this ticket, or the hold is over.
    pub(crate) fn end_contention(&self, ticket: Ticket) {
        self.0.lock().contentions.remove(&ticket);
    }

    /// Somebody waits behind the holds of this lock.
    pub(crate) fn contended(&self, name: &LockName) {
        self.0.lock().contentions.retain(|_, contention| contention.name != *name);
    }

    pub(crate) fn awaits_contention(&self, ticket: Ticket) -> bool {
        self.0.lock().contentions.contains_key(&ticket)
    }

    /// Whether a holder waits for contention of this lock.
    pub(crate) fn awaits_contention_of(&self, name: &LockName) -> bool {
        let table = self.0.lock();
        // Most managers never have one.
        !table.contentions.is_empty() && table.contentions.values().any(|contention| contention.name == *name)
    }

    /// Disconnects every channel, and every later one.
    pub(crate) fn close(&self) {
        let mut table = self.0.lock();
        table.closed = true;
        let (observers, contentions) =
            (std::mem::take(&mut table.observers), std::mem::take(&mut table.contentions));
        drop(table);
        drop((observers, contentions));
    }

    /// In a forked child: drops the copies of the senders, unless a thread had the mutex at the time of the fork.
    pub(crate) fn abandon_copy(&self) {
        if let Some(mut table) = self.0.try_lock() {
            table.observers.clear();
            table.contentions.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::KeyValue;

    fn held(token: i64) -> Option<LockInfo> {
        let kv = KeyValue {
            key: "/app/a/1f-1".into(),
            value: Vec::new(),
            create_revision: token,
            mod_revision: token,
            lease: 0x1f,
        };
        Some(LockInfo::from_holder("a", &kv, 0, None))
    }

    #[test]
    fn a_slow_observer_gets_the_newest_message_only() {
        let feeds = Feeds::default();
        let (changes, last_seen) = feeds.observe(ObserverId(1));
        for info in [held(1), None, held(2)] {
            feeds.publish(ObserverId(1), &info);
        }
        assert_eq!(changes.try_iter().collect::<Vec<_>>(), [held(2)]);
        assert_eq!(*last_seen.lock(), held(2));
        feeds.publish(ObserverId(1), &None);
        assert_eq!(changes.try_iter().collect::<Vec<_>>(), [None]);
        feeds.stop_observing(ObserverId(1));
        assert!(changes.recv().is_err());
    }

    #[test]
    fn after_the_end_every_channel_is_disconnected() {
        let feeds = Feeds::default();
        let (changes, _) = feeds.observe(ObserverId(1));
        feeds.close();
        let (late, _) = feeds.observe(ObserverId(2));
        assert!(changes.recv().is_err() && late.recv().is_err());
    }
}
