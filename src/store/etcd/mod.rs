//! The store that is an etcd cluster.

mod address;
mod agreement;
mod coalesced;
mod connect;
mod convert;
mod endpoint;
mod endpoints;
mod fault;
mod heartbeat;
mod keepalive;
mod log_seen;
mod scheme;
mod stop_waiting;
mod transport;
mod watch_set;
mod watch_stream;

#[cfg(test)]
pub(crate) mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, timeout_at};

use crate::error::LockError;
use crate::kv::{Answer, Failure, FailureClass, Key, Op, Request, Response, Span, Txn, WatchEvent};
use crate::options::LockManagerOptions;
use crate::store::{Store, WatchOrder, deadline_after};
use address::Address;
use agreement::Agreement;
use convert::Answered;
use endpoint::{Endpoint, Link};
use endpoints::{Endpoints, Pin};
use fault::{EtcdFault, FaultKind};
use keepalive::KeepAlive;
use stop_waiting::stop_waiting;

/// Maximum authentications per attempt: if new tokens keep being refused, another one will be refused as well.
const MAX_REAUTHENTICATIONS: u32 = 3;

/// An attempt with less time than this says nothing about the endpoint. Otherwise a call shortly before its deadline would
/// close the connection that all requests share.
const FAIR_CHANCE: Duration = Duration::from_millis(100);

/// Silence before a health probe, and the probe's own timeout. The slowest commits of a healthy cluster take less...
const MAX_SILENCE: Duration = Duration::from_millis(500);
/// ...but with a short TTL it must be shorter: the next endpoint must be in use within a third of the TTL.
const SILENCES_PER_TTL: u32 = 12;
/// A shorter silence can come from this machine rather than from the endpoint.
const MIN_SILENCE: Duration = Duration::from_millis(150);

/// An etcd cluster. A clone is one more handle on the same connections.
#[derive(Clone)]
pub(crate) struct Etcd {
    shared: Arc<Shared>,
    origin: Origin,
}

/// Whether requests belong to a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Refused once its session cannot exist any more.
    Session,
    Admin,
}

struct Shared {
    endpoints: Arc<Endpoints>,
    agreement: Agreement,
    keep_alive: KeepAlive,
    request_timeout: Duration,
    /// Silence of an endpoint before a health probe.
    silence_limit: Duration,
}

/// etcd checkpoints the rest of a lease this often, where it is set to do so; a shorter lease never has a checkpoint.
const CHECKPOINTS: Duration = Duration::from_secs(300);

impl Etcd {
    /// Connects, and warns of what may come to a lease with these options.
    pub(crate) async fn connect_for_leases(
        endpoints: &[String],
        options: &LockManagerOptions,
    ) -> Result<Self, LockError> {
        let etcd = Self::connect(endpoints, options).await?;
        warn_of_checkpoints(options);
        Ok(etcd)
    }

    /// The same, but opens no connection: the first request does.
    pub(crate) async fn connect_lazy_for_leases(
        endpoints: &[String],
        options: &LockManagerOptions,
    ) -> Result<Self, LockError> {
        let etcd = Self::unconnected(endpoints, options)?;
        warn_of_checkpoints(options);
        Ok(etcd)
    }

    /// Connects to the cluster behind these endpoints. Must be called in the runtime that will carry out the requests.
    ///
    /// Returns as soon as one endpoint answers that accepts our credentials and whose cluster has a leader.
    pub(crate) async fn connect(
        endpoints: &[String],
        options: &LockManagerOptions,
    ) -> Result<Self, LockError> {
        let etcd = Self::unconnected(endpoints, options)?;
        connect::first_contact(&etcd.shared.endpoints, options.connect_timeout).await?;
        Ok(etcd)
    }

    /// Checks the endpoints and how to connect to them, and contacts none.
    fn unconnected(endpoints: &[String], options: &LockManagerOptions) -> Result<Self, LockError> {
        let addresses = Address::parse_all(endpoints, options)?;
        let endpoints = Arc::new(Endpoints::new(addresses.into_iter().map(Endpoint::new).collect()));
        let (agreement, keep_alive) = (Agreement::default(), KeepAlive::default());
        let request_timeout = options.request_timeout;
        let silence_limit = (options.ttl / SILENCES_PER_TTL).clamp(MIN_SILENCE, MAX_SILENCE);
        let shared = Shared { endpoints, agreement, keep_alive, request_timeout, silence_limit };
        Ok(Self { shared: Arc::new(shared), origin: Origin::Session })
    }
}

