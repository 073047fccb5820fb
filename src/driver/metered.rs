//! A store that counts its requests. A decorator, because requests are sent in two places: by the loop for the protocol, and
//! by the tasks that answer queries.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::clock::Clock;
use crate::kv::{Failure, Request, Response, WatchEvent};
use crate::stats::StatsCell;
use crate::store::{Store, WatchOrder};

#[derive(Clone, Debug)]
pub(super) struct Metered<S> {
    store: S,
    stats: Arc<StatsCell>,
    clock: Clock,
}

impl<S> Metered<S> {
    pub(super) fn new(store: S, stats: Arc<StatsCell>, clock: Clock) -> Self {
        Self { store, stats, clock }
    }
}

impl<S: Store> Store for Metered<S> {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        let kind = self.stats.count_request(&request);
        let (stats, clock) = (Arc::clone(&self.stats), self.clock.clone());
        let call = self.store.call(request, timeout);
        async move {
            let reply = call.await;
            stats.count_reply(clock.now(), kind, &reply);
            reply
        }
    }

    fn outside_sessions(&self) -> Self {
        Self { store: self.store.outside_sessions(), ..self.clone() }
    }

    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.store.run_watches(orders, events)
    }
}
