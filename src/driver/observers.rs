//! Observers: who holds a lock, as it changes. A task of its own beside the loop, with no part in the protocol.
//!
//! All observers of a name share one watch and its reads. An event only says that something has changed: a linearizable
//! read then says what, so what is published is the truth of some moment, and moments are compared by revision. An event
//! about another key than the holder's changes nothing, so a queue that grows costs no reads.

pub(super) mod name;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use oneshot::Sender;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::queries::holder_read::{HolderRead, read_holder};
use crate::error::{LockError, lock_error};
use crate::kv::{Failure, WatchEvent, WatchId, WatchSpec};
use crate::name::LockName;
use crate::shared::feeds::{Feeds, ObserverId};
use crate::store::{Store, WatchOrder};
use name::{Contention, ObservedName, Step};

/// The watches of observers have numbers from here on, which the protocol's never reach.
const FIRST_WATCH: u64 = 1 << 63;

/// Whether an event belongs to a watch of an observer.
pub(super) fn is_of_observer(event: &WatchEvent) -> bool {
    event.watch().0 >= FIRST_WATCH
}

/// A request to the task.
#[derive(Debug)]
pub(super) enum ObserverCommand {
    /// Answered when the first state was published, or could not be read.
    Observe {
        id: ObserverId,
        name: LockName,
        reply: Sender<Result<(), LockError>>,
    },
    Unobserve {
        id: ObserverId,
    },
    /// Tell the holder when a contender of another session queues up behind it.
    AwaitContention(Contention),
    /// Holds have ended.
    HoldsEnded,
}

/// What the task needs.
pub(super) struct Observers<S> {
    pub(super) store: S,
    pub(super) request_timeout: Duration,
    pub(super) feeds: Arc<Feeds>,
    pub(super) commands: UnboundedReceiver<ObserverCommand>,
    pub(super) orders: UnboundedSender<WatchOrder>,
    pub(super) events: UnboundedReceiver<WatchEvent>,
}

/// A finished read of a name's holder.
type Read = (WatchId, Result<HolderRead, Failure>);

struct Task<S> {
    setup: Observers<S>,
    names: BTreeMap<WatchId, ObservedName>,
    watches: HashMap<LockName, WatchId>,
    last_watch: u64,
    reads: JoinSet<Read>,
}

impl<S: Store> Observers<S> {
    /// Serves until `commands` is closed.
    pub(super) async fn run(self) {
        let (names, watches) = (BTreeMap::new(), HashMap::new());
        Task { setup: self, names, watches, last_watch: FIRST_WATCH, reads: JoinSet::new() }.run().await;
    }
}

impl<S: Store> Task<S> {
    async fn run(mut self) {
        loop {
            let next = self.names.values().filter_map(ObservedName::due).min();
            tokio::select! {
                command = self.setup.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(event) = self.setup.events.recv() => {
                    let id = event.watch();
                    self.step(id, |name, feeds| name.watch_reported(&event, feeds));
                }
                Some(read) = self.reads.join_next() => match read {
                    Ok((id, read)) => self.step(id, |name, feeds| name.read_answered(read, Instant::now(), feeds)),
                    // The driver notices that the task has panicked.
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                },
                () = sleep_until_some(next) => {
                    let now = Instant::now();
                    let due = |name: &ObservedName| name.due().is_some_and(|due| due <= now);
                    let ids: Vec<WatchId> =
                        self.names.iter().filter(|(_, name)| due(name)).map(|(&id, _)| id).collect();
                    for id in ids {
                        self.step(id, |name, _| name.check_again());
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: ObserverCommand) {
        match command {
            ObserverCommand::Observe { id, name, reply } => {
                let doing = format!("looking at lock {:?}", name.as_str());
                let reply = move |result: Result<(), Failure>| {
                    // Sending fails only if the caller no longer waits.
                    let _ = reply.send(result.map_err(|failure| lock_error(failure, &doing)));
                };
                let watch = self.name(name);
                self.step(watch, |name, _| name.join(id, Box::new(reply)));
            }
            ObserverCommand::Unobserve { id } => {
                let watch = self.names.iter_mut().find_map(|(&watch, name)| name.leave(id).then_some(watch));
                self.forget_unused(watch);
            }
            ObserverCommand::AwaitContention(contention) => {
                let watch = self.name(contention.state.name.clone());
                self.step(watch, |name, feeds| name.await_contention(contention, feeds));
            }
            ObserverCommand::HoldsEnded => {
                let feeds = Arc::clone(&self.setup.feeds);
                let ids: Vec<WatchId> = self.names.keys().copied().collect();
                for id in ids {
                    self.names.entry(id).and_modify(|name| name.forget_ended_holds(&feeds));
                    self.forget_unused(Some(id));
                }
            }
        }
    }

    /// The watch of a name, which is opened if there is none.
    fn name(&mut self, name: LockName) -> WatchId {
        if let Some(&watch) = self.watches.get(&name) {
            return watch;
        }
        self.last_watch += 1;
        let id = WatchId(self.last_watch);
        let spec = WatchSpec { span: name.contenders(), from_revision: 0, puts: true };
        // Fails only if the watches have ended, which the driver reports.
        let _ = self.setup.orders.send(WatchOrder::Open { id, spec });
        self.watches.insert(name.clone(), id);
        self.names.insert(id, ObservedName::new(name, Instant::now()));
        id
    }

    fn step(&mut self, id: WatchId, step: impl FnOnce(&mut ObservedName, &Feeds) -> Step) {
        let Some(name) = self.names.get_mut(&id) else {
            return;
        };
        match step(name, &self.setup.feeds) {
            Step::Nothing => {}
            Step::Read => {
                let (store, timeout) = (self.setup.store.clone(), self.setup.request_timeout);
                let (name, contenders) = (name.name().clone(), name.contenders_wanted());
                self.reads.spawn(async move { (id, read_holder(&store, &name, contenders, timeout).await) });
            }
        }
        self.forget_unused(Some(id));
    }

    /// Closes the watch of a name that nobody observes any more.
    fn forget_unused(&mut self, id: Option<WatchId>) {
        if let Some(id) = id
            && let Some(unused) = self.names.get(&id).filter(|name| name.is_unused())
        {
            self.watches.remove(unused.name());
            self.names.remove(&id);
            let _ = self.setup.orders.send(WatchOrder::Close { id });
        }
    }
}

/// Never returns for `None`.
async fn sleep_until_some(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
