//! An etcd that is restored from a backup.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::{ErrorCode, ForceUnlock, LockManager, LossReason};
use log::Level;

use crate::faults::ground::{assert_nothing_left, connect};
use crate::support::etcdctl::Etcdctl;
use crate::support::logs::Logs;
use crate::support::stalls::assert_within;
use crate::support::wait::eventually_some;
use crate::support::{Etcd, Proxy, eventually, fresh_root};

const TTL: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(20);

fn back_up(etcd: &Etcd) -> PathBuf {
    let file = etcd.dir().join("backup");
    Etcdctl::new(etcd.access()).snapshot_save(&file);
    file
}

/// The manager grants the lock, and its session lasts for some TTLs.
#[track_caller]
fn is_served(manager: &LockManager, name: &str, limit: Duration) {
    let begun = Instant::now();
    let lock = manager.new_lock(name).unwrap();
    let guard = eventually_some(SOON, "the lock is granted again", || lock.lock_timeout(TTL).ok());
    println!("served again after {:?}", assert_within(begun, limit, "a lock after a restore"));
    let sessions = manager.stats().sessions;
    thread::sleep(TTL * 3);
    assert!(guard.is_held(), "{:?}", guard.loss());
    assert_eq!(manager.stats().sessions, sessions, "no further session is lost");
    guard.unlock().unwrap();
}

