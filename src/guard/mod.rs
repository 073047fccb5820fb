//! A hold of a lock, as its holder sees it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::clock::{self, Time};
use crate::command::{Left, Message};
use crate::error::{Cause, LockError, LossReason};
use crate::info::FencingToken;
use crate::io;
use crate::lock::LockShared;
use crate::name::LockName;
use crate::process::{self, Process};
use crate::protocol::{ReleaseFailure, Ticket};
use crate::session::Deadline;

/// A hold of a lock; dropping it releases the lock.
///
/// A clone is one more claim on the same hold, to be kept or moved to another thread: the last one out releases.
/// Dropping never waits for etcd; [`unlock`](Self::unlock) does.
///
/// A hold can be **lost** while its guard is still there: etcd out of reach for too long, a forced unlock, a closed
/// manager. It is then over for good, nothing re-acquires it. [`done`](Self::done) tells a thread that waits,
/// [`is_held`](Self::is_held) and [`ensure`](Self::ensure) one that is about to do something.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// use etcd_lock::{LockManager, crossbeam_channel::select};
/// # let (_tx, jobs) = etcd_lock::crossbeam_channel::unbounded::<String>();
///
/// let manager = LockManager::connect(&["http://127.0.0.1:2379"], "/app/locks", Default::default())?;
/// let guard = manager.new_lock("jobs")?.lock()?;
/// loop {
///     select! {
///         recv(jobs) -> job => match job {
///             Ok(job) => println!("{job} under token {}", guard.token()),
///             Err(_) => break,
///         },
///         recv(guard.done()) -> _ => panic!("lost the lock: {:?}", guard.loss()),
///     }
/// }
/// guard.unlock()
/// # }
/// ```
#[must_use = "if unused the lock is released at once"]
#[derive(Clone)]
pub struct LockGuard {
    hold: Arc<Hold>,
}

impl LockGuard {
    pub(crate) fn new(hold: Arc<Hold>) -> Self {
        Self { hold }
    }

    /// A channel that carries nothing and disconnects when the hold is over: lost, or released by its last guard.
    ///
    /// Made for [`select!`](crate::crossbeam_channel::select), and for a watching thread that owns a clone of the
    /// receiver. [`loss`](Self::loss) tells which it was. It disconnects before etcd can give the lock to anybody
    /// else, except after a forced unlock or a revoked lease, which are told within milliseconds.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// let done = guard.done().clone();
    /// let watcher = std::thread::spawn(move || done.recv());
    /// drop(guard);
    /// assert!(watcher.join().unwrap().is_err(), "released: the channel is disconnected");
    /// # Ok(())
    /// # }
    /// ```
    pub fn done(&self) -> &Receiver<()> {
        if self.hold.state.process.is_current() { &self.hold.state.done } else { process::disconnected() }
    }

    /// Why the hold was lost; `None` while it is held.
    ///
    /// Decided by the clock itself if need be: a hold whose time has run out is lost, even when the I/O thread has not
    /// run since.
    pub fn loss(&self) -> Option<LossReason> {
        self.hold.state.loss(clock::now())
    }

    /// Whether the lock is held right now. Once it was false it stays false.
    ///
    /// Compares the hold's deadline with the clock on the caller's own thread, without I/O and without the I/O thread,
    /// so it costs about a tenth of a microsecond and is right even after the process was stopped or the machine slept.
    ///
    /// False in a child of `fork()`: the hold is its parent's.
    ///
    /// A `true` is about this instant. What must not happen after a loss also needs the [`token`](Self::token),
    /// checked by whoever carries it out.
    pub fn is_held(&self) -> bool {
        self.hold.state.is_held(clock::now())
    }

    /// How long the hold is assured if etcd never answers again; zero once it is lost. Every renewal sets it anew.
    pub fn remaining(&self) -> Duration {
        self.hold.state.remaining(clock::now()).unwrap_or_default()
    }

