//! One endpoint: its connection, and the token it gave us.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use tokio::time::{Instant, timeout};

use super::address::Address;
use super::convert;
use super::fault::{EtcdFault, FaultKind};
use crate::kv::{FailureClass, LeaseId};
use crate::options::Credentials;

/// A page of 1,000 locks with long names and foreign values is more than tonic's 4 MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A refused password is not sent again for this long: checking it costs etcd 100 ms of CPU (bcrypt), and every waiting
/// call would send it.
const REFUSAL_REMEMBERED: Duration = Duration::from_secs(1);

/// A lease id that etcd never assigns: its ids are larger.
const NO_LEASE: LeaseId = 1;

/// One endpoint of the cluster.
///
/// The user is not passed to etcd-client's `connect`, which would authenticate at once. Creating a connection does no I/O;
/// the first call that needs it authenticates, within that call's timeout.
pub(super) struct Endpoint {
    address: Address,
    /// Locked while authenticating, so that concurrent calls with a refused token authenticate only once.
    live: tokio::sync::Mutex<Live>,
    /// Links up to this number are not used any more.
    broken: AtomicU64,
    /// Tokens up to this number are not used any more.
    refused_token: AtomicU64,
    /// The number of the last token.
    last_token: AtomicU64,
    /// Held during a health probe; one probe serves all requests that wait.
    probing: tokio::sync::Mutex<()>,
    /// Held while a canary is in flight.
    canary: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Live {
    link: Option<Link>,
    links: u64,
    /// The last time the credentials were refused, and how.
    refusal: Option<(Instant, EtcdFault)>,
}

/// A connection with the token it sends. Clones share both.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    kv: KvClient,
    /// Numbers the connections of an endpoint, from 1.
    pub(super) id: u64,
    /// Numbers the tokens of an endpoint, from 1; 0: none yet.
    pub(super) token: u64,
}

/// The cluster an endpoint belongs to, its raft term, and whether it knows a leader.
pub(super) struct Status {
    pub(super) cluster: u64,
    pub(super) term: u64,
    pub(super) has_leader: bool,
}

impl Link {
    pub(super) fn kv(&self) -> KvClient {
        self.kv.clone()
    }

