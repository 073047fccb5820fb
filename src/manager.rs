//! A connection to etcd with one session, shared by every lock that is taken through it.

mod queries;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::client::Client;
use crate::clock::Clock;
use crate::driver::thread::Complete;
use crate::error::LockError;
use crate::info::SessionInfo;
use crate::lock::DistributedLock;
use crate::lock::reentrant::ReentrantLock;
use crate::lock::registry::Registry;
use crate::options::{LockManagerOptions, LockOptions};
use crate::stats::Stats;
use crate::store::etcd::Etcd;
use crate::store::{ClientId, Store};

/// A connection to an etcd cluster with one session, shared by all locks that are taken through it.
///
/// A handle: cheap to clone, to share and to send. A process normally has one. Behind it work two threads, one for
/// I/O and a watchdog that ends holds in time should that one hang. They live as long as any handle of the manager, of its locks or of their guards, or until [`close`](Self::close). When
/// the last of them goes, what is held is released, the session ends, and the threads are joined: this drop waits for etcd
/// as [`close`](Self::close) does, in an outage for [`close_timeout`](LockManagerOptions::close_timeout).
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
    client: Arc<Client>,
    locks: Arc<Registry>,
    /// How its store knows a manager that has none but an in-process one.
    pub(crate) store_client: Option<ClientId>,
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
        Self::connect_to(root, &options, Clock::default(), move || async move {
            Etcd::connect_for_leases(&endpoints, &for_store).await
        })
    }

    /// The same as [`connect`](Self::connect) without waiting for etcd, for programs that start before it does.
    ///
    /// Its arguments are checked, and etcd is contacted in the background, again and again until there is a session. Calls
    /// wait for that within their own limits: [`lock`](DistributedLock::lock) as long as it takes,
    /// [`lock_timeout`](DistributedLock::lock_timeout) for its time, [`try_lock`](DistributedLock::try_lock) and questions
    /// such as [`lock_info`](Self::lock_info) for [`request_timeout`](LockManagerOptions::request_timeout). A limit that runs
    /// out before there is a session is [`LockError::Unavailable`]. What etcd refuses, such as a wrong password, ends the
    /// calls that wait with the error that `connect` would have been. `session().is_alive()` tells whether there is a session.
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
    /// assert!(!manager.session().is_alive());
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
        let connect = move || async move { Etcd::connect_lazy_for_leases(&endpoints, &for_store).await };
        let client = Client::start(root, &options, Complete::WithStore, Clock::default(), connect)?;
        Ok(Self::new(client))
    }

    /// Ends the session as its deadline would; returns when every hold is over.
    pub(crate) fn expire(&self) {
        self.client.expire();
    }

    /// Over any store, which `connect` makes on the I/O thread.
    fn new(client: Client) -> Self {
        let client = Arc::new(client);
        Self { locks: Arc::new(Registry::new(Arc::clone(&client))), client, store_client: None }
    }

    pub(crate) fn connect_to<S: Store, F: Future<Output = Result<S, LockError>>>(
        root: &str,
        options: &LockManagerOptions,
        clock: Clock,
        connect: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self, LockError> {
        let client = Client::start(root, options, Complete::WithSession, clock, connect)?;
        Ok(Self::new(client))
    }

    /// The lock with this key, to be waited for with the default [`LockOptions`]. Nothing is asked of etcd yet.
    ///
    /// A key is any UTF-8 text of 1 to 512 bytes; `a`, `a/b` and `a/` are three unrelated locks.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidKey`]; [`LockError::Closed`] or [`LockError::Crashed`] if the manager has ended.
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
        Ok(DistributedLock::new(self.locks.lock(key)?, options))
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
    /// let client = lock.lock()?; // at once
    /// assert_eq!(outer.token(), client.token());
    /// drop(outer);
    /// assert!(client.is_held(), "the last guard out releases");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_reentrant_lock(&self, key: &str) -> Result<ReentrantLock, LockError> {
        self.new_lock(key).map(ReentrantLock::new)
    }

    /// The session as this manager knows it, without asking etcd.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let session = manager.session();
    /// assert!(session.is_alive());
    /// assert!(session.remaining <= session.ttl);
    /// println!("lease {:x?}", session.lease_id);
    /// # Ok(())
    /// # }
    /// ```
    pub fn session(&self) -> SessionInfo {
        self.client.session()
    }

    /// What this manager has done so far, without asking etcd.
    ///
    /// In a forked child all of them are zero: the manager is its parent's.
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
        self.client.stats()
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
        self.client.root()
    }

    /// Ends the manager for all its handles: every guard is lost, every waiting call fails with [`LockError::Closed`],
    /// the session with all its keys goes from etcd, and the threads end. Closing again changes nothing.
    ///
    /// On shutdown **this is all that is needed**: what guards hold, and what was dropped a moment ago, is released with
    /// it. To call [`unlock`](crate::LockGuard::unlock) first only takes longer when etcd is away. `examples/signals.rs`
    /// does it on Ctrl-C; a program that a signal ends without this holds its locks until the lease expires.
    ///
    /// # Blocking
    ///
    /// Up to [`close_timeout`](LockManagerOptions::close_timeout), all of it only while etcd does not answer. A manager from
    /// [`connect_lazy`](Self::connect_lazy) that never had a session has nothing to wait for.
    ///
    /// # Errors
    ///
    /// - [`LockError::Unavailable`]: etcd did not confirm in time. Everything here has ended all the same; what is left
    ///   in etcd expires with the lease.
    /// - [`LockError::Crashed`]: the I/O thread had died before.
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
    pub fn close(&self) -> Result<(), LockError> {
        self.client.close()
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
