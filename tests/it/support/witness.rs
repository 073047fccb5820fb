//! A watch that records every event of some keys, as evidence of the library's actions.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use etcd_client::{EventType, WatchOptions, WatchResponse};

use super::raw::Raw;
use super::setup::Access;

/// An event as reported by etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) revision: i64,
    pub(crate) key: String,
    pub(crate) what: What,
    /// When the report arrived, which is never before the event.
    pub(crate) at: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A put, with the key's create revision to distinguish a repeated put from the first one.
    Put {
        value: Vec<u8>,
        lease: i64,
        create_revision: i64,
    },
    Deleted,
}

/// The watch, from its creation to its drop.
#[derive(Debug)]
pub(crate) struct Witness {
    notes: Arc<Notes>,
    task: tokio::task::AbortHandle,
    _raw: Raw,
}

#[derive(Debug, Default)]
struct Notes {
    seen: Mutex<Vec<Seen>>,
    news: Condvar,
}

impl Witness {
    /// Watches every key with this prefix. Every event after the return is recorded.
    #[track_caller]
    pub(crate) fn of(access: &Access, prefix: &str) -> Self {
        let raw = Raw::connect(access);
        let notes = Arc::new(Notes::default());
        let (ready, watching) = mpsc::channel();
        let (prefix, notebook, mut client) = (prefix.to_owned(), notes.clone(), raw.client());
        let task = raw.runtime().spawn(async move {
            let options = WatchOptions::new().with_prefix();
            let mut stream = client.watch(prefix, Some(options)).await.expect("etcd opens a watch");
            while let Ok(Some(response)) = stream.message().await {
                assert!(!response.canceled(), "etcd cancelled the watch: {}", response.cancel_reason());
                if response.created() {
                    let _ = ready.send(());
                }
                notebook.add(&response);
            }
        });
        watching.recv_timeout(Duration::from_secs(15)).expect("etcd confirms the watch");
        Self { notes, task: task.abort_handle(), _raw: raw }
    }

    /// Everything seen so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.notes.lock().clone()
    }

    /// Waits for an event, which may already be recorded.
    #[track_caller]
    pub(crate) fn wait_for(&self, limit: Duration, what: &str, is_it: impl Fn(&Seen) -> bool) -> Seen {
        let end = Instant::now() + limit;
        let mut seen = self.notes.lock();
        loop {
            if let Some(found) = seen.iter().find(|seen| is_it(seen)) {
                return found.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not reported within {limit:?}: {what}; reported: {:#?}", *seen);
            seen = self.notes.news.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the key is deleted.
    #[track_caller]
    pub(crate) fn wait_for_delete(&self, limit: Duration, key: &str) -> Seen {
        self.wait_for(limit, &format!("{key} deleted"), |seen| seen.key == key && seen.what == What::Deleted)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, response: &WatchResponse) {
        let at = Instant::now();
        let events = response.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            let what = match event.event_type() {
                EventType::Put => What::Put {
                    value: kv.value().to_vec(),
                    lease: kv.lease(),
                    create_revision: kv.create_revision(),
                },
                EventType::Delete => What::Deleted,
            };
            let key = String::from_utf8_lossy(kv.key()).into_owned();
            Some(Seen { revision: kv.mod_revision(), key, what, at })
        });
        self.lock().extend(events);
        self.news.notify_all();
    }
}
