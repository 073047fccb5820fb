//! What a manager can tell about locks and about its session.

mod token;

use std::fmt;
use std::time::{Duration, SystemTime};

pub use token::{FencingToken, InvalidToken};

use crate::contender_value::ContenderValue;
use crate::kv::KeyValue;

/// A lock that somebody holds or waits for, as etcd shows it; from [`lock_info`](crate::LockManager::lock_info),
/// [`list_locks`](crate::LockManager::list_locks), [`queue`](crate::LockManager::queue),
/// [`force_unlock`](crate::LockManager::force_unlock) and errors.
///
/// With the feature `serde` it can be serialised under the names of its fields, times in milliseconds.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// use etcd_lock::{LockManager, LockManagerOptions, LockState, memory::MemoryStore};
///
/// let options = LockManagerOptions::default().owner("billing/7");
/// let manager = LockManager::in_memory(&MemoryStore::new(), "/app", options)?;
/// let _guard = manager.new_lock("jobs")?.lock()?;
///
/// let info = manager.lock_info("jobs")?.expect("somebody holds it");
/// assert_eq!(info.owner.as_deref(), Some("billing/7"));
/// assert_eq!(info.pid, Some(std::process::id()));
/// assert_eq!((info.state, info.waiters), (LockState::Held, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LockInfo {
    /// The lock's key.
    pub key: String,
    /// Whether it holds the lock or waits for it.
    pub state: LockState,
    /// What the holder calls itself; `None` for foreign clients (Go's `concurrency.Mutex`, `etcdctl lock`).
    pub owner: Option<String>,
    /// The holder's process, as its own machine numbers it; `None` for foreign clients.
    pub pid: Option<u32>,
    /// The thread that asked for it, as the process numbers its threads that ask; `None` for foreign clients.
    pub thread: Option<String>,
    /// When the holder asked for it, by its own clock; `None` for foreign clients.
    #[cfg_attr(feature = "serde", serde(with = "millis::since_epoch"))]
    pub created_at: Option<SystemTime>,
    /// The holder's lease; `None` if its key has none, and so stays until it is deleted.
    pub lease_id: Option<i64>,
    /// How long the lease lasts if it is never renewed again; `None` where it was not asked for, or there is no lease.
    #[cfg_attr(feature = "serde", serde(with = "millis::duration"))]
    pub ttl_remaining: Option<Duration>,
    /// The holder's fencing token; the one that it will have, if it still waits.
    pub token: FencingToken,
    /// How many wait behind it in etcd. A process counts once, however many of its threads wait.
    pub waiters: usize,
}

/// What somebody who is in a lock's queue is there for.
///
/// # Examples
///
/// ```
/// assert_eq!(etcd_lock::LockState::Waiting.to_string(), "waiting");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum LockState {
    /// It holds the lock.
    Held,
    /// It waits for the lock.
    Waiting,
}

impl fmt::Display for LockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Waiting => "waiting",
        })
    }
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
            state: LockState::Held,
            created_at: value.as_ref().and_then(ContenderValue::created_at),
            pid: value.as_ref().map(|value| value.pid).filter(|&pid| pid != 0),
            thread: value.as_ref().map(|value| value.thread.clone()).filter(|thread| !thread.is_empty()),
            owner: value.map(|value| value.owner),
            lease_id: Some(holder.lease).filter(|&lease| lease != 0),
            ttl_remaining,
            token: FencingToken::new(holder.create_revision),
            waiters: usize::try_from(waiters).unwrap_or(usize::MAX),
        }
    }
}

/// Times as whole milliseconds: what other languages expect, and what stands in etcd.
#[cfg(feature = "serde")]
mod millis {
    pub(super) mod duration {
        use std::time::Duration;

        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            time: &Option<Duration>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
        }
    }

    pub(super) mod since_epoch {
        use std::time::SystemTime;

        use serde::{Deserializer, Serializer};

        use super::duration;

        pub(in super::super) fn serialize<S: Serializer>(
            time: &Option<SystemTime>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            duration::serialize(&time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()), to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            Ok(duration::deserialize(from)?.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)))
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
    /// The session's lease in etcd; `None` while there is no session, so that no hold is assured. An outage of etcd shows
    /// here only when the assured time is over, and before that in [`last_answer`](Self::last_answer).
    pub lease_id: Option<i64>,
    /// The TTL that etcd granted, which may be more than was asked for; zero while there is no session.
    pub ttl: Duration,
    /// How long the session is assured if etcd never answers again; zero while there is no session.
    pub remaining: Duration,
    /// How long ago etcd answered last, a refusal included; `None` if it never has. A manager that has nothing else to ask
    /// renews its session every third of the TTL, so more than that is a sign of an outage.
    pub last_answer: Option<Duration>,
}

impl SessionInfo {
    /// There is no session.
    pub(crate) fn none() -> Self {
        Self { lease_id: None, ttl: Duration::ZERO, remaining: Duration::ZERO, last_answer: None }
    }

    /// Whether there is a session right now, so that holds are assured.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// assert!(manager.session().is_alive());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_alive(&self) -> bool {
        self.lease_id.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(value: &[u8]) -> LockInfo {
        let kv = KeyValue {
            key: "/app/a/1f-1".into(),
            value: value.to_vec(),
            create_revision: 9,
            mod_revision: 9,
            lease: 0x1f,
        };
        LockInfo::from_holder("a", &kv, 2, Some(Duration::from_millis(1500)))
    }

    #[test]
    fn a_holder_shows_its_process_and_its_thread_and_a_foreign_one_neither() {
        let value = ContenderValue::new("host/7", "main", 7, Duration::from_millis(1_700_000_000_123));
        let info = contender(&value.encode());
        assert_eq!((info.pid, info.thread.as_deref()), (Some(7), Some("main")));
        let foreign = contender(b"");
        assert_eq!((foreign.owner, foreign.pid, foreign.thread), (None, None, None));
        // Another release's.
        let sparse = contender(br#"{"owner":"o"}"#);
        assert_eq!((sparse.owner.as_deref(), sparse.pid, sparse.thread), (Some("o"), None, None));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn it_is_json_under_the_names_of_its_fields_and_comes_back() {
        let value = ContenderValue::new("host/7", "main", 7, Duration::from_millis(1_700_000_000_123));
        for info in [contender(&value.encode()), contender(b"")] {
            let json = serde_json::to_string(&info).unwrap();
            assert_eq!(serde_json::from_str::<LockInfo>(&json).unwrap(), info);
        }
        assert_eq!(
            serde_json::to_string(&contender(&value.encode())).unwrap(),
            r#"{"key":"a","state":"held","owner":"host/7","pid":7,"thread":"main","created_at":1700000000123,"lease_id":31,"ttl_remaining":1500,"token":9,"waiters":2}"#
        );
        assert!(serde_json::from_str::<FencingToken>("-1").is_err());
    }
}
