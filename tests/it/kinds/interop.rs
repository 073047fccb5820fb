//! Read-write locks and semaphores beside `etcdctl lock`, which is a writer of the same queue.

use std::time::Duration;

use etcd_lock::{LockState, Mode};

use super::{is_refused, permits, queue_for_a, take_a};
use crate::support::etcdctl::Etcdctl;
use crate::support::manager::{assert_still_waiting, connect, granted, wait_for_contenders};
use crate::support::{Raw, SOON, fresh_root, shared};

/// Long enough to see that `etcdctl` goes on waiting.
const A_WHILE: Duration = Duration::from_millis(300);

/// For readers and for permits that fit together.
fn etcdctl_waits_for_all_of(mode: Mode) {
    let (root, raw) = (fresh_root("kinds"), Raw::connect(shared().access()));
    let [alice, bob, late] = [(); 3].map(|()| connect(shared().access(), &root));
    let keys = format!("{root}/a/");
    let first = take_a(&alice, mode);
    let second = take_a(&bob, mode);
    let theirs = Etcdctl::new(shared().access()).queue_for_lock(&format!("{root}/a"));
    wait_for_contenders(&raw, &keys, 3);
    let behind = queue_for_a(&late, mode);
    wait_for_contenders(&raw, &keys, 4);
    assert!(is_refused(&late, mode), "it does not overtake the foreign waiter");
    let states: Vec<_> = late.queue("a").unwrap().iter().map(|info| (info.mode, info.state)).collect();
    let (held, waiting) = (LockState::Held, LockState::Waiting);
    let foreign = (Mode::Exclusive, waiting);
    assert_eq!(states, [(mode, held), (mode, held), foreign, (mode, waiting)]);

    drop(first);
    let theirs = theirs.wait(A_WHILE).expect_err("one holder is left");
    assert_still_waiting(&behind);
    drop(second);
    let theirs = theirs.wait(SOON).expect("all holders before it are gone");
    assert_still_waiting(&behind);
    assert!([mode, Mode::Exclusive].iter().all(|&mode| is_refused(&alice, mode)));
    theirs.release();
    assert!(granted(behind).is_held());
}

#[test]
fn etcdctl_waits_for_all_readers_and_later_readers_wait_for_it() {
    etcdctl_waits_for_all_of(Mode::Shared);
}

#[test]
fn etcdctl_waits_for_all_permits_and_later_permits_wait_for_it() {
    etcdctl_waits_for_all_of(permits(1, 4));
}

#[test]
fn all_that_wait_for_etcdctl_hold_the_lock_together_once_it_releases() {
    let (root, raw) = (fresh_root("kinds"), Raw::connect(shared().access()));
    let [alice, bob] = [(); 2].map(|()| connect(shared().access(), &root));
    let theirs = Etcdctl::new(shared().access()).lock_process(&format!("{root}/a"));
    let pending = [&alice, &bob, &alice].map(|manager| queue_for_a(manager, Mode::Shared));
    wait_for_contenders(&raw, &format!("{root}/a/"), 4);
    pending.iter().for_each(assert_still_waiting);
    theirs.release();
    let guards = pending.map(granted);
    assert!(guards.iter().all(|guard| guard.is_held()));
    // It is their turn again only when all of them are gone.
    let theirs = Etcdctl::new(shared().access()).queue_for_lock(&format!("{root}/a"));
    wait_for_contenders(&raw, &format!("{root}/a/"), 4);
    let theirs = theirs.wait(A_WHILE).expect_err("it is held");
    guards.into_iter().for_each(|guard| guard.unlock().unwrap());
    theirs.wait(SOON).expect("it is free").release();
}

/// A killed `etcdctl` that stood between two readers.
#[test]
fn readers_go_on_when_the_lease_of_a_killed_etcdctl_expires() {
    let (root, raw) = (fresh_root("kinds"), Raw::connect(shared().access()));
    let [alice, bob] = [(); 2].map(|()| connect(shared().access(), &root));
    let reader = take_a(&alice, Mode::Shared);
    let theirs = Etcdctl::new(shared().access()).queue_for_lock(&format!("{root}/a"));
    wait_for_contenders(&raw, &format!("{root}/a/"), 2);
    let behind = queue_for_a(&bob, Mode::Shared);
    wait_for_contenders(&raw, &format!("{root}/a/"), 3);
    drop(theirs);
    let behind = granted(behind);
    assert!(reader.is_held() && behind.is_held());
}
