//! When to stop waiting for an answer: the endpoint is dead, or the request is lost.
//!
//! Measured on etcd 3.4.23 and 3.5.30, with the connection between a follower and its leader cut for 40 ms at a time: without
//! the detection of lost requests, releases and connects fail at the end of their timeout. The same happens with it but
//! without the canary. With both, the slowest call takes about a second.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::convert;
use super::endpoint::Endpoint;
use super::endpoints::{Endpoints, Pin};
use super::fault::{EtcdFault, FaultKind};
use super::log_seen::{Overtaken, SentRequest};
use crate::kv::{Compare, FailureClass, Field, Key, Op, Request, Span, Txn};

/// Resolves when there is no point in waiting longer for the answer.
///
/// Otherwise every request to a stopped or unreachable member would take its whole timeout, and so would a request that is
/// lost because its leader died or the connection between a follower and its leader broke for a moment.
pub(super) async fn stop_waiting(
    endpoints: &Endpoints,
    (pin, endpoint): (Pin, &Endpoint),
    sent: SentRequest,
    request: &Request,
    silence_limit: Duration,
) -> EtcdFault {
    tokio::select! {
        fault = endpoint_silent(endpoints, pin, endpoint, silence_limit) => fault,
        fault = request_lost(endpoints, pin, endpoint, sent, request, silence_limit) => fault,
    }
}

/// Resolves when the endpoint fails a health probe.
async fn endpoint_silent(
    endpoints: &Endpoints,
    pin: Pin,
    endpoint: &Endpoint,
    silence_limit: Duration,
) -> EtcdFault {
    loop {
        let since = Instant::now();
        sleep(silence_limit).await;
        // With a single endpoint there is no other to use.
        if endpoints.len() > 1 && !endpoints.worked_since(pin.index, since) {
            match endpoint.probe_health(silence_limit).await {
                Ok(term) => endpoints.saw_term(pin.index, term.unwrap_or_default()),
                Err(fault) => return fault,
            }
        }
    }
}

/// Resolves when the request is most likely lost although the endpoint is healthy.
///
/// A follower forwards a write to the leader in one message. If their connection breaks, that message is lost and is not
/// sent again, and the follower reports an unknown outcome only after seven seconds. Writes are answered in the order of
/// the log, so an answer to a later write shows that this one is not in the log before it. If no other write is in
/// flight, or all of them were lost together, a canary is sent: a transaction that goes through the log and changes
/// nothing.
///
/// Why the canary is not a linearizable read:
/// - A read proves less. It shows that the member reaches its leader, and waits for the commits that the leader knew at
///   that time. Only the order of the log is promised by raft. (With an `fdatasync` of a second, neither a read nor a
///   canary was answered before a write sent 300 ms earlier; for the read, that is an accident of etcd's raft loop.)
/// - A read is slower. The break that loses a write also loses the member's question to its leader, which is repeated
///   after 500 ms, while all later reads wait.
///
/// It is not a put of the epoch key either, which would create a revision and change the epoch.
///
/// The outcome of a lost request is still unknown, because the message may only be late.
async fn request_lost(
    endpoints: &Endpoints,
    pin: Pin,
    endpoint: &Endpoint,
    sent: SentRequest,
    request: &Request,
    silence_limit: Duration,
) -> EtcdFault {
    let mut canary_limit = silence_limit;
    loop {
        sleep(endpoints.log_seen(pin.index).suspicion(silence_limit)).await;
        let mut overtaken = endpoints.log_seen(pin.index).overtaken(sent);
        if overtaken.is_none() && sent.is_write {
            let begun = Instant::now();
            Box::pin(send_canary(endpoints, pin, endpoint, request, canary_limit)).await;
            if begun.elapsed() >= canary_limit {
                // Lost as well, or the log is slow.
                canary_limit *= 2;
            }
            overtaken = endpoints.log_seen(pin.index).overtaken(sent);
        }
        match overtaken {
            None => continue,
            Some(Overtaken::ByElection) => sleep(silence_limit).await,
            Some(Overtaken::ByWrite) => sleep(endpoints.log_seen(pin.index).answer_delay()).await,
        }
        // The answer did not arrive in the extra time either.
        endpoints.gave_up(pin.index, sent);
        return EtcdFault::new(FaultKind::Abandoned, "no answer, while later requests have theirs");
    }
}

/// Sends a transaction that passes through the log without changing anything, and waits for the answer.
async fn send_canary(
    endpoints: &Endpoints,
    pin: Pin,
    endpoint: &Endpoint,
    request: &Request,
    limit: Duration,
) {
    // One canary per endpoint serves all waiting requests.
    let Some(_only) = endpoint.try_canary() else { return };
    let Request::Txn(canary) = canary(key_of(request)) else { return };
    let sent = endpoints.sending(pin.index, true);
    log::trace!(target: "etcd_lock", "{}: asking whether a write is lost", endpoint.url());
    let answer = timeout(limit, async { convert::txn(endpoint.link().await?.kv(), &canary).await }).await;
    match answer {
        Ok(Ok(answered)) => {
            if endpoints.check_cluster(pin.index, answered.cluster).is_ok() {
                endpoints.worked(pin.index);
                endpoints.arrived(pin.index, sent, &answered.response);
            }
        }
        // etcd checks permissions when it applies the entry, so the canary is in the log.
        Ok(Err(EtcdFault { kind: FaultKind::Class(FailureClass::PermissionDenied), .. })) => {
            endpoints.wrote(pin.index, sent);
        }
        // The canary proves nothing; the request's own outcome decides.
        Ok(Err(_)) | Err(_) => {}
    }
}

/// A transaction that passes through the log because it contains a write, and changes nothing because its comparison
/// always fails: no key has create revision -1.
fn canary(key: Key) -> Request {
    let never = Compare::equal(Span::Key(key.clone()), Field::CreateRevision, -1);
    Request::Txn(Txn { when: vec![never], then: vec![Op::Delete { key }], otherwise: Vec::new() })
}

/// A key that the user may write, as far as the request tells.
fn key_of(request: &Request) -> Key {
    let written = match request {
        Request::Delete { key } => Some(key),
        Request::Txn(txn) => written_key(txn),
        _ => None,
    };
    written.cloned().unwrap_or_else(|| Key::from("health"))
}

fn written_key(txn: &Txn) -> Option<&Key> {
    txn.then.iter().chain(&txn.otherwise).find_map(|op| match op {
        Op::Put { key, .. } | Op::Delete { key } => Some(key),
        Op::Txn(txn) => written_key(txn),
        Op::Range(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canary_goes_through_the_log_with_a_key_of_the_request_itself() {
        let key = Key::from("/app/x");
        let put = Op::Put { key: key.clone(), value: Vec::new(), lease: 0 };
        let inner = Txn { then: vec![put], ..Txn::default() };
        let outer = Request::Txn(Txn { then: vec![Op::Txn(inner)], ..Txn::default() });
        assert_eq!(key_of(&outer), key);
        assert_eq!(key_of(&Request::Delete { key: key.clone() }), key);
        assert_eq!(key_of(&Request::GrantLease { ttl: Duration::ZERO }), Key::from("health"));
        assert!(canary(key).is_write());
    }
}
