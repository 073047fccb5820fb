//! Options of managers and locks, with their defaults and limits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::LockError;
use crate::mode::Mode;
#[cfg(feature = "tls")]
use crate::tls::TlsOptions;

/// The longest TTL that etcd grants (its `maxLeaseTTL`).
const MAX_TTL: Duration = Duration::from_secs(9_000_000_000);

/// etcd counts leases in whole seconds.
const MIN_TTL: Duration = Duration::from_secs(1);

/// The longest owner name. It is stored in every contender's value and shown in errors.
const MAX_OWNER_BYTES: usize = 256;

/// The smallest default margin: enough for a sleeping thread to run on a busy machine.
const MIN_DEFAULT_MARGIN: Duration = Duration::from_millis(250);

/// How a [`LockManager`](crate::LockManager) connects to etcd and maintains its session.
///
/// Every setter takes and returns the options by value. [`connect`](crate::LockManager::connect) checks the values; the
/// setters do not. `Debug` prints no password and no key.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use etcd_lock::LockManagerOptions;
///
/// let options = LockManagerOptions::default()
///     .ttl(Duration::from_secs(10))
///     .owner("billing/7")
///     .credentials("locker", "hunter2");
/// assert!(!format!("{options:?}").contains("hunter2"));
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing until they are given to `LockManager::connect`"]
pub struct LockManagerOptions {
    pub(crate) ttl: Duration,
    pub(crate) owner: Option<String>,
    pub(crate) credentials: Option<Credentials>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) safety_margin: Option<Duration>,
    pub(crate) close_timeout: Duration,
}

/// A user of etcd. `Debug` prints no password.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Default for LockManagerOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            owner: None,
            credentials: None,
            #[cfg(feature = "tls")]
            tls: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            safety_margin: None,
            close_timeout: Duration::from_secs(2),
        }
    }
}

