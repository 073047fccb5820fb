//! A child of `fork()` has copies of all handles, and none of them works there.

use std::time::Duration;

use etcd_lock::memory::MemoryStore;
use etcd_lock::{LockError, LockManager, LockViewer, LossReason};

use crate::faults::ground::connect;
use crate::support::process::alone;
use crate::support::referee::nothing_left;
use crate::support::{Raw, eventually, fresh_root, shared, within};

const TTL: Duration = Duration::from_secs(2);

/// In a child no hold is valid, calls fail at once, and drops release nothing. The parent's locks stay held, and the
/// child may connect on its own.
#[test]
#[expect(clippy::too_many_lines, reason = "the two processes share what was set up before the fork")]
fn a_forked_child_touches_none_of_its_parent_s_locks() {
    let name = "faults::fork::a_forked_child_touches_none_of_its_parent_s_locks";
    alone(name, Duration::from_secs(60), || {
        let root = fresh_root("fork");
        let manager = connect(shared().access(), &root, TTL);
        let lock = manager.new_lock("x").unwrap();
        let guard = lock.lock().unwrap();
        let pending = manager.new_lock("free").unwrap().enqueue().unwrap();
        let again = manager.new_reentrant_lock("again").unwrap();
        let reentrant = again.lock().unwrap();
        let granted = manager.new_lock("other").unwrap().lock().unwrap();
        let blocked = connect(shared().access(), &root, TTL);
        let waiting = blocked.new_lock("x").unwrap().enqueue().unwrap();
        let raw = Raw::connect(shared().access());
        eventually(Duration::from_secs(10), "the waiter's place", || raw.count(&format!("{root}/x/")) == 2);
        let clones = [guard.done().clone(), granted.done().clone(), waiting.ready().clone()];
        let viewer = LockViewer::connect(&shared().access().endpoints, &root, Default::default()).unwrap();
        match fork::fork().unwrap() {
            fork::Fork::Child => {
                let calm = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    assert!(!guard.is_held() && guard.remaining().is_zero() && !lock.is_locked());
                    assert_eq!(guard.loss(), Some(LossReason::Crashed));
                    assert!(guard.done().try_recv().is_err_and(|error| error.is_disconnected()));
                    assert!(matches!(guard.ensure(Duration::ZERO), Err(LockError::Forked)));
                    assert!(matches!(lock.lock(), Err(LockError::Forked)));
                    assert!(lock.try_lock().is_err() && lock.enqueue().is_err());
                    assert!(matches!(again.lock(), Err(LockError::Forked)), "{:?}", again.lock());
                    assert!(matches!(again.try_lock(), Err(LockError::Forked)), "{:?}", again.try_lock());
                    assert!(manager.new_lock("y").is_err() && manager.lock_info("x").is_err());
                    assert!(matches!(viewer.lock_info("x"), Err(LockError::Forked)));
                    drop(viewer);
                    assert!(!manager.session().is_alive());
                    assert!(waiting.ready().try_recv().is_err_and(|error| error.is_disconnected()));
                    for (nth, clone) in clones.iter().enumerate() {
                        let closed = clone.recv_timeout(Duration::from_secs(10));
                        assert!(
                            closed.is_err_and(|error| error.is_disconnected()),
                            "copy {nth} of the parent's"
                        );
                    }
                    assert!(matches!(waiting.wait(), Err(LockError::Forked)));
                    assert!(matches!(pending.wait(), Err(LockError::Forked)));
                    assert!(matches!(granted.unlock(), Err(LockError::Forked)));
                    drop((guard, lock, reentrant, again));
                    assert!(manager.close().is_err());
                    drop(blocked);
                    let own = connect(shared().access(), &root, TTL);
                    assert!(own.new_lock("x").unwrap().try_lock().unwrap().is_none(), "the parent holds it");
                    own.new_lock("y").unwrap().lock().unwrap().unlock().unwrap();
                }));
                std::process::exit(i32::from(calm.is_err()));
            }
            fork::Fork::Parent(child) => {
                let status = within(Duration::from_secs(30), "the child", move || fork::waitpid(child));
                assert_eq!(status.unwrap(), 0, "the child failed");
            }
        }
        // Longer than a lease lives without renewals.
        std::thread::sleep(TTL * 2);
        assert!(clones.iter().all(|clone| clone.try_recv().is_err_and(|error| error.is_empty())));
        assert!(guard.is_held() && granted.is_held() && pending.ready().try_recv().is_err());
        assert_eq!(viewer.queue("x").unwrap().len(), 2, "the parent's viewer still works");
        assert_eq!(raw.count(&format!("{root}/x/")), 2, "holder and waiter keep their keys");
        guard.unlock().unwrap();
        within(Duration::from_secs(10), "the waiter's turn", move || waiting.wait())
            .unwrap()
            .unlock()
            .unwrap();
        pending.wait().unwrap().unlock().unwrap();
        granted.unlock().unwrap();
        again.lock().unwrap().unlock().unwrap();
        reentrant.unlock().unwrap();
        drop((lock, again, manager, blocked));
        nothing_left(&raw, &root, TTL);
    });
}

/// Purpose: the threads of the parent do not exist in a forked child, but what a lock implementation has recorded about
/// them in this process's memory does. Managers that the child starts must not read it.
#[test]
fn managers_of_a_forked_child_are_not_disturbed_by_its_parent_s_threads() {
    let name = "faults::fork::managers_of_a_forked_child_are_not_disturbed_by_its_parent_s_threads";
    // Where the records are read, one child in five crashes.
    alone(name, Duration::from_secs(120), || (0..25).for_each(|_| start_managers_in_a_child()));
}

fn start_managers_in_a_child() {
    let manager = || LockManager::in_memory(&MemoryStore::new(), "/fork", Default::default()).unwrap();
    // Each has a watchdog thread that sleeps.
    let parents: Vec<_> = (0..50).map(|_| manager()).collect();
    match fork::fork().unwrap() {
        fork::Fork::Child => {
            let calm = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // Their memory can be used again.
                drop(parents);
                for _ in 0..50 {
                    let own = manager();
                    own.new_lock("x").unwrap().lock().unwrap().unlock().unwrap();
                    own.close().unwrap();
                }
            }));
            std::process::exit(i32::from(calm.is_err()));
        }
        fork::Fork::Parent(child) => {
            let status = within(Duration::from_secs(30), "the child", move || fork::waitpid(child));
            assert_eq!(status.unwrap(), 0, "the child failed");
            drop(parents);
        }
    }
}

/// Purpose: `lead` waits for a thread of its own, which a child that is forked within a term does not have.
#[test]
fn lead_ends_in_a_child_that_was_forked_within_a_term() {
    let name = "faults::fork::lead_ends_in_a_child_that_was_forked_within_a_term";
    alone(name, Duration::from_secs(60), || {
        let manager = LockManager::in_memory(&MemoryStore::new(), "/fork", Default::default()).unwrap();
        let (stop, stopped) = etcd_lock::crossbeam_channel::bounded(1);
        let mut forked = None;
        let led = manager.new_lock("x").unwrap().lead(&stopped, |_| {
            forked = Some(fork::fork().unwrap());
            stop.send(()).unwrap();
        });
        match forked.unwrap() {
            fork::Fork::Child => std::process::exit(i32::from(!matches!(led, Err(LockError::Forked)))),
            fork::Fork::Parent(child) => {
                led.unwrap();
                let status = within(Duration::from_secs(30), "the child", move || fork::waitpid(child));
                assert_eq!(status.unwrap(), 0, "the child failed");
            }
        }
    });
}
