//! What can go wrong, as a caller sees it.

mod cause;
mod code;

use std::fmt;
use std::time::Duration;

pub use cause::Cause;
pub use code::ErrorCode;

use crate::info::LockInfo;
use crate::kv::{Failure, FailureClass};
use crate::name::InvalidName;

/// Why a hold ended although its guard was still there; from [`Hold::loss`](crate::Hold::loss) and
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

/// Everything a call of this library can fail with.
///
/// The variants are for `match`; [`code`](Self::code) is a stable string for logs, metrics and other languages.
///
/// **`Display` says it all** in one line: what was being done, the endpoint, its answer, and a hint where there is one.
/// So `{}` is enough in a log. [`source`](std::error::Error::source) is there only where the line abridges what the
/// network or etcd said, and has those words in full; a report of the whole chain repeats nothing.
///
/// Variants may gain fields: match them with `..`.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// use etcd_lock::LockError;
///
/// match manager.new_lock("") {
///     Err(LockError::InvalidKey { why, .. }) => assert_eq!(why, "a key has at least one character"),
///     other => panic!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LockError {
    /// The time limit ran out before the lock was free.
    #[non_exhaustive]
    Timeout {
        /// The lock's key.
        key: String,
        /// How long the call waited.
        waited: Duration,
        /// Who held it at the end, if etcd could still tell.
        holder: Option<Box<LockInfo>>,
    },
    /// To [`force_unlock`](crate::LockManager::force_unlock): nobody holds the lock.
    #[non_exhaustive]
    NotHeld {
        /// The lock's key.
        key: String,
    },
    /// The wait that [`LockOptions::max_retries`](crate::LockOptions::max_retries) allows ran out while another held it.
    #[non_exhaustive]
    AlreadyHeld {
        /// The lock's key.
        key: String,
        /// Who held it at the end, if etcd could still tell.
        holder: Option<Box<LockInfo>>,
    },
    /// The hold was lost: what it protects may be somebody else's by now.
    #[non_exhaustive]
    Expired {
        /// The lock's key.
        key: String,
        /// Why it was lost.
        reason: LossReason,
    },
    /// The lock is held, but etcd's last answer assures it for less time than was asked for. The next renewal, after a
    /// third of the TTL at most, assures it for longer; more than the TTL less the safety margin it never is.
    #[non_exhaustive]
    InsufficientTime {
        /// The lock's key.
        key: String,
        /// The assured time that is left.
        remaining: Duration,
        /// What was asked for.
        needed: Duration,
    },
    /// The lock's key cannot be used.
    #[non_exhaustive]
    InvalidKey {
        /// The beginning of the key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option, an endpoint or the root cannot be used. Nothing changes that but another configuration.
    #[non_exhaustive]
    InvalidOptions {
        /// What is wrong, and with which option.
        why: String,
    },
    /// The cancel channel had a message or was disconnected.
    #[non_exhaustive]
    Cancelled {
        /// The lock's key.
        key: String,
    },
    /// The manager was closed.
    Closed,
    /// The manager belongs to the process that this one was forked from; none of its threads came along. Connect anew.
    Forked,
    /// etcd could not be reached, or did not answer in time.
    #[non_exhaustive]
    Unavailable {
        /// What was being done.
        doing: String,
        /// Which endpoint, and what it or the network said.
        source: Cause,
    },
    /// The endpoints answer for another etcd cluster than the one in which this manager's locks are.
    #[non_exhaustive]
    ClusterChanged {
        /// What was being done.
        doing: String,
        /// Which endpoints answered for which cluster.
        source: Cause,
    },
    /// etcd wants credentials and was given none, or refused those that it was given.
    #[non_exhaustive]
    Unauthenticated {
        /// Which endpoint, and what it said.
        source: Cause,
    },
    /// The user's role lacks a permission on the keys below the root.
    #[non_exhaustive]
    PermissionDenied {
        /// What was being done.
        doing: String,
        /// Which endpoint, what it said, and to which user about which key.
        source: Cause,
    },
    /// etcd's database is full (its NOSPACE alarm is on). Locks held stay held and can be released.
    NoSpace,
    /// The manager's I/O thread died, by a panic that is a defect of this library; the log has its message. Every hold of
    /// the manager is lost. Connect anew.
    Crashed,
    /// A defect of this library or of etcd, or a thread that could not be started; nothing a caller did.
    #[non_exhaustive]
    Internal {
        /// What happened.
        what: String,
    },
}

