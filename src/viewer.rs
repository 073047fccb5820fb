//! Read-only access to locks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oneshot::Sender;

use crate::clock::Clock;
use crate::driver::query_loop::QueryLoop;
use crate::driver::thread::{GRACE, IoThread};
use crate::error::LockError;
use crate::info::LockInfo;
use crate::lock::observer::{Observer, Source};
use crate::name::{LockName, Root};
use crate::options::LockManagerOptions;
use crate::shared::feeds::Feeds;
use crate::shared::mailbox::{Mailbox, mailbox};
use crate::shared::message::{Message, Query};
use crate::shared::report::Report;
use crate::store::Store;
use crate::store::etcd::Etcd;

/// Read-only access to the holders and waiters of all locks below a root: for dashboards, command lines and alerts.
///
/// It has no session and no lease, and writes nothing to etcd. With authentication, its user needs only **read**
/// permission below the root. A [`LockManager`](crate::LockManager) has the same methods, but needs a session, and so
/// write permission.
///
/// A `LockViewer` is a handle: it is cheap to clone and can be sent and shared between threads. It runs one thread,
/// which ends with the last handle.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// use etcd_lock::{LockManagerOptions, LockViewer};
///
/// let options = LockManagerOptions::default().credentials("locks-viewer", "PASSWORD");
/// let viewer = LockViewer::connect(["http://10.0.0.1:2379"], "/app/locks", options)?;
/// for info in viewer.list_locks("")? {
///     println!("{}: {} since {:?}", info.key, info.owner.unwrap_or_default(), info.created_at);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LockViewer {
    shared: Arc<Shared>,
}

struct Shared {
    root: Root,
    mailbox: Mailbox,
    io: IoThread,
    request_timeout: Duration,
    feeds: Arc<Feeds>,
    next_observer: AtomicU64,
}