    pub(super) fn leases(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(super) fn watches(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Requests the endpoint's status.
    pub(super) async fn status(&self) -> Result<Status, EtcdFault> {
        let status = match self.client.maintenance_client().status().await.map_err(EtcdFault::from) {
            // Later releases (3.5.30 is one) permit it to root only.
            Err(EtcdFault { kind: FaultKind::Class(FailureClass::PermissionDenied), .. }) => {
                return self.status_for_everybody().await;
            }
            status => status?,
        };
        let header = status.header().ok_or_else(|| EtcdFault::malformed("no header"))?;
        Ok(Status {
            cluster: header.cluster_id(),
            term: header.raft_term(),
            has_leader: status.leader() != 0,
        })
    }

    /// The same from a request that every user may send and that needs a leader: the time to live of a lease that does not
    /// exist.
    async fn status_for_everybody(&self) -> Result<Status, EtcdFault> {
        let answered = convert::lease_time_to_live(self.leases(), NO_LEASE).await?;
        Ok(Status { cluster: answered.cluster, term: answered.response.term, has_leader: true })
    }
}

impl Endpoint {
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            live: tokio::sync::Mutex::new(Live::default()),
            broken: AtomicU64::new(0),
            refused_token: AtomicU64::new(0),
            last_token: AtomicU64::new(0),
            probing: tokio::sync::Mutex::new(()),
            canary: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.address.url
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.address.credentials.as_ref().map(|credentials| credentials.user.as_str())
    }

    pub(super) fn has_credentials(&self) -> bool {
        self.address.credentials.is_some()
    }

    /// The connection, authenticated if there are credentials. A new one is made after [`give_up`](Self::give_up).
    pub(super) async fn link(&self) -> Result<Link, EtcdFault> {
        let mut live = self.live.lock().await;
        // Taken out, so that a call that times out while authenticating does not leave a broken connection here.
        let link = live.link.take().filter(|link| link.id > self.broken.load(Ordering::Relaxed));
        let mut link = match link {
            Some(link) => link,
            None => {
                live.links += 1;
                // Boxed because it is rare: the client's futures are large, and every request's future contains this one.
                let (client, kv) = Box::pin(self.open()).await?;
                Link { client, kv, id: live.links, token: 0 }
            }
        };
        if let Some(credentials) = &self.address.credentials
            && link.token <= self.refused_token.load(Ordering::Relaxed)
        {
            if let Some((at, fault)) = &live.refusal
                && at.elapsed() < REFUSAL_REMEMBERED
            {
                let fault = fault.clone();
                live.link = Some(link);
                return Err(fault);
            }
            live.refusal = None;
            if let Err(fault) = Box::pin(self.authenticate(&mut link, credentials)).await {
                if fault.kind == FaultKind::Class(FailureClass::Unauthenticated) {
                    live.refusal = Some((Instant::now(), fault.clone()));
                    // The connection itself still works.
                    live.link = Some(link);
                }
                return Err(fault);
            }
            link.token = self.last_token.fetch_add(1, Ordering::Relaxed) + 1;
        }
        live.link = Some(link.clone());
        Ok(link)
    }

    /// For a renewal: the existing connection, although its token was refused. etcd before 3.4.42, 3.5.28 and 3.6.9 renews
    /// leases without a token, so a session need not end because the password is wrong for a while.
    pub(super) async fn link_despite_refusal(&self, fault: EtcdFault) -> Result<Link, EtcdFault> {
        if fault.kind != FaultKind::Class(FailureClass::Unauthenticated) {
            return Err(fault);
        }
        let link = self.live.lock().await.link.clone();
        link.filter(|link| link.id > self.broken.load(Ordering::Relaxed)).ok_or(fault)
    }

    /// Marks this connection as broken: the next call gets a new one. Otherwise a connection whose packets are dropped
    /// would take requests until the kernel closes it, minutes later.
    pub(super) fn give_up(&self, link: &Link) {
        self.broken.fetch_max(link.id, Ordering::Relaxed);
    }

    /// Probes the health of an endpoint that has not answered for a while. An error means that it is dead or has no leader.
    /// A member answers the probe itself, however slow the cluster's commits are. Returns its raft term, if known.
    pub(super) async fn probe_health(&self, limit: Duration) -> Result<Option<u64>, EtcdFault> {
        // One probe at a time serves all waiting requests.
        let Ok(_probing) = self.probing.try_lock() else { return Ok(None) };
        let mut used = None;
        let answer = Box::pin(timeout(limit, async {
            let link = self.link().await?;
            used.insert(link).status().await
        }));
        let dead = |what: &str| Err(EtcdFault::class(FailureClass::Unknown, what));
        match answer.await {
            Ok(Ok(Status { has_leader: true, term, .. })) => Ok(Some(term)),
            Ok(Ok(_) | Err(EtcdFault { kind: FaultKind::Leaderless, .. })) => {
                // The request may be lost with the leader. Whether another endpoint knows one, the next request finds out.
                Err(EtcdFault::new(FaultKind::Abandoned, "no answer in time, and it knows no leader"))
            }
            Ok(Err(fault)) if fault.blames_endpoint() => dead(&format!("no answer in time, and {fault}")),
            // The probe was refused, so the endpoint is alive.
            Ok(Err(_)) => Ok(None),
            Err(_) => {
                if let Some(link) = &used {
                    self.give_up(link);
                }
                dead("no answer in time, nor to a health probe")
            }
        }
    }

    /// `None`: another request has a canary in flight at this endpoint.
    pub(super) fn try_canary(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.canary.try_lock().ok()
    }

    /// Marks this token as refused: the next call authenticates first, unless another one already has.
    pub(super) fn token_refused(&self, link: &Link) {
        self.refused_token.fetch_max(link.token, Ordering::Relaxed);
    }

    /// Whether another call has authenticated since this link was returned.
    pub(super) fn has_newer_token(&self, link: &Link) -> bool {
        self.last_token.load(Ordering::Relaxed) > link.token
    }

    #[cfg(test)]
    pub(super) fn tokens(&self) -> u64 {
        self.last_token.load(Ordering::Relaxed)
    }

    async fn open(&self) -> Result<(Client, KvClient), EtcdFault> {
        let options = ConnectOptions::new().with_require_leader(true);
        let client = Client::from_channel(self.address.transport.channel(), Some(options)).await?;
        let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok((client, kv))
    }

    async fn authenticate(&self, link: &mut Link, credentials: &Credentials) -> Result<(), EtcdFault> {
        log::trace!(target: "etcd_lock", "{}: authenticating", self.url());
        let user = Some((credentials.user.clone(), credentials.password.clone()));
        let Err(error) = link.client.update_user(user).await else {
            return Ok(());
        };
        let fault = EtcdFault::from(error);
        if fault.message.contains("authentication is not enabled") {
            log::debug!(target: "etcd_lock", "{}: authentication is not enabled; the credentials are not used", self.url());
            return Ok(());
        }
        match fault.kind {
            // The caller must fix the user or the password.
            FaultKind::Token | FaultKind::Class(FailureClass::Refused) => {
                Err(EtcdFault::class(FailureClass::Unauthenticated, fault.message))
            }
            // The request that waits for this was certainly not sent.
            FaultKind::Class(FailureClass::Unknown | FailureClass::NotDone) => {
                Err(EtcdFault::new(FaultKind::Elsewhere, fault.message))
            }
            _ => Err(fault),
        }
    }
}
