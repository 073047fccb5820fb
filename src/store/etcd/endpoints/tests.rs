use super::*;
use crate::kv::FailureClass;
use crate::store::etcd::address::Address;
use crate::store::etcd::tests::cluster;

fn endpoints(count: usize) -> Endpoints {
    let urls: Vec<String> = (1..=count).map(|port| format!("http://127.0.0.1:{port}")).collect();
    let addresses = Address::parse_all(&urls, &cluster::options()).unwrap();
    Endpoints::new(addresses.into_iter().map(Endpoint::new).collect())
}

fn chosen(endpoints: &Endpoints, tried: &[usize]) -> Option<Pin> {
    endpoints.choose(tried).map(|(pin, _)| pin)
}

fn timeout() -> EtcdFault {
    EtcdFault::class(FailureClass::Unknown, "no answer")
}

#[test]
fn failures_that_come_together_move_the_pin_once() {
    let endpoints = endpoints(3);
    let pin = chosen(&endpoints, &[]).unwrap();
    for _ in 0..5 {
        endpoints.failed(pin, &timeout());
    }
    assert_eq!(chosen(&endpoints, &[]).unwrap().index, 1);
}

#[test]
fn a_late_failure_does_not_move_a_newer_pin() {
    let endpoints = endpoints(2);
    let early = chosen(&endpoints, &[]).unwrap();
    endpoints.failed(early, &timeout());
    endpoints.failed(chosen(&endpoints, &[]).unwrap(), &timeout());
    let back = chosen(&endpoints, &[]).unwrap();
    assert_eq!(back.index, 0);
    endpoints.failed(early, &timeout());
    assert_eq!(chosen(&endpoints, &[]), Some(back));
}

#[tokio::test]
async fn left_resolves_once_this_pin_is_abandoned_and_not_because_an_earlier_one_was() {
    let endpoints = endpoints(2);
    let early = chosen(&endpoints, &[]).unwrap();
    let waiting = endpoints.left(early);
    endpoints.failed(early, &timeout());
    waiting.await;
    endpoints.left(early).await;
    endpoints.failed(chosen(&endpoints, &[]).unwrap(), &timeout());
    let back = chosen(&endpoints, &[]).unwrap();
    assert_eq!(back.index, early.index);
    let mut later = std::pin::pin!(endpoints.left(back));
    tokio::select! {
        biased;
        () = &mut later => panic!("this pin was not abandoned"),
        () = tokio::task::yield_now() => {}
    }
    endpoints.failed(back, &timeout());
    later.await;
}

#[test]
fn endpoints_that_work_are_preferred_and_failed_ones_cool_down() {
    let endpoints = endpoints(4);
    let first = chosen(&endpoints, &[]).unwrap();
    endpoints.worked(3);
    endpoints.failed(first, &timeout());
    let second = chosen(&endpoints, &[]).unwrap();
    assert_eq!(second.index, 3, "the endpoint that is known to work");
    endpoints.failed(second, &timeout());
    let third = chosen(&endpoints, &[]).unwrap();
    assert_eq!(third.index, 1, "endpoints that just failed come last");
    endpoints.failed(third, &timeout());
    assert_eq!(chosen(&endpoints, &[]).unwrap().index, 2);
    for health in &mut endpoints.state.lock().health {
        health.failed_at = health.failed_at.and_then(|at| at.checked_sub(COOL_DOWN * 2));
    }
    endpoints.failed(chosen(&endpoints, &[]).unwrap(), &timeout());
    assert_eq!(chosen(&endpoints, &[]).unwrap().index, 3, "it has worked before");
}

#[test]
fn each_endpoint_is_tried_once() {
    let endpoints = endpoints(3);
    let mut tried = Vec::new();
    while let Some(pin) = chosen(&endpoints, &tried) {
        tried.push(pin.index);
        endpoints.failed(pin, &timeout());
    }
    tried.sort_unstable();
    assert_eq!(tried, [0, 1, 2]);
}

#[test]
fn an_endpoint_of_another_cluster_is_never_used() {
    let endpoints = endpoints(2);
    endpoints.check_cluster(1, 0xa).unwrap();
    let fault = endpoints.check_cluster(0, 0xb).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Foreign);
    assert!(fault.message.contains("http://127.0.0.1:1 ") && fault.message.contains("http://127.0.0.1:2 "));
    assert_eq!(chosen(&endpoints, &[]).unwrap().index, 1);
    assert_eq!(chosen(&endpoints, &[1]), None);
    endpoints.check_cluster(0, 0).unwrap();
    endpoints.check_cluster(1, 0xa).unwrap();
}

#[test]
fn another_cluster_is_adopted_once_all_endpoints_belong_to_it() {
    let endpoints = endpoints(2);
    endpoints.check_cluster(0, 0xa).unwrap();
    endpoints.check_cluster(1, 0xb).unwrap_err();
    assert_eq!(endpoints.changed(), None, "it was never ours");
    endpoints.check_cluster(1, 0xa).unwrap();
    assert!(chosen(&endpoints, &[0]).is_some(), "it is ours again");
    endpoints.all_belong_to(0xa);
    assert_eq!(endpoints.era(), 0);

    endpoints.check_cluster(0, 0xb).unwrap_err();
    let changed = endpoints.changed().unwrap();
    assert!(changed.contains("http://127.0.0.1:1 ") && changed.contains("b now"), "{changed}");
    endpoints.all_belong_to(0xb);
    assert_eq!((endpoints.era(), endpoints.changed()), (1, None));
    endpoints.check_cluster(0, 0xb).unwrap();
    assert_eq!(endpoints.check_cluster(1, 0xa).unwrap_err().kind, FaultKind::Foreign);
}
