//! The I/O thread itself: its start in three outcomes (ready, refused, died) and its bounded end.

use std::any::Any;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use crate::mutex::Mutex;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::{Builder, Runtime};

use super::query_loop::QueryLoop;
use super::startup::{Abandoned, Startup, timed_out};
use super::{Driver, Settings};
use crate::clock::Clock;
use crate::error::LockError;
use crate::log_target::LOG;
use crate::protocol::{Config, Protocol};
use crate::shared::async_hint::about_to_block;
use crate::shared::mailbox::{Inbox, Mailbox};
use crate::shared::report::Report;
use crate::store::Store;

/// Linux shows 15 bytes of a thread's name.
const NAME: &str = "etcd-lock-io";
const VIEWER_NAME: &str = "etcd-lock-view";
const _: () = assert!(NAME.len() <= 15 && VIEWER_NAME.len() <= 15);

/// How long a caller waits beyond the time limit given to the I/O thread. Unless the machine is overloaded, the thread has
/// answered or ended by then.
pub(crate) const GRACE: Duration = Duration::from_millis(250);

/// Extra time for the store to connect, so that its own, more specific timeout error arrives first.
const CONNECT_GRACE: Duration = Duration::from_millis(150);
const _: () = assert!(CONNECT_GRACE.as_millis() < GRACE.as_millis());

/// How long the end of the runtime waits for its helper threads. They resolve host names, which cannot be interrupted;
/// idle ones end at once.
const HELPERS_GRACE: Duration = Duration::from_millis(100);
const _: () = assert!(HELPERS_GRACE.as_millis() < GRACE.as_millis());

/// What a caller waits for when a manager starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complete {
    /// The session is set up.
    WithSession,
    /// The store is created, which validates its arguments. Calls wait for the session.
    WithStore,
}

/// Everything the new thread needs.
pub(crate) struct Launch {
    pub(crate) config: Config,
    pub(crate) settings: Settings,
    pub(crate) connect_timeout: Duration,
    pub(crate) complete: Complete,
    pub(crate) inbox: Inbox,
    pub(crate) report: Arc<Report>,
}

/// A running I/O thread. Dropping it does not end the thread; the mailbox does.
#[derive(Debug)]
pub(crate) struct IoThread {
    /// Disconnects when the thread has nothing left to do but return.
    exited: Receiver<()>,
    handle: Mutex<Option<JoinHandle<()>>>,
    id: ThreadId,
}

impl IoThread {
    /// Starts the thread, and returns when the start is complete. The store is created on the new thread. An error leaves
    /// the mailbox abandoned.
    pub(crate) fn start<S, C, F>(launch: Launch, mailbox: &Mailbox, connect: C) -> Result<Self, LockError>
    where
        S: Store,
        C: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<S, LockError>>,
    {
        let limit = launch.connect_timeout;
        Self::spawn(NAME, limit, launch.settings.clock.clone(), mailbox, move |runtime, startup| {
            run(runtime, launch, connect, startup)
        })
    }

    /// Starts the thread of a viewer, and returns when it is connected.
    pub(crate) fn start_viewer<S, C, F>(
        connect_timeout: Duration,
        clock: Clock,
        queries: QueryLoop,
        mailbox: &Mailbox,
        connect: C,
    ) -> Result<Self, LockError>
    where
        S: Store,
        C: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<S, LockError>>,
    {
        Self::spawn(VIEWER_NAME, connect_timeout, clock.clone(), mailbox, move |runtime, startup| {
            runtime.block_on(async {
                match connected(&startup, &clock, connect()).await {
                    Ok(store) => queries.serve(store, startup).await,
                    Err(error) => startup.refuse(error),
                }
            });
            Ok(())
        })
    }

    /// Starts a thread that runs `main`, and returns when that is ready.
    fn spawn(
        name: &str,
        connect_timeout: Duration,
        clock: Clock,
        mailbox: &Mailbox,
        main: impl FnOnce(&Runtime, Startup) -> Result<(), LockError> + Send + 'static,
    ) -> Result<Self, LockError> {
        about_to_block();
        let deadline = clock.now() + connect_timeout;
        let (reply, outcome) = crossbeam_channel::bounded(1);
        let (alive, exited) = crossbeam_channel::bounded(0);
        let handle = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                serve(main, Startup::new(reply, deadline));
                drop::<Sender<()>>(alive);
            })
            .map_err(|error| LockError::Internal { what: format!("no thread for I/O: {error}") })?;
        let io = Self { exited, id: handle.thread().id(), handle: Mutex::new(Some(handle)) };
        let refused = match outcome.recv_timeout(connect_timeout.saturating_add(GRACE)) {
            Ok(Ok(())) => return Ok(io),
            Ok(Err(error)) => error,
            Err(RecvTimeoutError::Disconnected) => {
                LockError::Internal { what: "the I/O thread died at its start".into() }
            }
            // The thread closes down by itself when its answer finds no receiver. If the answer arrives before `outcome` is
            // dropped, the thread takes it for received and serves; then the abandoned mailbox ends it.
            Err(RecvTimeoutError::Timeout) => {
                mailbox.abandon();
                return Err(timed_out());
            }
        };
        mailbox.abandon();
        // It may still have to revoke a lease; the caller does not wait long for that.
        io.join(GRACE.min(deadline.since(clock.now())));
        Err(refused)
    }

    /// Stands for a thread that ends when the other end of `exited` is dropped.
    #[cfg(test)]
    pub(crate) fn scripted(exited: Receiver<()>) -> Self {
        let id = thread::spawn(|| thread::current().id()).join().unwrap();
        Self { exited, handle: Mutex::new(None), id }
    }

    /// Leaves the thread alone: this is a forked child, which does not have it.
    pub(crate) fn forget(&mut self) {
        std::mem::forget(self.handle.get_mut().take());
    }

    /// Waits for the thread's end, at most `limit`. False if it still runs.
    pub(crate) fn join(&self, limit: Duration) -> bool {
        if thread::current().id() == self.id {
            // A logger dropped the last handle, on the thread that is to end.
            return false;
        }
        about_to_block();
        if self.exited.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        // A second caller waits here until the first has joined the thread.
        if let Some(handle) = self.handle.lock().take() {
            let _ = handle.join();
        }
        true
    }
}

