//! A store that counts what is asked of it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::{Store, WatchOrder};
use crate::LOG;
use crate::stats::Counters;
use crate::store::{Failure, Request, Response, WatchEvent};

#[derive(Clone, Debug)]
pub(super) struct Metered<S> {
    store: S,
    counters: Arc<Counters>,
}

impl<S> Metered<S> {
    pub(super) fn new(store: S, counters: Arc<Counters>) -> Self {
        Self { store, counters }
    }
}

impl<S: Store> Store for Metered<S> {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        self.counters.count_request(&request);
        // The kind alone: values and keys are the business of nobody who reads logs.
        log::trace!(target: LOG, "asks etcd to {}", kind(&request));
        self.store.call(request, timeout)
    }

    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.store.run_watches(orders, events)
    }
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::GrantLease { .. } => "grant a lease",
        Request::RenewLease { .. } => "renew the lease",
        Request::RevokeLease { .. } => "revoke a lease",
        Request::LeaseTimeToLive { .. } => "tell a lease's time to live",
        Request::Delete { .. } => "delete a key",
        Request::Txn(_) => "carry out a transaction",
    }
}
