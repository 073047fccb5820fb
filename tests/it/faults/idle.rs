//! Idle managers.

use std::time::Duration;

use crate::faults::ground::{assert_nothing_left, connect};
use crate::support::hold_end::HoldEnd;
use crate::support::process::alone;
use crate::support::{Etcd, Proxy, fresh_root, wait};

const TTL: Duration = Duration::from_secs(30);
/// etcd counts pings that arrive too often and sends GOAWAY at the third; at one ping in 10 s, any such ping shows
/// within this time.
const IDLE: Duration = Duration::from_secs(120);

/// A watch stream is probed after 2 s of silence, and abandoned 2 s later; this allows for two such rounds.
/// `ETCD_LOCK_QUIET_SECS` sets another time.
fn quiet() -> Duration {
    let text = std::env::var("ETCD_LOCK_QUIET_SECS").unwrap_or_else(|_| "10".into());
    Duration::from_secs(text.parse().expect("a number of seconds"))
}

/// Without any writes, the stream of a manager without holds stays open. (etcd 3.4.42, 3.5.22, 3.6.5 and later answer
/// no probe while a watch starts in the future, which on a quiet cluster lasts for ever.) Run it with a recent etcd.
#[test]
fn a_manager_without_locks_on_a_quiet_etcd_keeps_its_watch_stream() {
    let etcd = Etcd::start();
    let root = fresh_root("quiet");
    let manager = connect(etcd.access(), &root, TTL);
    wait::eventually(Duration::from_secs(5), "it watches", || etcd.requests("Watch") > 0);
    let (opened, version) = (etcd.requests("Watch"), etcd.version());
    std::thread::sleep(quiet());
    assert_eq!(etcd.requests("Watch"), opened, "etcd {version}: the stream was reopened");
    drop(manager);
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Idle managers, one with a hold and one without, keep their connections without GOAWAY and cost nothing.
#[test]
fn an_idle_manager_keeps_its_connection_and_costs_nothing() {
    alone("faults::idle::an_idle_manager_keeps_its_connection_and_costs_nothing", IDLE * 2, || {
        let etcd = Etcd::start();
        let doors = [Proxy::of(&etcd), Proxy::of(&etcd)];
        let root = fresh_root("idle");
        let managers = doors.each_ref().map(|door| connect(&etcd.access().at([door.endpoint()]), &root, TTL));
        let guard = managers[0].new_lock("x").unwrap().lock().unwrap();
        let ended = HoldEnd::of(&guard);
        // The watch on the holder's own key, a moment after the grant, is part of a hold's cost.
        std::thread::sleep(Duration::from_secs(1));
        let connected = doors.each_ref().map(Proxy::accepted);
        let spent = || wait::cpu_time_of_threads("etcd-lock-");
        let (before, requests) = (spent(), managers[0].stats().rpcs);
        std::thread::sleep(IDLE);
        let cpu = spent() - before;
        assert_eq!(doors.each_ref().map(Proxy::accepted), connected, "no connection is replaced");
        assert!(doors.iter().all(|door| door.connections() == 1));
        assert!(ended.not_yet() && guard.is_held());
        let after = managers[0].stats().rpcs;
        let renewals = after.lease_renew - requests.lease_renew;
        println!(
            "row 20: idle for {IDLE:?}: {cpu:?} of CPU in two managers, {renewals} renewals, no reconnect"
        );
        assert_eq!(after.total() - requests.total(), renewals, "only renewals are sent: {after:?}");
        assert!((11..=13).contains(&renewals), "{renewals} renewals in {IDLE:?}");
        // A build without optimisation needs a thousandth of a core; a busy loop would need far more.
        assert!(cpu < IDLE / 200, "{cpu:?} of CPU in {IDLE:?}");
        guard.unlock().unwrap();
        drop(managers);
        assert_nothing_left(etcd.access(), &root, TTL);
    });
}
