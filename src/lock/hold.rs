//! A hold of a lock, as its guards show it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use oneshot::{RecvTimeoutError, Sender};

use super::holds::Holds;
use crate::clock::Time;
use crate::error::{Cause, LockError, LossReason, lock_error};
use crate::info::FencingToken;
use crate::protocol::{ReleaseFailure, Ticket};
use crate::shared::hold_state::HoldState;
use crate::shared::message::{Left, Message};
use crate::shared::process;

/// One hold of a lock: what a [`LockGuard`](crate::LockGuard) and a [`ReentrantGuard`](crate::ReentrantGuard) tell of it.
///
/// It cannot be cloned: a guard is what keeps a hold, and only a `LockGuard` may leave its thread.
pub struct Hold {
    ticket: Ticket,
    state: Arc<HoldState>,
    lock: Arc<Holds>,
    waited: Duration,
    granted: Time,
    /// `Leave` has been said.
    left: bool,
}

/// What it tells.
impl Hold {
    /// A channel that carries nothing and disconnects when the hold is over: lost, or released by its last guard.
    ///
    /// Made for [`select!`](crate::crossbeam_channel::select), and for a watching thread that owns a clone of the
    /// receiver. [`loss`](Self::loss) tells which it was. It disconnects before etcd can give the lock to anybody
    /// else, except after a forced unlock or a revoked lease, which are told within milliseconds. That does not depend
    /// on the thread that talks to etcd: a thread of its own watches the deadline, so it also holds while a logger blocks.
    ///
    /// In a child of `fork()` it is disconnected. A clone that was made before the fork is a copy of the parent's channel:
    /// it disconnects there a moment after the child first calls this, makes any call that locks, waits or asks, or drops
    /// a guard or the manager. In the rare case that a thread of the parent was just using the channel at the
    /// fork, it never does. The parent's channel is not concerned.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// let done = guard.done().clone();
    /// let watcher = std::thread::spawn(move || done.recv());
    /// drop(guard);
    /// assert!(watcher.join().unwrap().is_err(), "released: the channel is disconnected");
    /// # Ok(())
    /// # }
    /// ```
    pub fn done(&self) -> &Receiver<()> {
        if self.lock.client.mailbox.is_here() { &self.state.done } else { process::disconnected() }
    }

    /// Why the hold was lost; `None` while it is held.
    ///
    /// Decided by the clock itself if need be: a hold whose time has run out is lost, even when the I/O thread has not
    /// run since.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::LossReason;
    ///
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// assert_eq!(guard.loss(), None);
    /// manager.close()?;
    /// assert_eq!(guard.loss(), Some(LossReason::Closed));
    /// # Ok(())
    /// # }
    /// ```
    pub fn loss(&self) -> Option<LossReason> {
        self.state.loss(self.now())
    }

    /// Whether the lock is held right now. Once it was false it stays false.
    ///
    /// Compares the hold's deadline with the clock on the caller's own thread, without I/O and without the I/O thread,
    /// so it costs some tens of nanoseconds and is right even after the process was stopped or the machine slept.
    ///
    /// False in a child of `fork()`: the hold is its parent's.
    ///
    /// A `true` is about this instant. What must not happen after a loss also needs the [`token`](Self::token),
    /// checked by whoever carries it out.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// for step in 1..=3 {
    ///     if !guard.is_held() {
    ///         break;
    ///     }
    ///     println!("step {step}");
    /// }
    /// assert!(guard.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_held(&self) -> bool {
        self.state.is_held(self.now())
    }

    /// How long the hold is assured if etcd never answers again; zero once it is lost. Every renewal sets it anew.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// // The TTL of 30 s less the safety margin of 3 s, counted from the last renewal that etcd answered.
    /// assert!(guard.remaining() <= std::time::Duration::from_secs(27));
    /// assert!(!guard.remaining().is_zero());
    /// # Ok(())
    /// # }
    /// ```
    pub fn remaining(&self) -> Duration {
        self.state.remaining(self.now()).unwrap_or_default()
    }

    /// The token, if the hold is assured for `at_least` that long: the check before a step that takes time.
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the hold is lost.
    /// - [`LockError::InsufficientTime`]: it stands, but less of its time is left. The next renewal sets it anew, to at
    ///   most the TTL less the [safety margin](crate::LockManagerOptions::safety_margin).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// # fn write(_row: &str, _token: u64) {}
    /// use std::time::Duration;
    /// use etcd_lock::LockError;
    ///
    /// let guard = manager.new_lock("report")?.lock()?;
    /// let token = guard.ensure(Duration::from_secs(2))?;
    /// write("a row that takes up to two seconds", token.as_u64());
    ///
    /// // More than the TTL is never assured.
    /// let refused = guard.ensure(Duration::from_secs(60));
    /// assert!(matches!(refused, Err(LockError::InsufficientTime { .. })));
    /// assert!(guard.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn ensure(&self, at_least: Duration) -> Result<FencingToken, LockError> {
        let now = self.now();
        match self.state.remaining(now) {
            Some(left) if left >= at_least => Ok(self.token()),
            Some(remaining) => {
                Err(LockError::InsufficientTime { key: self.key().into(), remaining, needed: at_least })
            }
            None => Err(self.state.expired(now)),
        }
    }

    /// The fencing token: greater than that of every earlier holder of this lock, anywhere.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let lock = manager.new_lock("jobs")?;
    /// let first = lock.lock()?.token();
    /// let second = lock.lock()?.token();
    /// assert!(second > first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn token(&self) -> FencingToken {
        self.state.token
    }

    /// The lock's key, as it was given to [`new_lock`](crate::LockManager::new_lock).
    pub fn key(&self) -> &str {
        self.state.name.as_str()
    }

    /// The key in etcd that is this hold. It exists as long as etcd grants the lock to it.
    ///
    /// A session uses a key again after a release, so the key alone does not name a hold: whoever checks in etcd whether
    /// this hold still stands compares the key's *create revision* with [`token`](Self::token).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("a/b")?.lock()?;
    /// assert_eq!(guard.key(), "a/b");
    /// assert!(guard.etcd_key().starts_with("/app/a%2Fb/"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn etcd_key(&self) -> &str {
        self.state.key.as_str()
    }

    /// How long the call waited that got this hold, from the question to the grant.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// println!("waited for {:?}, held for {:?}", guard.waited(), guard.held_for());
    /// # Ok(())
    /// # }
    /// ```
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// How long ago the lock was granted.
    pub fn held_for(&self) -> Duration {
        self.now().since(self.granted)
    }
}