/// Purpose: a restore with the default token keeps the cluster's id, while raft term and revision decrease. A hold that
/// the backup lacks is reported as lost, and the manager continues.
#[test]
fn a_restored_cluster_serves_again_within_two_ttls() {
    let etcd = Etcd::start();
    let root = fresh_root("restored");
    // Each start is an election.
    (0..3).for_each(|_| etcd.restart());
    let manager = connect(etcd.access(), &root, TTL);
    let backup = back_up(&etcd);
    let guard = manager.new_lock("after the backup").unwrap().lock().unwrap();
    // The manager has seen the highest revision.
    manager.new_lock("y").unwrap().lock().unwrap().unlock().unwrap();
    let logs = Logs::with("was it restored from a backup");
    etcd.restore(&backup, None);
    let begun = Instant::now();
    assert!(guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    println!("the session's end is reported after {:?}", begun.elapsed());
    is_served(&manager, "x", (TTL * 2).saturating_sub(begun.elapsed()));
    let lines = logs.lines();
    assert!(matches!(&lines[..], [(Level::Error, _)]), "{lines:?}");
    println!("logged: {}", lines[0].1);
    drop((guard, manager));
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Purpose: a restore with another token makes another cluster, which may still have the backup's leases. The session
/// and its holds end at once, and the next session is in the new cluster.
#[test]
fn a_session_does_not_outlive_its_cluster() {
    const TTL: Duration = Duration::from_secs(30);
    let etcd = Etcd::start();
    let root = fresh_root("replaced");
    let manager = connect(etcd.access(), &root, TTL);
    let guard = manager.new_lock("before the backup").unwrap().lock().unwrap();
    etcd.restore(&back_up(&etcd), Some("another"));
    let begun = Instant::now();
    let lock = manager.new_lock("x").unwrap();
    // Only a call that is made now learns of the change.
    eventually_some(SOON, "the other cluster is used", || lock.lock_timeout(TTL).ok()).unlock().unwrap();
    println!("served after {:?}", assert_within(begun, TTL / 3, "a lock in another cluster"));
    assert_eq!((guard.is_held(), guard.loss()), (false, Some(LossReason::SessionRevoked)));
    assert_eq!(manager.stats().sessions, 2);
    drop((guard, lock, manager));
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Purpose: an administrator who repairs a restored cluster need not wait for the manager's next session.
#[test]
fn a_lock_of_the_backup_can_be_broken_at_once() {
    const TTL: Duration = Duration::from_secs(30);
    let etcd = Etcd::start();
    let root = fresh_root("broken");
    let manager = connect(etcd.access(), &root, TTL);
    Etcdctl::new(etcd.access()).put(&format!("{root}/x/by-hand"), "");
    etcd.restore(&back_up(&etcd), Some("another"));
    let broken = manager.force_unlock("x", ForceUnlock::Lock).unwrap();
    assert_eq!((broken.key.as_str(), broken.lease_id), ("x", None));
    assert!(manager.lock_info("x").unwrap().is_none());
    drop(manager);
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Purpose: while only some endpoints belong to the other cluster, it may be a mistake: no lock is granted, and the
/// error says why. Once all do, the manager continues there by itself.
#[test]
fn another_cluster_is_used_once_all_endpoints_are_of_it() {
    let etcd = Etcd::start();
    let doors = [Proxy::of(&etcd), Proxy::of(&etcd)];
    let access = etcd.access().at(doors.iter().map(Proxy::endpoint));
    let root = fresh_root("divided");
    let manager = connect(&access, &root, TTL);
    let guard = manager.new_lock("x").unwrap().lock().unwrap();
    // At the first contact both endpoints were of the same cluster.
    let backup = back_up(&etcd);
    doors[1].refuse();
    etcd.restore(&backup, Some("another"));
    let lock = manager.new_lock("y").unwrap();
    // A waiter gets the error when the next session cannot be created, at least every two seconds.
    let code = || lock.lock_timeout(TTL * 2).map(drop).map_err(|error| error.code());
    eventually(SOON, "the change is reported", || code() == Err(ErrorCode::ClusterChanged));
    assert!(guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    drop(guard);
    let reported = Instant::now();
    while reported.elapsed() < TTL {
        assert_eq!(code(), Err(ErrorCode::ClusterChanged));
    }
    doors[1].pass();
    is_served(&manager, "x", TTL * 2);
    drop((lock, manager));
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Purpose: the raft term of a young cluster stays as it is with a restore (a new etcd and a restored one are both at their
/// second), and the session and its lease are in the backup. A hold that the backup lacks is reported as lost all the
/// same.
#[test]
fn a_hold_that_the_backup_lacks_is_lost_although_the_term_stays() {
    let etcd = Etcd::start();
    let root = fresh_root("young");
    let manager = connect(etcd.access(), &root, TTL);
    let backup = back_up(&etcd);
    let guard = manager.new_lock("x").unwrap().lock().unwrap();
    // Revisions that the restored etcd does not reach by itself.
    (0..20).for_each(|_| manager.new_lock("y").unwrap().lock().unwrap().unlock().unwrap());
    etcd.restore(&backup, None);
    let restored = Instant::now();
    let other = connect(etcd.access(), &root, TTL);
    let next =
        eventually_some(SOON, "another holder", || other.new_lock("x").unwrap().lock_timeout(TTL).ok());
    assert!(guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    println!("lost {:?} after the restore", assert_within(restored, TTL * 2, "the report of the loss"));
    assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
    assert!(next.is_held() && !guard.is_held());
    drop((guard, next, other, manager));
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Purpose: the restored etcd has passed the revisions of the old one before the manager reaches it again, and the hold was
/// too young to have a watch of its own key.
#[test]
fn a_young_hold_that_the_backup_lacks_is_lost_although_later_revisions_hide_the_restore() {
    const TTL: Duration = Duration::from_secs(12);
    let etcd = Etcd::start();
    let door = Proxy::of(&etcd);
    let access = etcd.access().at([door.endpoint()]);
    let root = fresh_root("overtaken");
    let manager = connect(&access, &root, TTL);
    let backup = back_up(&etcd);
    let guard = manager.new_lock("x").unwrap().lock().unwrap();
    door.refuse();
    etcd.restore(&backup, None);
    let other = connect(etcd.access(), &root, TTL);
    (0..20).for_each(|_| other.new_lock("y").unwrap().lock().unwrap().unlock().unwrap());
    door.pass();
    let next = other.new_lock("x").unwrap().lock_timeout(TTL).unwrap();
    let reached = Instant::now();
    assert!(guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    println!(
        "lost {:?} after etcd could be reached",
        assert_within(reached, TTL / 2, "the report of the loss")
    );
    assert_eq!(guard.loss(), Some(LossReason::ForceUnlocked));
    assert!(next.is_held() && !guard.is_held());
    drop((guard, next, other, manager));
    assert_nothing_left(etcd.access(), &root, TTL);
}
