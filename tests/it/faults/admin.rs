//! An administrator revokes leases and deletes keys: holders and waiters learn of it at once, and no waiter is granted
//! a deleted key.

use std::time::{Duration, Instant};

use etcd_lock::{LockManager, LossReason};

use crate::faults::ground::{REQUEST_TIMEOUT, assert_nothing_left, connect};
use crate::support::etcdctl::Etcdctl;
use crate::support::hold_end::HoldEnd;
use crate::support::stalls;
use crate::support::witness::{What, Witness};
use crate::support::{Raw, Referee, eventually, fresh_root, lease_of, shared};

const TTL: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(20);
/// How much later than the deletion a holder may learn of it.
const TOLD: Duration = Duration::from_millis(300);

struct Scene {
    root: String,
    manager: LockManager,
    other: LockManager,
    witness: Witness,
    etcdctl: Etcdctl,
    /// For managers without an administrator's interference: the others learn of it only afterwards.
    referee: &'static Referee,
}

fn set_up() -> Scene {
    let root = fresh_root("admin");
    let access = shared().access();
    Scene {
        manager: connect(access, &root, TTL),
        other: connect(access, &root, TTL),
        witness: Witness::of(access, &root),
        etcdctl: Etcdctl::new(access),
        referee: Referee::new(),
        root,
    }
}

impl Scene {
    fn lease(&self, manager: &LockManager) -> String {
        format!("{:x}", lease_of(manager))
    }

    /// Waits until this manager has a contender for the name, and returns its key.
    fn contender(&self, manager: &LockManager, name: &str, but_not: &str) -> (String, Instant) {
        let prefix = format!("{}/{name}/{:x}-", self.root, lease_of(manager));
        let seen = self.witness.wait_for(SOON, "a contender", |seen| {
            seen.key.starts_with(&prefix) && seen.key != but_not && matches!(seen.what, What::Put { .. })
        });
        (seen.key, seen.at)
    }

    fn end(self) {
        let Self { root, manager, other, referee, .. } = self;
        // In any case, the lock can be taken afterwards.
        for manager in [&manager, &other] {
            let guard = manager.new_lock("x").unwrap().lock_timeout(SOON).unwrap();
            referee.use_and_unlock(guard, REQUEST_TIMEOUT).unwrap();
        }
        referee.judge();
        drop((manager, other));
        assert_nothing_left(shared().access(), &root, TTL);
    }
}

/// Returns how long after the deletion the hold ended, and panics if that was too late.
fn reported_after(ended: &HoldEnd, deleted: Instant) -> Duration {
    let late = ended.wait(SOON).saturating_duration_since(deleted);
    let stalls = stalls::since(deleted);
    assert!(late <= TOLD + stalls, "reported {late:?} after the deletion");
    late
}

/// A lease revoked by hand ends every hold of its session, and the session is replaced by itself.
#[test]
fn a_revoked_lease_is_reported_within_300_ms() {
    let scene = set_up();
    let guards: Vec<_> =
        (0..3).map(|n| scene.manager.new_lock(&format!("x{n}")).unwrap().lock().unwrap()).collect();
    let ended: Vec<HoldEnd> = guards.iter().map(HoldEnd::of).collect();
    let lease = scene.lease(&scene.manager);
    scene.etcdctl.lease_revoke(&lease);
    for (guard, ended) in guards.iter().zip(&ended) {
        let deleted = scene.witness.wait_for_delete(SOON, guard.etcd_key()).at;
        println!("row 12: lease revoked while held: reported after {:?}", reported_after(ended, deleted));
        assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
        assert!(!guard.is_held());
    }
    drop(guards);
    let again = scene.manager.new_lock("x0").unwrap().lock_timeout(SOON).unwrap();
    assert_ne!(scene.lease(&scene.manager), lease, "a new session");
    scene.referee.use_and_unlock(again, REQUEST_TIMEOUT).unwrap();
    scene.end();
}

