//! Observers of locks, holders that learn that others wait, and leadership.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{self, Receiver, RecvTimeoutError, TryRecvError};
use etcd_lock::{ForceUnlock, LockInfo, LockManager, LockManagerOptions, LockOptions, Observer};

use crate::support::{Backend, SOON, disconnects, eventually, on_both_stores, take, wait_for_waiting};

on_both_stores! {
    an_observer_sees_the_holder_now_and_then_every_change,
    a_slow_observer_sees_the_last_state,
    a_hundred_observers_share_the_reads_and_cost_nothing_once_dropped,
    an_observer_survives_the_session_of_its_manager,
    a_queue_that_grows_costs_an_observer_no_reads,
    an_observer_ends_with_its_manager_and_with_itself,
    a_holder_learns_that_another_process_waits,
    a_holder_learns_that_a_thread_of_its_own_waits,
    a_holder_that_asks_late_learns_at_once,
    each_holder_of_some_permits_learns_that_somebody_waits_for_one,
    a_reader_learns_of_a_writer_behind_it_and_not_of_readers_beside_it,
    a_try_is_no_contention,
    contention_ends_with_the_hold,
    a_leader_serves_until_it_is_stopped,
    a_leader_keeps_the_lock_until_its_term_returns,
    a_lost_term_ends_and_another_follows,
}

on_both_stores! { own_server: an_observer_sees_what_changed_while_etcd_was_away }

/// An observer that has missed an event reads again after 15 s by itself. What is told sooner was told by an event.
const BY_EVENT: Duration = Duration::from_secs(8);

#[track_caller]
fn next(observer: &Observer) -> Option<LockInfo> {
    observer.changes().recv_timeout(BY_EVENT).expect("a change")
}

#[track_caller]
fn wait_for(observer: &Observer, what: &str, is_it: impl Fn(&Option<LockInfo>) -> bool) {
    eventually(BY_EVENT, what, || {
        let _ = observer.changes().recv_timeout(Duration::from_millis(100));
        is_it(&observer.current())
    });
}

/// It disconnects by an event.
fn is_told(channel: &Receiver<()>) -> bool {
    channel.recv_timeout(BY_EVENT) == Err(RecvTimeoutError::Disconnected)
}

fn nothing_yet(channel: &Receiver<()>) -> bool {
    channel.try_recv() == Err(TryRecvError::Empty)
}

fn an_observer_sees_the_holder_now_and_then_every_change(backend: &Backend) {
    let (manager, other) = (backend.manager_of("holder"), backend.manager_of("other"));
    let observer = other.observe("a").unwrap();
    assert_eq!(next(&observer), None);
    assert_eq!(observer.key(), "a");
    let options = LockOptions::default().note("first");
    let guard = take(&manager.new_lock_with("a", options).unwrap());
    let info = next(&observer).expect("it is held");
    assert_eq!(
        (info.token, info.owner.as_deref(), info.note.as_deref()),
        (guard.token(), Some("holder"), Some("first"))
    );
    guard.set_note("second").unwrap();
    let info = next(&observer).expect("it is held");
    assert_eq!((info.token, info.note.as_deref()), (guard.token(), Some("second")));
    let waiting = other.new_lock("a").unwrap().enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    drop(guard);
    let theirs = waiting.wait().unwrap();
    // Between the two holders etcd had no state without one.
    assert_eq!(next(&observer).expect("it is held").token, theirs.token());
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert_eq!(next(&observer), None);
    let again = take(&manager.new_lock("a").unwrap());
    assert_eq!(next(&observer).expect("it is held").token, again.token());
    assert_eq!(observer.current().map(|info| info.token), Some(again.token()));
    let late = other.observe("a").unwrap();
    assert_eq!(next(&late).map(|info| info.token), Some(again.token()));
}

fn a_slow_observer_sees_the_last_state(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let observer = other.observe("a").unwrap();
    let lock = manager.new_lock("a").unwrap();
    for _ in 0..20 {
        take(&lock).unlock().unwrap();
    }
    let guard = take(&lock);
    wait_for(&observer, "the last holder", |info| {
        info.as_ref().is_some_and(|info| info.token == guard.token())
    });
    assert!(observer.changes().try_recv().is_err(), "there is nothing after it");
}

fn a_hundred_observers_share_the_reads_and_cost_nothing_once_dropped(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let observers: Vec<Observer> = (0..100).map(|_| other.observe("a").unwrap()).collect();
    assert!(observers.iter().all(|observer| next(observer).is_none()));
    let before = other.stats().rpcs.txn;
    let guard = take(&lock);
    assert!(observers.iter().all(|observer| next(observer).is_some_and(|info| info.token == guard.token())));
    let spent = other.stats().rpcs.txn - before;
    assert!(spent <= 3, "{spent} reads for a hundred observers");
    drop(observers);
    // The last message of the same thread was read before this answer.
    let last = other.observe("b").unwrap();
    let before = other.stats().rpcs.txn;
    for _ in 0..5 {
        take(&lock_of(&manager, "c")).unlock().unwrap();
    }
    drop(guard);
    take(&lock).unlock().unwrap();
    drop(last);
    assert_eq!(other.stats().rpcs.txn, before);
}