    /// The token, if the hold is assured for `at_least` that long: the check before a step that takes time.
    ///
    /// # Errors
    ///
    /// [`LockError::Expired`] if the hold is lost, with the reason; also, as
    /// [`LossReason::SessionExpired`], if it is held but too little time is left. The hold lives on in that case,
    /// and may have more time again after the next renewal: [`is_held`](Self::is_held) tells the two apart.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// # fn write(_row: &str, _token: u64) {}
    /// let guard = manager.new_lock("report")?.lock()?;
    /// let token = guard.ensure(std::time::Duration::from_secs(2))?;
    /// write("a row that takes up to two seconds", token.as_u64());
    /// # Ok(())
    /// # }
    /// ```
    pub fn ensure(&self, at_least: Duration) -> Result<FencingToken, LockError> {
        let now = clock::now();
        match self.hold.state.remaining(now) {
            Some(left) if left >= at_least => Ok(self.token()),
            _ => Err(self.hold.state.expired(now)),
        }
    }

    /// The fencing token: greater than that of every earlier holder of this lock, anywhere.
    pub fn token(&self) -> FencingToken {
        self.hold.state.token
    }

    /// The lock's name.
    pub fn key(&self) -> &str {
        self.hold.state.name.as_str()
    }

    /// The key in etcd that is this hold. It exists as long as etcd grants the lock to it.
    pub fn etcd_key(&self) -> &str {
        &self.hold.state.etcd_key
    }

