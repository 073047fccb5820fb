//! What can go wrong, as a caller sees it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::info::LockInfo;

/// Why a hold ended although its guard was still there; from [`LockGuard::loss`](crate::LockGuard::loss) and
/// [`LockError::Expired`].
///
/// # Examples
///
/// ```
/// use etcd_lock::LossReason;
///
/// assert_eq!(LossReason::SessionExpired.to_string(), "the session expired");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// etcd did not answer a renewal in time; the hold was given up before etcd could expire the lease.
    SessionExpired,
    /// The lease ended in etcd: revoked by somebody, or its session key was deleted.
    SessionRevoked,
    /// The lock's key was deleted, by [`force_unlock`](crate::LockManager::force_unlock) or by hand.
    ForceUnlocked,
    /// The manager was closed.
    Closed,
    /// The I/O thread died; nothing watches over the hold any more. Also what a child of `fork()` sees, which has no
    /// I/O thread: the hold is its parent's.
    Crashed,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SessionExpired => "the session expired",
            Self::SessionRevoked => "the session was revoked",
            Self::ForceUnlocked => "the lock was force-unlocked",
            Self::Closed => "the manager was closed",
            Self::Crashed => "the I/O thread died",
        })
    }
}

/// What the network or etcd said, as text: the end of an error's source chain.
#[derive(Clone, PartialEq, Eq)]
pub struct Cause(Arc<str>);

