//! One ticket, from the acquire message to its outcome.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::mutex::Mutex;
use crossbeam_channel::Sender;
use oneshot::{Receiver, RecvTimeoutError};

use super::caller_thread::CallerThread;
use super::guard::LockGuard;
use super::hold::Hold;
use super::holds::Holds;
use crate::clock::Time;
use crate::error::{Cause, LockError, lock_error};
use crate::info::LockInfo;
use crate::mode::Mode;
use crate::options::LockOptions;
use crate::protocol::{Acquire, CurrentHolder, Refusal, Ticket, WaitLimits};
use crate::shared::async_hint::about_to_block;
use crate::shared::message::{Message, Outcome, Reply};

/// How long a call waits for the I/O thread after its own limit. The I/O thread enforces the limit and then looks up
/// the holder for the error. If it has not answered by then it is stuck, and the call returns by itself.
const GIVE_UP_GRACE: Duration = Duration::from_millis(75);

/// How long a cancelled call waits for the deletion of its key; a healthy cluster answers sooner.
const CANCEL_GRACE: Duration = Duration::from_millis(25);

/// A waiting ticket. Dropping it leaves the queue.
pub(crate) struct WaitingCall {
    lock: Arc<Holds>,
    ticket: Ticket,
    mode: Mode,
    /// In a mutex only because a oneshot receiver is not `Sync`; the mutex is never locked.
    outcome: Mutex<Receiver<Outcome>>,
    asked: Time,
    note: Option<Arc<str>>,
    /// When the call returns by itself, without an answer of the I/O thread.
    give_up: Option<Instant>,
    /// The outcome was received, or `Leave` was sent: dropping sends nothing.
    settled: bool,
}

/// What ends a wait.
enum WaitEnd {
    Outcome(Outcome),
    Cancelled,
    /// The I/O thread did not answer within `GIVE_UP_GRACE` after the limit.
    Overdue,
    /// The I/O thread ended.
    Gone,
}

impl WaitingCall {
    /// Takes a ticket for the current thread. `ready` is dropped when the outcome is known.
    pub(crate) fn ask(
        lock: &Arc<Holds>,
        options: &LockOptions,
        limits: WaitLimits,
        ready: Option<Sender<()>>,
    ) -> Result<Self, LockError> {
        let asked = lock.client.now();
        let ticket = lock.client.next_ticket();
        let (sender, outcome) = oneshot::channel();
        let acquire = Acquire {
            ticket,
            name: lock.name.clone(),
            mode: options.mode,
            thread: CallerThread::current().0,
            limits,
            retry_interval: options.retry_interval,
            // A try does not wait for the lock, so it never warns of a long wait.
            warn_after: (!limits.try_only).then_some(options.warn_after),
            since: asked,
            asked_at: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            note: options.note.clone(),
        };
        lock.client.mailbox.send(Message::Acquire { acquire, reply: Reply { outcome: sender, ready } })?;
        let limit = [limits.deadline, limits.budget].into_iter().flatten().min();
        let give_up = limit.and_then(|limit| Instant::now().checked_add(limit.since(asked) + GIVE_UP_GRACE));
        Ok(Self {
            lock: Arc::clone(lock),
            ticket,
            mode: options.mode,
            outcome: Mutex::new(outcome),
            asked,
            note: options.note.clone(),
            give_up,
            settled: false,
        })
    }

    pub(crate) fn key(&self) -> &str {
        self.lock.name.as_str()
    }

    /// False in a forked child, where no outcome can arrive.
    pub(crate) fn is_here(&self) -> bool {
        self.lock.client.mailbox.is_here()
    }

    pub(crate) fn wait(mut self) -> Result<LockGuard, LockError> {
        let end = match self.lock.client.mailbox.wait_for(self.outcome.get_mut(), self.give_up) {
            Ok(outcome) => WaitEnd::Outcome(outcome),
            Err(RecvTimeoutError::Timeout) => WaitEnd::Overdue,
            Err(RecvTimeoutError::Disconnected) => WaitEnd::Gone,
        };
        self.conclude(end)
    }

