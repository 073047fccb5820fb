//! What a manager can tell about locks and about its session.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::store::KeyValue;
use crate::value::ContenderValue;

/// Orders the holders of one lock: each holder's token is greater than the one of every holder before it, anywhere.
///
/// It is the create revision of the holder's key in etcd. Send it along with every write that the lock protects and
/// let the receiver refuse a token smaller than the greatest it has seen.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// /// What the receiver of writes does: here a row in memory, in practice a column of the table.
/// struct Row {
///     text: String,
///     token: u64,
/// }
///
/// impl Row {
///     fn write(&mut self, text: &str, token: u64) -> bool {
///         let fresh = token >= self.token;
///         if fresh {
///             (self.text, self.token) = (text.into(), token);
///         }
///         fresh
///     }
/// }
///
/// let lock = manager.new_lock("row")?;
/// let mut row = Row { text: String::new(), token: 0 };
/// let old = lock.lock()?.token(); // held and released: this one is late
/// let new = lock.lock()?.token();
/// assert!(row.write("new", new.as_u64()));
/// assert!(!row.write("late", old.as_u64()));
/// assert_eq!(row.text, "new");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    pub(crate) fn new(revision: i64) -> Self {
        // etcd's revisions begin at 1 and only grow.
        Self(u64::try_from(revision).unwrap_or(0))
    }

    /// The token as a plain number, for a database column or a request header.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lock that somebody holds, as etcd shows it; from [`lock_info`](crate::LockManager::lock_info),
/// [`list_locks`](crate::LockManager::list_locks), [`force_unlock`](crate::LockManager::force_unlock) and errors.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// use etcd_lock::{LockManager, LockManagerOptions, memory::MemoryStore};
///
/// let options = LockManagerOptions::default().owner("billing/7");
/// let manager = LockManager::in_memory(&MemoryStore::new(), "/app", options)?;
/// let _guard = manager.new_lock("jobs")?.lock()?;
///
/// let info = manager.lock_info("jobs")?.expect("somebody holds it");
/// assert_eq!(info.owner.as_deref(), Some("billing/7"));
/// assert_eq!(info.waiters, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// The lock's name.
    pub key: String,
    /// What the holder calls itself; `None` for foreign clients (Go's `concurrency.Mutex`, `etcdctl lock`).
    pub owner: Option<String>,
    /// When the holder asked for it, by its own clock; `None` for foreign clients.
    pub created_at: Option<SystemTime>,
    /// The holder's lease; 0 if its key has none and stays until it is deleted.
    pub lease_id: i64,
    /// How long the lease lasts if it is never renewed again; `None` where it was not asked for, or there is no lease.
    pub ttl_remaining: Option<Duration>,
    /// The holder's fencing token.
    pub token: FencingToken,
    /// How many wait behind the holder in etcd. A process counts once, however many of its threads wait.
    pub waiters: usize,
}

impl LockInfo {
    /// The lock `name` as its holder's key shows it.
    pub(crate) fn from_holder(
        name: &str,
        holder: &KeyValue,
        waiters: u64,
        ttl_remaining: Option<Duration>,
    ) -> Self {
        let value = ContenderValue::decode(&holder.value);
        Self {
            key: name.into(),
            created_at: value.as_ref().and_then(ContenderValue::created_at),
            owner: value.map(|value| value.owner),
            lease_id: holder.lease,
            ttl_remaining,
            token: FencingToken::new(holder.create_revision),
            waiters: usize::try_from(waiters).unwrap_or(usize::MAX),
        }
    }
}

/// What [`LockManager::force_unlock`](crate::LockManager::force_unlock) takes away from the holder of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForceUnlock {
    /// The lock alone: the holder's key is deleted, and the next waiter has the lock.
    Lock,
    /// The holder's whole session: its lease is revoked, and with it go all its locks and its places in queues.
    /// A holder without a lease loses this lock alone.
    Session,
}

/// A manager's session, as the manager itself knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session's lease in etcd; 0 while there is none.
    pub lease_id: i64,
    /// The TTL that etcd granted, which may be more than was asked for.
    pub ttl: Duration,
    /// How long the session is assured if etcd never answers again.
    pub remaining: Duration,
    /// Whether the session stands right now.
    pub alive: bool,
}

impl SessionInfo {
    /// There is no session.
    pub(crate) fn none() -> Self {
        Self { lease_id: 0, ttl: Duration::ZERO, remaining: Duration::ZERO, alive: false }
    }
}