impl LockViewer {
    /// Connects to etcd. `endpoints` and `root` are those of the managers whose locks are to be read; see
    /// [`LockManager::connect`](crate::LockManager::connect). Of the options, only `credentials`, `tls`,
    /// `connect_timeout` and `request_timeout` are used; all are checked.
    ///
    /// # Blocking
    ///
    /// Up to [`connect_timeout`](LockManagerOptions::connect_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option, an endpoint or the root is invalid, or there is no endpoint.
    /// - [`LockError::Unavailable`]: no endpoint answered within `connect_timeout`.
    /// - [`LockError::Unauthenticated`]: etcd refused the credentials.
    /// - [`LockError::Internal`]: a thread could not be started.
    ///
    /// A missing read permission is reported by the first query, not here.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::{LockError, LockViewer};
    ///
    /// let none: [&str; 0] = [];
    /// let refused = LockViewer::connect(none, "/app/locks", Default::default());
    /// assert!(matches!(refused, Err(LockError::InvalidOptions { .. })));
    /// ```
    pub fn connect<I>(endpoints: I, root: &str, options: LockManagerOptions) -> Result<Self, LockError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let endpoints: Vec<String> =
            endpoints.into_iter().map(|endpoint| endpoint.as_ref().to_owned()).collect();
        let for_store = options.clone();
        Self::start(root, &options, move || async move { Etcd::connect(&endpoints, &for_store).await })
    }

    pub(crate) fn start<S: Store, F: Future<Output = Result<S, LockError>>>(
        root: &str,
        options: &LockManagerOptions,
        connect: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self, LockError> {
        options.check()?;
        let root = Root::parse(root)?;
        let report: Arc<Report> = Arc::default();
        let feeds = Arc::clone(&report.feeds);
        let (mailbox, inbox) = mailbox(&report);
        let request_timeout = options.request_timeout;
        let queries = QueryLoop { root: root.clone(), request_timeout, inbox, feeds: Arc::clone(&feeds) };
        let io =
            IoThread::start_viewer(options.connect_timeout, Clock::default(), queries, &mailbox, connect)?;
        Ok(Self {
            shared: Arc::new(Shared {
                root,
                mailbox,
                io,
                request_timeout,
                feeds,
                next_observer: AtomicU64::new(1),
            }),
        })
    }

    /// Returns the current holder of this lock in any process; `None` if the lock is free. If several hold it together, the
    /// first of them; [`queue`](Self::queue) returns all.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidKey`]: the key is empty or too long.
    /// - [`LockError::Unavailable`], [`LockError::ClusterChanged`]: etcd did not answer in time, or another cluster
    ///   answered.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused the request.
    /// - [`LockError::Crashed`], [`LockError::Forked`]: the I/O thread died, or this process is a child of the one that
    ///   connected.
    /// - [`LockError::Internal`]: etcd rejected the request for a reason that the caller cannot influence.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # use etcd_lock::{LockManager, LockViewer, memory::MemoryStore};
    /// # let store = MemoryStore::new();
    /// # let manager = LockManager::in_memory(&store, "/app", Default::default())?;
    /// # let viewer = LockViewer::in_memory(&store, "/app/", Default::default())?;
    /// assert!(viewer.lock_info("jobs")?.is_none());
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// assert_eq!(viewer.lock_info("jobs")?.map(|info| info.token), Some(guard.token()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_info(&self, key: &str) -> Result<Option<LockInfo>, LockError> {
        let name = LockName::parse(&self.shared.root, key)?;
        self.ask(&format!("looking at lock {key:?}"), |reply| Query::LockInfo { name, reply })
    }

    /// Returns every held lock whose key begins with `prefix`, with its first holder in any process, sorted by key.
    /// `""` matches all locks.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](LockManagerOptions::request_timeout) in total, whatever the number of locks.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # use etcd_lock::{LockManager, LockViewer, memory::MemoryStore};
    /// # let store = MemoryStore::new();
    /// # let manager = LockManager::in_memory(&store, "/app", Default::default())?;
    /// # let viewer = LockViewer::in_memory(&store, "/app/", Default::default())?;
    /// let _guards = [manager.new_lock("b/1")?.lock()?, manager.new_lock("mail")?.lock()?];
    /// assert_eq!(viewer.list_locks("")?.len(), 2);
    /// assert_eq!(viewer.list_locks("b/")?[0].key, "b/1");
    /// # Ok(())
    /// # }
    /// ```
    pub fn list_locks(&self, prefix: &str) -> Result<Vec<LockInfo>, LockError> {
        let prefix = prefix.to_owned();
        self.ask("listing locks", |reply| Query::ListLocks { prefix, reply })
    }

    /// Returns the queue of this lock in admission order: the holders, then the waiters, in any process. The list is
    /// empty if the lock is free.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # use etcd_lock::{LockManager, LockViewer, memory::MemoryStore};
    /// # let store = MemoryStore::new();
    /// # let manager = LockManager::in_memory(&store, "/app", Default::default())?;
    /// # let viewer = LockViewer::in_memory(&store, "/app/", Default::default())?;
    /// let _guard = manager.new_lock("jobs")?.lock()?;
    /// for info in viewer.queue("jobs")? {
    ///     println!("{} by {} ({} behind)", info.state, info.owner.unwrap_or_default(), info.waiters);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue(&self, key: &str) -> Result<Vec<LockInfo>, LockError> {
        let name = LockName::parse(&self.shared.root, key)?;
        let doing = format!("looking at the queue of lock {key:?}");
        self.ask(&doing, |reply| Query::Queue { name, reply })
    }

    /// Observes who holds this lock: an [`Observer`] reports the holder now, and then each change of holder or note.
    ///
    /// # Blocking
    ///
    /// Until the first state was read: up to [`request_timeout`](LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # use etcd_lock::{LockManager, LockViewer, memory::MemoryStore};
    /// # let store = MemoryStore::new();
    /// # let manager = LockManager::in_memory(&store, "/app", Default::default())?;
    /// # let viewer = LockViewer::in_memory(&store, "/app/", Default::default())?;
    /// let guard = manager.new_lock("scheduler")?.lock()?;
    /// let leader = viewer.observe("scheduler")?;
    /// assert_eq!(leader.current().map(|info| info.token), Some(guard.token()));
    ///
    /// guard.unlock()?;
    /// while leader.current().is_some() {
    ///     leader.changes().recv().expect("it is open");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn observe(&self, key: &str) -> Result<Observer, LockError> {
        let name = LockName::parse(&self.shared.root, key)?;
        let source = Source {
            mailbox: &self.shared.mailbox,
            feeds: &self.shared.feeds,
            owner: Arc::clone(&self.shared) as _,
            limit: self.shared.request_timeout.saturating_add(GRACE),
        };
        Observer::begin(source, self.shared.next_observer.fetch_add(1, Ordering::Relaxed), name)
    }

    /// Returns the key below which this viewer finds locks, without a trailing `/`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # use etcd_lock::{LockManager, LockViewer, memory::MemoryStore};
    /// # let store = MemoryStore::new();
    /// # let manager = LockManager::in_memory(&store, "/app", Default::default())?;
    /// # let viewer = LockViewer::in_memory(&store, "/app/", Default::default())?;
    /// assert_eq!(viewer.root(), "/app");
    /// # Ok(())
    /// # }
    /// ```
    pub fn root(&self) -> &str {
        self.shared.root.as_str()
    }

    fn ask<T>(
        &self,
        doing: &str,
        question: impl FnOnce(Sender<Result<T, LockError>>) -> Query,
    ) -> Result<T, LockError> {
        self.shared.mailbox.ask(self.shared.request_timeout.saturating_add(GRACE), doing, question)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(LockError::Forked) = self.mailbox.send(Message::Close) {
            self.io.forget();
            return;
        }
        // There is no work to finish: every query was answered, or its caller has returned.
        self.io.join(GRACE);
    }
}

impl fmt::Debug for LockViewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockViewer").field("root", &self.root()).finish_non_exhaustive()
    }
}
