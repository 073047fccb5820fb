//! What all handles of a manager share: the way to the I/O thread, and the register of locks.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use oneshot::Sender;
use parking_lot::Mutex;

use crate::clock::{Clock, Sleeper, Time};
use crate::driver::Settings;
use crate::driver::thread::{Complete, GRACE, IoThread, Launch};
use crate::error::{Cause, LockError, LossReason};
use crate::info::SessionInfo;
use crate::lock::holds::Holds;
use crate::name::{LockName, Root};
use crate::options::LockManagerOptions;
use crate::protocol::{Config, Ticket, WRITES_IN_FLIGHT};
use crate::shared::mailbox::{self, Mailbox, mailbox};
use crate::shared::message::{Message, Query};
use crate::shared::report::Report;
use crate::shared::watchdog::Watchdog;
use crate::stats::Stats;
use crate::store::Store;

/// One manager. Its drop is the end of the manager.
pub(crate) struct Client {
    root: Root,
    mailbox: Mailbox,
    /// Every lock somebody still has a handle, a place in the queue or a guard of.
    locks: Mutex<HashMap<LockName, Weak<Holds>>>,
    next_ticket: AtomicU64,
    report: Arc<Report>,
    io: IoThread,
    watchdog: Watchdog,
    clock: Clock,
    /// The I/O thread did not end when it should have: it is not waited for again.
    hung: AtomicBool,
    /// In a forked child: nothing of the parent's is waited for here any more.
    left: AtomicBool,
    request_timeout: Duration,
    close_timeout: Duration,
}

impl Client {
    /// Starts the I/O thread, which makes the store, and waits until the start is `complete`.
    pub(crate) fn start<S, C, F>(
        root: &str,
        options: &LockManagerOptions,
        complete: Complete,
        clock: Clock,
        connect: C,
    ) -> Result<Self, LockError>
    where
        S: Store,
        C: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<S, LockError>>,
    {
        options.check()?;
        let root = Root::parse(root)?;
        let (mailbox, inbox) = mailbox();
        let report = Arc::new(Report::new());
        let launch = Launch {
            config: Config {
                root: root.clone(),
                owner: options.owner_name(),
                pid: std::process::id(),
                ttl: options.ttl,
                safety_margin: options.margin(),
                request_timeout: options.request_timeout,
                writes_in_flight: WRITES_IN_FLIGHT,
                seed: fastrand::u64(..),
            },
            settings: Settings {
                root: root.clone(),
                request_timeout: options.request_timeout,
                close_timeout: options.close_timeout,
                clock: clock.clone(),
            },
            connect_timeout: options.connect_timeout,
            complete,
            inbox,
            report: Arc::clone(&report),
        };
        let io = IoThread::start(launch, &mailbox, connect)?;
        // Nothing is held before this returns.
        let mut client = Self::new(root, options, mailbox, report, io);
        client.watchdog = Watchdog::start(&client.report, clock.clone())?;
        let sleeper: Weak<Report> = Arc::downgrade(&client.report);
        clock.wake_when_moved(sleeper as Weak<dyn Sleeper + Send + Sync>);
        client.clock = clock;
        Ok(client)
    }

    pub(crate) fn new(
        root: Root,
        options: &LockManagerOptions,
        mailbox: Mailbox,
        report: Arc<Report>,
        io: IoThread,
    ) -> Self {
        Self {
            root,
            mailbox,
            locks: Mutex::default(),
            next_ticket: AtomicU64::new(1),
            report,
            io,
            watchdog: Watchdog::none(),
            clock: Clock::default(),
            hung: AtomicBool::new(false),
            left: AtomicBool::new(false),
            request_timeout: options.request_timeout,
            close_timeout: options.close_timeout,
        }
    }

    pub(crate) fn root(&self) -> &str {
        self.root.as_str()
    }

    pub(crate) fn name(&self, key: &str) -> Result<LockName, LockError> {
        LockName::parse(&self.root, key)
    }

    /// An error in a forked child, where nothing works and no mutex may be taken. The first time, the child's copies of
    /// channels are closed.
    pub(crate) fn check_process(&self) -> Result<(), LockError> {
        self.mailbox.check_process().inspect_err(|_| {
            if !self.left.swap(true, Ordering::AcqRel) {
                self.abandon_copy();
            }
        })
    }

