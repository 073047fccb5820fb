//! The first contact: finds a working endpoint, or reports the most useful reason why there is none.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::endpoint::{Endpoint, Link};
use super::endpoints::Endpoints;
use super::fault::{EtcdFault, FaultKind};
use super::{convert, scheme};
use crate::error::{Cause, LockError};
use crate::kv::FailureClass;
use crate::store::deadline_after;

/// After the first good answer, how long to wait for other endpoints to report a different cluster. A live endpoint
/// answers within a few milliseconds.
const CLUSTER_CHECK_LIMIT: Duration = Duration::from_millis(100);

/// After a refused password, how long to wait for another endpoint to accept it: a lagging member may not have the user
/// yet.
const CREDENTIALS_LAG_LIMIT: Duration = Duration::from_millis(500);

/// The pause before a member that has no leader is asked again: an election takes about a second.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);

/// Contacts all endpoints at once and pins the first good one. The others go on being checked in the background, so
/// that a fail-over knows where to go.
pub(super) async fn first_contact(endpoints: &Arc<Endpoints>, limit: Duration) -> Result<(), LockError> {
    let deadline = deadline_after(limit);
    // Probes end slightly earlier, so that their errors arrive before the deadline.
    let probe_deadline = deadline - (deadline - Instant::now()) / 20;
    let mut probes = JoinSet::new();
    for index in 0..endpoints.len() {
        let endpoints = endpoints.clone();
        probes.spawn(async move { (index, probe(&endpoints, index, probe_deadline).await) });
    }
    let mut stop_at = deadline;
    let mut good = false;
    let mut faults: Vec<Option<EtcdFault>> = vec![None; endpoints.len()];
    while let Ok(Some(finding)) = timeout_at(stop_at, probes.join_next()).await {
        match finding {
            Ok((_, Err(fault))) if fault.kind == FaultKind::Foreign => {
                return Err(LockError::InvalidOptions { why: fault.message });
            }
            Ok((index, Ok(()))) => {
                if !good {
                    endpoints.pin(index);
                    good = true;
                }
                stop_at = stop_at.min(Instant::now() + CLUSTER_CHECK_LIMIT);
            }
            Ok((index, Err(fault))) => {
                if fault.kind == FaultKind::Class(FailureClass::Unauthenticated) {
                    stop_at = stop_at.min(Instant::now() + CREDENTIALS_LAG_LIMIT);
                }
                if let Some(slot) = faults.get_mut(index) {
                    *slot = Some(fault);
                }
            }
            Err(panicked) => return Err(LockError::Internal { what: format!("connecting: {panicked}") }),
        }
    }
    if good {
        probes.detach_all();
        return Ok(());
    }
    let silence = || EtcdFault::new(FaultKind::Elsewhere, format!("no answer within {limit:?}"));
    let faults: Vec<EtcdFault> = faults.into_iter().map(|fault| fault.unwrap_or_else(silence)).collect();
    Err(most_useful_error(endpoints, faults))
}

/// Checks that this endpoint accepts our credentials, belongs to the cluster, and answers a linearizable read.
async fn probe(endpoints: &Endpoints, index: usize, deadline: Instant) -> Result<(), EtcdFault> {
    let Some((_, endpoint)) = endpoints.at(index) else {
        return Err(EtcdFault::class(FailureClass::Refused, "no such endpoint"));
    };
    let begun = Instant::now();
    let mut reauthenticated = false;
    let mut last = None;
    loop {
        let fault = match timeout_at(deadline, probe_once(endpoints, index, &endpoint)).await {
            Ok(Ok(())) => {
                endpoints.worked(index);
                return Ok(());
            }
            Ok(Err(fault)) => fault,
            Err(_) => last.take().unwrap_or_else(|| {
                EtcdFault::new(FaultKind::Elsewhere, format!("no answer within {:.1?}", begun.elapsed()))
            }),
        };
        log::trace!(target: "etcd_lock", "{}: probe failed: {fault}", endpoint.url());
        // A member that answers but has no leader at the moment is probed again.
        let passing = fault.is_elsewhere() && fault.message.starts_with("etcdserver:");
        let again = match fault.kind {
            FaultKind::Token if endpoint.has_credentials() && !reauthenticated => {
                reauthenticated = true;
                true
            }
            _ => passing && Instant::now() + ELECTION_PAUSE < deadline,
        };
        if !again {
            // Take the current pin: another endpoint may have been pinned since the probe began.
            if let Some((pin, _)) = endpoints.at(index) {
                endpoints.failed(pin, &fault);
            }
            return Err(explain(fault, &endpoint, deadline).await);
        }
        if passing {
            sleep(ELECTION_PAUSE).await;
        }
        last = passing.then_some(fault);
    }
}

