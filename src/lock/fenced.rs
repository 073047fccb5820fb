//! Reads and writes that etcd carries out only while a hold stands.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::hold::Hold;
use crate::driver::thread::GRACE;
use crate::error::{Cause, LockError, lock_error};
use crate::kv::Key;
use crate::protocol::{FencedAnswer, FencedCall, FencedFailure, FencedId, FencedRequest, FencedWrite};
use crate::shared::message::Message;

/// The most writes in one [`WriteBatch`]; etcd allows 128 operations (`--max-txn-ops`).
const MOST_WRITES: usize = 100;

/// Stands for "no limit".
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

impl Hold {
    /// Returns access to etcd that is tied to this hold: what it writes, etcd writes only while the lock is held.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("import")?.lock()?;
    /// let done = guard.etcd().get("/import/done")?;
    /// assert_eq!(done, None);
    /// guard.etcd().put("/import/done", "17 files")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn etcd(&self) -> FencedStore<'_> {
        FencedStore { hold: self }
    }
}

/// Access to etcd that is tied to a hold, from [`Hold::etcd`].
///
/// Each call is one transaction, which etcd carries out only if the lock's key is still the one that this hold has put.
/// So a holder that was paused, or does not know yet that it has lost the lock, cannot overwrite what the next holder
/// writes, and no token has to be checked by anybody: the lock and the data are in one etcd.
///
/// Keys can be anywhere in etcd except below the manager's root. Programs that do not hold the lock can read and write them
/// too: only writes through a `FencedStore` are tied to a hold.
///
/// **After an error.** [`LockError::Unavailable`] and [`LockError::NoSpace`] leave open whether the write was carried out,
/// and [`LockError::Crashed`] does. If it was or will be, then while the lock was held by this hold. It is never repeated
/// by the library, and the next call of the same hold (a [`get`](Self::get), too) first makes sure that it cannot be carried out any
/// more: a write that was acknowledged is never replaced by an older one, and what a later `get` shows is final. Every other
/// error says that nothing was written.
///
/// Any thread can use it, and several at a time; calls that overlap are carried out in any order.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// use etcd_lock::{ForceUnlock, LockError, WriteBatch};
///
/// let guard = manager.new_lock("import")?.lock()?;
/// let etcd = guard.etcd();
/// for (number, file) in ["a.csv", "b.csv"].into_iter().enumerate() {
///     // The row and the cursor, or neither.
///     etcd.commit(
///         WriteBatch::new()
///             .put(format!("/import/rows/{file}"), "42 rows")
///             .put("/import/cursor", (number + 1).to_string()),
///     )?;
/// }
/// assert_eq!(etcd.get("/import/cursor")?.as_deref(), Some(&b"2"[..]));
///
/// // Somebody takes the lock away.
/// manager.force_unlock("import", ForceUnlock::Lock)?;
/// let refused = guard.etcd().put("/import/cursor", "0");
/// assert!(matches!(refused, Err(LockError::Expired { .. })));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct FencedStore<'g> {
    hold: &'g Hold,
}