fn warn_of_checkpoints(options: &LockManagerOptions) {
    if options.ttl > CHECKPOINTS {
        log::warn!(
            target: "etcd_lock",
            "a TTL of {:?} is above {CHECKPOINTS:?}: where etcd makes lease checkpoints, one that crosses a renewal can \
             end the session early after an election",
            options.ttl
        );
    }
}

#[cfg(test)]
impl Etcd {
    /// How many tokens the pinned endpoint has given out.
    pub(super) fn tokens(&self) -> u64 {
        self.shared.endpoints.choose(&[]).map(|(_, endpoint)| endpoint.tokens()).unwrap()
    }

    pub(super) fn pin(&self, index: usize) {
        self.shared.endpoints.pin(index);
    }

    pub(super) fn pinned(&self) -> String {
        self.shared.endpoints.choose(&[]).map(|(pin, _)| self.shared.endpoints.url(pin.index).into()).unwrap()
    }
}

impl Store for Etcd {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        let (shared, origin) = (self.shared.clone(), self.origin);
        async move { shared.call(origin, &request, timeout).await }
    }

    fn outside_sessions(&self) -> Self {
        Self { shared: self.shared.clone(), origin: Origin::Admin }
    }

    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (endpoints, request_timeout) = (self.shared.endpoints.clone(), self.shared.request_timeout);
        async move { watch_stream::run(endpoints, request_timeout, orders, events).await }
    }
}

