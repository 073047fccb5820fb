//! The loop of the I/O thread: events in, the protocol's actions out.
//!
//! No branch of the loop ever awaits a request: requests run as tasks of their own, and their replies are events. A
//! turn takes a bounded number of events, and every turn looks at the clock, so nothing can starve a deadline.

pub(crate) mod thread;

mod actions;
mod inflight;
mod log;
mod metered;
mod observers;
pub(crate) mod queries;
pub(crate) mod query_loop;
mod startup;

use std::collections::HashMap;
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinError, JoinSet};

use inflight::Inflight;
use log::Line;
use metered::Metered;
use observers::name::Contention;
use observers::{ObserverCommand, Observers, is_of_observer};
use startup::Startup;

use crate::clock::{Clock, Time};
use crate::error::{LockError, LossReason};
use crate::kv::{Failure, LeaseId, Response, WatchEvent};
use crate::name::Root;
use crate::protocol::{Acquire, Command, FencedFailure, FencedId, Protocol, Refusal, RequestId};
use crate::shared::mailbox::{Inbox, Service};
use crate::shared::message::{FencedResult, Message, Reply};
use crate::shared::report::Report;
use crate::store::{Store, WatchOrder};

/// Events of one kind that a turn takes: enough to share the costs of a turn, few enough to be done in well under a
/// millisecond.
const EVENTS_PER_TURN: usize = 256;

/// Turns in a row before the tasks get to run, even if further events wait already.
const TURNS_BEFORE_YIELD: u32 = 16;

/// The longest pause while something is held: tokio's timers stop while the machine is suspended, deadlines do not.
const LONGEST_PAUSE_HOLDING: Duration = Duration::from_secs(1);

/// The longest pause when nothing is held and the protocol waits for nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The longest pause right after an event. The runtime writes to its eventfd when a timer is started that is due before it
/// wakes up by itself. Requests start timers of 100 ms or more; so in a series of requests, none of them costs that.
const LONGEST_PAUSE_BUSY: Duration = Duration::from_millis(50);

/// How long closing waits for the answer to a lease request when the manager never had a session: longer than etcd needs,
/// so that normally no lease is left behind.
const UNUSED_LEASE_LIMIT: Duration = Duration::from_millis(250);

/// The configuration of a driver, beside that of the protocol.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) root: Root,
    pub(crate) request_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) clock: Clock,
}

struct Driver<S: Store> {
    store: Metered<S>,
    protocol: Protocol,
    settings: Settings,
    inbox: Inbox,
    inflight: Inflight,
    tasks: JoinSet<Done>,
    watch_orders: UnboundedSender<WatchOrder>,
    watch_events: UnboundedReceiver<WatchEvent>,
    report: Arc<Report>,
    observers: UnboundedSender<ObserverCommand>,
    observed: UnboundedSender<WatchEvent>,
    /// A holder has asked whether it is contended, so the observers must hear of the ends of holds.
    asked_for_contention: bool,
    /// The callers of fenced requests that are not answered yet.
    fenced: HashMap<FencedId, oneshot::Sender<FencedResult>>,
    startup: Option<Startup>,
    /// When closing began, no key of ours was in etcd; at most an unused lease can be left.
    owns_nothing: bool,
    /// When the loop ends even if the protocol has not finished closing.
    closing: Option<Time>,
    /// The lease of the session that closing ended, until etcd confirms the revocation.
    closing_session: Option<LeaseId>,
    /// The last pause was ended by an event.
    busy: bool,
    /// The last attempt to set up a session failed.
    failing: bool,
    lines: Vec<Line>,
    over: bool,
}

/// The result of a finished task.
#[derive(Debug)]
enum Done {
    Request { id: RequestId, reply: Result<Response, Failure>, limited: bool },
    Admin,
    Watches,
    Observers,
}

/// What ended a pause.
enum Wake {
    Mail,
    Task(Result<Done, JoinError>),
    Watch(WatchEvent),
    Clock,
}