    /// Releases the lock and waits until etcd has confirmed it. A guard that is not the last of its hold just goes.
    ///
    /// # Blocking
    ///
    /// Up to [`request_timeout`](crate::LockManagerOptions::request_timeout). Dropping a guard does not wait.
    ///
    /// # Errors
    ///
    /// - [`LockError::Expired`]: the hold was lost before; what was done under it may not have been exclusive.
    /// - [`LockError::NotHeld`]: its key was already deleted in etcd by somebody else.
    /// - [`LockError::Unavailable`]: etcd did not confirm in time. The release goes on in the background, and the key
    ///   is gone at the latest when its lease expires.
    /// - [`LockError::PermissionDenied`], [`LockError::Unauthenticated`]: etcd refused.
    /// - [`LockError::Internal`]: the I/O thread died.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::connect(&["http://127.0.0.1:2379"], "/app", Default::default())?;
    /// let guard = manager.new_lock("jobs")?.lock()?;
    /// // ... work ...
    /// guard.unlock()?; // an error here says that the work may have been disturbed
    /// # Ok(())
    /// # }
    /// ```
    pub fn unlock(self) -> Result<(), LockError> {
        match Arc::into_inner(self.hold) {
            Some(hold) => hold.release(),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("key", &self.key())
            .field("token", &self.token())
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}

/// One granted ticket. Its reference count is the number of guards: dropping the last one leaves.
pub(crate) struct Hold {
    ticket: Ticket,
    state: Arc<HoldState>,
    lock: Arc<LockShared>,
    /// `Leave` has been said.
    left: bool,
}

impl Hold {
    pub(crate) fn new(ticket: Ticket, state: Arc<HoldState>, lock: Arc<LockShared>) -> Self {
        Self { ticket, state, lock, left: false }
    }

    /// Leaves and waits for the answer.
    fn release(mut self) -> Result<(), LockError> {
        if self.state.loss(clock::now()).is_some() {
            return Err(self.state.expired(clock::now()));
        }
        let (reply, answer) = crossbeam_channel::bounded(1);
        let sent = self.leave(Some(reply));
        let key = self.state.name.as_str();
        let doing = || format!("releasing lock {key:?}");
        // A hold that the end of the I/O thread has swept away is expired; that says more than how the thread ended.
        let gone = |error| if self.state.has_ended() { self.state.expired(clock::now()) } else { error };
        sent.map_err(gone)?;
        match answer.recv_timeout(self.lock.manager().request_timeout()) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ReleaseFailure::Lost(reason))) => Err(LockError::Expired { key: key.into(), reason }),
            Ok(Err(ReleaseFailure::NotHeld)) => Err(LockError::NotHeld { key: key.into() }),
            Ok(Err(ReleaseFailure::Failed(failure))) => Err(io::lock_error(failure, &doing())),
            Err(RecvTimeoutError::Timeout) => Err(LockError::Unavailable {
                doing: doing(),
                source: Cause::new("no confirmation in time; the release goes on in the background"),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(gone(self.lock.manager().gone())),
        }
    }

    fn leave(&mut self, reply: Option<Sender<Left>>) -> Result<(), LockError> {
        self.left = true;
        self.lock.manager().check_process()?;
        // First out of the lock's sight, so that this thread cannot re-enter a hold that is going.
        self.lock.forget(self.ticket);
        self.lock.manager().send(Message::Leave { ticket: self.ticket, reply })
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

/// What a hold's guards and the I/O thread know of it together.
#[derive(Debug)]
pub(crate) struct HoldState {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
    pub(crate) etcd_key: Box<str>,
    /// Its only sender lives on the I/O thread.
    pub(crate) done: Receiver<()>,
    deadline: Arc<Deadline>,
    /// Where it is held: not in a forked child.
    process: Process,
    /// [`HELD`], or how it ended; it ends once.
    phase: AtomicU8,
}

const HELD: u8 = 0;
const RELEASED: u8 = 1;

impl HoldState {
    pub(crate) fn new(
        name: LockName,
        token: FencingToken,
        etcd_key: Box<str>,
        done: Receiver<()>,
        deadline: Arc<Deadline>,
    ) -> Self {
        let process = Process::current();
        Self { name, token, etcd_key, done, deadline, process, phase: AtomicU8::new(HELD) }
    }

    /// Ends the hold, released or lost, unless it has ended before: how it ended stands for good. Returns how it did.
    pub(crate) fn end(&self, lost: Option<LossReason>) -> Option<LossReason> {
        let phase = lost.map_or(RELEASED, phase_of);
        match self.phase.compare_exchange(HELD, phase, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => lost,
            Err(earlier) => loss_of(earlier),
        }
    }

    /// Whether [`end`](Self::end) was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase.load(Ordering::Acquire) != HELD
    }

    /// Why it was lost, if [`end`](Self::end) said so.
    pub(crate) fn lost(&self) -> Option<LossReason> {
        loss_of(self.phase.load(Ordering::Acquire))
    }

    pub(crate) fn is_held(&self, now: Time) -> bool {
        self.remaining(now).is_some()
    }

    /// The assured time left; `None` once it is over.
    pub(crate) fn remaining(&self, now: Time) -> Option<Duration> {
        // In this order: a deadline that is ended together with a hold's loss is ended after it.
        let left = self.deadline.remaining(now)?;
        (!self.has_ended() && self.process.is_current()).then_some(left)
    }

    /// Why it was lost, if it was. A caller that sees the time run out before the I/O thread does decides it.
    pub(crate) fn loss(&self, now: Time) -> Option<LossReason> {
        if !self.process.is_current() {
            return self.end(Some(LossReason::Crashed));
        }
        if self.deadline.is_live(now) { self.lost() } else { self.end(Some(LossReason::SessionExpired)) }
    }

    /// The error that says that it is over, or nearly so.
    pub(crate) fn expired(&self, now: Time) -> LockError {
        LockError::Expired {
            key: self.name.as_str().into(),
            reason: self.loss(now).unwrap_or(LossReason::SessionExpired),
        }
    }
}

fn phase_of(reason: LossReason) -> u8 {
    match reason {
        LossReason::SessionExpired => 2,
        LossReason::SessionRevoked => 3,
        LossReason::ForceUnlocked => 4,
        LossReason::Closed => 5,
        LossReason::Crashed => 6,
    }
}

fn loss_of(phase: u8) -> Option<LossReason> {
    match phase {
        HELD | RELEASED => None,
        2 => Some(LossReason::SessionExpired),
        3 => Some(LossReason::SessionRevoked),
        4 => Some(LossReason::ForceUnlocked),
        5 => Some(LossReason::Closed),
        _ => Some(LossReason::Crashed),
    }
}

#[cfg(test)]
mod tests;
