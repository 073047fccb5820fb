//! A connection to etcd with one session, shared by every lock that is taken through it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::command::Message;
use crate::error::LockError;
use crate::info::{ForceUnlock, LockInfo, SessionInfo};
use crate::inner::Inner;
use crate::io::{Etcd, IoThread, Launch, Report, Settings, Store};
use crate::lock::DistributedLock;
use crate::mailbox::mailbox;
use crate::memory::{ClientId, MemoryStore};
use crate::name::Root;
use crate::options::{LockManagerOptions, LockOptions};
use crate::protocol::Config;
use crate::stats::Stats;

/// A connection to an etcd cluster with one session, shared by all locks that are taken through it.
///
/// A handle: cheap to clone, to share and to send. A process normally has one. Behind it works one thread, which
/// lives as long as any handle of the manager, of its locks or of their guards, or until [`close`](Self::close). When
/// the last of them goes, what is held is released, the session ends, and the thread is joined, within
/// [`close_timeout`](LockManagerOptions::close_timeout).
///
/// It works only in the process that made it. In a child of `fork()`, every call is an error, nothing is held, and
/// dropping what was copied touches nothing of the parent's; the child connects anew.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// use std::time::Duration;
/// use etcd_lock::{LockManager, LockManagerOptions};
///
/// let options = LockManagerOptions::default().ttl(Duration::from_secs(10)).owner("billing/7");
/// let manager = LockManager::connect(&["http://10.0.0.1:2379", "http://10.0.0.2:2379"], "/app/locks", options)?;
/// let guard = manager.new_lock("invoices/2024")?.lock()?;
/// println!("{guard:?}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LockManager {
    inner: Arc<Inner>,
    /// How its store knows a manager that has none but an in-process one.
    client: Option<ClientId>,
}

impl LockManager {
    /// Connects to etcd and sets up a session. All locks lie below the key `root`, which loses a trailing `/`.
    ///
    /// An endpoint is `http://host:port`, `https://host:port` or `host:port`. Any one of them that works is enough;
    /// when it fails, others are tried.
    ///
    /// # Blocking
    ///
    /// Up to [`connect_timeout`](LockManagerOptions::connect_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option, an endpoint or the root cannot be used, or there is no endpoint.
    /// - [`LockError::Unavailable`]: no endpoint gave a session in time.
    /// - [`LockError::Unauthenticated`], [`LockError::PermissionDenied`], [`LockError::NoSpace`]: etcd refused.
    /// - [`LockError::Internal`]: no thread could be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::{LockError, LockManager};
    ///
    /// let none: [&str; 0] = [];
    /// let refused = LockManager::connect(&none, "/app/locks", Default::default());
    /// assert!(matches!(refused, Err(LockError::InvalidOptions { .. })));
    /// ```
    pub fn connect<E: AsRef<str>>(
        endpoints: &[E],
        root: &str,
        options: LockManagerOptions,
    ) -> Result<Self, LockError> {
        if endpoints.is_empty() {
            return Err(LockError::InvalidOptions { why: "there is no endpoint".into() });
        }
        let endpoints: Vec<String> = endpoints.iter().map(|endpoint| endpoint.as_ref().to_owned()).collect();
        let for_store = options.clone();
        Self::connect_to(root, &options, move || async move { Etcd::connect(&endpoints, &for_store).await })
    }