impl LockManagerOptions {
    /// The lifetime of the session's lease after its last renewal, and so of every lock held.
    ///
    /// **Default:** 30 s. **Cost:** a short TTL frees the locks of a dead process sooner, and loses those of a live one
    /// sooner when etcd is unreachable. Renewals are sent every third of the TTL. **Limit:** 1 s to 9,000,000,000 s
    /// (etcd's `MaxLeaseTTL`), rounded up to whole seconds. etcd silently raises a TTL below its own minimum (2 s with
    /// its default election timeout); [`SessionInfo::ttl`](crate::SessionInfo) is the TTL granted. With a TTL above 300
    /// s and lease checkpoints enabled in etcd (`--experimental-enable-lease-checkpoint`), a checkpoint that crosses a
    /// renewal can end the session early after an election; `connect` logs a warning.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The name of this process in [`LockInfo::owner`](crate::LockInfo) and in the errors of other waiters.
    ///
    /// **Default:** `<hostname>/<pid>`. **Cost:** its bytes are stored in every contender's value. **Limit:** 1 to 256
    /// bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// The etcd user to authenticate as.
    ///
    /// **Default:** none, for a cluster without authentication. **Cost:** one more request at the start and whenever
    /// the token expires. **Limit:** the user name must not be empty.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials { user: user.into(), password: password.into() });
        self
    }

    /// TLS for endpoints that begin with `https://`.
    ///
    /// **Default:** none; the certificates of `https://` endpoints are then verified against the system's root
    /// certificates. **Cost:** one handshake per connection. **Limit:** certificates and keys must be PEM.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long [`connect`](crate::LockManager::connect) waits for the session to be set up.
    ///
    /// **Default:** 5 s. **Cost:** none while the cluster answers. **Limit:** must not be zero.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The time limit of one attempt of one request to etcd, and of each call that is a single request:
    /// [`try_lock`](crate::DistributedLock::try_lock), [`unlock`](crate::LockGuard::unlock),
    /// [`lock_info`](crate::LockManager::lock_info), [`list_locks`](crate::LockManager::list_locks),
    /// [`queue`](crate::LockManager::queue) and [`force_unlock`](crate::LockManager::force_unlock).
    ///
    /// **Default:** 5 s. **Cost:** a timed-out request may still be executed, and finding out takes further requests,
    /// so allow for the slowest healthy answer. **Limit:** must not be zero.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long before the lease can expire in etcd a hold is declared lost, if renewals fail.
    ///
    /// **Default:** a tenth of the [`ttl`](Self::ttl), at least 250 ms. **Cost:** holds survive an outage of etcd for
    /// that much less time. The margin covers the drift of the clocks' *rates* over one TTL, and the time until a
    /// thread that watches [`done`](crate::Hold::done) runs; below about 20 ms it no longer covers the latter.
    /// **Limit:** less than half the TTL.
    pub fn safety_margin(mut self, margin: Duration) -> Self {
        self.safety_margin = Some(margin);
        self
    }

    /// How long [`close`](crate::LockManager::close), and the drop of the last handle, wait for etcd.
    ///
    /// **Default:** 2 s. **Cost:** keys whose deletion is not confirmed by then may remain in etcd until the lease
    /// expires. **Limit:** must not be zero.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// An error that names the first invalid option, if there is one.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.ttl < MIN_TTL || self.ttl > MAX_TTL {
            return invalid(format!("ttl is {:?}; it must be between {MIN_TTL:?} and {MAX_TTL:?}", self.ttl));
        }
        let margin = self.margin();
        if margin >= self.ttl / 2 {
            return invalid(format!(
                "safety_margin is {margin:?}; it must be less than half the ttl of {:?}",
                self.ttl
            ));
        }
        for (option, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("close_timeout", self.close_timeout),
        ] {
            if timeout.is_zero() {
                return invalid(format!("{option} must not be zero"));
            }
        }
        if let Some(owner) = &self.owner
            && (owner.is_empty() || owner.len() > MAX_OWNER_BYTES)
        {
            return invalid(format!(
                "owner has {} bytes; it must have between 1 and {MAX_OWNER_BYTES}",
                owner.len()
            ));
        }
        if self.credentials.as_ref().is_some_and(|given| given.user.is_empty()) {
            return invalid("the user name of the credentials must not be empty".into());
        }
        Ok(())
    }

    /// The safety margin, given or by default.
    pub(crate) fn margin(&self) -> Duration {
        self.safety_margin.unwrap_or_else(|| MIN_DEFAULT_MARGIN.max(self.ttl / 10))
    }

    /// The owner, given or by default.
    pub(crate) fn owner_name(&self) -> String {
        self.owner.clone().unwrap_or_else(|| {
            format!("{}/{}", gethostname::gethostname().to_string_lossy(), std::process::id())
        })
    }
}

// The default margin fits the shortest TTL.
const _: () = assert!(MIN_DEFAULT_MARGIN.as_millis() * 2 < MIN_TTL.as_millis());

/// Longer than most locks are held, short enough that the warning comes while the wait lasts.
const WARN_AFTER: Duration = Duration::from_secs(30);

/// The longest note. It is part of the lock's key in etcd, and read by whoever looks at the lock.
const MAX_NOTE_BYTES: usize = 1024;

/// How the calls of a [`DistributedLock`](crate::DistributedLock) wait, and who may hold the lock together with them.
/// Passed to [`new_lock_with`](crate::LockManager::new_lock_with), which checks the values.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use etcd_lock::LockOptions;
///
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// // Wait half a second for the current holder, then give up.
/// let options = LockOptions::default().retry_interval(Duration::from_millis(50)).max_retries(10);
/// let lock = manager.new_lock_with("jobs", options)?;
/// assert!(lock.lock().is_ok()); // nobody holds it
///
/// // A bad value is an error, never a panic.
/// let bad = LockOptions::default().retry_interval(Duration::ZERO);
/// assert!(manager.new_lock_with("jobs", bad).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "options do nothing until they are given to `LockManager::new_lock_with`"]
pub struct LockOptions {
    pub(crate) mode: Mode,
    pub(crate) retry_interval: Duration,
    pub(crate) max_retries: u32,
    pub(crate) warn_after: Duration,
    pub(crate) note: Option<Arc<str>>,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self {
            mode: Mode::Exclusive,
            retry_interval: Duration::from_millis(100),
            max_retries: 0,
            warn_after: WARN_AFTER,
            note: None,
        }
    }
}

