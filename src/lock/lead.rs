//! Leadership: campaign, serve a term, step down, campaign again.

use std::thread;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::DistributedLock;
use super::guard::LockGuard;
use super::hold::Hold;
use crate::error::LockError;

/// Linux shows 15 bytes of a thread's name.
const WATCHER: &str = "etcd-lock-lead";
const _: () = assert!(WATCHER.len() <= 15);

impl DistributedLock {
    /// Leads again and again: waits for the lock, runs `term` while it is held, releases it, and waits again, until `stop`
    /// receives a message or is disconnected.
    ///
    /// `term` has to return soon after [`term.done()`](Hold::done) disconnects. Within `lead` that happens when the hold is
    /// lost, *and* on `stop`: then the lock stays held until `term` returns, so that no other program leads while this one
    /// still finishes its work. When `term` returns, the lock is released, which hands it to the next candidate in one commit. If
    /// `stop` has not come, this program campaigns again, at the end of the queue and after a pause of
    /// [`retry_interval`](crate::LockOptions::retry_interval).
    ///
    /// A candidate's address goes into the [note](crate::LockOptions::note) of its lock; everybody finds the leader with
    /// [`observe`](crate::LockManager::observe) or [`lock_info`](crate::LockManager::lock_info).
    ///
    /// If `term` panics the lock is released, and the panic goes on.
    ///
    /// # Blocking
    ///
    /// Until `stop` receives a message (which is consumed) or is disconnected, and then until `term` has returned and the lock
    /// is released. `term` runs on the calling thread. During a term, another thread watches `stop`.
    ///
    /// # Errors
    ///
    /// Errors that may pass ([`is_retryable`](LockError::is_retryable)) do not end it: it campaigns again.
    ///
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused the request.
    /// - [`LockError::Closed`], [`LockError::Crashed`], [`LockError::Forked`]: the manager was closed, its I/O thread died, or
    ///   this process is a child of the one that created it.
    /// - [`LockError::Internal`]: a thread could not be started.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use std::time::Duration;
    /// use etcd_lock::crossbeam_channel::{bounded, select, tick};
    ///
    /// let (shutdown, stop) = bounded::<()>(1);
    /// let mut worked = 0;
    /// manager.new_lock("scheduler")?.lead(&stop, |term| {
    ///     let work = tick(Duration::from_millis(1));
    ///     loop {
    ///         select! {
    ///             recv(term.done()) -> _ => return, // lost, or stopped
    ///             recv(work) -> _ => worked += 1,
    ///         }
    ///         if worked == 3 {
    ///             shutdown.send(()).unwrap(); // from a signal handler, say
    ///         }
    ///     }
    /// })?;
    /// assert!(worked >= 3);
    /// assert!(manager.lock_info("scheduler")?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn lead<F>(&self, stop: &Receiver<()>, mut term: F) -> Result<(), LockError>
    where
        F: FnMut(&Hold),
    {
        loop {
            match self.lock_or_cancel(stop) {
                Ok(guard) => {
                    let stopped = serve(&guard, stop, &mut term)?;
                    // If it was lost, it is not this program's any more; if etcd is away, the release goes on in the
                    // background.
                    let _ = guard.unlock();
                    if stopped {
                        return Ok(());
                    }
                }
                Err(LockError::Cancelled { .. }) => return Ok(()),
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error),
            }
            if stop.recv_timeout(self.options.retry_interval) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
    }
}

/// Runs one term. Returns whether `stop` ended it.
fn serve(guard: &LockGuard, stop: &Receiver<()>, term: &mut impl FnMut(&Hold)) -> Result<bool, LockError> {
    let (ending, ends) = crossbeam_channel::bounded::<()>(0);
    let lost = guard.done().clone();
    guard.limit_term(ends);
    let (running, returned) = crossbeam_channel::bounded::<()>(0);
    let stop = stop.clone();
    let watcher = move || {
        let stopped = crossbeam_channel::select! {
            recv(lost) -> _ => false,
            recv(returned) -> _ => false,
            recv(stop) -> _ => true,
        };
        drop(ending);
        stopped
    };
    let watcher = thread::Builder::new().name(WATCHER.into()).spawn(watcher);
    let watcher = watcher.map_err(|error| LockError::Internal { what: format!("no thread: {error}") })?;
    term(guard);
    if !guard.is_here() {
        // A child that was forked within the term: the watcher is a thread of its parent, and does not exist here.
        std::mem::forget(watcher);
        return Err(LockError::Forked);
    }
    drop(running);
    Ok(watcher.join().unwrap_or(false))
}
