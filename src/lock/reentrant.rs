//! A lock that the holding thread can acquire again.

use std::fmt;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::DistributedLock;
use super::guard::LockGuard;
use super::reentrant_guard::{ReentrantGuard, reenter};
use super::waiting_call::none_if_held;
use crate::error::LockError;

/// A lock that the holding thread can acquire again at once; returned by
/// [`new_reentrant_lock`](crate::LockManager::new_reentrant_lock).
///
/// While a thread has a [`ReentrantGuard`] of this key, every acquiring method of every reentrant handle returns it
/// another guard without contacting etcd: of the same hold, with the same [`token`](crate::Hold::token) and
/// [`done`](crate::Hold::done). Dropping the last guard releases the lock. If the hold is lost, acquiring again returns
/// [`LockError::Expired`] until the thread's last guard is dropped; it never silently acquires the lock a second time.
///
/// For other threads and other processes it behaves like any [`DistributedLock`] of this key: one queue, one holder.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// use etcd_lock::{LockError, ReentrantLock};
///
/// fn transfer(lock: &ReentrantLock) -> Result<(), LockError> {
///     let guard = lock.lock()?;
///     withdraw(lock)?; // acquires the same lock
///     guard.unlock()
/// }
///
/// fn withdraw(lock: &ReentrantLock) -> Result<(), LockError> {
///     let guard = lock.lock()?;
///     println!("under token {}", guard.token());
///     Ok(())
/// }
///
/// transfer(&manager.new_reentrant_lock("account/7")?)
/// # }
/// ```
#[derive(Clone)]
pub struct ReentrantLock {
    lock: DistributedLock,
}

impl ReentrantLock {
    pub(crate) fn new(lock: DistributedLock) -> Self {
        Self { lock }
    }

    /// Returns another guard of this thread's hold, or acquires the lock by `take`. The only place in which a thread
    /// re-enters.
    fn again_or(
        &self,
        take: impl FnOnce(&DistributedLock) -> Result<LockGuard, LockError>,
    ) -> Result<ReentrantGuard, LockError> {
        match reenter(&self.lock.shared)? {
            Some(again) => Ok(again),
            None => take(&self.lock).map(ReentrantGuard::new),
        }
    }

    /// As [`DistributedLock::lock`]; returns at once if this thread already holds the lock.
    ///
    /// # Blocking
    ///
    /// As [`DistributedLock::lock`].
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: this thread's hold was lost, and the thread still has a guard of it.
    /// - Otherwise as for [`DistributedLock::lock`].
    pub fn lock(&self) -> Result<ReentrantGuard, LockError> {
        self.again_or(DistributedLock::lock)
    }

    /// As [`DistributedLock::try_lock`]; returns a guard at once if this thread already holds the lock.
    ///
    /// # Blocking
    ///
    /// As [`DistributedLock::try_lock`].
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: as for [`lock`](Self::lock).
    /// - Otherwise as for [`DistributedLock::try_lock`].
    pub fn try_lock(&self) -> Result<Option<ReentrantGuard>, LockError> {
        none_if_held(self.again_or(DistributedLock::take_if_free))
    }

    /// As [`DistributedLock::lock_timeout`]; returns at once if this thread already holds the lock.
    ///
    /// # Blocking
    ///
    /// As [`DistributedLock::lock_timeout`].
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: as for [`lock`](Self::lock).
    /// - Otherwise as for [`DistributedLock::lock_timeout`].
    pub fn lock_timeout(&self, timeout: Duration) -> Result<ReentrantGuard, LockError> {
        self.again_or(|lock| lock.lock_timeout(timeout))
    }

    /// As [`DistributedLock::lock_deadline`]; returns at once if this thread already holds the lock.
    ///
    /// # Blocking
    ///
    /// As [`DistributedLock::lock_deadline`].
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: as for [`lock`](Self::lock).
    /// - Otherwise as for [`DistributedLock::lock_deadline`].
    pub fn lock_deadline(&self, deadline: Instant) -> Result<ReentrantGuard, LockError> {
        self.again_or(|lock| lock.lock_deadline(deadline))
    }

    /// As [`DistributedLock::lock_or_cancel`]; returns at once if this thread already holds the lock, even if `cancel`
    /// is ready.
    ///
    /// # Blocking
    ///
    /// As [`DistributedLock::lock_or_cancel`].
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: as for [`lock`](Self::lock).
    /// - Otherwise as for [`DistributedLock::lock_or_cancel`].
    pub fn lock_or_cancel(&self, cancel: &Receiver<()>) -> Result<ReentrantGuard, LockError> {
        self.again_or(|lock| lock.lock_or_cancel(cancel))
    }

    /// As [`DistributedLock::lock_timeout_or_cancel`]; returns at once if this thread already holds the lock, even if
    /// `cancel` is ready.
    ///
    /// # Blocking
    ///
    /// As [`DistributedLock::lock_timeout_or_cancel`].
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: as for [`lock`](Self::lock).
    /// - Otherwise as for [`DistributedLock::lock_timeout_or_cancel`].
    pub fn lock_timeout_or_cancel(
        &self,
        timeout: Duration,
        cancel: &Receiver<()>,
    ) -> Result<ReentrantGuard, LockError> {
        self.again_or(|lock| lock.lock_timeout_or_cancel(timeout, cancel))
    }

    /// Asks about this process only; see [`DistributedLock::is_locked`].
    pub fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// The key of the lock, as passed to [`new_reentrant_lock`](crate::LockManager::new_reentrant_lock).
    pub fn key(&self) -> &str {
        self.lock.key()
    }
}

