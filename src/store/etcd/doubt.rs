//! When to stop waiting for an answer: the endpoint is dead, or the request is lost.
//!
//! Without `request_lost`, breaks of 40 ms between a follower and its leader make releases and connects fail after their whole
//! timeout, on etcd 3.4.23 as on 3.5.30; with it the slowest call takes about a second. Without the canary the same happens.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::convert;
use super::endpoint::Endpoint;
use super::endpoints::{Endpoints, Pin};
use super::fault::{EtcdFault, FaultKind};
use super::log_seen::{Departure, Overtaken};
use crate::kv::{Compare, FailureClass, Field, Key, Op, Request, Span, Txn};

/// Resolves when there is no point in waiting longer for the answer.
///
/// Otherwise every request to a stopped or unreachable member would take its whole timeout, and so would a request that is
/// lost because its leader died or the connection between a follower and its leader broke for a moment.
pub(super) async fn stop_waiting(
    endpoints: &Endpoints,
    (pin, endpoint): (Pin, &Endpoint),
    departure: Departure,
    request: &Request,
    silence_limit: Duration,
) -> EtcdFault {
    tokio::select! {
        fault = endpoint_silent(endpoints, pin, endpoint, silence_limit) => fault,
        fault = request_lost(endpoints, pin, endpoint, departure, request, silence_limit) => fault,
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
/// A follower hands a write to the leader as a message. Where their connection breaks, the message is gone, and nobody
/// sends it again: the follower answers after seven seconds that it does not know. Later writes go through, and have their
/// answers in the order of the log: so one of them that is answered shows that this one is not in the log before it. Where
/// none is under way (all batches in flight are lost together), a canary is sent: a transaction that changes nothing and
/// goes through the log all the same.
///
/// A linearizable read would be less of a proof, and slower. It shows that the member reaches a leader, and waits for the
/// commits that the leader knew then; that an entry on its way to a slow disk holds it up as well is how etcd's raft loop
/// happens to work (with an `fdatasync` of a second, neither a read nor the canary had its answer before a write that left
/// 300 ms earlier), while the order of the log is what raft promises. And the break that loses a write loses reads, too:
/// a member asks its leader for one at a time and repeats a lost question after 500 ms, with all later reads waiting
/// behind it. The epoch's put would be as good a canary, but makes a revision, and fences what may not be lost.
///
/// That the request is lost is no proof either that it will never be carried out (a message may also be late), so its
/// outcome is unknown, as it would be seven seconds later.
async fn request_lost(
    endpoints: &Endpoints,
    pin: Pin,
    endpoint: &Endpoint,
    departure: Departure,
    request: &Request,
    silence_limit: Duration,
) -> EtcdFault {
    let mut canary_limit = silence_limit;
    loop {
        sleep(endpoints.log_seen(pin.index).suspicion(silence_limit)).await;
        let mut overtaken = endpoints.log_seen(pin.index).overtaken(departure);
        if overtaken.is_none() && departure.is_write {
            let begun = Instant::now();
            Box::pin(send_canary(endpoints, pin, endpoint, request, canary_limit)).await;
            if begun.elapsed() >= canary_limit {
                // Lost as well, or the log is slow.
                canary_limit *= 2;
            }
            overtaken = endpoints.log_seen(pin.index).overtaken(departure);
        }
        match overtaken {
            None => continue,
            Some(Overtaken::ByElection) => sleep(silence_limit).await,
            Some(Overtaken::ByWrite) => sleep(endpoints.log_seen(pin.index).answer_delay()).await,
        }
        // The answer did not arrive in the extra time either.
        endpoints.gave_up(pin.index, departure);
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
    let departure = endpoints.departs(pin.index, true);
    log::trace!(target: "etcd_lock", "{}: asking whether a write is lost", endpoint.url());
    let answer = timeout(limit, async { convert::txn(endpoint.link().await?.kv(), &canary).await }).await;
    match answer {
        Ok(Ok(answered)) => {
            if endpoints.check_cluster(pin.index, answered.cluster).is_ok() {
                endpoints.worked(pin.index);
                endpoints.arrived(pin.index, departure, &answered.response);
            }
        }
        // etcd checks permissions when it applies the entry, so the canary is in the log.
        Ok(Err(EtcdFault { kind: FaultKind::Class(FailureClass::PermissionDenied), .. })) => {
            endpoints.wrote(pin.index, departure);
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
