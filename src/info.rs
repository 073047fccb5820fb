//! Information about locks and about a manager's session.

mod token;

use std::fmt;
use std::time::{Duration, SystemTime};

pub use token::{FencingToken, InvalidToken};

use crate::contender_value::ContenderValue;
use crate::kv::KeyValue;
use crate::mode::Mode;

/// A holder of a lock, or a waiter for it, as stored in etcd; from [`lock_info`](crate::LockManager::lock_info),
/// [`list_locks`](crate::LockManager::list_locks), [`queue`](crate::LockManager::queue),
/// [`force_unlock`](crate::LockManager::force_unlock) and errors.
///
/// With the feature `serde` it can be serialised: under the names of its fields, with times as integers in
/// milliseconds.
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
/// let info = manager.lock_info("jobs")?.expect("it is held");
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
    /// The key of the lock.
    pub key: String,
    /// Whether this contender holds the lock or waits for it.
    pub state: LockState,
    /// Who may hold the lock together with it. Foreign clients are exclusive.
    #[cfg_attr(feature = "serde", serde(default))]
    pub mode: Mode,
    /// The contender's [owner name](crate::LockManagerOptions::owner); `None` for foreign clients (Go's
    /// `concurrency.Mutex`, `etcdctl lock`).
    pub owner: Option<String>,
    /// The contender's process id on its own machine; `None` for foreign clients.
    pub pid: Option<u32>,
    /// The thread that asked for the lock; `None` for foreign clients.
    pub thread: Option<String>,
    /// When the contender asked for the lock, by its own system clock; `None` for foreign clients.
    #[cfg_attr(feature = "serde", serde(with = "millis::since_epoch"))]
    pub created_at: Option<SystemTime>,
    /// The contender's lease; `None` if its key has no lease, and so exists until it is deleted.
    pub lease_id: Option<i64>,
    /// How long the lease lasts without another renewal, in whole seconds as etcd reports it; `None` if it was not
    /// looked up, or if there is no lease.
    #[cfg_attr(feature = "serde", serde(with = "millis::duration"))]
    pub ttl_remaining: Option<Duration>,
    /// The contender's fencing token. A waiter's token is the one that it will hold the lock with.
    pub token: FencingToken,
    /// The number of contenders that wait behind this one. Not every waiting thread is one: an exclusive waiter counts once
    /// for its process, with all of the process that are behind it. In the `holder` of an error, those that hold the lock
    /// together with it count, too.
    pub waiters: usize,
    /// What the contender says of itself ([`LockOptions::note`](crate::LockOptions::note)); `None` if it says nothing, and
    /// for foreign clients.
    #[cfg_attr(feature = "serde", serde(default))]
    pub note: Option<String>,
}

/// Whether a contender in a lock's queue holds the lock.
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
    /// The contender holds the lock.
    Held,
    /// The contender waits for the lock.
    Waiting,
}

impl fmt::Display for LockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::Waiting => "waiting",
        })
    }
}

impl LockInfo {
    /// The holder of the lock `name`, decoded from its key.
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
            mode: Mode::of(&holder.key),
            created_at: value.as_ref().and_then(ContenderValue::created_at),
            pid: value.as_ref().map(|value| value.pid).filter(|&pid| pid != 0),
            thread: value.as_ref().map(|value| value.thread.clone()).filter(|thread| !thread.is_empty()),
            note: value.as_ref().and_then(|value| value.note.clone()),
            owner: value.map(|value| value.owner),
            lease_id: Some(holder.lease).filter(|&lease| lease != 0),
            ttl_remaining,
            token: FencingToken::new(holder.create_revision),
            waiters: usize::try_from(waiters).unwrap_or(usize::MAX),
        }
    }
}

/// Times as whole milliseconds: common in JSON, and the form in contenders' values.
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

/// The scope of [`LockManager::force_unlock`](crate::LockManager::force_unlock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForceUnlock {
    /// Only this lock: the holder's key is deleted, and the next waiter acquires the lock.
    Lock,
    /// The holder's whole session: its lease is revoked, which ends all its holds and removes it from all queues. If
    /// the holder has no lease, only its key is deleted.
    Session,
}

