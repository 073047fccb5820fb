//! A resource protected by a lock: it rejects writers with an older fencing token than it has seen.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A counter that the holders of a lock increment, shared by name: one register for each lock.
#[derive(Debug, Default)]
pub(crate) struct Register {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    newest: u64,
    value: u64,
    accepted: u64,
    refused: u64,
}

/// The writer's token is older than one that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale;

impl Register {
    /// Reads under a token.
    pub(crate) fn read(&self, token: u64) -> Result<u64, Stale> {
        let mut inner = self.lock();
        inner.check(token)?;
        Ok(inner.value)
    }

    /// Writes under a token.
    pub(crate) fn write(&self, token: u64, value: u64) -> Result<(), Stale> {
        let mut inner = self.lock();
        inner.check(token)?;
        inner.value = value;
        inner.accepted += 1;
        Ok(())
    }

    /// Panics unless every accepted write is counted, so none was lost.
    #[track_caller]
    pub(crate) fn judge(&self, name: &str) {
        let inner = self.lock();
        assert_eq!(inner.value, inner.accepted, "lost writes of {name}: {inner:?}");
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn check(&mut self, token: u64) -> Result<(), Stale> {
        if token < self.newest {
            self.refused += 1;
            return Err(Stale);
        }
        self.newest = token;
        Ok(())
    }
}
