//! The loop of a thread that only answers queries: a viewer has no session and no locks.

use std::panic;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinSet;

use super::observers::{ObserverCommand, Observers};
use super::queries;
use super::startup::Startup;
use crate::name::Root;
use crate::shared::feeds::Feeds;
use crate::shared::mailbox::{Inbox, Service};
use crate::shared::message::Message;
use crate::store::Store;

/// The loop of a viewer's thread.
pub(crate) struct QueryLoop {
    pub(crate) root: Root,
    pub(crate) request_timeout: Duration,
    pub(crate) inbox: Inbox,
    pub(crate) feeds: Arc<Feeds>,
}

impl QueryLoop {
    /// Serves until it is closed. A panic is a crash: it drops the inbox, so callers get an error.
    pub(super) async fn serve<S: Store>(self, store: S, startup: Startup) {
        if startup.ready().is_err() {
            return;
        }
        let _end = CloseFeeds(Arc::clone(&self.feeds));
        let mut answers = JoinSet::new();
        let observers = self.observe(&store, &mut answers);
        loop {
            tokio::select! {
                () = self.inbox.ready() => {}
                Some(answered) = answers.join_next() => {
                    if let Err(error) = answered
                        && error.is_panic()
                    {
                        panic::resume_unwind(error.into_panic());
                    }
                }
            }
            if self.inbox.is_abandoned() {
                return;
            }
            while let Some(message) = self.inbox.take() {
                match message {
                    Message::Ask(question) => {
                        let (store, root) = (store.clone(), self.root.clone());
                        answers.spawn(queries::answer(store, root, self.request_timeout, question));
                    }
                    Message::Observe { id, name, reply } => {
                        let _ = observers.send(ObserverCommand::Observe { id, name, reply });
                    }
                    Message::Unobserve { id } => {
                        let _ = observers.send(ObserverCommand::Unobserve { id });
                    }
                    Message::Close => {
                        self.inbox.end(Service::Closed);
                        return;
                    }
                    // A viewer cannot send these.
                    Message::Acquire { .. }
                    | Message::Leave { .. }
                    | Message::Fenced { .. }
                    | Message::AwaitContention { .. }
                    | Message::Expire { .. } => {}
                }
            }
        }
    }
}

impl QueryLoop {
    /// Starts the tasks of the observers and of their watches.
    fn observe<S: Store>(&self, store: &S, tasks: &mut JoinSet<()>) -> UnboundedSender<ObserverCommand> {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (reported, events) = mpsc::unbounded_channel();
        let (observers, commands) = mpsc::unbounded_channel();
        tasks.spawn(store.run_watches(ordered, reported));
        let (store, request_timeout) = (store.clone(), self.request_timeout);
        let feeds = Arc::clone(&self.feeds);
        tasks.spawn(Observers { store, request_timeout, feeds, commands, orders, events }.run());
        observers
    }
}

/// However the loop ends, the observers learn of it.
struct CloseFeeds(Arc<Feeds>);

impl Drop for CloseFeeds {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::shared::mailbox::mailbox;
    use crate::store::memory::client::MemoryClient;
    use crate::store::memory::cluster::MemoryCluster;

    #[tokio::test]
    async fn an_abandoned_viewer_ends() {
        let (mailbox, inbox) = mailbox(&Arc::default());
        let request_timeout = Duration::from_secs(1);
        let viewer =
            QueryLoop { root: Root::parse("/test").unwrap(), request_timeout, inbox, feeds: Arc::default() };
        // Its answer fits into the channel and is never read.
        let (reply, _unread) = crossbeam_channel::bounded(1);
        let serving =
            viewer.serve(MemoryClient::new(&MemoryCluster::new()), Startup::new(reply, clock::now()));
        mailbox.abandon();
        tokio::time::timeout(Duration::from_secs(20), serving).await.expect("the end");
    }
}
