//! A connection to etcd with one session, shared by every lock that is taken through it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::command::Question;
use crate::error::LockError;
use crate::info::{ForceUnlock, LockInfo, SessionInfo};
use crate::inner::Inner;
use crate::io::{Complete, Etcd, Store};
use crate::lock::{DistributedLock, ReentrantLock};
use crate::memory::ClientId;
use crate::options::{LockManagerOptions, LockOptions};
use crate::stats::Stats;

/// A connection to an etcd cluster with one session, shared by all locks that are taken through it.
///
/// A handle: cheap to clone, to share and to send. A process normally has one. Behind it works one thread, which
/// lives as long as any handle of the manager, of its locks or of their guards, or until [`close`](Self::close). When
/// the last of them goes, what is held is released, the session ends, and the thread is joined, within
/// [`close_timeout`](LockManagerOptions::close_timeout).
///
/// It works only in the process that made it. In a child of `fork()`, every call is [`LockError::Forked`], nothing is
/// held, and dropping what was copied touches nothing of the parent's; the child connects anew.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// use std::time::Duration;
/// use etcd_lock::{LockManager, LockManagerOptions};
///
/// let options = LockManagerOptions::default().ttl(Duration::from_secs(10)).owner("billing/7");
/// let manager = LockManager::connect(["http://10.0.0.1:2379", "http://10.0.0.2:2379"], "/app/locks", options)?;
/// let _guard = manager.new_lock("invoices/2024")?.lock()?;
/// # Ok(())
/// # }
/// ```
///
/// [`in_memory`](Self::in_memory) makes the same without a server.
#[derive(Clone)]
pub struct LockManager {
    inner: Arc<Inner>,
    /// How its store knows a manager that has none but an in-process one.
    pub(crate) client: Option<ClientId>,
}