impl fmt::Debug for ReentrantLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReentrantLock").field("key", &self.key()).field("locked", &self.is_locked()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::error::LossReason;
    use crate::lock::tests::scripted_io::{ScriptedHold, ScriptedIo, lock, scripted_locks};
    use crate::protocol::Refusal;

    /// Acquires the lock on the current thread, while another thread plays the I/O thread.
    fn take(lock: &ReentrantLock, io: &mut ScriptedIo) -> (ReentrantGuard, ScriptedHold) {
        thread::scope(|scope| {
            let granting = scope.spawn(|| io.grant());
            let guard = lock.lock().unwrap();
            (guard, granting.join().unwrap())
        })
    }

    fn refused(lock: &ReentrantLock, io: &ScriptedIo) {
        thread::scope(|scope| {
            scope.spawn(|| drop(io.refuse(Refusal::Held)));
            assert!(lock.try_lock().unwrap().is_none());
        });
    }

    #[test]
    fn the_holding_thread_gets_another_guard_without_a_message() {
        let (locks, mut io) = scripted_locks();
        let first = ReentrantLock::new(lock(&locks, "a"));
        let (guard, _hold) = take(&first, &mut io);
        let same = ReentrantLock::new(lock(&locks, "a"));
        let more = [
            same.lock().unwrap(),
            same.try_lock().unwrap().unwrap(),
            same.lock_timeout(Duration::ZERO).unwrap(),
            same.lock_deadline(Instant::now()).unwrap(),
            same.lock_or_cancel(&crossbeam_channel::never()).unwrap(),
            same.lock_timeout_or_cancel(Duration::ZERO, &crossbeam_channel::never()).unwrap(),
        ];
        assert!(io.is_idle());
        assert!(more.iter().all(|other| other.token() == guard.token()));
        assert!(more.iter().all(|other| other.done().same_channel(guard.done())));
        guard.unlock().unwrap();
        assert!(first.is_locked() && io.is_idle(), "the last one out releases");
        drop(more);
        io.leave();
        assert!(!first.is_locked());
        refused(&first, &io);
    }

    #[test]
    fn other_threads_and_plain_handles_do_not_re_enter() {
        let (locks, mut io) = scripted_locks();
        let plain = lock(&locks, "a");
        let reentrant = ReentrantLock::new(plain.clone());
        let (_guard, _hold) = take(&reentrant, &mut io);
        thread::scope(|scope| {
            scope.spawn(|| drop(io.refuse(Refusal::Held)));
            assert!(
                plain.try_lock().unwrap().is_none(),
                "the same thread by a handle that does not re-enter"
            );
        });
        thread::scope(|scope| scope.spawn(|| refused(&reentrant, &io)).join().unwrap());
    }

    #[test]
    fn a_shared_guard_extends_the_hold_and_allows_no_re_entry() {
        let (locks, mut io) = scripted_locks();
        let lock = ReentrantLock::new(lock(&locks, "a"));
        let (guard, _hold) = take(&lock, &mut io);
        let shared = guard.share();
        drop(guard);
        assert!(io.is_idle() && lock.is_locked());
        refused(&lock, &io);
        let elsewhere = shared.clone();
        thread::spawn(move || drop(elsewhere)).join().unwrap();
        assert!(io.is_idle());
        drop(shared);
        io.leave();
    }

    #[test]
    fn acquiring_again_after_a_loss_returns_expired_until_the_last_guard_is_dropped() {
        let (locks, mut io) = scripted_locks();
        let lock = ReentrantLock::new(lock(&locks, "a"));
        let (guard, hold) = take(&lock, &mut io);
        let again = lock.lock().unwrap();
        hold.state.end(Some(LossReason::SessionRevoked));
        drop(guard);
        for error in [lock.lock().err(), lock.try_lock().err()] {
            assert!(matches!(error, Some(LockError::Expired { reason: LossReason::SessionRevoked, .. })));
        }
        assert!(io.is_idle());
        assert!(matches!(again.unlock(), Err(LockError::Expired { .. })));
        io.leave();
        let (_guard, _hold) = take(&lock, &mut io);
        assert!(lock.is_locked());
    }

    /// A guard that a thread-local owns, whose destructor acquires the lock again.
    struct LastWill {
        guard: ReentrantGuard,
        lock: ReentrantLock,
        report: crossbeam_channel::Sender<(bool, Option<bool>, Result<bool, LockError>)>,
    }

    impl Drop for LastWill {
        fn drop(&mut self) {
            let tried = self.lock.try_lock().ok().map(|again| again.is_some());
            let waited = self.lock.lock_timeout(Duration::from_millis(500)).map(|again| again.is_held());
            self.report.send((self.guard.is_held(), tried, waited)).unwrap();
        }
    }

    thread_local! {
        static LAST_WILL: std::cell::RefCell<Option<LastWill>> = const { std::cell::RefCell::new(None) };
    }

    #[test]
    fn a_thread_that_still_has_a_guard_gets_another_in_its_thread_local_destructors_too() {
        let store = crate::memory::MemoryStore::new();
        let manager = crate::LockManager::in_memory(&store, "/app", Default::default()).unwrap();
        let lock = manager.new_reentrant_lock("a").unwrap();
        let (report, reported) = crossbeam_channel::bounded(1);
        thread::spawn(move || {
            LAST_WILL.set(None);
            let guard = lock.lock().unwrap();
            assert!(lock.try_lock().unwrap().is_some());
            LAST_WILL.set(Some(LastWill { guard, lock, report }));
        })
        .join()
        .unwrap();
        let (held, tried, waited) = reported.recv().unwrap();
        assert!(held, "the thread still has its guard");
        assert_eq!(tried, Some(true), "this thread has the lock; and lock_timeout: {waited:?}");
        assert!(matches!(waited, Ok(true)), "{waited:?}");
    }
}