async fn probe_once(endpoints: &Endpoints, index: usize, endpoint: &Endpoint) -> Result<(), EtcdFault> {
    let link = endpoint.link().await?;
    log::trace!(target: "etcd_lock", "{}: probing", endpoint.url());
    let seen = check_endpoint(endpoints, index, &link).await;
    if matches!(&seen, Err(fault) if fault.kind == FaultKind::Token) {
        endpoint.token_refused(&link);
    }
    seen
}

async fn check_endpoint(endpoints: &Endpoints, index: usize, link: &Link) -> Result<(), EtcdFault> {
    let status = link.status().await?;
    endpoints.check_cluster(index, status.cluster)?;
    endpoints.saw_term(index, status.term);
    if !status.has_leader {
        return Err(EtcdFault::new(FaultKind::Leaderless, "etcdserver: no leader"));
    }
    convert::probe_read(link.kv()).await
}

/// The error texts of a TLS handshake with a server that does not speak TLS.
const NOT_TLS: [&str; 3] = ["handshake eof", "Connection reset", "corrupt message"];

/// rustls' error text for a server certificate that it does not accept.
const NOT_TRUSTED: &str = "invalid peer certificate";

/// Adds a likely cause to the fault's message. A wrong URL scheme is confirmed with a request to the server.
async fn explain(fault: EtcdFault, endpoint: &Endpoint, deadline: Instant) -> EtcdFault {
    let url = endpoint.url();
    let is_https = url.starts_with("https");
    let misconfigured = |message: String| EtcdFault::new(FaultKind::Misconfigured, message);
    match fault.kind {
        // While connecting, a refused token means a refused user.
        FaultKind::Token => EtcdFault { kind: FaultKind::Class(FailureClass::Unauthenticated), ..fault }
            .about(endpoint.user(), || None),
        FaultKind::Class(FailureClass::Unauthenticated | FailureClass::PermissionDenied) => {
            fault.about(endpoint.user(), || None)
        }
        FaultKind::Elsewhere if fault.message.contains(NOT_TRUSTED) => {
            let stranger = ["UnknownIssuer", "BadSignature"].iter().any(|why| fault.message.contains(why));
            let hint =
                if stranger { " (give the authority that signed it with `ca_certificate_pem`)" } else { "" };
            misconfigured(fault.message + hint)
        }
        FaultKind::Elsewhere
            if NOT_TLS.iter().any(|words| fault.message.contains(words))
                && scheme::is_plain(url, deadline).await =>
        {
            misconfigured(format!("the server does not speak TLS; use http:// ({})", fault.message))
        }
        // The server accepted the connection and dropped it, as one does that requires a client certificate.
        FaultKind::Class(FailureClass::Unknown) if is_https => {
            EtcdFault::new(fault.kind, format!("{} (does it want a client certificate?)", fault.message))
        }
        FaultKind::Class(FailureClass::Unknown) if scheme::is_tls(url, deadline).await => {
            misconfigured(format!("the server speaks TLS; use https:// ({})", fault.message))
        }
        _ => fault,
    }
}

/// The error that tells the caller most about how to fix the problem.
fn most_useful_error(endpoints: &Endpoints, faults: Vec<EtcdFault>) -> LockError {
    let text = |class: Option<FailureClass>| {
        let said = faults
            .iter()
            .enumerate()
            .filter(|(_, fault)| class.is_none_or(|class| fault.kind == FaultKind::Class(class)));
        let parts: Vec<String> =
            said.map(|(index, fault)| format!("{}: {fault}", endpoints.url(index))).collect();
        (!parts.is_empty()).then(|| Cause::new(parts.join("; ")))
    };
    let doing = "connecting to etcd";
    if let Some(source) = text(Some(FailureClass::Unauthenticated)) {
        return LockError::Unauthenticated { source };
    }
    if let Some(source) = text(Some(FailureClass::PermissionDenied)) {
        return LockError::PermissionDenied { doing: doing.into(), source };
    }
    let source = text(None).unwrap_or_else(|| Cause::new("no endpoint"));
    // An unreachable endpoint may turn out to be configured correctly.
    if faults.iter().all(|fault| fault.kind == FaultKind::Misconfigured) {
        return LockError::InvalidOptions { why: source.to_string() };
    }
    LockError::Unavailable { doing: doing.into(), source }
}
