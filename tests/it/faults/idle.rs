//! Nothing to do.

use std::time::Duration;

use crate::faults::ground::{assert_nothing_left, connect};
use crate::support::hold_end::HoldEnd;
use crate::support::process::alone;
use crate::support::{Etcd, Proxy, fresh_root, wait};

const TTL: Duration = Duration::from_secs(30);
/// etcd counts pings that come too often and says GOAWAY at the third: at one ping in 10 s, whatever is wrong with them
/// has shown by then.
const IDLE: Duration = Duration::from_secs(120);

/// A watch stream is asked for a sign of life after 2 s of silence, and given up 2 s later: time for two such rounds.
/// `ETCD_LOCK_QUIET_SECS` sets another one.
fn quiet() -> Duration {
    let text = std::env::var("ETCD_LOCK_QUIET_SECS").unwrap_or_else(|_| "10".into());
    Duration::from_secs(text.parse().expect("a number of seconds"))
}

/// Nobody writes, and a manager holds nothing: its stream is alive all the same. (etcd 3.4.42, 3.5.22, 3.6.5 and later do
/// not answer for a watch that begins in the future, which on a quiet cluster nothing ends.) Run it with a recent etcd.
#[test]
fn a_manager_without_locks_on_a_quiet_etcd_keeps_its_watch_stream() {
    let etcd = Etcd::start();
    let root = fresh_root("quiet");
    let manager = connect(etcd.access(), &root, TTL);
    wait::eventually(Duration::from_secs(5), "it watches", || etcd.requests("Watch") > 0);
    let (opened, version) = (etcd.requests("Watch"), etcd.version());
    std::thread::sleep(quiet());
    assert_eq!(etcd.requests("Watch"), opened, "etcd {version}: the stream was opened anew");
    drop(manager);
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Idle managers, one that holds and one that does not, keep their connection without GOAWAY and cost nothing.
#[test]
fn an_idle_manager_keeps_its_connection_and_costs_nothing() {
    alone("faults::idle::an_idle_manager_keeps_its_connection_and_costs_nothing", IDLE * 2, || {
        let etcd = Etcd::start();
        let doors = [Proxy::of(&etcd), Proxy::of(&etcd)];
        let root = fresh_root("idle");
        let managers = doors.each_ref().map(|door| connect(&etcd.access().at([door.endpoint()]), &root, TTL));
        let guard = managers[0].new_lock("x").unwrap().lock().unwrap();
        let told = HoldEnd::of(&guard);
        // The watch on its own key, a moment later, is part of what it means to hold.
        std::thread::sleep(Duration::from_secs(1));
        let connected = doors.each_ref().map(Proxy::accepted);
        let spent = || wait::cpu_time_of_threads("etcd-lock-");
        let (before, requests) = (spent(), managers[0].stats().rpcs);
        std::thread::sleep(IDLE);
        let cpu = spent() - before;
        assert_eq!(doors.each_ref().map(Proxy::accepted), connected, "no connection is made anew");
        assert!(doors.iter().all(|door| door.connections() == 1));
        assert!(told.not_yet() && guard.is_held());
        let after = managers[0].stats().rpcs;
        let renewals = after.lease_renew - requests.lease_renew;
        println!(
            "row 20: idle for {IDLE:?}: {cpu:?} of CPU in two managers, {renewals} renewals, no reconnect"
        );
        assert_eq!(after.total() - requests.total(), renewals, "nothing but renewals: {after:?}");
        assert!((11..=13).contains(&renewals), "{renewals} renewals in {IDLE:?}");
        // A thousandth of a core is what a build without optimisation needs; a busy loop would show at once.
        assert!(cpu < IDLE / 200, "{cpu:?} of CPU in {IDLE:?}");
        guard.unlock().unwrap();
        drop(managers);
        assert_nothing_left(etcd.access(), &root, TTL);
    });
}
