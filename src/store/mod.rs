//! The stores: an etcd cluster, or a model of one within this process.

pub(crate) mod etcd;
pub(crate) mod memory;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use crate::kv::{Failure, Request, Response, WatchEvent, WatchId, WatchSpec};

/// The key-value store that the protocol uses: an etcd cluster, or an in-process model of one.
pub(crate) trait Store: Clone + Send + Sync + 'static {
    /// Carries out one request. Ends within `timeout`; if the outcome is not known by then, it is
    /// [`FailureClass::Unknown`](crate::kv::FailureClass::Unknown).
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static;

    /// The same store, for requests that belong to no session: they may be carried out while there is none.
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

/// The end of a time limit that begins now, at most a year ahead, so that it does not overflow.
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

/// Names one client of a store, among those of every store of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(u64);

impl ClientId {
    /// An id that no other client has.
    pub(crate) fn another() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}
