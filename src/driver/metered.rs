//! A store that counts what is asked of it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::clock::Clock;
use crate::kv::{Failure, Request, Response, WatchEvent};
use crate::stats::Counters;
use crate::store::{Store, WatchOrder};

#[derive(Clone, Debug)]
pub(super) struct Metered<S> {
    store: S,
    counters: Arc<Counters>,
    clock: Clock,
}

impl<S> Metered<S> {
    pub(super) fn new(store: S, counters: Arc<Counters>, clock: Clock) -> Self {
        Self { store, counters, clock }
    }
}

impl<S: Store> Store for Metered<S> {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        let kind = self.counters.count_request(&request);
        let (counters, clock) = (Arc::clone(&self.counters), self.clock.clone());
        let call = self.store.call(request, timeout);
        async move {
            let reply = call.await;
            counters.count_reply(clock.now(), kind, &reply);
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