    /// A manager on an in-process store: the same locks without a server, for unit tests, for trying things out and
    /// for programs of one process.
    ///
    /// It excludes only the managers of this process that share the store. See [`memory`](crate::memory) for what a
    /// test can make happen to it.
    ///
    /// # Blocking
    ///
    /// For the moment in which the session is set up.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option or the root cannot be used.
    /// - [`LockError::Internal`]: no thread could be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let alice = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let bob = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    ///
    /// let guard = alice.new_lock("report")?.lock()?;
    /// assert!(bob.new_lock("report")?.try_lock()?.is_none());
    /// drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_memory(
        store: &MemoryStore,
        root: &str,
        options: LockManagerOptions,
    ) -> Result<Self, LockError> {
        let client = store.client();
        let id = client.id();
        let manager = Self::connect_to(root, &options, move || async move { Ok(client) })?;
        Ok(Self { client: Some(id), ..manager })
    }

    /// How its in-process store knows it; `None` on a real etcd.
    pub(crate) fn client(&self) -> Option<ClientId> {
        self.client
    }

    /// The same over any store, which `connect` makes on the I/O thread.
    pub(crate) fn connect_to<S, C, F>(
        root: &str,
        options: &LockManagerOptions,
        connect: C,
    ) -> Result<Self, LockError>
    where
        S: Store,
        C: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<S, LockError>>,
    {
        options.check()?;
        let root = Root::parse(root)?;
        let (mailbox, inbox) = mailbox();
        let report = Arc::new(Report::default());
        let launch = Launch {
            config: Config {
                root: root.clone(),
                owner: options.owner_name(),
                pid: std::process::id(),
                ttl: options.ttl,
                safety_margin: options.margin(),
                request_timeout: options.request_timeout,
                seed: fastrand::u64(..),
            },
            settings: Settings {
                root: root.clone(),
                request_timeout: options.request_timeout,
                close_timeout: options.close_timeout,
            },
            connect_timeout: options.connect_timeout,
            inbox,
            report: Arc::clone(&report),
        };
        let io = IoThread::start(launch, connect)?;
        Ok(Self { inner: Arc::new(Inner::new(root, options, mailbox, report, io)), client: None })
    }

    /// The lock with this name, to be waited for with the default [`LockOptions`]. Nothing is asked of etcd yet.
    ///
    /// A name is any UTF-8 text of 1 to 512 bytes; `a`, `a/b` and `a/` are three unrelated locks.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidKey`]; [`LockError::Closed`] or [`LockError::Internal`] if the manager has ended.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// let lock = manager.new_lock("invoices/2024")?;
    /// assert_eq!(lock.key(), "invoices/2024");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_lock(&self, key: &str) -> Result<DistributedLock, LockError> {
        self.new_lock_with(key, LockOptions::default())
    }

    /// The lock with this name, to be waited for as `options` say. They belong to the returned handle; the lock itself
    /// is the same whatever its handles' options are.
    ///
    /// # Errors
    ///
    /// As for [`new_lock`](Self::new_lock), and [`LockError::InvalidOptions`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// use etcd_lock::{LockError, LockOptions};
    ///
    /// let lock = manager.new_lock_with("jobs", LockOptions::default().max_retries(5))?;
    /// match lock.lock() {
    ///     Err(LockError::AlreadyHeld { holder, .. }) => println!("half a second was not enough: {holder:?}"),
    ///     other => drop(other?),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_lock_with(&self, key: &str, options: LockOptions) -> Result<DistributedLock, LockError> {
        options.check()?;
        let name = self.inner.name(key)?;
        Ok(DistributedLock::new(self.inner.lock(name)?, options))
    }

    /// Who holds this lock, anywhere; `None` if it is free.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidKey`], [`LockError::Unavailable`], [`LockError::PermissionDenied`],
    /// [`LockError::Unauthenticated`], [`LockError::Closed`], [`LockError::Internal`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// if let Some(info) = manager.lock_info("jobs")? {
    ///     println!("{:?} has it, {} wait", info.owner, info.waiters);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_info(&self, key: &str) -> Result<Option<LockInfo>, LockError> {
        let name = self.inner.name(key)?;
        self.inner.ask("looking at a lock", |reply| Message::LockInfo { name, reply })
    }

    /// Every lock that is held, anywhere, and whose name begins with `prefix`, sorted by name. `""` is all of them.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](LockManagerOptions::request_timeout), however many locks there are.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// for info in manager.list_locks("invoices/")? {
    ///     println!("{}: {:?}", info.key, info.owner);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn list_locks(&self, prefix: &str) -> Result<Vec<LockInfo>, LockError> {
        let prefix = prefix.to_owned();
        self.inner.ask("listing locks", |reply| Message::ListLocks { prefix, reply })
    }

    /// Takes the lock from whoever holds it, and tells who that was.
    ///
    /// A holder of this library learns of it within milliseconds, but after the fact: until then both may believe to
    /// hold the lock. The next waiter has it at once.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if nobody holds it; else as for [`lock_info`](Self::lock_info).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// use etcd_lock::ForceUnlock;
    ///
    /// let evicted = manager.force_unlock("jobs", ForceUnlock::Lock)?;
    /// println!("took it from {:?}", evicted.owner);
    /// # Ok(())
    /// # }
    /// ```
    pub fn force_unlock(&self, key: &str, scope: ForceUnlock) -> Result<LockInfo, LockError> {
        let name = self.inner.name(key)?;
        self.inner.ask("force-unlocking a lock", |reply| Message::ForceUnlock { name, scope, reply })
    }

    /// The session as this manager knows it, without asking etcd.
    pub fn session(&self) -> SessionInfo {
        self.inner.session()
    }

    /// What this manager has done so far, without asking etcd.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// The key below which all locks of this manager lie.
    pub fn root(&self) -> &str {
        self.inner.root()
    }

    /// Ends the manager for all its handles: every guard is lost, every waiting call fails with [`LockError::Closed`],
    /// the session with all its keys goes from etcd, and the thread ends. Closing again changes nothing.
    ///
    /// # Blocking
    ///
    /// Up to [`close_timeout`](LockManagerOptions::close_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::Unavailable`]: etcd did not confirm in time. Everything here has ended all the same; what is left
    ///   in etcd expires with the lease.
    /// - [`LockError::Internal`]: the thread had died before.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// use etcd_lock::LossReason;
    ///
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// manager.close()?;
    /// assert_eq!(guard.loss(), Some(LossReason::Closed));
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(self) -> Result<(), LockError> {
        self.inner.close()
    }
}

impl fmt::Debug for LockManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockManager")
            .field("root", &self.root())
            .field("session", &self.session())
            .finish_non_exhaustive()
    }
}
