//! The note of a hold.

use std::sync::Arc;

use super::hold::Hold;
use crate::error::LockError;
use crate::options::check_note;
use crate::protocol::FencedRequest;

impl Hold {
    /// Returns the hold's note: what others see in [`LockInfo::note`](crate::LockInfo::note). Does no I/O.
    ///
    /// It is the last one that etcd has confirmed. If [`set_note`](Self::set_note) returned an error, others may see that
    /// one.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::LockOptions;
    ///
    /// let options = LockOptions::default().note("10.0.0.7:8080");
    /// let guard = manager.new_lock_with("scheduler", options)?.lock()?;
    /// assert_eq!(guard.note().as_deref(), Some("10.0.0.7:8080"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn note(&self) -> Option<String> {
        // In a forked child the mutex may be locked for ever.
        if !self.is_here() {
            return None;
        }
        self.note_cell().lock().1.as_deref().map(str::to_owned)
    }

    /// Replaces the hold's note, which others see in [`LockInfo::note`](crate::LockInfo::note). An empty text removes it.
    ///
    /// One transaction, which etcd carries out only while the lock is held by this hold. If two threads call it at once, the
    /// later transaction counts.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidOptions`]: the note is longer than 1 KiB.
    /// - [`LockError::Expired`]: the hold was lost.
    /// - [`LockError::Unavailable`], [`LockError::NoSpace`]: as for [`FencedStore::put`](crate::FencedStore::put), others may
    ///   see the note or the one before.
    /// - [`LockError::ClusterChanged`], [`LockError::PermissionDenied`], [`LockError::Unauthenticated`],
    ///   [`LockError::Crashed`], [`LockError::Forked`]: as for [`FencedStore::put`](crate::FencedStore::put).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("migration")?.lock()?;
    /// guard.set_note("table 3 of 12")?;
    /// let info = manager.lock_info("migration")?.expect("it is held");
    /// assert_eq!(info.note.as_deref(), Some("table 3 of 12"));
    /// assert_eq!(info.token, guard.token());
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_note(&self, note: &str) -> Result<(), LockError> {
        check_note(note)?;
        let note: Option<Arc<str>> = (!note.is_empty()).then(|| note.into());
        let doing = || format!("setting the note of lock {:?}", self.key());
        let answer = self.fenced(FencedRequest::Note(note.clone()), doing)?;
        let mut newest = self.note_cell().lock();
        if answer.revision > newest.0 {
            *newest = (answer.revision, note);
        }
        Ok(())
    }
}
