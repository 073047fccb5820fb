//! A hold of a lock, which its guards dereference to.

mod ending;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::holds::Holds;
use crate::clock::Time;
use crate::error::{LockError, LossReason};
use crate::info::FencingToken;
use crate::kv::Revision;
use crate::mode::Mode;
use crate::mutex::Mutex;
use crate::protocol::Ticket;
use crate::shared::hold_state::HoldState;
use crate::shared::process;

/// One hold of a lock. A [`LockGuard`](crate::LockGuard) and a [`ReentrantGuard`](crate::ReentrantGuard) dereference to
/// it.
///
/// It cannot be cloned: the hold lasts as long as its guards, and only a `LockGuard` may leave its thread.
pub struct Hold {
    ticket: Ticket,
    state: Arc<HoldState>,
    lock: Arc<Holds>,
    waited: Duration,
    granted: Time,
    /// The note that etcd has confirmed last, and the revision at which it was set; 0: with the key.
    note: Mutex<(Revision, Option<Arc<str>>)>,
    /// The channel of `contended()`, once it was asked for.
    contended: OnceLock<Receiver<()>>,
    /// Within `lead`: disconnects when the hold is over, or earlier.
    term: OnceLock<Receiver<()>>,
    /// `Leave` was sent: dropping sends nothing.
    left: bool,
}

/// Queries, none of which does any I/O.
impl Hold {
    /// Returns a channel that carries no messages and disconnects when the hold is over: lost, or released by its last
    /// guard.
    ///
    /// Use it in [`select!`](crate::crossbeam_channel::select), or in a watching thread that owns a clone of the
    /// receiver. [`loss`](Self::loss) distinguishes a loss from a release. The channel disconnects before etcd can
    /// grant the lock to another holder, except after a forced unlock or a revoked lease, which are reported within
    /// milliseconds. A watchdog thread watches the deadline, so this holds even if the I/O thread hangs, in a logger
    /// that blocks for example.
    ///
    /// In a child of `fork()` the returned channel is disconnected. A clone made before the fork is a copy of the
    /// parent's channel. It disconnects in the child soon after the child first calls this method, calls a method that
    /// locks, waits or queries, or drops a guard or the manager. If a thread of the parent was using the channel at the
    /// instant of the fork, which is rare, the copy never disconnects. The parent's channel is not affected.
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
        if !self.lock.client.mailbox.is_here() {
            return process::disconnected();
        }
        self.term.get().unwrap_or(&self.state.done)
    }

    /// Returns why the hold was lost; `None` while it is held.
    ///
    /// Compares the deadline with the clock on the caller's thread: a hold whose time has run out is lost, even if the
    /// I/O thread has not run since.
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

    /// Returns whether the lock is held right now. Once this has returned false it never returns true again.
    ///
    /// Compares the hold's deadline with the clock on the caller's thread, without I/O and without the I/O thread. It
    /// takes some tens of nanoseconds, and is correct even after the process was stopped or the machine was suspended.
    ///
    /// Returns false in a child of `fork()`: the parent holds the lock.
    ///
    /// `true` describes this instant only. A write that must not happen after a loss must also carry the
    /// [`token`](Self::token), for the receiver to check.
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

    /// Returns how long the hold lasts if etcd never answers again; zero once it is over. Each renewal, at a third of
    /// the TTL, extends it.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// // The TTL of 30 s minus the safety margin of 3 s, counted from the sending of the last answered renewal.
    /// assert!(guard.remaining() <= std::time::Duration::from_secs(27));
    /// assert!(!guard.remaining().is_zero());
    /// # Ok(())
    /// # }
    /// ```
    pub fn remaining(&self) -> Duration {
        self.state.remaining(self.now()).unwrap_or_default()
    }

    /// Returns the token if the hold lasts for at least `at_least` more: the check before a step that takes time. Does
    /// no I/O.
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the hold was lost. In a child of `fork()`, [`LockError::Forked`].
    /// - [`LockError::InsufficientTime`]: the lock is held, but less time is left. The next renewal extends it, to at
    ///   most the TTL minus the [safety margin](crate::LockManagerOptions::safety_margin).
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
    /// // A hold is never assured for longer than the TTL.
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

    /// Returns the fencing token, which is greater than that of every earlier exclusive holder of this lock in any
    /// process. What a receiver of tokens compares when several hold a lock together is in
    /// [the guide](crate::docs::guide).
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

    /// The key of the lock, as passed to [`new_lock`](crate::LockManager::new_lock).
    pub fn key(&self) -> &str {
        self.state.name.as_str()
    }

    /// The keys of the lock: one, [`key`](Self::key).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// assert_eq!(guard.keys(), ["jobs"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn keys(&self) -> &[String] {
        self.state.name.as_list()
    }

    /// Returns who may hold the lock together with this hold.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::Mode;
    ///
    /// assert_eq!(manager.new_lock("a")?.lock()?.mode(), Mode::Exclusive);
    /// assert_eq!(manager.new_read_lock("b")?.lock()?.mode(), Mode::Shared);
    /// # Ok(())
    /// # }
    /// ```
    pub fn mode(&self) -> Mode {
        self.state.mode()
    }

    /// Returns this hold's key in etcd. The key exists as long as the lock is held in etcd.
    ///
    /// A session reuses a key after a release, so the key alone does not identify a hold: to check in etcd whether this
    /// hold still exists, compare the key's *create revision* with [`token`](Self::token).
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

    /// Returns how long the acquiring call waited, from its start to the grant.
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

    /// Returns how long ago the lock was granted. Goes on after the hold is over.
    pub fn held_for(&self) -> Duration {
        self.now().since(self.granted)
    }
}

/// What guards do with their hold.
impl Hold {
    /// The hold of a ticket that was requested at `asked` and has just been granted.
    pub(crate) fn new(
        ticket: Ticket,
        asked: Time,
        note: Option<Arc<str>>,
        state: Arc<HoldState>,
        lock: Arc<Holds>,
    ) -> Self {
        let granted = lock.client.now();
        lock.enter(ticket, Arc::clone(&state));
        Self {
            ticket,
            state,
            lock,
            waited: granted.since(asked),
            granted,
            note: Mutex::new((0, note)),
            contended: OnceLock::new(),
            term: OnceLock::new(),
            left: false,
        }
    }

    fn now(&self) -> Time {
        self.lock.client.now()
    }

    pub(super) fn lock(&self) -> &Arc<Holds> {
        &self.lock
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }

    pub(super) fn note_cell(&self) -> &Mutex<(Revision, Option<Arc<str>>)> {
        &self.note
    }

    pub(super) fn contended_cell(&self) -> &OnceLock<Receiver<()>> {
        &self.contended
    }

    /// From now on `done()` is this channel.
    pub(super) fn limit_term(&self, ends: Receiver<()>) {
        let _ = self.term.set(ends);
    }

    pub(super) fn state(&self) -> Arc<HoldState> {
        Arc::clone(&self.state)
    }

    pub(super) fn root(&self) -> &str {
        self.lock.client.root()
    }

    /// False in a forked child.
    pub(super) fn is_here(&self) -> bool {
        self.lock.client.mailbox.is_here()
    }

    /// The error of a call that came after the end of the hold.
    pub(super) fn expired(&self) -> LockError {
        self.state.expired(self.now())
    }

    /// An error if the hold was lost, with the reason.
    pub(super) fn check(&self) -> Result<(), LockError> {
        self.state.check(self.now())
    }

    pub(super) fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("key", &self.key())
            .field("mode", &self.mode())
            .field("token", &self.token())
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("Hold", f)
    }
}
