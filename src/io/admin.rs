//! Looking at locks and breaking them, over any store.

use std::time::Duration;

use super::Store;
use crate::error::LockError;
use crate::info::{ForceUnlock, LockInfo};
use crate::name::{LockName, Root};

/// Who holds the lock; `None`: nobody.
pub(crate) async fn lock_info<S: Store>(
    _store: &S,
    _root: &Root,
    _name: &LockName,
    _timeout: Duration,
) -> Result<Option<LockInfo>, LockError> {
    Ok(None)
}

/// Every held lock whose name begins with `prefix`, by name.
pub(crate) async fn list_locks<S: Store>(
    _store: &S,
    _root: &Root,
    _prefix: &str,
    _timeout: Duration,
) -> Result<Vec<LockInfo>, LockError> {
    Ok(Vec::new())
}

/// Takes the lock away from its holder, and tells who that was.
pub(crate) async fn force_unlock<S: Store>(
    _store: &S,
    _root: &Root,
    name: &LockName,
    _scope: ForceUnlock,
    _timeout: Duration,
) -> Result<LockInfo, LockError> {
    Err(LockError::NotHeld { key: name.as_str().into() })
}
