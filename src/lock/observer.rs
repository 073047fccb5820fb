//! Who holds a lock, as it changes.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use oneshot::RecvTimeoutError;

use crate::error::{Cause, LockError};
use crate::info::LockInfo;
use crate::name::LockName;
use crate::shared::feeds::{Feeds, LastSeen, ObserverId};
use crate::shared::mailbox::Mailbox;
use crate::shared::message::Message;

/// Who holds a lock, as it changes; from [`LockManager::observe`](crate::LockManager::observe) and
/// [`LockViewer::observe`](crate::LockViewer::observe).
///
/// An observer neither holds the lock nor queues for it. It sees holders of every process, and foreign ones. It survives
/// outages, compactions and the replacement of the manager's session: it then reports the holder of that time. It never
/// reports an older state after a newer one.
///
/// What it reports was true in etcd a moment ago. It does not tell who may write: that is for the holder to know
/// ([`Hold::is_held`](crate::Hold::is_held)) and for etcd to check ([`Hold::etcd`](crate::Hold::etcd)).
///
/// Observers of one lock share one watch and its reads. Dropping an observer ends it.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// use etcd_lock::LockOptions;
///
/// let leader = manager.observe("scheduler")?;
/// assert_eq!(leader.changes().recv().unwrap(), None); // nobody yet
///
/// let lock = manager.new_lock_with("scheduler", LockOptions::default().note("10.0.0.7:8080"))?;
/// let guard = lock.lock()?;
/// let info = leader.changes().recv().unwrap().expect("it is held");
/// assert_eq!((info.note.as_deref(), info.token), (Some("10.0.0.7:8080"), guard.token()));
/// assert_eq!(leader.current(), Some(info));
/// # Ok(())
/// # }
/// ```
pub struct Observer {
    id: ObserverId,
    key: String,
    changes: Receiver<Option<LockInfo>>,
    last_seen: LastSeen,
    mailbox: Mailbox,
    feeds: Arc<Feeds>,
    /// The handle that keeps the I/O thread alive.
    _owner: Arc<dyn Any + Send + Sync>,
}

/// Where an observer gets its states from.
pub(crate) struct Source<'a> {
    pub(crate) mailbox: &'a Mailbox,
    pub(crate) feeds: &'a Arc<Feeds>,
    pub(crate) owner: Arc<dyn Any + Send + Sync>,
    /// How long to wait for the first state.
    pub(crate) limit: Duration,
}

impl Observer {
    /// Begins to observe, and waits for the first state.
    pub(crate) fn begin(source: Source<'_>, id: u64, name: LockName) -> Result<Self, LockError> {
        let Source { mailbox, feeds, owner, limit } = source;
        // In a forked child the mutex of the feeds may be locked for ever.
        mailbox.check()?;
        let id = ObserverId(id);
        let key = name.as_str().to_owned();
        let (changes, last_seen) = feeds.observe(id);
        let (mailbox, feeds) = (mailbox.clone(), Arc::clone(feeds));
        let observer = Self { id, key, changes, last_seen, mailbox, feeds, _owner: owner };
        let (reply, answer) = oneshot::channel();
        observer.mailbox.send(Message::Observe { id, name, reply })?;
        match observer.mailbox.wait_for(&answer, Instant::now().checked_add(limit)) {
            Ok(result) => result.map(|()| observer),
            Err(RecvTimeoutError::Disconnected) => Err(observer.mailbox.gone()),
            Err(RecvTimeoutError::Timeout) => Err(LockError::Unavailable {
                doing: format!("looking at lock {:?}", observer.key),
                source: Cause::new("etcd did not answer in time"),
            }),
        }
    }

    /// Returns the channel of changes: first the holder at the time of the call that made the observer, then the holder
    /// after each change of holder or note. `None`: the lock is free.
    ///
    /// The channel has room for one message, which a newer one replaces: who reads slowly misses states, but never the
    /// last one. It disconnects when the manager or viewer is closed, and when the observer is dropped.
    ///
    /// [`LockInfo::waiters`] and the other details are as of the change; [`LockInfo::ttl_remaining`] is never looked up.
    /// Of several holders at once, the first in the queue is reported.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::crossbeam_channel::{never, select};
    ///
    /// # let shutdown = never::<()>();
    /// let guard = manager.new_lock("scheduler")?.lock()?;
    /// let leader = manager.observe("scheduler")?;
    /// select! {
    ///     recv(leader.changes()) -> change => match change {
    ///         Ok(Some(info)) => assert_eq!(info.token, guard.token()),
    ///         Ok(None) => println!("no leader"),
    ///         Err(_) => println!("the manager was closed"),
    ///     },
    ///     recv(shutdown) -> _ => {}
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn changes(&self) -> &Receiver<Option<LockInfo>> {
        if self.mailbox.is_here() { &self.changes } else { disconnected() }
    }

    /// Returns the last state that was reported, whether it was taken from [`changes`](Self::changes) or not; `None` if the
    /// lock was free. Does no I/O.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("scheduler")?.lock()?;
    /// let leader = manager.observe("scheduler")?;
    /// assert_eq!(leader.current().map(|info| info.token), Some(guard.token()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn current(&self) -> Option<LockInfo> {
        // In a forked child the mutex may be locked for ever.
        if self.mailbox.is_here() { self.last_seen.lock().clone() } else { None }
    }

    /// The key of the lock.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// A disconnected channel, for a forked child.
fn disconnected() -> &'static Receiver<Option<LockInfo>> {
    static GONE: OnceLock<Receiver<Option<LockInfo>>> = OnceLock::new();
    GONE.get_or_init(|| crossbeam_channel::bounded(0).1)
}

impl Drop for Observer {
    fn drop(&mut self) {
        if self.mailbox.is_here() {
            self.feeds.stop_observing(self.id);
            // On an error the I/O thread has ended.
            let _ = self.mailbox.send(Message::Unobserve { id: self.id });
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("key", &self.key).finish_non_exhaustive()
    }
}
