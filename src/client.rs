//! The state shared by all handles of a manager: the mailbox of the I/O thread, and what that thread reports.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use oneshot::Sender;

use crate::clock::{Clock, Sleeper, Time};
use crate::driver::Settings;
use crate::driver::thread::{Complete, GRACE, IoThread, Launch};
use crate::error::{Cause, LockError, LossReason};
use crate::info::SessionInfo;
use crate::name::{LockName, Root};
use crate::options::LockManagerOptions;
use crate::protocol::{Config, Ticket, WRITES_IN_FLIGHT};
use crate::shared::feeds::Feeds;
use crate::shared::mailbox::{Mailbox, mailbox};
use crate::shared::message::{Message, Query};
use crate::shared::report::Report;
use crate::shared::watchdog::Watchdog;
use crate::stats::Stats;
use crate::store::Store;

/// One manager, shared by all its handles. Dropping it ends the manager.
pub(crate) struct Client {
    root: Root,
    pub(crate) mailbox: Mailbox,
    /// The next ticket number; incremented by callers' threads.
    next_ticket: AtomicU64,
    report: Arc<Report>,
    io: IoThread,
    watchdog: Watchdog,
    clock: Clock,
    /// Set by `close` once the I/O thread has not ended in time: later calls do not wait for it again.
    hung: AtomicBool,
    request_timeout: Duration,
    close_timeout: Duration,
}

impl Client {
    /// Starts the I/O thread, which creates the store, and waits until the start is `complete`.
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
        let report = Arc::new(Report::new());
        let (mailbox, inbox) = mailbox(&report);
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
        // No lock can be held before this returns, so the watchdog can start after the I/O thread.
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
            next_ticket: AtomicU64::new(1),
            report,
            io,
            watchdog: Watchdog::none(),
            clock: Clock::default(),
            hung: AtomicBool::new(false),
            request_timeout: options.request_timeout,
            close_timeout: options.close_timeout,
        }
    }

    pub(crate) fn root(&self) -> &str {
        self.root.as_str()
    }

    pub(crate) fn name(&self, key: &str) -> Result<LockName, LockError> {
        Ok(LockName::parse(&self.root, key)?)
    }

    pub(crate) fn session(&self) -> SessionInfo {
        if !self.mailbox.is_here() {
            return SessionInfo::none();
        }
        let now = self.now();
        SessionInfo { last_answer: self.report.stats.last_answer(now), ..self.report.session.info(now) }
    }

    pub(crate) fn feeds(&self) -> &Arc<Feeds> {
        &self.report.feeds
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn stats(&self) -> Stats {
        // In a forked child the mutex may be locked for ever.
        if self.mailbox.is_here() { self.report.stats.snapshot() } else { Stats::default() }
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub(crate) fn next_ticket(&self) -> Ticket {
        Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a query to the I/O thread and waits for the answer.
    pub(crate) fn ask<T>(
        &self,
        doing: &str,
        question: impl FnOnce(Sender<Result<T, LockError>>) -> Query,
    ) -> Result<T, LockError> {
        self.mailbox.ask(self.request_timeout.saturating_add(GRACE), doing, question)
    }

    /// Ends the session as if its deadline had passed; returns when every hold has ended.
    pub(crate) fn expire(&self) {
        let (reply, done) = oneshot::channel();
        if self.mailbox.send(Message::Expire { reply }).is_ok() {
            // On an error the I/O thread has ended, and every hold with it.
            let _ = self.mailbox.wait_for(&done, None);
        }
    }

    /// Closes the manager for all its handles.
    pub(crate) fn close(&self) -> Result<(), LockError> {
        if let Err(LockError::Forked) = self.mailbox.send(Message::Close) {
            return Err(LockError::Forked);
        }
        // Any other error means that the manager has ended or is ending.
        let hung = self.hung.load(Ordering::Acquire);
        let limit = if hung { Duration::ZERO } else { self.close_timeout.saturating_add(GRACE) };
        if self.io.join(limit) {
            self.watchdog.join();
            return self.mailbox.closing_result();
        }
        // First refuse new messages, then end everything that callers can see. If the I/O thread resumes later it has
        // no caller left to grant a lock to; it still revokes the lease.
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
        // There is no caller left to report the result to; what etcd did not confirm expires with the lease.
        if let Err(LockError::Forked) = self.close() {
            self.io.forget();
            self.watchdog.forget();
        }
    }
}