/// A key deleted by hand ends that hold only, whether old or just granted.
#[test]
fn a_deleted_key_is_reported_within_300_ms() {
    let scene = set_up();
    let untouched = scene.manager.new_lock("untouched").unwrap().lock().unwrap();
    for age in [0, 50, 500] {
        let guard = scene.manager.new_lock("x").unwrap().lock().unwrap();
        std::thread::sleep(Duration::from_millis(age));
        let ended = HoldEnd::of(&guard);
        assert_eq!(scene.etcdctl.del(guard.etcd_key()), 1);
        let deleted = scene.witness.wait_for_delete(SOON, guard.etcd_key()).at;
        println!(
            "row 12: key deleted, held for {age} ms: reported after {:?}",
            reported_after(&ended, deleted)
        );
        assert_eq!(guard.loss(), Some(LossReason::ForceUnlocked));
    }
    assert!(untouched.is_held());
    untouched.unlock().unwrap();
    scene.end();
}

/// A waiter whose lease is revoked or whose key is deleted queues again, and is then granted an existing key.
#[test]
fn a_waiter_whose_key_is_deleted_queues_again_within_a_second() {
    for revoked in [true, false] {
        let scene = set_up();
        let holder = scene.other.new_lock("x").unwrap().lock().unwrap();
        let inside = scene.referee.inside(&holder);
        let pending = scene.manager.new_lock("x").unwrap().enqueue().unwrap();
        let (key, _) = scene.contender(&scene.manager, "x", "");
        if revoked {
            scene.etcdctl.lease_revoke(&scene.lease(&scene.manager));
        } else {
            scene.etcdctl.del(&key);
        }
        let gone = scene.witness.wait_for_delete(SOON, &key).at;
        if revoked {
            let old = key.rsplit('/').next().unwrap().split('-').next().unwrap().to_owned();
            eventually(SOON, "a new session", || {
                let session = scene.manager.session();
                session.lease_id.is_some_and(|lease| format!("{lease:x}") != old)
            });
        }
        let (new_key, back) = scene.contender(&scene.manager, "x", &key);
        let took = back.saturating_duration_since(gone);
        println!("row 12: waiter's key deleted (lease revoked: {revoked}), queued again after {took:?}");
        assert!(took <= Duration::from_secs(1) + stalls::since(gone), "queued again after {took:?}");
        assert!(pending.ready().try_recv().is_err_and(|error| error.is_empty()), "not granted meanwhile");
        drop(inside);
        holder.unlock().unwrap();
        let guard = pending.wait().unwrap();
        assert_eq!(guard.etcd_key(), new_key);
        scene.referee.use_and_unlock(guard, REQUEST_TIMEOUT).unwrap();
        scene.end();
    }
}

/// The waiter's key is deleted just when it becomes the first: a grant is of a key that exists, or the loss is
/// reported.
#[test]
fn a_waiter_is_never_granted_a_deleted_key() {
    let scene = set_up();
    let raw = Raw::connect(shared().access());
    let (mut granted_alive, mut reported_losses) = (0, 0);
    for round in 0..30 {
        let name = format!("x{round}");
        let holder = scene.other.new_lock(&name).unwrap().lock().unwrap();
        let pending = scene.manager.new_lock(&name).unwrap().enqueue().unwrap();
        let (key, _) = scene.contender(&scene.manager, &name, "");
        std::thread::scope(|scope| {
            let (raw, key) = (&raw, &key);
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(fastrand::u64(0..3_000)));
                raw.delete(key);
            });
            scene.referee.use_and_release(holder);
        });
        let start = Instant::now();
        let Ok(guard) = pending.wait() else {
            reported_losses += 1;
            continue;
        };
        match raw.get(guard.etcd_key()) {
            Some(kv) => {
                assert_eq!(kv.create_revision.unsigned_abs(), guard.token().as_u64());
                assert_eq!(kv.lease, lease_of(&scene.manager));
                scene.referee.use_and_unlock(guard, REQUEST_TIMEOUT).unwrap();
                granted_alive += 1;
            }
            None => {
                let limit = TOLD + stalls::since(start);
                assert!(guard.done().recv_timeout(limit).is_err_and(|error| error.is_disconnected()));
                assert_eq!(guard.loss(), Some(LossReason::ForceUnlocked));
                reported_losses += 1;
            }
        }
    }
    println!(
        "row 12: deleted while it became the first: {granted_alive} granted a live key, {reported_losses} losses reported"
    );
    scene.end();
}
