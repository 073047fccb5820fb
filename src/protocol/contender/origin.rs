//! For whom a contender's key was put (which its value says, for people and observers to read), and the keys of a hold.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::contender_value::ContenderValue;
use crate::kv::{Key, LeaseId, Revision};
use crate::protocol::messages::{Acquire, Config};

/// What the value of a contender's key says, apart from what all contenders of the session have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::protocol) struct Origin {
    thread: u64,
    /// As time since the Unix epoch.
    created_at: Duration,
    pub(in crate::protocol) note: Option<Arc<str>>,
}

/// The keys of a hold in etcd.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct HeldKeys {
    /// Each with its create revision.
    pub(in crate::protocol) keys: Vec<(Key, Revision)>,
    pub(in crate::protocol) lease: LeaseId,
    /// What their value says of the hold.
    pub(in crate::protocol) origin: Origin,
}

impl Origin {
    pub(in crate::protocol) fn of(acquire: &Acquire, now: Time) -> Self {
        // The caller's wall clock when it asked, plus the time that it has waited since.
        let created_at = acquire.asked_at + now.since(acquire.since);
        Self { thread: acquire.thread, created_at, note: acquire.note.clone() }
    }

    pub(in crate::protocol) fn with_note(&self, note: Option<Arc<str>>) -> Self {
        Self { note, ..self.clone() }
    }

    /// The value of the key.
    pub(in crate::protocol) fn encode(&self, config: &Config) -> Vec<u8> {
        let thread = self.thread.to_string();
        let note = self.note.as_deref();
        ContenderValue::new(&config.owner, &thread, config.pid, self.created_at).with_note(note).encode()
    }
}
