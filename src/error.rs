//! The errors of the public API.

mod cause;
mod code;

use std::fmt;
use std::time::Duration;

pub use cause::Cause;
pub use code::ErrorCode;

use crate::info::LockInfo;
use crate::kv::{Failure, FailureClass};
use crate::name::InvalidName;

/// Why a hold was lost while a guard existed; returned by [`Hold::loss`](crate::Hold::loss) and part of
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
    /// etcd did not answer a renewal in time. The hold ended before the lease could expire in etcd.
    SessionExpired,
    /// The lease ended in etcd: it was revoked, or its session key was deleted.
    SessionRevoked,
    /// The lock's key was deleted, by [`force_unlock`](crate::LockManager::force_unlock) or by hand.
    ForceUnlocked,
    /// The manager was closed.
    Closed,
    /// The I/O thread died, so the hold is no longer renewed. Also in a child of `fork()`, which has no I/O thread: the
    /// parent holds the lock.
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

/// The error of every call of this library.
///
/// Match on the variants in programs; [`code`](Self::code) is a stable string for logs, metrics and other languages.
///
/// **`Display` is complete in one line**: the operation, the endpoint, its answer, and a hint where there is one. So
/// `{}` is enough in a log. [`source`](std::error::Error::source) is present only where the line shortens the words of
/// etcd or of the network, and has them in full; a report of the whole chain repeats nothing.
///
/// Variants may gain fields, so match them with `..`.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// use etcd_lock::LockError;
///
/// match manager.new_lock("") {
///     Err(LockError::InvalidKey { why, .. }) => assert_eq!(why, "a key must not be empty"),
///     other => panic!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LockError {
    /// The timeout passed before the lock was free.
    #[non_exhaustive]
    Timeout {
        /// The key of the lock.
        key: String,
        /// How long the call waited.
        waited: Duration,
        /// The first holder at the end of the wait, if the look-up succeeded.
        holder: Option<Box<LockInfo>>,
    },
    /// Returned by [`force_unlock`](crate::LockManager::force_unlock): the lock is free.
    #[non_exhaustive]
    NotHeld {
        /// The key of the lock.
        key: String,
    },
    /// The limit of [`LockOptions::max_retries`](crate::LockOptions::max_retries) ran out while another holder had the
    /// lock.
    #[non_exhaustive]
    AlreadyHeld {
        /// The key of the lock.
        key: String,
        /// The first holder at the end of the wait, if the look-up succeeded.
        holder: Option<Box<LockInfo>>,
    },
    /// The hold was lost: another holder may have the lock by now.
    #[non_exhaustive]
    Expired {
        /// The key of the lock.
        key: String,
        /// Why it was lost.
        reason: LossReason,
    },
    /// The lock is held, but for less time than requested. The next renewal, at most a third of the TTL later, extends
    /// the hold, to at most the TTL minus the safety margin.
    #[non_exhaustive]
    InsufficientTime {
        /// The key of the lock.
        key: String,
        /// How long the hold lasts if etcd never answers again.
        remaining: Duration,
        /// The time that was requested.
        needed: Duration,
    },
    /// The key of the lock is invalid.
    #[non_exhaustive]
    InvalidKey {
        /// The first 64 characters of the key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option, an endpoint or the root is invalid. Only a different configuration helps.
    #[non_exhaustive]
    InvalidOptions {
        /// What is wrong, and with which option.
        why: String,
    },
    /// The cancel channel received a message or was disconnected.
    #[non_exhaustive]
    Cancelled {
        /// The key of the lock.
        key: String,
    },
    /// The manager was closed.
    Closed,
    /// The manager was created by the process that this one was forked from, and its threads run only there. Connect
    /// again.
    Forked,
    /// etcd could not be reached, or did not answer in time.
    #[non_exhaustive]
    Unavailable {
        /// The operation.
        doing: String,
        /// The endpoint, and the words of etcd or of the network.
        source: Cause,
    },
    /// The endpoints belong to a different etcd cluster than the one that has this manager's locks.
    #[non_exhaustive]
    ClusterChanged {
        /// The operation.
        doing: String,
        /// The endpoints and their clusters.
        source: Cause,
    },
    /// etcd requires credentials and got none, or refused those given.
    #[non_exhaustive]
    Unauthenticated {
        /// The endpoint and its answer.
        source: Cause,
    },
    /// The user's role lacks a permission on the keys below the root.
    #[non_exhaustive]
    PermissionDenied {
        /// The operation.
        doing: String,
        /// The endpoint, its answer, the user and the key.
        source: Cause,
    },
    /// The request exceeds a limit of etcd, by default 1.5 MiB (`--max-request-bytes`) and 128 operations
    /// (`--max-txn-ops`). Nothing was written.
    #[non_exhaustive]
    TooLarge {
        /// The operation.
        doing: String,
        /// The endpoint and its answer.
        source: Cause,
    },
    /// etcd's database is full (its NOSPACE alarm is on). Held locks stay held and can be released.
    NoSpace,
    /// The manager's I/O thread panicked, which is a defect of this library; the panic message is in the log. All holds
    /// of the manager are lost. Connect again.
    Crashed,
    /// A defect of this library or of etcd, or a thread that could not be started. Not caused by the caller.
    #[non_exhaustive]
    Internal {
        /// What happened.
        what: String,
    },
}