impl FencedStore<'_> {
    /// Reads a key; `None` if it does not exist. The read is linearizable, and carried out only while the lock is held.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the hold was lost. No request is sent if that was known.
    /// - [`LockError::InvalidKey`]: the key is empty, or below the manager's root.
    /// - [`LockError::Unavailable`], [`LockError::ClusterChanged`]: etcd did not answer in time, or another cluster
    ///   answered.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused the request. It needs read permission
    ///   for the lock's key, the session key and this key.
    /// - [`LockError::NoSpace`]: an earlier write of this hold had no answer, and etcd's database is full, so that the write
    ///   cannot be ruled out.
    /// - [`LockError::Crashed`], [`LockError::Forked`]: the I/O thread died, or this process is a child of the one that
    ///   acquired the lock.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::LockError;
    ///
    /// let guard = manager.new_lock("import")?.lock()?;
    /// assert_eq!(guard.etcd().get("/import/cursor")?, None);
    /// let refused = guard.etcd().get("/app/import/1");
    /// assert!(matches!(refused, Err(LockError::InvalidKey { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, LockError> {
        let doing = || format!("reading key {key:?}");
        let request = FencedRequest::Get(self.key(key)?);
        Ok(self.hold.fenced(request, doing)?.value)
    }

    /// Writes a key. It gets no lease, so it stays when the hold ends.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the hold was lost, and nothing was written.
    /// - [`LockError::Unavailable`]: etcd did not answer in time. Whether the key was written is not known; see
    ///   [`FencedStore`].
    /// - [`LockError::NoSpace`]: etcd's database is full. etcd may have written the key all the same.
    /// - [`LockError::TooLarge`]: the value exceeds etcd's limit, by default 1.5 MiB. Nothing was written.
    /// - Otherwise as for [`get`](Self::get), and nothing was written, except after [`LockError::Crashed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("import")?.lock()?;
    /// guard.etcd().put("/import/cursor", b"17".to_vec())?;
    /// assert_eq!(guard.etcd().get("/import/cursor")?, Some(b"17".to_vec()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<(), LockError> {
        let doing = || format!("writing key {key:?}");
        let write = FencedWrite::Put { key: self.key(key)?, value: value.into() };
        self.hold.fenced(FencedRequest::Write(vec![write]), doing).map(drop)
    }

    /// Deletes a key. Returns whether it existed.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("import")?.lock()?;
    /// guard.etcd().put("/import/cursor", "17")?;
    /// assert!(guard.etcd().delete("/import/cursor")?);
    /// assert!(!guard.etcd().delete("/import/cursor")?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete(&self, key: &str) -> Result<bool, LockError> {
        let doing = || format!("deleting key {key:?}");
        let write = FencedWrite::Delete { key: self.key(key)? };
        Ok(self.hold.fenced(FencedRequest::Write(vec![write]), doing)?.deleted > 0)
    }

    /// Carries out all writes of the batch in one transaction, or none. An empty batch only checks the hold.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put); [`LockError::TooLarge`] also if the batch has more than 100 writes.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::WriteBatch;
    ///
    /// let guard = manager.new_lock("import")?.lock()?;
    /// guard.etcd().commit(WriteBatch::new().put("/import/b", "2").put("/import/c", "3").delete("/import/a"))?;
    /// assert!(guard.etcd().get("/import/c")?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn commit(&self, writes: WriteBatch) -> Result<(), LockError> {
        let count = writes.writes.len();
        let doing = || format!("committing {count} writes");
        if count > MOST_WRITES {
            let source =
                Cause::new(format!("{count} writes; at most {MOST_WRITES} fit into one transaction"));
            return Err(LockError::TooLarge { doing: doing(), source });
        }
        let write = |(key, value): (String, Option<Vec<u8>>)| {
            let key = self.key(&key)?;
            Ok(match value {
                Some(value) => FencedWrite::Put { key, value },
                None => FencedWrite::Delete { key },
            })
        };
        let writes = writes.writes.into_iter().map(write).collect::<Result<_, LockError>>()?;
        self.hold.fenced(FencedRequest::Write(writes), doing).map(drop)
    }

    fn key(&self, key: &str) -> Result<Key, LockError> {
        let root = self.hold.root();
        let why = if key.is_empty() {
            "a key must not be empty".to_owned()
        } else if key.strip_prefix(root).is_some_and(|below| below.starts_with('/')) {
            format!("the keys below {root:?} are those of the locks")
        } else {
            return Ok(Key::from(key));
        };
        Err(LockError::InvalidKey { key: key.chars().take(64).collect(), why })
    }
}

impl fmt::Debug for FencedStore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hold.describe("FencedStore", f)
    }
}

/// Writes for [`FencedStore::commit`]. A later write of a key replaces an earlier one of the same batch.
///
/// # Examples
///
/// ```
/// use etcd_lock::WriteBatch;
///
/// let batch = WriteBatch::new().put("/import/cursor", "17").delete("/import/lock").delete("/import/cursor");
/// assert_eq!(batch.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a batch does nothing until it is given to `FencedStore::commit`"]
pub struct WriteBatch {
    /// By key: the value to put; `None` to delete the key.
    writes: BTreeMap<String, Option<Vec<u8>>>,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a put.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.insert(key.into(), Some(value.into()));
        self
    }

    /// Adds a deletion.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.insert(key.into(), None);
        self
    }

    /// The number of keys that it writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

impl Hold {
    /// Sends a request that etcd carries out only while this hold stands, and waits for the answer.
    pub(super) fn fenced(
        &self,
        request: FencedRequest,
        doing: impl Fn() -> String,
    ) -> Result<FencedAnswer, LockError> {
        self.check()?;
        let client = &self.lock().client;
        let limit = client.request_timeout().min(LONGEST);
        let (id, until) = (FencedId(client.next_ticket().0), client.now() + limit);
        let call = FencedCall { id, ticket: self.ticket(), request, until };
        let (reply, answer) = oneshot::channel();
        let over = || self.expired();
        client.mailbox.send(Message::Fenced { call, reply }).map_err(|error| match error {
            LockError::Closed => over(),
            error => error,
        })?;
        // The I/O thread keeps to the limit; longer than that only if it hangs.
        let unknown = |why: &str| LockError::Unavailable { doing: doing(), source: Cause::new(why) };
        match client.mailbox.wait_for(&answer, Instant::now().checked_add(limit.saturating_add(GRACE))) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(FencedFailure::NotHeld)) => Err(over()),
            Ok(Err(FencedFailure::Failed(failure))) => Err(lock_error(failure, &doing())),
            Err(oneshot::RecvTimeoutError::Timeout) => Err(unknown("the I/O thread did not answer in time")),
            Err(oneshot::RecvTimeoutError::Disconnected) => Err(match client.mailbox.gone() {
                LockError::Closed => unknown("the manager was closed before etcd answered"),
                error => error,
            }),
        }
    }
}
