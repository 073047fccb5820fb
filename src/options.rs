//! Options of managers and locks, with their defaults.

use std::fmt;
use std::time::Duration;

use crate::error::LockError;
#[cfg(feature = "tls")]
use crate::tls::TlsOptions;

/// The longest TTL that etcd grants (its `maxLeaseTTL`).
const MAX_TTL: Duration = Duration::from_secs(9_000_000_000);

/// etcd counts leases in whole seconds.
const MIN_TTL: Duration = Duration::from_secs(1);

/// The longest owner's name: it is stored with every contender's key and shown in errors.
const MAX_OWNER_BYTES: usize = 256;

/// The least default margin: enough for a sleeping I/O thread to be woken on a busy machine.
const MIN_DEFAULT_MARGIN: Duration = Duration::from_millis(250);

/// How a [`LockManager`](crate::LockManager) connects and keeps its session.
///
/// Every setter takes and returns the options by value. Values are checked by
/// [`connect`](crate::LockManager::connect), never by the setters. `Debug` prints no password and no key.
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

/// A user of etcd. Its `Debug` shows no password.
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
    /// How long etcd keeps the session, and with it every lock held, after the last renewal it has seen.
    ///
    /// **Default:** 30 s. **Cost:** a short TTL frees the locks of a dead process sooner, and loses those of a live one
    /// sooner when etcd is out of reach; renewals go out every third of it. **Limit:** 1 s to 9,000,000,000 s, sent
    /// rounded up to whole seconds. etcd raises a TTL below its own floor (2 s with its default election timeout)
    /// without a word; [`SessionInfo::ttl`](crate::SessionInfo) tells what was granted. Above 300 s, where etcd makes lease
    /// checkpoints (`--experimental-enable-lease-checkpoint`), one that crosses a renewal can end the session early after an
    /// election; `connect` warns of it.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// What this process is called in [`LockInfo::owner`](crate::LockInfo) and in the errors of those who wait.
    ///
    /// **Default:** `<hostname>/<pid>`. **Cost:** its bytes are stored with every contender's key. **Limit:** 1 to 256
    /// bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// The user of etcd to work as.
    ///
    /// **Default:** none, for a cluster without authentication. **Cost:** one request more at the start and whenever
    /// the token expires. **Limit:** the user's name is not empty.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials { user: user.into(), password: password.into() });
        self
    }

    /// TLS for endpoints that begin with `https://`.
    ///
    /// **Default:** none; an `https://` endpoint is then verified against the system's root certificates.
    /// **Cost:** a handshake for each connection. **Limit:** certificates and keys are PEM.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long [`connect`](crate::LockManager::connect) may take until a session stands.
    ///
    /// **Default:** 5 s. **Cost:** none; a cluster that answers is not waited for. **Limit:** not zero.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one attempt of one request to etcd may take, and each call that is a single question:
    /// [`try_lock`](crate::DistributedLock::try_lock), [`unlock`](crate::LockGuard::unlock),
    /// [`lock_info`](crate::LockManager::lock_info), [`list_locks`](crate::LockManager::list_locks),
    /// [`queue`](crate::LockManager::queue) and [`force_unlock`](crate::LockManager::force_unlock).
    ///
    /// **Default:** 5 s. **Cost:** a request that is cut short may still be carried out, which takes further requests
    /// to find out; so a little more than the slowest healthy answer is best. **Limit:** not zero.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long before etcd could expire the lease a hold is given up.
    ///
    /// **Default:** a tenth of the [`ttl`](Self::ttl), but at least 250 ms. **Cost:** that much less time to live
    /// through an outage of etcd. It covers the drift of the clocks' *rates* over one TTL and the time until a thread
    /// that watches [`done`](crate::Hold::done) runs; below some 20 ms it no longer covers the latter.
    /// **Limit:** less than half the TTL.
    pub fn safety_margin(mut self, margin: Duration) -> Self {
        self.safety_margin = Some(margin);
        self
    }

    /// How long [`close`](crate::LockManager::close), and the drop of the last handle, may wait for etcd.
    ///
    /// **Default:** 2 s. **Cost:** what is not confirmed by then stays in etcd until its lease expires.
    /// **Limit:** not zero.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// What is wrong with these options, if anything.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.ttl < MIN_TTL || self.ttl > MAX_TTL {
            return invalid(format!("ttl is {:?}; it must be from {MIN_TTL:?} to {MAX_TTL:?}", self.ttl));
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
                return invalid(format!("{option} is zero; nothing can be done in no time"));
            }
        }
        if let Some(owner) = &self.owner
            && (owner.is_empty() || owner.len() > MAX_OWNER_BYTES)
        {
            return invalid(format!(
                "owner has {} bytes; it must have from 1 to {MAX_OWNER_BYTES}",
                owner.len()
            ));
        }
        if self.credentials.as_ref().is_some_and(|given| given.user.is_empty()) {
            return invalid("credentials: the user's name is empty".into());
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

/// Long enough to be out of the ordinary for most locks, short enough to be seen while it lasts.
const WARN_AFTER: Duration = Duration::from_secs(30);

/// How a lock waits. For [`new_lock_with`](crate::LockManager::new_lock_with), which checks the values.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use etcd_lock::LockOptions;
///
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// // Wait half a second for whoever holds the lock, then give up.
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
    pub(crate) retry_interval: Duration,
    pub(crate) max_retries: u32,
    pub(crate) warn_after: Duration,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { retry_interval: Duration::from_millis(100), max_retries: 0, warn_after: WARN_AFTER }
    }
}