/// What its guards do with it.
impl Hold {
    /// The hold of a ticket that was asked for at `asked` and granted just now.
    pub(crate) fn new(ticket: Ticket, asked: Time, state: Arc<HoldState>, lock: Arc<Holds>) -> Self {
        let granted = lock.client.now();
        lock.enter(ticket, Arc::clone(&state));
        Self { ticket, state, lock, waited: granted.since(asked), granted, left: false }
    }

    fn now(&self) -> Time {
        self.lock.client.now()
    }

    pub(super) fn lock(&self) -> &Arc<Holds> {
        &self.lock
    }

    /// The error that says how it was lost, if it was.
    pub(super) fn check(&self) -> Result<(), LockError> {
        self.state.check(self.now())
    }

    /// One of its guards goes; the last one releases the lock, and waits for the answer.
    pub(super) fn unlock(hold: Arc<Self>) -> Result<(), LockError> {
        let (state, now) = (Arc::clone(&hold.state), hold.now());
        match Arc::into_inner(hold) {
            Some(hold) => hold.release(),
            // Whichever guard somebody worked under, an `Ok` says that the work was not disturbed so far.
            None => state.check(now),
        }
    }

    pub(super) fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("key", &self.key())
            .field("token", &self.token())
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }

    /// Leaves and waits for the answer.
    fn release(mut self) -> Result<(), LockError> {
        self.check()?;
        let (reply, answer) = oneshot::channel();
        let sent = self.leave(Some(reply));
        let key = self.state.name.as_str();
        let doing = || format!("releasing lock {key:?}");
        // A hold that the end of the I/O thread has swept away is expired, and so is one whose manager is being closed;
        // that says more than how the thread ended.
        let gone = |error| match error {
            _ if self.state.has_ended() => self.state.expired(self.now()),
            LockError::Closed => LockError::Expired { key: key.into(), reason: LossReason::Closed },
            error => error,
        };
        sent.map_err(gone)?;
        let client = &self.lock.client;
        match client.mailbox.wait_for(&answer, Instant::now().checked_add(client.request_timeout())) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ReleaseFailure::Lost(reason))) => Err(LockError::Expired { key: key.into(), reason }),
            Ok(Err(ReleaseFailure::NotHeld)) => {
                Err(LockError::Expired { key: key.into(), reason: LossReason::ForceUnlocked })
            }
            Ok(Err(ReleaseFailure::Failed(failure))) => Err(lock_error(failure, &doing())),
            Err(RecvTimeoutError::Timeout) => Err(LockError::Unavailable {
                doing: doing(),
                source: Cause::new("no confirmation in time; the release goes on in the background"),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(gone(client.mailbox.gone())),
        }
    }

    fn leave(&mut self, reply: Option<Sender<Left>>) -> Result<(), LockError> {
        self.left = true;
        self.lock.forget(self.ticket);
        self.lock.client.mailbox.send(Message::Leave { ticket: self.ticket, reply })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.left {
            // An error says that the I/O thread has ended, and with it every hold; or that the hold is our parent's.
            let _ = self.leave(None);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("Hold", f)
    }
}