impl<S: Store> Driver<S> {
    pub(super) fn new(
        store: S,
        protocol: Protocol,
        settings: Settings,
        inbox: Inbox,
        report: Arc<Report>,
        startup: Option<Startup>,
    ) -> Self {
        let (watch_orders, orders) = mpsc::unbounded_channel();
        let (events, watch_events) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let watches = store.run_watches(orders, events);
        tasks.spawn(async move {
            watches.await;
            Done::Watches
        });
        let store = Metered::new(store, Arc::clone(&report.stats), settings.clock.clone());
        let (observers, commands) = mpsc::unbounded_channel();
        let (observed, of_observers) = mpsc::unbounded_channel();
        let observing = Observers {
            store: store.clone(),
            request_timeout: settings.request_timeout,
            feeds: Arc::clone(&report.feeds),
            commands,
            orders: watch_orders.clone(),
            events: of_observers,
        };
        tasks.spawn(async move {
            observing.run().await;
            Done::Observers
        });
        Self {
            store,
            observers,
            observed,
            asked_for_contention: false,
            protocol,
            settings,
            inbox,
            inflight: Inflight::default(),
            tasks,
            watch_orders,
            watch_events,
            report,
            fenced: HashMap::new(),
            owns_nothing: false,
            startup,
            closing: None,
            closing_session: None,
            busy: false,
            failing: false,
            lines: Vec::new(),
            over: false,
        }
    }