    /// In a forked child: closes the child's copies of `done()` and `ready()`, for whoever has a clone of one.
    ///
    /// On a thread of its own, because a channel has a lock inside that a thread of the parent may have had at the fork,
    /// in the child for ever: then that thread hangs, and nobody who calls.
    fn abandon_copy(&self) {
        let (report, mailbox) = (Arc::clone(&self.report), self.mailbox.clone());
        let closing = thread::Builder::new().name("etcd-lock-fork".into()).spawn(move || {
            report.holds.abandon_copy();
            report.tickets.abandon_copy();
            mailbox.abandon_copy();
        });
        // Where no thread can be had, the channels stay as they are.
        drop(closing);
    }

    pub(crate) fn session(&self) -> SessionInfo {
        if self.check_process().is_err() {
            return SessionInfo::none();
        }
        let now = self.now();
        SessionInfo { last_answer: self.report.stats.last_answer(now), ..self.report.session.info(now) }
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn stats(&self) -> Stats {
        // In a forked child the statistics may be locked for ever.
        if self.check_process().is_err() { Stats::default() } else { self.report.stats.snapshot() }
    }

    pub(crate) fn send(&self, message: Message) -> Result<(), LockError> {
        self.mailbox.send(message)
    }

    /// What a call fails with whose answer will never come.
    pub(crate) fn gone(&self) -> LockError {
        self.mailbox.gone()
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub(crate) fn next_ticket(&self) -> Ticket {
        Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    /// The one lock of this name.
    pub(crate) fn lock(self: &Arc<Self>, name: LockName) -> Result<Arc<Holds>, LockError> {
        self.mailbox.check()?;
        let mut locks = self.locks.lock();
        if let Some(lock) = locks.get(&name).and_then(Weak::upgrade) {
            return Ok(lock);
        }
        let lock = Arc::new(Holds::new(name.clone(), Arc::clone(self)));
        locks.insert(name, Arc::downgrade(&lock));
        Ok(lock)
    }

    /// The last handle of a lock of this name has gone. Meanwhile there may be a new lock in its place.
    pub(crate) fn forget_lock(&self, name: &LockName) {
        if self.check_process().is_err() {
            return;
        }
        let mut locks = self.locks.lock();
        if locks.get(name).is_some_and(|lock| lock.strong_count() == 0) {
            locks.remove(name);
        }
    }

    #[cfg(test)]
    pub(crate) fn locks_in_use(&self) -> usize {
        self.locks.lock().len()
    }

    /// Puts a question to the I/O thread and waits for the answer.
    pub(crate) fn ask<T>(
        &self,
        doing: &str,
        question: impl FnOnce(Sender<Result<T, LockError>>) -> Query,
    ) -> Result<T, LockError> {
        self.mailbox.ask(self.request_timeout.saturating_add(GRACE), doing, question)
    }

    /// Ends the session as its deadline would; returns when every hold is over.
    pub(crate) fn expire(&self) {
        let (reply, done) = oneshot::channel();
        if self.send(Message::Expire { reply }).is_ok() {
            // An error says that the I/O thread has ended, and every hold with it.
            let _ = mailbox::wait_for(&done, None);
        }
    }

    /// Ends the manager for all its handles.
    pub(crate) fn close(&self) -> Result<(), LockError> {
        self.check_process()?;
        // An error says that the end has come already, or is coming.
        let _ = self.send(Message::Close);
        let hung = self.hung.load(Ordering::Acquire);
        let limit = if hung { Duration::ZERO } else { self.close_timeout.saturating_add(GRACE) };
        if self.io.join(limit) {
            self.watchdog.join();
            return self.mailbox.closing_result();
        }
        // First nothing new is accepted, then everything is over for callers. Whatever the I/O thread does when it goes
        // on, it finds nobody left to grant a lock to; it still gives back the lease.
        self.hung.store(true, Ordering::Release);
        self.mailbox.abandon();
        self.report.end(LossReason::Closed);
        self.watchdog.join();
        Err(LockError::Unavailable {
            doing: "closing the lock manager".into(),
            source: Cause::new("the I/O thread did not end in time"),
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // There is nobody left to tell how it went; what etcd did not confirm expires with the lease.
        let _ = self.close();
        if self.check_process().is_err() {
            self.io.forget();
            self.watchdog.forget();
        }
    }
}