impl LockOptions {
    /// Who may hold the lock at the same time: nobody else, other readers, or others as long as there are permits.
    /// [`new_read_lock`](crate::LockManager::new_read_lock) and [`new_semaphore`](crate::LockManager::new_semaphore) are
    /// short for the common modes.
    ///
    /// **Default:** [`Mode::Exclusive`]. **Cost:** none; for permits, a waiter may have to read the keys of as many others
    /// as there are permits. **Limit:** 1 to 4096 permits, of which a hold takes at least one and at most all.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::{LockOptions, Mode};
    ///
    /// // A large job takes two of the eight permits.
    /// let options = LockOptions::default().mode(Mode::Permits { take: 2, limit: 8 });
    /// let guard = manager.new_lock_with("workers", options)?.lock()?;
    /// assert_eq!(guard.mode(), Mode::Permits { take: 2, limit: 8 });
    ///
    /// let too_many = LockOptions::default().mode(Mode::Permits { take: 9, limit: 8 });
    /// assert!(manager.new_lock_with("workers", too_many).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The unit of [`max_retries`](Self::max_retries), and the first back-off after a failed request to etcd (doubled
    /// up to 2 s, with jitter). Waiting for a lock never polls, whatever the interval is.
    ///
    /// **Default:** 100 ms. **Cost:** a short interval retries failed requests more often. **Limit:** must not be zero.
    pub fn retry_interval(mut self, interval: Duration) -> Self {
        self.retry_interval = interval;
        self
    }

    /// Limits how long a call waits for a lock, in units of [`retry_interval`](Self::retry_interval). Despite its name
    /// nothing is retried.
    ///
    /// After `retries * retry_interval` the call returns [`LockError::AlreadyHeld`], or [`LockError::Unavailable`] if
    /// etcd could not be reached. The lock is granted as soon as it is free, as without this limit.
    ///
    /// **Default:** 0, which means no limit. **Cost:** none; waiting is event-driven. **Limit:** none; a product beyond
    /// the range of the clock means no limit.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// How long a call waits before it logs one `warn` line, which names the holder, since when it holds the lock, and
    /// the number of waiters.
    ///
    /// Each call logs the line at most once. [`try_lock`](crate::DistributedLock::try_lock) does not wait for the lock
    /// and never logs it.
    ///
    /// **Default:** 30 s. **Cost:** one read per line. **Limit:** must not be zero; `Duration::MAX` disables the line.
    pub fn warn_after(mut self, waited: Duration) -> Self {
        self.warn_after = waited;
        self
    }

    /// A text that others see with the hold: why the lock is held, an address, a job id. It is stored in etcd with the
    /// lock's key, shown in [`LockInfo::note`](crate::LockInfo::note) and to observers, and can be replaced while the lock
    /// is held, by [`Hold::set_note`](crate::Hold::set_note).
    ///
    /// **Default:** none. **Cost:** its bytes in each key; a call takes over the place in the queue of another one of its
    /// process that gave up only if their notes are the same. **Limit:** 1 KiB. An empty text is no note.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        let note: String = note.into();
        self.note = (!note.is_empty()).then(|| note.into());
        self
    }

    /// An error that names the first invalid option, if there is one.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.retry_interval.is_zero() {
            return invalid("retry_interval must not be zero".into());
        }
        if self.warn_after.is_zero() {
            return invalid("warn_after must not be zero".into());
        }
        self.mode.invalid().map_or(Ok(()), invalid)?;
        check_note(self.note.as_deref().unwrap_or_default())
    }

    /// How long a call waits in total; `None`: without a limit.
    pub(crate) fn budget(&self) -> Option<Duration> {
        if self.max_retries == 0 { None } else { self.retry_interval.checked_mul(self.max_retries) }
    }
}

pub(crate) fn check_note(note: &str) -> Result<(), LockError> {
    if note.len() > MAX_NOTE_BYTES {
        return invalid(format!("note has {} bytes; it must have at most {MAX_NOTE_BYTES}", note.len()));
    }
    Ok(())
}

fn invalid(why: String) -> Result<(), LockError> {
    Err(LockError::InvalidOptions { why })
}

#[cfg(test)]
mod tests;
