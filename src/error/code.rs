//! The stable codes of errors.

use std::fmt;

/// The stable code of a [`LockError`](crate::LockError) variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// [`LockError::Timeout`](crate::LockError::Timeout)
    LockTimeout,
    /// [`LockError::NotHeld`](crate::LockError::NotHeld)
    LockNotHeld,
    /// [`LockError::AlreadyHeld`](crate::LockError::AlreadyHeld)
    LockAlreadyHeld,
    /// [`LockError::Expired`](crate::LockError::Expired)
    LockExpired,
    /// [`LockError::InsufficientTime`](crate::LockError::InsufficientTime)
    InsufficientTime,
    /// [`LockError::InvalidKey`](crate::LockError::InvalidKey)
    InvalidKey,
    /// [`LockError::InvalidOptions`](crate::LockError::InvalidOptions)
    InvalidOptions,
    /// [`LockError::Cancelled`](crate::LockError::Cancelled)
    Cancelled,
    /// [`LockError::Closed`](crate::LockError::Closed)
    Closed,
    /// [`LockError::Forked`](crate::LockError::Forked)
    Forked,
    /// [`LockError::Unavailable`](crate::LockError::Unavailable)
    Unavailable,
    /// [`LockError::ClusterChanged`](crate::LockError::ClusterChanged)
    ClusterChanged,
    /// [`LockError::Unauthenticated`](crate::LockError::Unauthenticated)
    Unauthenticated,
    /// [`LockError::PermissionDenied`](crate::LockError::PermissionDenied)
    PermissionDenied,
    /// [`LockError::TooLarge`](crate::LockError::TooLarge)
    TooLarge,
    /// [`LockError::NoSpace`](crate::LockError::NoSpace)
    NoSpace,
    /// [`LockError::Crashed`](crate::LockError::Crashed)
    Crashed,
    /// [`LockError::Internal`](crate::LockError::Internal)
    Internal,
}

impl ErrorCode {
    /// Returns the code as a string that never changes, for example `LOCK_TIMEOUT`.
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
            Self::TooLarge => "TOO_LARGE",
            Self::NoSpace => "NO_SPACE",
            Self::Crashed => "CRASHED",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
