//! One manager has one session, however many locks: one lease, one keep-alive stream, one watch stream.

use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::Select;
use etcd_lock::memory::MemoryStore;
use etcd_lock::{LockGuard, LockManager, LossReason};

use crate::support::manager::{
    connect, connect_with, enqueue, granted, lock, options, wait_for_contenders, wait_until_done,
};
use crate::support::{Etcd, Raw, SOON, eventually, fresh_root, lease_of, shared};

const LOCKS: usize = 100;

fn hold_a_hundred(manager: &LockManager) -> Vec<LockGuard> {
    let pending: Vec<_> = (0..LOCKS).map(|n| enqueue(manager, &format!("lock-{n}"))).collect();
    pending.into_iter().map(granted).collect()
}

#[test]
fn a_hundred_locks_share_one_lease_one_renewal_and_one_watch_stream() {
    // A third of it must be long on a busy machine: an unanswered renewal is repeated on a new stream after a sixth.
    let ttl = Duration::from_secs(9);
    let etcd = Etcd::start();
    let raw = Raw::connect(etcd.access());
    let manager = connect_with(etcd.access(), "/locks", options(etcd.access()).ttl(ttl));
    assert_eq!(manager.session().ttl, ttl);
    let guards = hold_a_hundred(&manager);
    // All of them are watched by now, including the session.
    eventually(SOON, "every hold is watched", || manager.stats().rpcs.watch >= LOCKS as u64);

    let renewals = || manager.stats().rpcs.lease_renew;
    let first = renewals();
    eventually(SOON, "a renewal", || renewals() > first);
    let (first, begun) = (renewals(), Instant::now());
    eventually(SOON, "two more renewals", || renewals() >= first + 2);
    let took = begun.elapsed();
    // The test may observe the first renewal late, and the last renewals may be late.
    assert!(took > ttl * 2 / 3 - ttl / 6, "two renewals in {took:?} are too many");
    assert!(took < ttl, "two renewals in {took:?} are too few");

    assert!(guards.iter().all(|guard| guard.is_held()));
    let lease = lease_of(&manager);
    assert_eq!(raw.leases(), [lease]);
    let keys = raw.keys("/locks/");
    assert_eq!(keys.len(), LOCKS + 1, "the locks and the session");
    assert!(keys.iter().all(|kv| kv.lease == lease));

    let stats = manager.stats();
    assert_eq!((stats.sessions, stats.held, stats.rpcs.lease_grant), (1, LOCKS as u64, 1));
    // etcd's own count.
    assert_eq!(etcd.requests("LeaseGrant"), 1);
    assert_eq!(etcd.requests("LeaseKeepAlive"), 1, "streams");
    assert_eq!(etcd.requests("Watch"), 1, "streams");
    let messages = r#"grpc_server_msg_received_total{grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"}"#;
    assert!((etcd.metric(messages) - renewals() as f64).abs() < 2.0, "one message for each renewal");
}

#[test]
fn a_revoked_lease_ends_every_guard_and_is_replaced_by_itself() {
    let (root, raw) = (fresh_root("session"), Raw::connect(shared().access()));
    let (manager, other) = (connect(shared().access(), &root), connect(shared().access(), &root));
    let guards = hold_a_hundred(&manager);
    let elsewhere = enqueue(&other, "lock-0");
    wait_for_contenders(&raw, &format!("{root}/lock-0/"), 2);
    let lost = lease_of(&manager);
    let taken = std::thread::scope(|scope| {
        // Waits behind a hold of its own process, so it has no key in etcd; the loss does not affect it.
        let local = scope.spawn(|| manager.new_lock("lock-1").unwrap().lock_timeout(SOON).unwrap());
        eventually(SOON, "a local waiter", || manager.stats().waiting == 1);
        raw.revoke(lost);
        local.join().unwrap()
    });
    for guard in &guards {
        wait_until_done(guard);
        assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
        assert!(!guard.is_held() && guard.remaining().is_zero());
    }
    assert!(taken.is_held() && taken.token() > guards[1].token());
    assert!(granted(elsewhere).token() > guards[0].token());

    // The next session needed no action.
    let new = lock(&manager, "another");
    let session = lease_of(&manager);
    assert_ne!(session, lost);
    assert_eq!(raw.get(new.etcd_key()).unwrap().lease, session);
    assert!(!raw.leases().contains(&lost) && raw.leases().contains(&session));
    let stats = manager.stats();
    assert_eq!((stats.sessions, stats.rpcs.lease_grant), (2, 2));
    assert_eq!((stats.lost.session_revoked, stats.lost.total()), (LOCKS as u64, LOCKS as u64));
    assert_eq!(stats.held, 2);

    // A lost hold stays lost, and its release does not affect the present holder.
    let first = guards.into_iter().next().unwrap();
    assert!(matches!(first.unlock(), Err(etcd_lock::LockError::Expired { .. })));
    assert!(taken.is_held() && raw.get(taken.etcd_key()).is_some());
}

/// An administrator or a script deletes all keys of the library.
#[test]
fn a_deleted_session_key_ends_every_guard_too() {
    let (root, raw) = (fresh_root("session"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let guards = hold_a_hundred(&manager);
    let lost = lease_of(&manager);
    assert_eq!(raw.delete_prefix(&format!("{root}/")), LOCKS as u64 + 1);
    for guard in &guards {
        wait_until_done(guard);
    }
    drop(guards);
    let guard = lock(&manager, "lock-0");
    assert_ne!(lease_of(&manager), lost);
    assert!(raw.get(guard.etcd_key()).is_some());
    eventually(SOON, "the old lease is revoked", || !raw.leases().contains(&lost));
}

/// However many holds a session has, none is held any more once the loss of any is reported.
#[test]
fn all_holds_of_a_session_are_lost_at_one_instant() {
    const HOLDS: usize = 20_000;
    let store = MemoryStore::new();
    let manager = LockManager::in_memory(&store, "/locks", Default::default()).unwrap();
    let pending: Vec<_> = (0..HOLDS).map(|n| enqueue(&manager, &format!("lock-{n}"))).collect();
    let guards: Vec<LockGuard> = pending.into_iter().map(granted).collect();
    assert!(guards.iter().all(|guard| guard.is_held()));

    let mut any = Select::new();
    // Some of them, as waiting for one of 20,000 would take longer than the loss.
    guards.iter().step_by(HOLDS / 10).for_each(|guard| _ = any.recv(guard.done()));
    store.revoke_session(&manager);
    any.ready_timeout(SOON).expect("a loss is reported");
    let reported = Instant::now();
    assert_eq!(guards.iter().filter(|guard| guard.is_held()).count(), 0);
    guards.iter().for_each(wait_until_done);
    // A few milliseconds in an optimised build on an idle machine.
    assert!(reported.elapsed() < Duration::from_secs(2), "{:?}", reported.elapsed());
    assert!(guards.iter().all(|guard| guard.loss() == Some(LossReason::SessionRevoked)));
}