// Every call's result has room for one.
const _: () = assert!(size_of::<LockError>() < 64);

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { key, waited, holder } => {
                write!(f, "lock {key:?} not acquired within {:?}", in_millis(waited))?;
                if holder.is_some() { write!(f, ", held{}", by(holder.as_deref())) } else { Ok(()) }
            }
            Self::NotHeld { key } => write!(f, "lock {key:?} is not held"),
            Self::AlreadyHeld { key, holder } => {
                write!(f, "lock {key:?} is already held{}", by(holder.as_deref()))
            }
            Self::Expired { key, reason } => write!(f, "lock {key:?} was lost: {reason}"),
            Self::InsufficientTime { key, remaining, needed } => write!(
                f,
                "lock {key:?} is held, but assured for {:?} only, not for {needed:?}",
                in_millis(remaining)
            ),
            Self::InvalidKey { key, why } => write!(f, "invalid key {key:?}: {why}"),
            Self::InvalidOptions { why } => write!(f, "invalid options: {why}"),
            Self::Cancelled { key } => write!(f, "waiting for lock {key:?} was cancelled"),
            Self::Closed => f.write_str("the lock manager is closed"),
            Self::Forked => {
                f.write_str("the lock manager belongs to the parent process; connect again after fork()")
            }
            Self::Unavailable { doing, source } => {
                write!(f, "etcd is unavailable while {doing}: {source}")
            }
            Self::ClusterChanged { doing, source } => {
                write!(f, "etcd is another cluster than before while {doing}: {source}")
            }
            Self::Unauthenticated { source } => write!(f, "not authenticated to etcd: {source}"),
            Self::PermissionDenied { doing, source } => {
                write!(f, "etcd denied permission while {doing}: {source}")
            }
            Self::NoSpace => f.write_str("etcd's database is full (its NOSPACE alarm is on)"),
            Self::Crashed => f.write_str("the lock manager's I/O thread died; connect again"),
            Self::Internal { what } => write!(f, "internal error: {what}"),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unavailable { source, .. }
            | Self::ClusterChanged { source, .. }
            | Self::Unauthenticated { source }
            | Self::PermissionDenied { source, .. } => source.verbatim(),
            _ => None,
        }
    }
}

/// Without digits that nobody reads.
fn in_millis(duration: &Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// ` by ...`, to follow "held".
fn by(holder: Option<&LockInfo>) -> String {
    match holder.map(|info| info.owner.as_deref()) {
        None => String::new(),
        Some(None) => " by a foreign client".into(),
        Some(Some(owner)) => format!(" by {owner}"),
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
            Self::Crashed => ErrorCode::Crashed,
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

impl From<InvalidName> for LockError {
    fn from(invalid: InvalidName) -> Self {
        match invalid {
            InvalidName::Root { why } => Self::InvalidOptions { why },
            InvalidName::Lock { name: key, why } => Self::InvalidKey { key, why },
        }
    }
}

/// The error of a public call that ended in this failure. `doing` goes on from "etcd is unavailable while ...".
pub(crate) fn lock_error(failure: Failure, doing: &str) -> LockError {
    let source = Cause::new(&failure.message);
    match failure.class {
        FailureClass::NotDone | FailureClass::Unknown | FailureClass::LeaseGone | FailureClass::Compacted => {
            LockError::Unavailable { doing: doing.into(), source }
        }
        FailureClass::ClusterChanged => LockError::ClusterChanged { doing: doing.into(), source },
        FailureClass::NoSpace => LockError::NoSpace,
        FailureClass::Unauthenticated => LockError::Unauthenticated { source },
        FailureClass::PermissionDenied => LockError::PermissionDenied { doing: doing.into(), source },
        FailureClass::TooManyOperations | FailureClass::Refused => {
            LockError::Internal { what: format!("etcd refused a request while {doing}: {}", failure.message) }
        }
    }
}

#[cfg(test)]
mod tests;
