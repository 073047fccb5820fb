//! Guards of a lock that the holding thread can acquire again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::guard::LockGuard;
use super::hold::Hold;
use super::holds::Holds;
use crate::error::LockError;

/// A guard of a [`ReentrantLock`](crate::ReentrantLock); dropping the last one of a hold releases the lock.
///
/// It dereferences to its [`Hold`]. It cannot leave its thread: having one is what allows the thread to re-enter, so a
/// guard that could move would let two threads in. [`share`](Self::share) returns a guard that can be moved and cloned;
/// it extends the hold, but allows no re-entry.
///
/// ```compile_fail,E0277
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// let guard = manager.new_reentrant_lock("jobs")?.lock()?;
/// std::thread::spawn(move || drop(guard)); // does not compile: `ReentrantGuard` is not `Send`
/// # Ok(())
/// # }
/// ```
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// let lock = manager.new_reentrant_lock("jobs")?;
/// let guard = lock.lock()?;
/// let shared = guard.share();
/// let helper = std::thread::spawn(move || assert!(shared.is_held()));
/// helper.join().unwrap();
/// guard.unlock()
/// # }
/// ```
#[must_use = "if unused the lock is released at once"]
pub struct ReentrantGuard {
    seat: Rc<Seat>,
}

/// The state that all guards of one hold on one thread share.
struct Seat {
    hold: Arc<Hold>,
}

thread_local! {
    /// The holds of which this thread has a guard, by the address of the state that the lock's handles share.
    ///
    /// Never destroyed, so that the destructors of other thread-locals can re-enter. Nothing leaks: each entry is removed
    /// with its seat, and an empty map owns no memory.
    static SEATS: ManuallyDrop<RefCell<BTreeMap<usize, Weak<Seat>>>> =
        const { ManuallyDrop::new(RefCell::new(BTreeMap::new())) };
}

/// Another guard, if this thread has one of this lock.
pub(crate) fn reenter(lock: &Arc<Holds>) -> Result<Option<ReentrantGuard>, LockError> {
    let seat = SEATS.with(|seats| seats.borrow().get(&address(lock)).and_then(Weak::upgrade));
    let Some(seat) = seat else { return Ok(None) };
    seat.hold.check()?;
    Ok(Some(ReentrantGuard { seat }))
}

/// The hold references the lock's shared state, so no other lock can have this address while a guard of the hold
/// exists.
fn address(lock: &Arc<Holds>) -> usize {
    Arc::as_ptr(lock).addr()
}

impl ReentrantGuard {
    /// The first guard of this hold on this thread.
    pub(crate) fn new(guard: LockGuard) -> Self {
        let seat = Rc::new(Seat { hold: guard.into_hold() });
        SEATS.with(|seats| seats.borrow_mut().insert(address(seat.hold.lock()), Rc::downgrade(&seat)));
        Self { seat }
    }

    /// Returns a guard of the same hold that can move to other threads. The hold lasts until it, too, is dropped. It
    /// allows no thread to re-enter.
    pub fn share(&self) -> LockGuard {
        LockGuard::new(Arc::clone(&self.seat.hold))
    }

    /// Releases the lock and waits for etcd's confirmation, if this is the last guard of the hold. Otherwise only drops
    /// this guard; a loss is reported in either case.
    ///
    /// # Blocking
    ///
    /// As [`LockGuard::unlock`].
    ///
    /// # Errors
    ///
    /// As [`LockGuard::unlock`].
    pub fn unlock(self) -> Result<(), LockError> {
        match Rc::try_unwrap(self.seat) {
            Ok(seat) => {
                let hold = Arc::clone(&seat.hold);
                drop(seat);
                Hold::unlock(hold)
            }
            Err(seat) => seat.hold.check(),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        SEATS.with(|seats| seats.borrow_mut().remove(&address(self.hold.lock())));
    }
}

impl Deref for ReentrantGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.seat.hold
    }
}

impl fmt::Debug for ReentrantGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seat.hold.describe("ReentrantGuard", f)
    }
}
