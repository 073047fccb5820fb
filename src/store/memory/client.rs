//! One manager's client of the store: requests, watches, and the timer that expires leases.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::cluster::MemoryCluster;
use crate::clock::{Clock, Time};
use crate::kv::{Answer, Failure, FailureClass, Request, Response, WatchEvent};
use crate::store::{ClientId, Store, WatchOrder};

/// One manager's [`Store`]. Clones are the same client. When the last one is dropped the store forgets the client; its
/// leases remain until they expire.
#[derive(Clone)]
pub(crate) struct MemoryClient {
    registered: Arc<Registered>,
}

/// A registered client; dropping it unregisters the client.
struct Registered {
    id: ClientId,
    cluster: Arc<MemoryCluster>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.cluster.state.lock().forget(self.id);
    }
}

impl MemoryClient {
    /// Registers a new client of the cluster.
    pub(crate) fn new(cluster: &Arc<MemoryCluster>) -> Self {
        let (id, cluster) = (ClientId::another(), Arc::clone(cluster));
        cluster.state.lock().register(id, cluster.clock.for_another());
        Self { registered: Arc::new(Registered { id, cluster }) }
    }

    pub(crate) fn id(&self) -> ClientId {
        self.registered.id
    }

    /// The clock of this client's manager.
    pub(crate) fn clock(&self) -> Clock {
        self.cluster().state.lock().clock(self.id())
    }

    fn cluster(&self) -> &MemoryCluster {
        &self.registered.cluster
    }

    /// Executes the request as soon as the client is connected.
    async fn carry_out(&self, request: &Request) -> Result<Response, Failure> {
        let line = self.cluster().state.lock().line(self.id());
        let Some(mut line) = line else { return pending().await };
        loop {
            // The sender exists while the client is registered, which it is as long as `self`.
            if line.wait_for(|connected| *connected).await.is_err() {
                return pending().await;
            }
            let result = self.cluster().state.lock().execute(self.now(), self.id(), request);
            if let Some(result) = result {
                if let Ok(Response { answer: Answer::LeaseGranted { .. }, .. }) = &result {
                    self.cluster().granted.send_replace(());
                }
                return result;
            }
        }
    }

    /// Waits for the delay of an answer to this client, by the store's clock, but for at most `left`. False if the
    /// delay is longer than `left`.
    async fn delayed(&self, left: Duration) -> bool {
        let delay = self.cluster().state.lock().delay_of(self.id());
        if delay.is_zero() {
            return true;
        }
        let mut moves = self.cluster().clock.moves();
        let due = self.now() + delay.min(left);
        let _under_way = UnderWay::new(self, due);
        while self.now() < due {
            tokio::select! {
                () = self.reached(Some(due)) => {}
                () = moves.moved() => {}
            }
        }
        delay <= left
    }

    fn now(&self) -> Time {
        self.cluster().clock.now()
    }

    /// Waits until `time`; for ever if it is `None`.
    async fn reached(&self, time: Option<Time>) {
        match time {
            Some(time) => tokio::time::sleep(time.since(self.now())).await,
            None => pending().await,
        }
    }

    /// Serves watches, and expires the leases that are due: those of all clients, since any manager may wait for any
    /// lease.
    async fn serve_watches(
        self,
        mut orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) {
        let mut granted = self.cluster().granted.subscribe();
        let mut moves = self.cluster().clock.moves();
        self.cluster().state.lock().open_stream(self.id(), events);
        loop {
            let next_expiry = self.cluster().state.lock().model.next_expiry();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(WatchOrder::Open { id, spec }) => {
                        self.cluster().state.lock().open_watch(self.id(), id, spec);
                    }
                    Some(WatchOrder::Close { id }) => self.cluster().state.lock().close_watch(self.id(), id),
                    None => break,
                },
                () = self.reached(next_expiry) => self.cluster().state.lock().expire_due(self.now()),
                // The leases that are now due expire in the branch above.
                () = moves.moved() => {}
                // The new lease may be the first to expire.
                _ = granted.changed() => {}
            }
        }
        self.cluster().state.lock().close_stream(self.id());
    }
}

/// A delayed answer. Dropped when it has arrived or its request was given up.
struct UnderWay<'a> {
    client: &'a MemoryClient,
    due: Time,
}

impl<'a> UnderWay<'a> {
    fn new(client: &'a MemoryClient, due: Time) -> Self {
        client.cluster().state.lock().begin_delay(client.id(), due);
        Self { client, due }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.client.cluster().state.lock().end_delay(self.client.id(), self.due);
    }
}

impl Store for MemoryClient {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        let client = self.clone();
        async move {
            let asked = Instant::now();
            match tokio::time::timeout(timeout, client.carry_out(&request)).await {
                Ok(answer) if client.delayed(timeout.saturating_sub(asked.elapsed())).await => answer,
                _ => Err(Failure::new(FailureClass::Unknown, format!("no answer within {timeout:?}"))),
            }
        }
    }

    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.clone().serve_watches(orders, events)
    }
}
