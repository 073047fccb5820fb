//! A connection to etcd with one session, shared by every lock that is acquired through it.

mod kinds;
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

/// A connection to an etcd cluster with one session, shared by all locks that are acquired through it.
///
/// A `LockManager` is a handle: it is cheap to clone and can be sent and shared between threads. A process normally has
/// one. It runs two threads: one for I/O, and a watchdog that ends holds on time if the I/O thread hangs. Both run
/// until [`close`](Self::close) is called, or until the last handle of the manager, of its locks and of their guards is
/// dropped. That last drop releases all holds, ends the session and joins the threads. It waits for etcd as
/// [`close`](Self::close) does: during an outage for up to [`close_timeout`](LockManagerOptions::close_timeout).
///
/// A manager works only in the process that created it. In a child of `fork()` every call returns
/// [`LockError::Forked`], no lock is held, and dropping the copied handles does not affect the parent. The child must
/// connect again.
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
/// [`in_memory`](Self::in_memory) creates a manager that needs no server.
#[derive(Clone)]
pub struct LockManager {
    client: Arc<Client>,
    locks: Arc<Registry>,
    /// Identifies this manager to its in-process store; `None` on etcd.
    pub(crate) store_client: Option<ClientId>,
}

impl LockManager {
    /// Connects to etcd and sets up a session. The keys of all locks are below the key `root`, whose trailing `/` is
    /// removed.
    ///
    /// No other keys may be below `root`, and no other manager's root either: the keys of a manager with the root
    /// `/app/jobs` would be contenders for the lock `jobs` of a manager with the root `/app`.
    ///
    /// A `/` at the beginning is part of the root: managers with the roots `/app` and `app` do not exclude each other, and
    /// nothing warns of it.
    ///
    /// An endpoint is `http://host:port`, `https://host:port` or `host:port`. One working endpoint is enough; when it
    /// fails, the manager switches to another. Each endpoint must be an etcd member or a proxy that forwards
    /// connections unchanged. `etcd grpc-proxy` is not supported: it answers renewals from the results of its own
    /// earlier ones, so a hold could be assured for longer than its lease lasts. A proxy that retries requests (an
    /// HTTP/2 load balancer, for example) is not supported either: etcd could execute a request twice.
    ///
    /// # Blocking
    ///
    /// Up to [`connect_timeout`](LockManagerOptions::connect_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option, an endpoint or the root is invalid, or there is no endpoint.
    /// - [`LockError::Unavailable`]: no session could be set up within `connect_timeout`.
    /// - [`LockError::Unauthenticated`], [`LockError::PermissionDenied`], [`LockError::NoSpace`]: etcd refused the
    ///   session.
    /// - [`LockError::Internal`]: a thread could not be started.
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

    /// Like [`connect`](Self::connect), but does not wait for etcd: for programs that may start before etcd does.
    ///
    /// The arguments are checked at once. The I/O thread then tries to reach etcd until there is a session. Until then,
    /// calls wait within their own limits: [`lock`](DistributedLock::lock) without a limit,
    /// [`lock_timeout`](DistributedLock::lock_timeout) for its timeout, [`try_lock`](DistributedLock::try_lock) and
    /// queries such as [`lock_info`](Self::lock_info) for [`request_timeout`](LockManagerOptions::request_timeout). A
    /// call whose limit ends before there is a session returns [`LockError::Unavailable`]. If etcd refuses the session,
    /// because of a wrong password for example, waiting calls return the error that `connect` would have returned.
    /// `session().is_alive()` says whether there is a session.
    ///
    /// Fewer mistakes are reported than by `connect`: a wrong scheme or an untrusted certificate appears as an etcd
    /// that cannot be reached.
    ///
    /// # Blocking
    ///
    /// Only while the threads are started.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option, an endpoint or the root is invalid, or there is no endpoint.
    /// - [`LockError::Internal`]: a thread could not be started.
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

    /// Ends the session as if its deadline had passed; returns when every hold has ended.
    pub(crate) fn expire(&self) {
        self.client.expire();
    }

    /// A manager on any store; `connect` creates the store on the I/O thread.
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

    /// Returns the lock with this key and the default [`LockOptions`]: a mutex, which is also the writing side of the
    /// read-write lock with this key. Does no I/O.
    ///
    /// A key is any UTF-8 text of 1 to 512 bytes. `a`, `a/b` and `a/` are three unrelated locks.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidKey`]: the key is empty or too long.
    /// - [`LockError::Closed`], [`LockError::Crashed`], [`LockError::Forked`]: the manager no longer works.
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

    /// Returns the lock with this key, with its own [`LockOptions`]. The options belong to the returned handle: handles
    /// of one key are the same lock, whatever their options are. Does no I/O.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: an option is out of its range, or the [mode](LockOptions::mode) makes no sense.
    /// - Otherwise as for [`new_lock`](Self::new_lock).
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
    /// // On another thread or in another process, five intervals of 100 ms run out.
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

    /// Returns the lock with this key in a form that the holding thread can acquire again, for functions that call each
    /// other under one lock.
    ///
    /// It is the same lock that [`new_lock`](Self::new_lock) returns for this key, but its guards stay on their thread;
    /// see [`ReentrantLock`]. Does no I/O.
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
    /// let inner = lock.lock()?; // returns at once
    /// assert_eq!(outer.token(), inner.token());
    /// drop(outer);
    /// assert!(inner.is_held(), "dropping the last guard releases the lock");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_reentrant_lock(&self, key: &str) -> Result<ReentrantLock, LockError> {
        self.new_lock(key).map(ReentrantLock::new)
    }

    /// Returns what this manager knows about its session. Does no I/O.
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

    /// Returns this manager's counters and gauges. Does no I/O.
    ///
    /// In a child of `fork()` all of them are zero.
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

    /// Returns the key below which the keys of all locks of this manager are, without a trailing `/`.
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

    /// Closes the manager for all its handles. Every hold is lost, every waiting call returns [`LockError::Closed`],
    /// the session and all its keys are deleted from etcd, and the threads end. Closing a closed manager has no effect.
    ///
    /// On shutdown **no other call is needed**: the locks still held and the guards just dropped are released with the
    /// session. Calling [`unlock`](crate::LockGuard::unlock) first only takes longer while etcd is unreachable.
    /// `examples/signals.rs` closes the manager on Ctrl-C. The locks of a program that is killed without `close` stay
    /// held until the lease expires.
    ///
    /// # Blocking
    ///
    /// Until etcd has confirmed the end of the session, up to [`close_timeout`](LockManagerOptions::close_timeout) and
    /// some milliseconds. A manager from [`connect_lazy`](Self::connect_lazy) that never had a session returns without
    /// waiting for etcd.
    ///
    /// # Errors
    ///
    /// - [`LockError::Unavailable`]: etcd did not confirm in time. The manager is closed all the same; keys that remain
    ///   in etcd expire with the lease.
    /// - [`LockError::Crashed`]: the I/O thread had died before.
    /// - [`LockError::Forked`]: this process is a child of the one that created the manager.
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

/// The endpoints as strings; an error if there are none.
fn owned<I>(endpoints: I) -> Result<Vec<String>, LockError>
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    let endpoints: Vec<String> = endpoints.into_iter().map(|endpoint| endpoint.as_ref().to_owned()).collect();
    if endpoints.is_empty() {
        return Err(LockError::InvalidOptions { why: "no endpoint was given".into() });
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