fn lock_of(manager: &etcd_lock::LockManager, key: &str) -> etcd_lock::DistributedLock {
    manager.new_lock(key).unwrap()
}

fn an_observer_survives_the_session_of_its_manager(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let observer = other.observe("a").unwrap();
    assert_eq!(next(&observer), None);
    backend.end_session(&other);
    let guard = take(&lock_of(&manager, "a"));
    assert_eq!(next(&observer).expect("it is held").token, guard.token());
    backend.end_session(&manager);
    assert_eq!(next(&observer), None);
    let own = take(&lock_of(&other, "a"));
    assert_eq!(next(&observer).expect("it is held").token, own.token());
}

fn a_queue_that_grows_costs_an_observer_no_reads(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let guard = take(&lock_of(&manager, "a"));
    let observer = manager.observe("a").unwrap();
    assert!(next(&observer).is_some());
    let before = manager.stats().rpcs.txn;
    for _ in 0..5 {
        let waiting = lock_of(&other, "a").enqueue().unwrap();
        backend.wait_for_contenders("a", 2);
        drop(waiting);
        backend.wait_for_contenders("a", 1);
    }
    // An event after all of those.
    guard.set_note("done").unwrap();
    assert_eq!(next(&observer).and_then(|info| info.note).as_deref(), Some("done"));
    let spent = manager.stats().rpcs.txn - before;
    assert!(spent <= 3, "the note, and a read of it: {spent}");
}

fn an_observer_ends_with_its_manager_and_with_itself(backend: &Backend) {
    let manager = backend.manager();
    let observer = manager.observe("a").unwrap();
    let dropped = manager.observe("a").unwrap();
    let changes = dropped.changes().clone();
    assert_eq!(changes.recv().unwrap(), None);
    drop(dropped);
    assert!(changes.recv_timeout(SOON).is_err());
    assert_eq!(next(&observer), None);
    manager.close().unwrap();
    assert!(observer.changes().recv_timeout(SOON).is_err());
    assert!(manager.observe("a").is_err());
}

fn an_observer_sees_what_changed_while_etcd_was_away(backend: &Backend) {
    let options = || LockManagerOptions::default().request_timeout(Duration::from_millis(500));
    let (manager, other) = (backend.manager_with(options()), backend.manager_with(options()));
    let observer = other.observe("a").unwrap();
    assert_eq!(next(&observer), None);
    backend.cut_off(&other);
    let waiting = lock_of(&manager, "a").enqueue().unwrap();
    backend.rejoin(&other);
    let guard = waiting.wait().unwrap();
    wait_for(&observer, "the holder", |info| info.as_ref().is_some_and(|info| info.token == guard.token()));
}

fn a_holder_learns_that_another_process_waits(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let guard = take(&lock_of(&manager, "a"));
    assert!(nothing_yet(guard.contended()));
    let _elsewhere = lock_of(&other, "b").enqueue().unwrap();
    let waiting = lock_of(&other, "a").enqueue().unwrap();
    assert!(is_told(guard.contended()));
    drop(waiting);
    backend.wait_for_contenders("a", 1);
    assert!(is_told(guard.contended()), "it stays so");
    guard.unlock().unwrap();
    let next = take(&lock_of(&manager, "a"));
    assert!(nothing_yet(next.contended()), "another hold");
}

fn a_holder_learns_that_a_thread_of_its_own_waits(backend: &Backend) {
    let manager = backend.manager();
    let lock = lock_of(&manager, "a");
    let guard = take(&lock);
    assert!(nothing_yet(guard.contended()));
    let before = manager.stats().rpcs.txn;
    let _waiting = lock.enqueue().unwrap();
    assert!(is_told(guard.contended()));
    assert!(manager.stats().rpcs.txn - before <= 1, "the read of the first use, at most");
}

fn a_holder_that_asks_late_learns_at_once(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let guard = take(&lock_of(&manager, "a"));
    let _theirs = lock_of(&other, "a").enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    assert!(is_told(guard.contended()));
    let guard = take(&lock_of(&manager, "b"));
    let _ours = lock_of(&manager, "b").enqueue().unwrap();
    wait_for_waiting(&manager, 1);
    assert!(is_told(guard.contended()));
}

fn each_holder_of_some_permits_learns_that_somebody_waits_for_one(backend: &Backend) {
    let managers = [(); 3].map(|()| backend.manager());
    let semaphore = |manager: &LockManager| manager.new_semaphore("a", 2).unwrap();
    let (first, second) = (take(&semaphore(&managers[0])), take(&semaphore(&managers[1])));
    assert!(nothing_yet(first.contended()) && nothing_yet(second.contended()), "each leaves room for one");
    let waiting = semaphore(&managers[2]).enqueue().unwrap();
    assert!(is_told(first.contended()) && is_told(second.contended()));
    drop(first);
    assert!(waiting.wait().unwrap().is_held());
}