impl Shared {
    /// Carries out a request at the pinned endpoint. If it was certainly not carried out there, it is sent to the next
    /// endpoint at once, and to each endpoint at most once.
    async fn call(&self, origin: Origin, request: &Request, timeout: Duration) -> Result<Response, Failure> {
        let deadline = deadline_after(timeout);
        let era = self.endpoints.era();
        if origin == Origin::Session
            && let Some(failure) = self.agreement.refusal(request, era)
        {
            return Err(failure);
        }
        let mut tried = Vec::new();
        let mut leaderless: Vec<(Pin, EtcdFault)> = Vec::new();
        let mut last = None;
        while let Some((pin, endpoint)) = self.endpoints.choose(&tried) {
            tried.push(pin.index);
            let sent = self.endpoints.sending(pin.index, request.is_write());
            let result = tokio::select! {
                biased;
                result = self.call_at(pin, &endpoint, request, deadline) => result,
                () = self.endpoints.left(pin) => Err(self.endpoints.abandoned(pin)),
                fault = stop_waiting(&self.endpoints, (pin, &endpoint), sent, request, self.silence_limit) => Err(fault),
            };
            match result {
                Ok(response) => {
                    self.endpoints.worked(pin.index);
                    self.endpoints.arrived(pin.index, sent, &response);
                    if let Answer::LeaseGranted { lease, .. } = response.answer {
                        self.agreement.granted(lease, era);
                    }
                    // This endpoint has a leader. The pinned one was tried first and is reported last, so the pin moves once.
                    for (pin, fault) in leaderless.into_iter().rev() {
                        self.endpoints.failed(pin, &fault);
                    }
                    return Ok(response);
                }
                Err(fault) => {
                    log::trace!(target: "etcd_lock", "{}: {}: {fault}", endpoint.url(), kind_of(request));
                    if fault.blames_endpoint() {
                        self.endpoints.failed(pin, &fault);
                    }
                    if fault.kind == FaultKind::Leaderless {
                        leaderless.push((pin, fault.clone()));
                    }
                    let go_on = fault.is_elsewhere() && Instant::now() < deadline;
                    let fault = fault.about(endpoint.user(), || subject(request));
                    let failure = fault.at(endpoint.url()).into_failure();
                    if !go_on {
                        return Err(failure);
                    }
                    last = Some(failure);
                }
            }
        }
        // During an election it is too early to report a changed cluster.
        if let Some(changed) = self.endpoints.changed().filter(|_| leaderless.is_empty()) {
            // If the deadline passes before all have answered, the cluster does not change.
            let seek = Box::pin(self.agreement.seek(&self.endpoints, self.silence_limit));
            let _ = timeout_at(deadline, seek).await;
            if self.endpoints.era() == era {
                return Err(Failure::new(FailureClass::ClusterChanged, changed));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            return Box::pin(self.call(origin, request, left)).await;
        }
        let none_left =
            || Failure::new(FailureClass::Refused, "every endpoint belongs to another etcd cluster");
        Err(last.unwrap_or_else(none_left))
    }

    /// Carries out a request at one endpoint, authenticating again where its token is refused.
    async fn call_at(
        &self,
        pin: Pin,
        endpoint: &Endpoint,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, EtcdFault> {
        let mut reauthentications = 0;
        loop {
            let fair = has_fair_chance(deadline);
            let is_renewal = matches!(request, Request::RenewLease { .. });
            let link = async {
                match endpoint.link().await {
                    Err(fault) if is_renewal => endpoint.link_despite_refusal(fault).await,
                    link => link,
                }
            };
            let Ok(link) = timeout_at(deadline, link).await else {
                // Certainly not sent.
                let kind = if fair { FaultKind::Elsewhere } else { FaultKind::Class(FailureClass::NotDone) };
                return Err(EtcdFault::new(kind, "no answer to the authentication in time"));
            };
            let link = link?;
            log::trace!(target: "etcd_lock", "{}: {}", endpoint.url(), kind_of(request));
            let fair = has_fair_chance(deadline);
            let Ok(result) = timeout_at(deadline, self.send(pin, &link, request)).await else {
                if !fair {
                    return Err(EtcdFault::new(FaultKind::Abandoned, "no answer in time"));
                }
                endpoint.give_up(&link);
                return Err(EtcdFault::class(FailureClass::Unknown, "no answer in time"));
            };
            match result {
                Ok(answered) => {
                    self.endpoints.check_cluster(pin.index, answered.cluster)?;
                    return Ok(answered.response);
                }
                Err(fault) if fault.kind == FaultKind::Token && reauthentications < MAX_REAUTHENTICATIONS => {
                    if !endpoint.has_credentials() {
                        return Err(fault);
                    }
                    reauthentications += 1;
                    endpoint.token_refused(&link);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    async fn send(&self, pin: Pin, link: &Link, request: &Request) -> Result<Answered, EtcdFault> {
        match request {
            Request::GrantLease { ttl } => convert::grant_lease(link.leases(), *ttl).await,
            Request::RenewLease { lease } => self.keep_alive.renew(pin.index, link, *lease).await,
            Request::RevokeLease { lease } => convert::revoke_lease(link.leases(), *lease).await,
            Request::LeaseTimeToLive { lease } => convert::lease_time_to_live(link.leases(), *lease).await,
            Request::Delete { key } => convert::delete(link.kv(), key).await,
            Request::Txn(txn) => convert::txn(link.kv(), txn).await,
        }
    }
}

/// Whether an attempt that begins now has enough time for its failure to say something about the endpoint. Decided at the
/// start: the time that an attempt took is long, too, when this machine was suspended.
fn has_fair_chance(deadline: Instant) -> bool {
    deadline.saturating_duration_since(Instant::now()) >= FAIR_CHANCE
}

/// The subject of a request, for the error of a user without permission.
fn subject(request: &Request) -> Option<String> {
    fn of_ops(ops: &[Op]) -> Option<&Key> {
        ops.iter().find_map(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => Some(key),
            Op::Range(range) => Some(match &range.span {
                Span::Key(key) | Span::Prefix(key) | Span::Between(key, _) => key,
            }),
            Op::Txn(txn) => of_txn(txn),
        })
    }
    fn of_txn(txn: &Txn) -> Option<&Key> {
        of_ops(&txn.then).or_else(|| of_ops(&txn.otherwise))
    }
    let key = match request {
        Request::Txn(txn) => of_txn(txn),
        Request::Delete { key } => Some(key),
        Request::GrantLease { .. } => None,
        Request::RenewLease { lease }
        | Request::RevokeLease { lease }
        | Request::LeaseTimeToLive { lease } => return Some(format!("the keys of lease {lease:x}")),
    };
    key.map(|key| format!("key {:?}", key.to_string()))
}

/// The request's name in the logs.
fn kind_of(request: &Request) -> &'static str {
    match request {
        Request::GrantLease { .. } => "grant lease",
        Request::RenewLease { .. } => "renew lease",
        Request::RevokeLease { .. } => "revoke lease",
        Request::LeaseTimeToLive { .. } => "lease time to live",
        Request::Delete { .. } => "delete",
        Request::Txn(_) => "txn",
    }
}