// Every `Result` of the API has the size of the error, so keep it small.
const _: () = assert!(size_of::<LockError>() < 64);

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { key, waited, holder } => {
                write!(f, "lock {key:?} not acquired after {}", in_millis(waited))?;
                if holder.is_some() { write!(f, ", held{}", by(holder.as_deref())) } else { Ok(()) }
            }
            Self::NotHeld { key } => write!(f, "lock {key:?} is not held"),
            Self::AlreadyHeld { key, holder } => {
                write!(f, "lock {key:?} is already held{}", by(holder.as_deref()))
            }
            Self::Expired { key, reason } => write!(f, "lock {key:?} was lost: {reason}"),
            Self::InsufficientTime { key, remaining, needed } => write!(
                f,
                "lock {key:?} is held, but assured for only {}, not {needed:?}",
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
                write!(f, "the endpoints belong to another etcd cluster than before while {doing}: {source}")
            }
            Self::Unauthenticated { source } => write!(f, "not authenticated to etcd: {source}"),
            Self::PermissionDenied { doing, source } => {
                write!(f, "etcd denied permission while {doing}: {source}")
            }
            Self::TooLarge { doing, source } => write!(f, "too large for etcd while {doing}: {source}"),
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
            | Self::PermissionDenied { source, .. }
            | Self::TooLarge { source, .. } => source.verbatim(),
            _ => None,
        }
    }
}

/// The text of a duration, without the digits below a millisecond.
fn in_millis(duration: &Duration) -> String {
    match u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) {
        // `Debug` shows zero in nanoseconds.
        0 => "0ms".into(),
        millis => format!("{:?}", Duration::from_millis(millis)),
    }
}

/// The text ` by <owner>`, which follows "held", with the mode if it is not exclusive.
fn by(holder: Option<&LockInfo>) -> String {
    let by = |info: &LockInfo| {
        format!(" by {}{}", info.owner.as_deref().unwrap_or("a foreign client"), info.mode.remark())
    };
    holder.map(by).unwrap_or_default()
}

impl LockError {
    /// Returns the stable code of this error.
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
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::NoSpace => ErrorCode::NoSpace,
            Self::Crashed => ErrorCode::Crashed,
            Self::Internal { .. } => ErrorCode::Internal,
        }
    }

    /// Returns whether the same call may succeed later without a change of the program or of its configuration.
    ///
    /// [`Expired`](Self::Expired) is not retryable: drop the guard, undo or complete the work that it protected, and
    /// acquire the lock again.
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

/// The error of a public call that ended with this failure. `doing` completes the sentence "etcd is unavailable while
/// ...".
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
        FailureClass::TooManyOperations | FailureClass::TooLarge => {
            LockError::TooLarge { doing: doing.into(), source }
        }
        FailureClass::Refused => {
            LockError::Internal { what: format!("etcd refused a request while {doing}: {}", failure.message) }
        }
    }
}

#[cfg(test)]
mod tests;
