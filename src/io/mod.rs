//! The I/O thread: a private current-thread tokio runtime in which the protocol meets a store.

mod driver;
mod metered;
mod startup;
mod thread;
mod viewer;

pub(crate) mod admin;
mod asker;
mod async_hint;

mod agreement;
mod connect;
mod convert;
mod doubt;
mod endpoint;
mod endpoints;
mod etcd;
mod failure;
mod keepalive;
mod log_seen;
mod scheme;
mod target;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watch;
mod watches;

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use crate::kv::{Failure, Request, Response, WatchEvent, WatchId, WatchSpec};

pub(crate) use async_hint::about_to_block;
pub(crate) use driver::Settings;
pub(crate) use etcd::Etcd;
pub(crate) use failure::lock_error;
pub(crate) use thread::{Complete, GRACE, IoThread, Launch};
pub(crate) use viewer::Viewer;

/// What stands behind the protocol: an etcd cluster, or an in-process model of one.
pub(crate) trait Store: Clone + Send + Sync + 'static {
    /// Carries out one request. Ends within `timeout`; what is not known by then is
    /// [`FailureClass::Unknown`](crate::kv::FailureClass::Unknown).
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static;

    /// The same store, for requests that no session stands behind: they may be carried out while there is none.
    fn outside_sessions(&self) -> Self {
        self.clone()
    }

    /// Serves the watches of one session until `orders` is closed. A broken stream is opened anew (elsewhere, with a
    /// back-off) and every open watch with it, which reports a fresh [`WatchEvent::Created`] for each.
    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static;
}

/// The end of a time limit that begins now. An overflow means "for ever", for which a year has to do.
fn deadline_after(limit: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);
    Instant::now() + limit.min(FOR_EVER)
}

/// A change of the set of open watches.
#[derive(Clone, Debug)]
pub(crate) enum WatchOrder {
    Open { id: WatchId, spec: WatchSpec },
    Close { id: WatchId },
}