    /// Waits until `ready` disconnects, whose sender was passed to `ask`.
    pub(crate) fn wait_or_cancel(
        mut self,
        ready: &crossbeam_channel::Receiver<()>,
        cancel: &crossbeam_channel::Receiver<()>,
    ) -> Result<LockGuard, LockError> {
        about_to_block();
        let overdue = self.give_up.map_or_else(crossbeam_channel::never, crossbeam_channel::at);
        let end = crossbeam_channel::select! {
            recv(ready) -> _ => self.outcome.get_mut().try_recv().map_or(WaitEnd::Gone, WaitEnd::Outcome),
            recv(cancel) -> _ => WaitEnd::Cancelled,
            recv(overdue) -> _ => WaitEnd::Overdue,
        };
        self.conclude(end)
    }

    fn conclude(mut self, end: WaitEnd) -> Result<LockGuard, LockError> {
        let key = || self.key().to_owned();
        match end {
            WaitEnd::Outcome(Ok(grant)) => {
                let hold = Hold::new(
                    self.ticket,
                    self.asked,
                    self.note.clone(),
                    grant.state,
                    Arc::clone(&self.lock),
                );
                self.settled = true;
                Ok(LockGuard::new(Arc::new(hold)))
            }
            WaitEnd::Outcome(Err(refusal)) => {
                let error = self.error_of(refusal);
                self.settled = true;
                Err(error)
            }
            WaitEnd::Cancelled => {
                let error = LockError::Cancelled { key: key() };
                self.leave_and_wait();
                Err(error)
            }
            WaitEnd::Overdue => Err(self.overdue()),
            WaitEnd::Gone => Err(self.lock.client.mailbox.gone()),
        }
    }

    /// Leaves the queue, and waits up to `CANCEL_GRACE` for the deletion of the key. The I/O thread releases a grant
    /// that crosses this message.
    fn leave_and_wait(&mut self) {
        self.settled = true;
        let (reply, left) = oneshot::channel();
        if self.lock.client.mailbox.send(Message::Leave { ticket: self.ticket, reply: Some(reply) }).is_ok() {
            let _ = self.lock.client.mailbox.wait_for(&left, Instant::now().checked_add(CANCEL_GRACE));
        }
    }

    /// What the call does, for errors.
    fn doing(&self) -> String {
        format!("acquiring lock {:?}{}", self.key(), self.mode.remark())
    }

    fn error_of(&self, refusal: Refusal) -> LockError {
        let key = self.key().to_owned();
        let info = |holder: Option<CurrentHolder>| {
            let info = |CurrentHolder { kv, waiters }| LockInfo::from_holder(self.key(), &kv, waiters, None);
            holder.map(|holder| Box::new(info(holder)))
        };
        match refusal {
            Refusal::Held => LockError::AlreadyHeld { key, holder: None },
            Refusal::Timeout { waited, holder } => LockError::Timeout { key, waited, holder: info(holder) },
            Refusal::AlreadyHeld { holder } => LockError::AlreadyHeld { key, holder: info(holder) },
            Refusal::Unavailable(failure) | Refusal::Failed(failure) => lock_error(failure, &self.doing()),
            Refusal::Cancelled => LockError::Cancelled { key },
            Refusal::Closed => LockError::Closed,
        }
    }

    /// The error of a call that the I/O thread left without an answer: whether the lock is held is not known.
    fn overdue(&self) -> LockError {
        LockError::Unavailable {
            doing: self.doing(),
            source: Cause::new("the I/O thread did not answer in time"),
        }
    }
}

impl Drop for WaitingCall {
    fn drop(&mut self) {
        if !self.settled {
            // On an error the I/O thread has ended, and the queue with it.
            let _ = self.lock.client.mailbox.send(Message::Leave { ticket: self.ticket, reply: None });
        }
    }
}

/// Maps `AlreadyHeld` to `None`.
pub(super) fn none_if_held<G>(taken: Result<G, LockError>) -> Result<Option<G>, LockError> {
    match taken {
        Ok(guard) => Ok(Some(guard)),
        Err(LockError::AlreadyHeld { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