impl LockManager {
    /// Connects to etcd and sets up a session. All locks lie below the key `root`, which loses a trailing `/`.
    ///
    /// Nothing else may lie there, another manager's root neither: below `/app`, the keys of a manager with the root
    /// `/app/jobs` would be contenders for the lock `jobs`.
    ///
    /// An endpoint is `http://host:port`, `https://host:port` or `host:port`. Any one of them that works is enough;
    /// when it fails, others are tried. It must be a member, or pass on connections as they are. `etcd grpc-proxy` is not
    /// supported: it answers renewals from its own earlier ones, so a hold could be assured for longer than its lease lasts.
    /// Nor is a proxy that repeats requests (HTTP/2 load balancers with retries): one may be carried out twice.
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
    /// let refused = LockManager::connect(none, "/app/locks", Default::default());
    /// assert!(matches!(refused, Err(LockError::InvalidOptions { .. })));
    /// ```
    pub fn connect<I>(endpoints: I, root: &str, options: LockManagerOptions) -> Result<Self, LockError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let (endpoints, for_store) = (owned(endpoints)?, options.clone());
        Self::connect_to(root, &options, move || async move { Etcd::connect(&endpoints, &for_store).await })
    }

    /// The same as [`connect`](Self::connect) without waiting for etcd, for programs that start before it does.
    ///
    /// Its arguments are checked, and etcd is contacted in the background, again and again until there is a session. Calls
    /// wait for that within their own limits: [`lock`](DistributedLock::lock) as long as it takes,
    /// [`lock_timeout`](DistributedLock::lock_timeout) for its time, [`try_lock`](DistributedLock::try_lock) and questions
    /// such as [`lock_info`](Self::lock_info) for [`request_timeout`](LockManagerOptions::request_timeout). A limit that runs
    /// out before there is a session is [`LockError::Unavailable`]. What etcd refuses, such as a wrong password, ends the
    /// calls that wait with the error that `connect` would have been. `session().alive` tells whether there is a session.
    ///
    /// It finds less than `connect` does: a wrong scheme, or an untrusted certificate, is an etcd that cannot be reached.
    ///
    /// # Blocking
    ///
    /// For the moment in which a thread is started.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option, an endpoint or the root cannot be used, or there is no endpoint.
    /// - [`LockError::Internal`]: no thread could be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use etcd_lock::{ErrorCode, LockError, LockManager};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// // Nobody listens there yet.
    /// let manager = LockManager::connect_lazy(["http://127.0.0.1:1"], "/app/locks", Default::default())?;
    /// assert!(!manager.session().alive);
    /// let late = manager.new_lock("jobs")?.lock_timeout(Duration::from_millis(50));
    /// assert_eq!(late.unwrap_err().code(), ErrorCode::Unavailable);
    /// manager.close()
    /// # }
    /// ```
    pub fn connect_lazy<I>(endpoints: I, root: &str, options: LockManagerOptions) -> Result<Self, LockError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let (endpoints, for_store) = (owned(endpoints)?, options.clone());
        let connect = move || async move { Etcd::connect_lazy(&endpoints, &for_store).await };
        Ok(Self { inner: Arc::new(Inner::start(root, &options, Complete::WithStore, connect)?), client: None })
    }

    /// Ends the session as its deadline would; returns when every hold is over.
    pub(crate) fn expire(&self) {
        self.inner.expire();
    }

    /// Over any store, which `connect` makes on the I/O thread.
    pub(crate) fn connect_to<S: Store, F: Future<Output = Result<S, LockError>>>(
        root: &str,
        options: &LockManagerOptions,
        connect: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self, LockError> {
        Ok(Self { inner: Arc::new(Inner::start(root, options, Complete::WithSession, connect)?), client: None })
    }

    /// The lock with this key, to be waited for with the default [`LockOptions`]. Nothing is asked of etcd yet.
    ///
    /// A key is any UTF-8 text of 1 to 512 bytes; `a`, `a/b` and `a/` are three unrelated locks.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidKey`]; [`LockError::Closed`] or [`LockError::Internal`] if the manager has ended.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("invoices/2024")?;
    /// assert_eq!(lock.key(), "invoices/2024");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_lock(&self, key: &str) -> Result<DistributedLock, LockError> {
        self.new_lock_with(key, LockOptions::default())
    }

    /// The lock with this key, to be waited for as `options` say. They belong to the returned handle; the lock itself
    /// is the same whatever its handles' options are.
    ///
    /// # Errors
    ///
    /// As for [`new_lock`](Self::new_lock), and [`LockError::InvalidOptions`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::{ErrorCode, LockOptions};
    ///
    /// let _guard = manager.new_lock("jobs")?.lock()?;
    /// # std::thread::scope(|threads| threads.spawn(|| {
    ///
    /// // On another thread, or in another process: five times 100 ms are not enough.
    /// let lock = manager.new_lock_with("jobs", LockOptions::default().max_retries(5))?;
    /// let refused = lock.lock().unwrap_err();
    /// assert_eq!(refused.code(), ErrorCode::LockAlreadyHeld);
    /// # Ok::<(), etcd_lock::LockError>(())
    /// # }).join().unwrap())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_lock_with(&self, key: &str, options: LockOptions) -> Result<DistributedLock, LockError> {
        options.check()?;
        let name = self.inner.name(key)?;
        Ok(DistributedLock::new(self.inner.lock(name)?, options))
    }

    /// A lock that the thread which has it may take again, from functions that call each other under one lock, say.
    ///
    /// It is the lock of its key as [`new_lock`](Self::new_lock) gives it, with guards that stay on their thread; see
    /// [`ReentrantLock`].
    ///
    /// # Errors
    ///
    /// As for [`new_lock`](Self::new_lock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_reentrant_lock("jobs")?;
    /// let outer = lock.lock()?;
    /// let inner = lock.lock()?; // at once
    /// assert_eq!(outer.token(), inner.token());
    /// drop(outer);
    /// assert!(inner.is_held(), "the last guard out releases");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_reentrant_lock(&self, key: &str) -> Result<ReentrantLock, LockError> {
        self.new_lock(key).map(ReentrantLock::new)
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
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// assert!(manager.lock_info("jobs")?.is_none());
    ///
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// if let Some(info) = manager.lock_info("jobs")? {
    ///     assert_eq!(info.token, guard.token());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_info(&self, key: &str) -> Result<Option<LockInfo>, LockError> {
        let name = self.inner.name(key)?;
        let doing = format!("looking at lock {key:?}");
        self.inner.ask(&doing, |reply| Question::LockInfo { name, reply })
    }

    /// Every lock that is held, anywhere, and whose key begins with `prefix`, sorted by key. `""` is all of them.
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
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let _b2 = manager.new_lock("b/2")?.lock()?;
    /// let _b1 = manager.new_lock("b/1")?.lock()?;
    /// let _mail = manager.new_lock("mail")?.lock()?;
    /// let keys: Vec<String> = manager.list_locks("b/")?.into_iter().map(|info| info.key).collect();
    /// assert_eq!(keys, ["b/1", "b/2"]);
    /// assert_eq!(manager.list_locks("")?.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn list_locks(&self, prefix: &str) -> Result<Vec<LockInfo>, LockError> {
        let prefix = prefix.to_owned();
        self.inner.ask("listing locks", |reply| Question::ListLocks { prefix, reply })
    }

    /// Everybody in this lock's queue, anywhere, in its order: who holds it, and who waits. Empty if it is free.
    ///
    /// A process is there once for each lock, however many of its threads wait.
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
    /// use etcd_lock::{LockManager, LockManagerOptions, LockState, memory::MemoryStore};
    ///
    /// let store = MemoryStore::new();
    /// let connect = |owner: &str| {
    ///     LockManager::in_memory(&store, "/app", LockManagerOptions::default().owner(owner))
    /// };
    /// let (alice, bob) = (connect("alice")?, connect("bob")?);
    /// let _hers = alice.new_lock("jobs")?.lock()?;
    /// let _his = bob.new_lock("jobs")?.enqueue()?;
    /// # while alice.queue("jobs")?.len() < 2 {}
    ///
    /// let queue = alice.queue("jobs")?;
    /// let owners: Vec<_> = queue.iter().map(|info| (info.owner.as_deref(), info.state)).collect();
    /// assert_eq!(owners, [(Some("alice"), LockState::Held), (Some("bob"), LockState::Waiting)]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn queue(&self, key: &str) -> Result<Vec<LockInfo>, LockError> {
        let name = self.inner.name(key)?;
        let doing = format!("looking at the queue of lock {key:?}");
        self.inner.ask(&doing, |reply| Question::Queue { name, reply })
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
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::{ForceUnlock, LossReason};
    ///
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// // From any process:
    /// let evicted = manager.force_unlock("jobs", ForceUnlock::Lock)?;
    /// println!("took it from {:?}", evicted.owner);
    /// assert_eq!(evicted.token, guard.token());
    ///
    /// assert!(guard.done().recv().is_err()); // disconnected: the hold is over
    /// assert_eq!(guard.loss(), Some(LossReason::ForceUnlocked));
    /// # Ok(())
    /// # }
    /// ```
    pub fn force_unlock(&self, key: &str, scope: ForceUnlock) -> Result<LockInfo, LockError> {
        let name = self.inner.name(key)?;
        let doing = format!("force-unlocking lock {key:?}");
        self.inner.ask(&doing, |reply| Question::ForceUnlock { name, scope, reply })
    }

    /// The session as this manager knows it, without asking etcd.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let session = manager.session();
    /// assert!(session.alive);
    /// assert!(session.remaining <= session.ttl);
    /// println!("lease {:x}", session.lease_id);
    /// # Ok(())
    /// # }
    /// ```
    pub fn session(&self) -> SessionInfo {
        self.inner.session()
    }

    /// What this manager has done so far, without asking etcd.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// let stats = manager.stats();
    /// assert_eq!((stats.acquired, stats.held, stats.sessions), (1, 1, 1));
    /// assert_eq!(stats.lost.total(), 0);
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// The key below which all locks of this manager lie, without a trailing `/`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # use etcd_lock::{LockManager, memory::MemoryStore};
    /// let manager = LockManager::in_memory(&MemoryStore::new(), "/app/locks/", Default::default())?;
    /// assert_eq!(manager.root(), "/app/locks");
    /// # Ok(())
    /// # }
    /// ```
    pub fn root(&self) -> &str {
        self.inner.root()
    }

    /// Ends the manager for all its handles: every guard is lost, every waiting call fails with [`LockError::Closed`],
    /// the session with all its keys goes from etcd, and the thread ends. Closing again changes nothing.
    ///
    /// On shutdown **this is all that is needed**: what guards hold, and what was dropped a moment ago, is released with
    /// it. To call [`unlock`](crate::LockGuard::unlock) first only takes longer when etcd is away. `examples/signals.rs`
    /// does it on Ctrl-C; a program that a signal ends without this holds its locks until the lease expires.
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
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
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

/// The endpoints, if there are any.
fn owned<I>(endpoints: I) -> Result<Vec<String>, LockError>
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    let endpoints: Vec<String> = endpoints.into_iter().map(|endpoint| endpoint.as_ref().to_owned()).collect();
    if endpoints.is_empty() {
        return Err(LockError::InvalidOptions { why: "there is no endpoint".into() });
    }
    Ok(endpoints)
}

impl fmt::Debug for LockManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockManager")
            .field("root", &self.root())
            .field("session", &self.session())
            .finish_non_exhaustive()
    }
}
