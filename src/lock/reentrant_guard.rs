//! Guards of a lock that its thread may take again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::guard::LockGuard;
use super::hold::Hold;
use super::holds::Holds;
use crate::error::LockError;

/// A guard of a [`ReentrantLock`](crate::ReentrantLock); dropping the last one of a hold releases the lock.
///
/// What it tells is [`Hold`]'s. It stays on its thread: that a thread still has one is what lets it take the lock again,
/// so a guard that could move would let two threads in. [`share`](Self::share) gives a guard that can be moved and
/// cloned, keeps the hold, and never makes re-entry.
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

/// A thread's share in a hold, which all of its guards have together.
struct Seat {
    hold: Arc<Hold>,
}

thread_local! {
    /// For each lock, by the address of what its handles share, the hold that this thread still has a guard of.
    static SEATS: RefCell<HashMap<usize, Weak<Seat>>> = RefCell::default();
}

/// A further guard, if this thread still has one of this lock.
pub(crate) fn reenter(lock: &Arc<Holds>) -> Result<Option<ReentrantGuard>, LockError> {
    // While the thread-locals are being destroyed there is no re-entry.
    let seat = SEATS.try_with(|seats| seats.borrow().get(&address(lock)).and_then(Weak::upgrade));
    let Some(seat) = seat.ok().flatten() else { return Ok(None) };
    seat.hold.check()?;
    Ok(Some(ReentrantGuard { seat }))
}

/// The hold keeps what its handles share, so no other lock has this address while a guard of it is there.
fn address(lock: &Arc<Holds>) -> usize {
    Arc::as_ptr(lock).addr()
}

impl ReentrantGuard {
    /// The first guard of this thread.
    pub(crate) fn new(guard: LockGuard) -> Self {
        let seat = Rc::new(Seat { hold: guard.into_hold() });
        let _ = SEATS.try_with(|seats| {
            let mut seats = seats.borrow_mut();
            seats.retain(|_, seat| seat.strong_count() > 0);
            seats.insert(address(seat.hold.lock()), Rc::downgrade(&seat));
        });
        Self { seat }
    }

    /// A guard of the same hold that may go to other threads. It keeps the hold when this thread's guards are gone, and
    /// never lets anybody take the lock again.
    pub fn share(&self) -> LockGuard {
        LockGuard::new(Arc::clone(&self.seat.hold))
    }

    /// Releases the lock and waits until etcd has confirmed it, if this is the hold's last guard; else it only goes. It
    /// says so if the hold was lost, either way.
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
            Ok(Seat { hold }) => Hold::unlock(hold),
            Err(seat) => seat.hold.check(),
        }
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
