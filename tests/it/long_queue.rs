//! A queue so long that most of its waiters watch one key each, not the whole name.

use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::TryRecvError;
use etcd_lock::{LockManager, PendingLock};

use crate::support::manager::{assert_still_waiting, connect, enqueue, granted, wait_for_contenders};
use crate::support::{Raw, fresh_root, shared};

/// So many managers, each with a place in the queue of one lock, in their order.
fn queue(root: &str, raw: &Raw, length: usize) -> (Vec<LockManager>, Vec<PendingLock>) {
    let managers: Vec<LockManager> = (0..length).map(|_| connect(shared().access(), root)).collect();
    let places = managers.iter().enumerate().map(|(before, manager)| {
        let place = enqueue(manager, "a");
        wait_for_contenders(raw, &format!("{root}/a/"), before as u64 + 1);
        place
    });
    let places = places.collect();
    (managers, places)
}

#[test]
fn forty_waiters_get_the_lock_in_the_order_in_which_they_asked() {
    let (root, raw) = (fresh_root("long"), Raw::connect(shared().access()));
    let (_managers, mut places) = queue(&root, &raw, 40);
    let mut last = None;
    while !places.is_empty() {
        let guard = granted(places.remove(0));
        let waits = |place: &PendingLock| place.ready().try_recv() == Err(TryRecvError::Empty);
        assert!(places.iter().all(waits), "nobody is before its turn");
        assert!(last < Some(guard.token()), "the tokens follow the queue");
        last = Some(guard.token());
        drop(guard);
    }
}

/// An administrator deletes the key that the last waiter watches. When all others have left as well, it is next.
#[test]
fn a_waiter_far_back_whose_predecessor_is_evicted_gets_its_turn_at_once() {
    let (root, raw) = (fresh_root("evicted"), Raw::connect(shared().access()));
    let (_managers, mut places) = queue(&root, &raw, 14);
    let mut keys = raw.keys(&format!("{root}/a/"));
    keys.sort_by_key(|kv| kv.create_revision);
    assert!(raw.delete(&keys[keys.len() - 4].key));
    // Whose key it was puts another one.
    wait_for_contenders(&raw, &format!("{root}/a/"), 14);
    let last = places.pop().unwrap();
    assert_still_waiting(&last);
    drop(places);
    let left = Instant::now();
    let guard = granted(last);
    assert!(guard.is_held() && left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
}
