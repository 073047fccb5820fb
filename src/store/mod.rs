//! The store of the locks' keys: an etcd cluster, or a model of one in this process.

pub(crate) mod etcd;
pub(crate) mod memory;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use crate::kv::{Failure, Request, Response, WatchEvent, WatchId, WatchSpec};

/// The store behind the protocol: an etcd cluster, or an in-process model of one.
pub(crate) trait Store: Clone + Send + Sync + 'static {
    /// Executes one request. Returns within `timeout`; an outcome not known by then is
    /// [`FailureClass::Unknown`](crate::kv::FailureClass::Unknown).
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static;

    /// The same store, for requests outside any session: they may be executed while there is none.
    fn outside_sessions(&self) -> Self {
        self.clone()
    }

    /// Serves the watches of one session until `orders` is closed. A broken stream is reopened with back-off, on
    /// another endpoint if there is one. Every open watch is reopened with it, and reports a new
    /// [`WatchEvent::Created`].
    ///
    /// Both channels are unbounded, because neither the driver nor the stream may wait for the other. `orders` gets one
    /// open and one close per watch, and a lost event would be a lost deletion.
    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static;
}

/// The end of a time limit that starts now. A limit beyond a year is cut to a year, which stands for "no limit".
pub(crate) fn deadline_after(limit: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);
    Instant::now() + limit.min(FOR_EVER)
}

/// A change of the set of open watches.
#[derive(Clone, Debug)]
pub(crate) enum WatchOrder {
    Open { id: WatchId, spec: WatchSpec },
    Close { id: WatchId },
}

/// Identifies a client of a store, uniquely among all stores of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(u64);

impl ClientId {
    /// A new id.
    pub(crate) fn another() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}