impl LockOptions {
    /// The unit of the limit that [`max_retries`](Self::max_retries) sets, and the first pause after a request to etcd has failed (it
    /// doubles up to 2 s, jittered). Waiting for a lock polls nothing, whatever the interval is.
    ///
    /// **Default:** 100 ms. **Cost:** a short one asks an ailing cluster more often. **Limit:** not zero.
    pub fn retry_interval(mut self, interval: Duration) -> Self {
        self.retry_interval = interval;
        self
    }

    /// Limits how long a call waits for a lock; nothing is retried, whatever the name says.
    ///
    /// After so many [`retry_interval`](Self::retry_interval)s the call fails with [`LockError::AlreadyHeld`], or with
    /// [`LockError::Unavailable`] if etcd could not be reached. The lock is granted at the moment it is free, as without
    /// this limit.
    ///
    /// **Default:** 0, which waits for ever. **Cost:** none; waiting is event-driven. **Limit:** none; a product that
    /// is beyond the clock's range is for ever.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// How long a call waits before one `warn` line says so: who holds the lock, since when, and how many wait.
    ///
    /// A call that goes on waiting logs nothing more. [`try_lock`](crate::DistributedLock::try_lock), which does not wait
    /// for the lock, never logs it.
    ///
    /// **Default:** 30 s. **Cost:** one read for each line. **Limit:** not zero; `Duration::MAX` is never.
    pub fn warn_after(mut self, waited: Duration) -> Self {
        self.warn_after = waited;
        self
    }

    /// What is wrong with these options, if anything.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.retry_interval.is_zero() {
            return invalid("retry_interval is zero; it is a pause".into());
        }
        if self.warn_after.is_zero() {
            return invalid("warn_after is zero; every wait would be warned of".into());
        }
        Ok(())
    }

    /// How long a call waits in all; `None`: for ever.
    pub(crate) fn budget(&self) -> Option<Duration> {
        if self.max_retries == 0 { None } else { self.retry_interval.checked_mul(self.max_retries) }
    }
}

fn invalid(why: String) -> Result<(), LockError> {
    Err(LockError::InvalidOptions { why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn why(options: &LockManagerOptions) -> String {
        match options.check() {
            Err(LockError::InvalidOptions { why }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_valid_and_as_documented() {
        let options = LockManagerOptions::default();
        options.check().unwrap();
        assert_eq!(options.ttl, 30 * SECOND);
        assert_eq!(options.margin(), 3 * SECOND);
        assert_eq!((options.connect_timeout, options.request_timeout), (5 * SECOND, 5 * SECOND));
        assert_eq!(options.close_timeout, 2 * SECOND);
        assert!(options.owner_name().ends_with(&format!("/{}", std::process::id())));

        let options = LockOptions::default();
        options.check().unwrap();
        assert_eq!((options.retry_interval, options.warn_after), (SECOND / 10, 30 * SECOND));
        assert_eq!(options.budget(), None);
    }

    #[test]
    fn every_bad_value_is_named() {
        let base = LockManagerOptions::default;
        assert!(why(&base().ttl(Duration::from_millis(999))).contains("ttl"));
        assert!(why(&base().ttl(MAX_TTL + SECOND)).contains("ttl"));
        assert!(why(&base().ttl(4 * SECOND).safety_margin(2 * SECOND)).contains("safety_margin"));
        assert!(why(&base().connect_timeout(Duration::ZERO)).contains("connect_timeout"));
        assert!(why(&base().request_timeout(Duration::ZERO)).contains("request_timeout"));
        assert!(why(&base().close_timeout(Duration::ZERO)).contains("close_timeout"));
        assert!(why(&base().owner("")).contains("owner"));
        assert!(why(&base().owner("x".repeat(257))).contains("owner"));
        assert!(why(&base().credentials("", "x")).contains("credentials"));
        assert!(LockOptions::default().retry_interval(Duration::ZERO).check().is_err());
        assert!(LockOptions::default().warn_after(Duration::ZERO).check().is_err());
        LockOptions::default().warn_after(Duration::MAX).check().unwrap();
    }

    #[test]
    fn the_limits_themselves_are_valid() {
        let base = LockManagerOptions::default;
        base().ttl(MIN_TTL).check().unwrap();
        base().ttl(MAX_TTL).check().unwrap();
        base().owner("x".repeat(256)).check().unwrap();
        base().ttl(4 * SECOND).safety_margin(Duration::from_millis(1999)).check().unwrap();
    }

    #[test]
    fn retries_beyond_the_clock_are_for_ever() {
        let options = LockOptions::default().retry_interval(Duration::MAX).max_retries(2);
        options.check().unwrap();
        assert_eq!(options.budget(), None);
        let options = LockOptions::default().max_retries(7);
        assert_eq!(options.budget(), Some(Duration::from_millis(700)));
    }

    #[test]
    fn debug_shows_no_secret() {
        let options = LockManagerOptions::default().credentials("alice", "s3cret");
        #[cfg(feature = "tls")]
        let options = options.tls(TlsOptions::default().identity_pem("CERTIFICATE", "s3cret"));
        let shown = format!("{options:?}");
        assert!(shown.contains("alice"), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