fn a_reader_learns_of_a_writer_behind_it_and_not_of_readers_beside_it(backend: &Backend) {
    let (manager, other, third) = (backend.manager(), backend.manager(), backend.manager());
    let reader = |manager: &LockManager| manager.new_read_lock("a").unwrap();
    let guard = take(&reader(&manager));
    assert!(nothing_yet(guard.contended()));
    let beside = take(&reader(&other));
    backend.wait_for_contenders("a", 2);
    assert!(nothing_yet(guard.contended()));
    let late = take(&reader(&third));
    let _writer = lock_of(&other, "a").enqueue().unwrap();
    assert!(is_told(guard.contended()) && is_told(beside.contended()));
    // More of them than are read at once stand between the writer and the newest contender.
    let _behind: Vec<_> = (0..12).map(|_| reader(&manager).enqueue().unwrap()).collect();
    backend.wait_for_contenders("a", 16);
    assert!(is_told(late.contended()), "it asks only now");
}

fn a_try_is_no_contention(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let guard = take(&lock_of(&manager, "a"));
    assert!(nothing_yet(guard.contended()));
    for manager in [&manager, &other] {
        assert!(lock_of(manager, "a").try_lock().unwrap().is_none());
    }
    guard.set_note("not either").unwrap();
    assert!(nothing_yet(guard.contended()));
}

fn contention_ends_with_the_hold(backend: &Backend) {
    let manager = backend.manager();
    let contended = |guard: &etcd_lock::LockGuard| guard.contended().clone();
    let released = take(&lock_of(&manager, "a"));
    let channel = contended(&released);
    drop(released);
    assert!(disconnects(&channel));
    let lost = take(&lock_of(&manager, "a"));
    let channel = contended(&lost);
    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
    assert!(disconnects(&channel));
    assert!(disconnects(lost.contended()));
    // And with it the watch of the queue: what happens there costs this manager nothing any more.
    let other = backend.manager();
    eventually(SOON, "the queue is not read any more", || {
        let before = manager.stats().rpcs.txn;
        (0..5).for_each(|_| take(&lock_of(&other, "a")).unlock().unwrap());
        manager.stats().rpcs.txn == before
    });
}

fn a_leader_serves_until_it_is_stopped(backend: &Backend) {
    let (one, two) = (backend.manager_of("one"), backend.manager_of("two"));
    let leader = two.observe("a").unwrap();
    let (stop_one, stopped_one) = crossbeam_channel::bounded(1);
    let (stop_two, stopped_two) = crossbeam_channel::bounded::<()>(0);
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let lock = lock_of(&one, "a");
            lock.lead(&stopped_one, |term| assert!(disconnects(term.done())))
        });
        wait_for(&leader, "the first leads", |info| {
            info.as_ref().is_some_and(|info| info.owner.as_deref() == Some("one"))
        });
        let second =
            scope.spawn(|| lock_of(&two, "a").lead(&stopped_two, |term| assert!(disconnects(term.done()))));
        backend.wait_for_contenders("a", 2);
        stop_one.send(()).unwrap();
        wait_for(&leader, "the second leads", |info| {
            info.as_ref().is_some_and(|info| info.owner.as_deref() == Some("two"))
        });
        first.join().unwrap().unwrap();
        drop(stop_two);
        second.join().unwrap().unwrap();
    });
    backend.wait_for_contenders("a", 0);
}

fn a_leader_keeps_the_lock_until_its_term_returns(backend: &Backend) {
    let manager = backend.manager();
    let (stop, stopped) = crossbeam_channel::bounded(1);
    let mut held_at_the_end = false;
    lock_of(&manager, "a")
        .lead(&stopped, |term| {
            stop.send(()).unwrap();
            assert!(disconnects(term.done()));
            held_at_the_end =
                term.is_held() && manager.lock_info("a").unwrap().is_some() && term.loss().is_none();
        })
        .unwrap();
    assert!(held_at_the_end);
    assert!(manager.lock_info("a").unwrap().is_none());
}

fn a_lost_term_ends_and_another_follows(backend: &Backend) {
    let manager = backend.manager();
    let (stop, stopped) = crossbeam_channel::bounded(1);
    let (tell, told) = mpsc::channel();
    let mut terms = 0;
    lock_of(&manager, "a")
        .lead(&stopped, |term| {
            terms += 1;
            match terms {
                1 => {
                    manager.force_unlock("a", ForceUnlock::Lock).unwrap();
                    assert!(disconnects(term.done()));
                    tell.send(term.loss()).unwrap();
                }
                2 => {}
                _ => stop.send(()).unwrap(),
            }
        })
        .unwrap();
    assert_eq!(terms, 3);
    assert_eq!(told.recv().unwrap(), Some(etcd_lock::LossReason::ForceUnlocked));
}