impl Cause {
    pub(crate) fn new(message: impl AsRef<str>) -> Self {
        Self(message.as_ref().into())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for Cause {}

/// Everything a call of this library can fail with.
///
/// The variants are for `match`; [`code`](Self::code) is a stable string for logs, metrics and other languages.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// use etcd_lock::LockError;
///
/// match manager.new_lock("") {
///     Err(LockError::InvalidKey { why, .. }) => assert_eq!(why, "a lock name has at least one character"),
///     other => panic!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The time limit ran out before the lock was free.
    #[error("lock {key:?} not acquired within {:?}{}", in_millis(.waited), held_by(.holder.as_ref()))]
    Timeout {
        /// The lock's name.
        key: String,
        /// How long the call waited.
        waited: Duration,
        /// Who held it at the end, if etcd could still tell.
        holder: Option<LockInfo>,
    },
    /// Nobody holds the lock (any more).
    #[error("lock {key:?} is not held")]
    NotHeld {
        /// The lock's name.
        key: String,
    },
    /// The retries of [`LockOptions::max_retries`](crate::LockOptions::max_retries) ran out while another held it.
    #[error("lock {key:?} is already held{}", held_by(.holder.as_ref()))]
    AlreadyHeld {
        /// The lock's name.
        key: String,
        /// Who held it at the end, if etcd could still tell.
        holder: Option<LockInfo>,
    },
    /// The hold was lost, or too little of its assured time is left.
    #[error("the hold of lock {key:?} is over: {reason}")]
    Expired {
        /// The lock's name.
        key: String,
        /// Why it was lost.
        reason: LossReason,
    },
    /// The hold stands, but less of its assured time is left than was asked for.
    #[error("the hold of lock {key:?} is assured for {:?} only, not for {needed:?}", in_millis(.remaining))]
    InsufficientTime {
        /// The lock's name.
        key: String,
        /// The assured time that is left.
        remaining: Duration,
        /// What was asked for.
        needed: Duration,
    },
    /// The lock name cannot be used.
    #[error("invalid lock name {key:?}: {why}")]
    InvalidKey {
        /// The beginning of the name.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option, an endpoint or the root cannot be used.
    #[error("invalid options: {why}")]
    InvalidOptions {
        /// What is wrong, and with which option.
        why: String,
    },
    /// The cancel channel had a message or was disconnected.
    #[error("waiting for lock {key:?} was cancelled")]
    Cancelled {
        /// The lock's name.
        key: String,
    },
    /// The manager was closed.
    #[error("the lock manager is closed")]
    Closed,
    /// The manager belongs to the process that this one was forked from.
    #[error("the lock manager belongs to the parent process; connect again after the fork")]
    Forked,
    /// etcd could not be reached, or did not answer in time.
    #[error("etcd is unavailable while {doing}")]
    Unavailable {
        /// What was being done.
        doing: String,
        /// What the network or etcd said.
        source: Cause,
    },
    /// The endpoints answer for another etcd cluster than the one that the manager belongs to.
    #[error("etcd is another cluster than before while {doing}")]
    ClusterChanged {
        /// What was being done.
        doing: String,
        /// Which endpoints answered for which cluster.
        source: Cause,
    },
    /// etcd wants other credentials.
    #[error("etcd refused the credentials")]
    Unauthenticated {
        /// What etcd said.
        source: Cause,
    },
    /// The user's role lacks a permission on the keys below the root.
    #[error("etcd denied permission while {doing}")]
    PermissionDenied {
        /// What was being done.
        doing: String,
        /// What etcd said.
        source: Cause,
    },
    /// etcd's database is full (its NOSPACE alarm is on). Locks held stay held and can be released.
    #[error("etcd's database space is exceeded")]
    NoSpace,
    /// A defect of this library or of etcd; nothing a caller did.
    #[error("internal error: {what}")]
    Internal {
        /// What happened.
        what: String,
    },
}

/// Without digits that nobody reads.
fn in_millis(duration: &Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// `, held by ...` for an error's text.
fn held_by(holder: Option<&LockInfo>) -> String {
    match holder.map(|info| info.owner.as_deref()) {
        None => String::new(),
        Some(None) => ", held by a foreign client".into(),
        Some(Some(owner)) => format!(", held by {owner}"),
    }
}

/// The stable name of a [`LockError`] variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// [`LockError::Timeout`]
    LockTimeout,
    /// [`LockError::NotHeld`]
    LockNotHeld,
    /// [`LockError::AlreadyHeld`]
    LockAlreadyHeld,
    /// [`LockError::Expired`]
    LockExpired,
    /// [`LockError::InsufficientTime`]
    InsufficientTime,
    /// [`LockError::InvalidKey`]
    InvalidKey,
    /// [`LockError::InvalidOptions`]
    InvalidOptions,
    /// [`LockError::Cancelled`]
    Cancelled,
    /// [`LockError::Closed`]
    Closed,
    /// [`LockError::Forked`]
    Forked,
    /// [`LockError::Unavailable`]
    Unavailable,
    /// [`LockError::ClusterChanged`]
    ClusterChanged,
    /// [`LockError::Unauthenticated`]
    Unauthenticated,
    /// [`LockError::PermissionDenied`]
    PermissionDenied,
    /// [`LockError::NoSpace`]
    NoSpace,
    /// [`LockError::Internal`]
    Internal,
}

impl ErrorCode {
    /// The code as a string that never changes, for example `LOCK_TIMEOUT`.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(etcd_lock::ErrorCode::LockTimeout.as_str(), "LOCK_TIMEOUT");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LockTimeout => "LOCK_TIMEOUT",
            Self::LockNotHeld => "LOCK_NOT_HELD",
            Self::LockAlreadyHeld => "LOCK_ALREADY_HELD",
            Self::LockExpired => "LOCK_EXPIRED",
            Self::InsufficientTime => "INSUFFICIENT_TIME",
            Self::InvalidKey => "INVALID_KEY",
            Self::InvalidOptions => "INVALID_OPTIONS",
            Self::Cancelled => "CANCELLED",
            Self::Closed => "CLOSED",
            Self::Forked => "FORKED",
            Self::Unavailable => "UNAVAILABLE",
            Self::ClusterChanged => "CLUSTER_CHANGED",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NoSpace => "NO_SPACE",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl LockError {
    /// The stable code of this error.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::{ErrorCode, LockError};
    ///
    /// assert_eq!(LockError::Closed.code(), ErrorCode::Closed);
    /// assert_eq!(LockError::NoSpace.code().to_string(), "NO_SPACE");
    /// ```
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Timeout { .. } => ErrorCode::LockTimeout,
            Self::NotHeld { .. } => ErrorCode::LockNotHeld,
            Self::AlreadyHeld { .. } => ErrorCode::LockAlreadyHeld,
            Self::Expired { .. } => ErrorCode::LockExpired,
            Self::InsufficientTime { .. } => ErrorCode::InsufficientTime,
            Self::InvalidKey { .. } => ErrorCode::InvalidKey,
            Self::InvalidOptions { .. } => ErrorCode::InvalidOptions,
            Self::Cancelled { .. } => ErrorCode::Cancelled,
            Self::Closed => ErrorCode::Closed,
            Self::Forked => ErrorCode::Forked,
            Self::Unavailable { .. } => ErrorCode::Unavailable,
            Self::ClusterChanged { .. } => ErrorCode::ClusterChanged,
            Self::Unauthenticated { .. } => ErrorCode::Unauthenticated,
            Self::PermissionDenied { .. } => ErrorCode::PermissionDenied,
            Self::NoSpace => ErrorCode::NoSpace,
            Self::Internal { .. } => ErrorCode::Internal,
        }
    }

    /// Whether the same call may well succeed later, without anybody changing the program or its configuration.
    ///
    /// An [`Expired`](Self::Expired) hold is not retryable as such: drop the guard, undo or finish what it protected,
    /// and take the lock again.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::LockError;
    ///
    /// assert!(LockError::NoSpace.is_retryable());
    /// assert!(!LockError::Closed.is_retryable());
    /// ```
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::AlreadyHeld { .. }
                | Self::InsufficientTime { .. }
                | Self::Unavailable { .. }
                | Self::ClusterChanged { .. }
                | Self::NoSpace
        )
    }
}