/// The state of a manager's session, as known to the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session's lease in etcd; `None` while there is no session, and so no hold. During an outage of etcd it
    /// becomes `None` only when the session's deadline has passed; [`last_answer`](Self::last_answer) shows the outage
    /// earlier.
    pub lease_id: Option<i64>,
    /// The TTL that etcd granted, which may exceed the one requested; zero while there is no session.
    pub ttl: Duration,
    /// How long the session lasts if etcd never answers again; zero while there is no session.
    pub remaining: Duration,
    /// How long ago the last answer of etcd arrived, refusals included; `None` if there was none yet. An idle manager
    /// renews its session every third of the TTL, so a longer time indicates an outage.
    pub last_answer: Option<Duration>,
}

impl SessionInfo {
    /// The state without a session.
    pub(crate) fn none() -> Self {
        Self { lease_id: None, ttl: Duration::ZERO, remaining: Duration::ZERO, last_answer: None }
    }

    /// Returns whether there is a session right now.
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
        contender_under("1f-1", value)
    }

    fn contender_under(last: &str, value: &[u8]) -> LockInfo {
        let kv = KeyValue {
            key: format!("/app/a/{last}").into(),
            value: value.to_vec(),
            create_revision: 9,
            mod_revision: 9,
            lease: 0x1f,
        };
        LockInfo::from_holder("a", &kv, 2, Some(Duration::from_millis(1500)))
    }

    #[test]
    fn process_and_thread_are_known_for_our_contenders_and_unknown_for_foreign_ones() {
        let value = ContenderValue::new("host/7", "main", 7, Duration::from_millis(1_700_000_000_123));
        let info = contender(&value.encode());
        assert_eq!((info.pid, info.thread.as_deref()), (Some(7), Some("main")));
        let foreign = contender(b"");
        assert_eq!((foreign.owner, foreign.pid, foreign.thread), (None, None, None));
        // A value written by another release.
        let sparse = contender(br#"{"owner":"o"}"#);
        assert_eq!((sparse.owner.as_deref(), sparse.pid, sparse.thread), (Some("o"), None, None));
    }

    #[test]
    fn the_mode_is_the_one_of_the_key() {
        let value = ContenderValue::new("host/7", "main", 7, Duration::ZERO).encode();
        let permits = Mode::Permits { take: 2, limit: 8 };
        for (last, mode) in [("1f-1", Mode::Exclusive), ("~r.1f-1", Mode::Shared), ("~2of8.1f-1", permits)] {
            assert_eq!(contender_under(last, &value).mode, mode, "{last}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn modes_serialise_as_their_names_and_a_text_without_a_mode_is_exclusive() {
        for (last, json) in [
            ("1f-1", r#""exclusive""#),
            ("~r.1f-1", r#""shared""#),
            ("~2of8.1f-1", r#"{"permits":{"take":2,"limit":8}}"#),
        ] {
            let info = contender_under(last, b"");
            assert_eq!(serde_json::to_string(&info.mode).unwrap(), json);
            let text = serde_json::to_string(&info).unwrap();
            assert_eq!(serde_json::from_str::<LockInfo>(&text).unwrap(), info);
            let older = text.replace(&format!(r#""mode":{json},"#), "");
            assert_eq!(serde_json::from_str::<LockInfo>(&older).unwrap().mode, Mode::Exclusive);
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn lock_info_serialises_under_its_field_names_and_deserialises() {
        let value = ContenderValue::new("host/7", "main", 7, Duration::from_millis(1_700_000_000_123));
        let value = value.with_note(Some("on \"a\""));
        for info in [contender(&value.encode()), contender(b"")] {
            let json = serde_json::to_string(&info).unwrap();
            assert_eq!(serde_json::from_str::<LockInfo>(&json).unwrap(), info);
        }
        assert_eq!(
            serde_json::to_string(&contender(&value.encode())).unwrap(),
            r#"{"key":"a","state":"held","mode":"exclusive","owner":"host/7","pid":7,"thread":"main","created_at":1700000000123,"lease_id":31,"ttl_remaining":1500,"token":9,"waiters":2,"note":"on \"a\""}"#
        );
        assert!(serde_json::from_str::<FencingToken>("-1").is_err());
    }
}