/// The thread's whole life.
fn serve(main: impl FnOnce(&Runtime, Startup) -> Result<(), LockError>, startup: Startup) {
    // With a current-thread runtime, all of our tasks end with this thread.
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            startup.refuse(LockError::Internal { what: format!("no runtime for I/O: {error}") });
            return;
        }
    };
    // The driver is dropped, and with it every hold is over, before the panic arrives here.
    let end = panic::catch_unwind(AssertUnwindSafe(|| main(&runtime, startup)));
    runtime.shutdown_timeout(HELPERS_GRACE);
    match end {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!(target: LOG, "the I/O thread died: {error}"),
        Err(panic) => log::error!(target: LOG, "the I/O thread died: {}", message_of(&*panic)),
    }
}

fn run<S, C, F>(runtime: &Runtime, launch: Launch, connect: C, startup: Startup) -> Result<(), LockError>
where
    S: Store,
    C: FnOnce() -> F,
    F: Future<Output = Result<S, LockError>>,
{
    let Launch { config, settings, complete, inbox, report, .. } = launch;
    runtime.block_on(async {
        match connected(&startup, &settings.clock, connect()).await {
            Ok(store) => {
                let startup = match complete {
                    Complete::WithSession => Some(startup),
                    Complete::WithStore => match startup.ready() {
                        Ok(()) => None,
                        Err(Abandoned) => return Ok(()),
                    },
                };
                let driver = Driver::new(store, Protocol::new(config), settings, inbox, report, startup);
                // A task of its own: the runtime would write to its eventfd for every wake-up of the future that it blocks on,
                // even for one that comes from this thread.
                match tokio::spawn(driver.run()).await {
                    Ok(end) => end,
                    Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
                    Err(error) => {
                        Err(LockError::Internal { what: format!("the driver was aborted: {error}") })
                    }
                }
            }
            Err(error) => {
                startup.refuse(error);
                Ok(())
            }
        }
    })
}

/// The store, or why there is none within the time of the start.
async fn connected<S>(
    startup: &Startup,
    clock: &Clock,
    connecting: impl Future<Output = Result<S, LockError>>,
) -> Result<S, LockError> {
    let left = startup.deadline.since(clock.now()).saturating_add(CONNECT_GRACE);
    tokio::time::timeout(left, connecting).await.unwrap_or_else(|_| Err(timed_out()))
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Root;
    use crate::options::LockManagerOptions;
    use crate::shared::mailbox::mailbox;
    use crate::store::memory::client::MemoryClient;
    use crate::store::memory::cluster::MemoryCluster;

    const SOON: Duration = Duration::from_secs(20);

    /// Its answer may arrive after the time-out and before the receiver is dropped. Then only the mailbox can tell it that
    /// no manager was made.
    #[test]
    fn a_thread_that_is_ready_too_late_finds_its_mailbox_abandoned() {
        let (mailbox, inbox) = mailbox(&Arc::default());
        let ((go_on, late), (tell, told)) = (crossbeam_channel::bounded(0), crossbeam_channel::bounded(1));
        let started = IoThread::spawn(NAME, Duration::ZERO, Clock::default(), &mailbox, move |_, startup| {
            let _ = late.recv_timeout(SOON);
            tell.send(inbox.is_abandoned()).unwrap();
            drop(startup);
            Ok(())
        });
        assert!(matches!(started, Err(LockError::Unavailable { .. })), "{started:?}");
        go_on.send(()).unwrap();
        assert!(told.recv_timeout(SOON).unwrap());
    }

    #[test]
    fn an_abandoned_thread_ends_without_a_lease_even_if_its_answer_was_received() {
        let options = LockManagerOptions::default().connect_timeout(SOON);
        let root = Root::parse("/test").unwrap();
        let (mailbox, inbox) = mailbox(&Arc::default());
        let clock = Clock::default();
        let launch = Launch {
            config: Config {
                root: root.clone(),
                owner: String::new(),
                pid: 1,
                ttl: options.ttl,
                safety_margin: options.margin(),
                request_timeout: SOON,
                writes_in_flight: 1,
                seed: 1,
            },
            settings: Settings { root, request_timeout: SOON, close_timeout: SOON, clock: clock.clone() },
            connect_timeout: SOON,
            complete: Complete::WithSession,
            inbox,
            report: Arc::new(Report::new()),
        };
        let store = MemoryCluster::new();
        let client = MemoryClient::new(&store);
        // Its answer fits into the channel and is never read.
        let (reply, _unread) = crossbeam_channel::bounded(1);
        let (ended, end) = crossbeam_channel::bounded(1);
        let startup = Startup::new(reply, clock.now() + SOON);
        mailbox.abandon();
        thread::spawn(move || {
            serve(|runtime, startup| run(runtime, launch, || async { Ok(client) }, startup), startup);
            ended.send(()).unwrap();
        });
        end.recv_timeout(SOON).unwrap();
        assert!(format!("{store:?}").contains("leases: 0"), "{store:?}");
    }
}