    /// Serves until the manager is closed. An error, like a panic, is a crash.
    pub(super) async fn run(mut self) -> Result<(), LockError> {
        let clock = self.settings.clock.clone();
        let mut moves = clock.moves();
        self.protocol.handle_start(clock.now());
        let mut turns: u32 = 0;
        loop {
            self.perform();
            if self.over {
                return Ok(());
            }
            let pause = self.pause(clock.now());
            let wake = tokio::select! {
                () = self.inbox.ready() => Wake::Mail,
                Some(done) = self.tasks.join_next() => Wake::Task(done),
                Some(event) = self.watch_events.recv() => Wake::Watch(event),
                () = tokio::time::sleep(pause) => Wake::Clock,
                () = moves.moved() => Wake::Clock,
            };
            self.busy = !matches!(wake, Wake::Clock);
            let now = clock.now();
            if self.inbox.is_abandoned() {
                self.begin_to_close(now);
            }
            self.take_in(now, wake)?;
            self.look_at_the_clock(now);
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(TURNS_BEFORE_YIELD) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// How long to wait for an event: until the next deadline or timeout.
    fn pause(&self, now: Time) -> Duration {
        if self.protocol.next_timeout().is_none_or(|at| at > now) {
            // Beside the tasks of the watches and the observers there is one for each request.
            self.settings.clock.note_turn(now, self.tasks.len().saturating_sub(2));
        }
        let longest = match () {
            () if self.busy => LONGEST_PAUSE_BUSY,
            () if self.report.holds.is_empty() => LONGEST_PAUSE,
            () => LONGEST_PAUSE_HOLDING,
        };
        let startup = self.startup.as_ref().map(|startup| startup.deadline);
        [self.protocol.next_timeout(), self.inflight.next_timeout(), startup, self.closing]
            .into_iter()
            .flatten()
            .map(|at| at.since(now))
            .fold(longest, Duration::min)
    }

    fn look_at_the_clock(&mut self, now: Time) {
        let overdue = self.inflight.take_overdue(now);
        self.not_sent(now, overdue, "too many requests in flight: it was not sent in time");
        if self.protocol.next_timeout().is_some_and(|at| at <= now) {
            self.protocol.handle_timeout(now);
        }
        if let Some(startup) = self.startup.take_if(|startup| startup.deadline <= now) {
            startup.overdue();
            self.begin_to_close(now);
        }
        if self.closing.is_some_and(|at| at <= now) {
            if self.owns_nothing {
                self.inbox.end(Service::Closed);
            } else {
                self.inbox.end(Service::Unconfirmed);
                self.lines.push(Line::CloseUnconfirmed(self.settings.close_timeout));
            }
            self.over = true;
        }
    }

    fn take_in(&mut self, now: Time, wake: Wake) -> Result<(), LockError> {
        match wake {
            Wake::Mail => {
                for _ in 0..EVENTS_PER_TURN {
                    let Some(message) = self.inbox.take() else { break };
                    self.read(now, message);
                }
                self.inbox.ring_again();
            }
            Wake::Task(done) => {
                self.finish(now, done)?;
                for _ in 1..EVENTS_PER_TURN {
                    let Some(done) = self.tasks.try_join_next() else { break };
                    self.finish(now, done)?;
                }
            }
            Wake::Watch(event) => {
                self.watched(now, event);
                for _ in 1..EVENTS_PER_TURN {
                    let Ok(event) = self.watch_events.try_recv() else { break };
                    self.watched(now, event);
                }
            }
            Wake::Clock => {}
        }
        Ok(())
    }

    fn watched(&mut self, now: Time, event: WatchEvent) {
        if is_of_observer(&event) {
            // Fails only if the observers have ended, which `finish` reports.
            let _ = self.observed.send(event);
        } else {
            self.protocol.handle_watch(now, event);
        }
    }

    fn finish(&mut self, now: Time, done: Result<Done, JoinError>) -> Result<(), LockError> {
        let broken = |what: &str| Err(LockError::Internal { what: what.into() });
        match done {
            Ok(Done::Request { id, reply, limited }) => {
                if limited && let Some(next) = self.inflight.answered() {
                    self.send(now, next);
                }
                self.protocol.handle_reply(now, id, reply);
            }
            Ok(Done::Admin) => {}
            Ok(Done::Watches) => return broken("the watches ended by themselves"),
            Ok(Done::Observers) => return broken("the observers ended by themselves"),
            // A request whose task panicked has no outcome; nothing that is built on it can be relied on.
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            Err(_) => return broken("a request was aborted"),
        }
        Ok(())
    }

    fn read(&mut self, now: Time, message: Message) {
        match message {
            Message::Acquire { acquire, reply } => self.acquire(now, acquire, reply),
            Message::Leave { ticket, reply } => {
                let confirm = self.report.tickets.leave(ticket, reply);
                self.protocol.handle_command(now, Command::Abandon { ticket, confirm });
            }
            Message::Close => self.begin_to_close(now),
            Message::Fenced { reply, .. } if self.closing.is_some() => {
                let _ = reply.send(Err(FencedFailure::NotHeld));
            }
            // Questions are not answered while the manager closes: dropping one closes its reply channel.
            _ if self.closing.is_some() => {}
            Message::Fenced { call, reply } => {
                self.fenced.insert(call.id, reply);
                self.protocol.handle_command(now, Command::Fenced(call));
            }
            Message::Observe { id, name, reply } => {
                let _ = self.observers.send(ObserverCommand::Observe { id, name, reply });
            }
            Message::Unobserve { id } => {
                let _ = self.observers.send(ObserverCommand::Unobserve { id });
            }
            Message::AwaitContention { ticket, state } => {
                if self.protocol.has_waiters(&state.name) {
                    self.report.feeds.end_contention(ticket);
                } else {
                    self.asked_for_contention = true;
                    let contention = Contention { ticket, state };
                    let _ = self.observers.send(ObserverCommand::AwaitContention(contention));
                }
            }
            Message::Expire { reply } => {
                self.protocol.handle_expired(now);
                // Reply only after every hold has ended.
                self.perform();
                let _ = reply.send(());
            }
            Message::Ask(question) => {
                let Settings { root, request_timeout, .. } = self.settings.clone();
                let answering = queries::answer(self.store.clone(), root, request_timeout, question);
                self.tasks.spawn(async move {
                    answering.await;
                    Done::Admin
                });
            }
        }
    }

    fn acquire(&mut self, now: Time, acquire: Acquire, reply: Reply) {
        if self.closing.is_some() {
            reply.answer(Err(Refusal::Closed));
            return;
        }
        if ::log::max_level() >= ::log::LevelFilter::Debug {
            self.lines.push(Line::Asked(acquire.name.clone(), acquire.mode, acquire.ticket));
        }
        self.report.tickets.wait(acquire.ticket, reply);
        let name = Some(&acquire.name).filter(|name| self.report.feeds.awaits_contention_of(name)).cloned();
        self.protocol.handle_command(now, Command::Acquire(acquire));
        if let Some(name) = name.filter(|name| self.protocol.has_waiters(name)) {
            self.report.feeds.contended(&name);
        }
    }

    fn begin_to_close(&mut self, now: Time) {
        if self.closing.is_none() {
            self.inbox.end(Service::Closed);
            let limit = self.settings.close_timeout;
            self.owns_nothing = self.protocol.owns_nothing();
            self.closing = Some(now + if self.owns_nothing { limit.min(UNUSED_LEASE_LIMIT) } else { limit });
            self.protocol.handle_command(now, Command::Close);
        }
    }
}

/// However the loop ends, even by a panic: first refuse new messages, then end everything for the callers, in the order of
/// [`Report::end`]. Unread messages are dropped last, with the fields.
impl<S: Store> Drop for Driver<S> {
    fn drop(&mut self) {
        let (end, lost) = if self.over {
            (Service::Closed, LossReason::Closed)
        } else {
            (Service::Crashed, LossReason::Crashed)
        };
        self.inbox.end(end);
        self.report.end(lost);
    }
}

#[cfg(test)]
mod tests;
